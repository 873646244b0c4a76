"""A real server in a process of its own: `python -m tests.gateway.process MODEL_URL`; prints its URL, ends at Ctrl-C.

Settings come from the environment, as for `qraf serve`; the runtime is local and the encoder hashes words.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

from qraf.actors.runtime import LocalRuntime
from qraf.gateway.server import Server
from qraf.sessions.service import Service
from qraf.settings import AuthSettings, GatewaySettings, LimitSettings, Settings
from qraf.storage.journal import Journal
from qraf.text.generator import Endpoint
from tests.encoders import HashEncoder
from tests.gateway.conftest import topology


@contextlib.contextmanager
def served_apart(model_url: str, **limits: float) -> Iterator[tuple[str, int]]:
    """Run it for the block; yields its URL and its process id."""
    arguments = [f"{name}={value}" for name, value in limits.items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.gateway.process", model_url, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http"), "the server did not start"
        yield url, process.pid
    finally:
        process.send_signal(signal.SIGINT)
        try:
            code = process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert code == 0, f"the server ended with exit code {code}"


async def _serve(model_url: str, limits: dict[str, float]) -> None:
    settings = Settings(
        gateway=GatewaySettings(port=0),
        limits=LimitSettings(**limits),
        auth=AuthSettings(mode="off"),
        journal_url=os.environ.get("QRAF_JOURNAL_URL", "sqlite:///:memory:"),
    )
    network = topology()
    journal = Journal.open(settings.journal())
    runtime = LocalRuntime(
        network,
        settings,
        journal,
        encoder=lambda: HashEncoder(network.dim),
        endpoint=Endpoint(model_url, "scripted", ""),
    )
    service = Service(settings, network, journal, runtime)
    await service.start()
    server = Server(service, settings)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    print(await server.start(), flush=True)
    await stop.wait()
    await server.stop()
    await service.close()
    journal.close()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], {name: float(value) for name, value in (one.split("=") for one in sys.argv[2:])}))
