"""A real server in a thread: local runtime, hashed states, scripted model."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from qraf.actors.runtime import LocalRuntime
from qraf.gateway.server import Server
from qraf.network.loader import load
from qraf.sessions.service import Service
from qraf.settings import AuthSettings, GatewaySettings, Settings
from qraf.storage.journal import Journal
from tests.encoders import HashEncoder
from tests.openai_server import OpenAIServer

LAB = Path(__file__).parent.parent.parent / "topologies" / "lab.yaml"


async def _serve(
    model: OpenAIServer, data: Path, auth: AuthSettings, ready: threading.Event, stop: asyncio.Event, urls: list[str]
) -> None:
    settings = Settings(topology=LAB, data=data, gateway=GatewaySettings(port=0), auth=auth)
    topology = load(LAB)
    journal = Journal.open(settings.journal())
    runtime = LocalRuntime(
        topology, settings, journal, encoder=lambda: HashEncoder(topology.dim), endpoint=model.endpoint
    )
    service = Service(settings, topology, journal, runtime)
    server = Server(service, settings)
    try:
        await service.start()
        urls.append(await server.start())
        ready.set()
        await stop.wait()
    finally:
        await server.stop()
        await service.close()
        journal.close()
        ready.set()


@contextlib.contextmanager
def served(model: OpenAIServer, data: Path, mode: Literal["on", "off"] = "off") -> Iterator[str]:
    """Run the server for the block, `on`: with authentication; yields its url."""
    loop = asyncio.new_event_loop()
    ready, stop = threading.Event(), asyncio.Event()
    urls: list[str] = []
    auth = AuthSettings(mode=mode)
    thread = threading.Thread(target=lambda: loop.run_until_complete(_serve(model, data, auth, ready, stop, urls)))
    thread.start()
    try:
        ready.wait()
        assert urls, "the server did not start"
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
