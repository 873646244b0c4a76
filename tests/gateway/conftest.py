"""A real service (local runtime, hashed words, scripted generator) behind a real server on a free port."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from qraf.actors.runtime import LocalRuntime
from qraf.gateway.server import Server
from qraf.network.topology import HostSpec, LinkSpec, NodeSpec, Topology
from qraf.sessions.service import Service
from qraf.settings import GatewaySettings, LimitSettings, Settings
from qraf.storage.journal import Journal
from tests.encoders import HashEncoder
from tests.gateway.wire import Wire
from tests.openai_server import OpenAIServer, Script


def topology() -> Topology:
    nodes = {
        "desk": NodeSpec("desk", "memory", "front", sessions=True),
        "shelf": NodeSpec("shelf", "memory", "front", collections=("manuals",)),
        "writer": NodeSpec("writer", "generator", model="scripted"),
    }
    links = (LinkSpec("desk", "shelf"), LinkSpec("desk", "writer"), LinkSpec("shelf", "writer"))
    return Topology("lab", {"front": HostSpec("front")}, nodes, links, "desk")


@contextlib.asynccontextmanager
async def serving(model: OpenAIServer, **limits: Any) -> AsyncIterator[Server]:
    settings = Settings(
        gateway=GatewaySettings(port=0), limits=LimitSettings(**limits), journal_url="sqlite:///:memory:"
    )
    journal = Journal.open(settings.journal())
    network = topology()
    runtime = LocalRuntime(
        network, settings, journal, encoder=lambda: HashEncoder(network.dim), endpoint=model.endpoint
    )
    service = Service(settings, network, journal, runtime)
    await service.start()
    server = Server(service, settings)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()
        await service.close()
        journal.close()


@pytest.fixture
def model():
    with OpenAIServer(Script(words=("Nuts", " are", " bad", " for", " Ann", "."), num_tokens=6)) as server:
        yield server


@pytest.fixture
async def server(model):
    async with serving(model) as server:
        yield server


@pytest.fixture
async def http(server):
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=10) as client:
        yield client


@pytest.fixture
async def wire(server):
    async with Wire(server.url) as wire:
        yield wire
