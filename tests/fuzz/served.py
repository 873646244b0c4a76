"""A real server on a free port, in a thread with a loop of its own: for callers that block."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jwt

from qraf.actors.runtime import LocalRuntime
from qraf.gateway.server import Server
from qraf.sessions.service import Service
from qraf.settings import AuthSettings, GatewaySettings, JwtSettings, Settings
from qraf.storage.journal import Journal
from tests.encoders import HashEncoder
from tests.gateway.conftest import topology
from tests.openai_server import OpenAIServer

SECRET = "a secret of thirty-two bytes, at the very least"


@dataclass
class Served:
    """A server that asks who comes in, and a token of an admin: a key might be revoked by whoever tries everything."""

    server: Server
    key: str


@contextlib.contextmanager
def served(model: OpenAIServer, data: Path) -> Iterator[Served]:
    ready = threading.Event()
    made: list[Served] = []
    faults: list[BaseException] = []
    stop: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def live() -> None:
        tokens = JwtSettings(secret=SECRET, audience="qraf", issuer="fuzz")  # type: ignore[arg-type]
        settings = Settings(
            data=data,
            gateway=GatewaySettings(port=0),
            auth=AuthSettings(jwt=tokens),
            journal_url="sqlite:///:memory:",
        )
        journal = Journal.open(settings.journal())
        network = topology()
        runtime = LocalRuntime(
            network, settings, journal, encoder=lambda: HashEncoder(network.dim), endpoint=model.endpoint
        )
        service = Service(settings, network, journal, runtime)
        await service.start()
        server = Server(service, settings)
        claims = {"sub": "fuzz", "aud": "qraf", "iss": "fuzz", "exp": time.time() + 3600, "role": "admin"}
        key = jwt.encode(claims | {"tenant": "default"}, SECRET, algorithm="HS256")
        await server.start()
        over = asyncio.Event()
        stop.append((asyncio.get_running_loop(), over))
        made.append(Served(server, key))
        ready.set()
        try:
            await over.wait()
        finally:
            await server.stop()
            await service.close()
            journal.close()

    def run() -> None:
        try:
            asyncio.run(live())
        except BaseException as fault:
            faults.append(fault)
            ready.set()

    thread = threading.Thread(target=run, name="served")
    thread.start()
    ready.wait()
    if faults:
        raise faults[0]
    try:
        yield made[0]
    finally:
        loop, over = stop[0]
        loop.call_soon_threadsafe(over.set)
        thread.join()
        if faults:
            raise faults[0]
