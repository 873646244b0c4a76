"""A real service (local runtime, hashed words, scripted generator) behind a real server on a free port."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from pytest_asyncio import is_async_test

from qraf.actors.runtime import LocalRuntime
from qraf.gateway.server import Server
from qraf.network.topology import HostSpec, LinkSpec, NodeSpec, Topology
from qraf.sessions.service import Service
from qraf.settings import AuthSettings, GatewaySettings, LimitSettings, Settings
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
        gateway=GatewaySettings(port=0),
        auth=AuthSettings(mode="off"),
        limits=LimitSettings(**limits),
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
    try:
        await server.start()
        yield server
    finally:
        await server.stop()
        await service.close()
        journal.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The async tests of a module share its loop, and so its server; a server costs a third of a second.

    So those with one are slow; `make quick` does with the conversation.
    """
    for item in items:
        if "gateway" in item.path.parts and is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="module"), append=False)
            fixtures = getattr(item, "fixturenames", ())
            if {"models", "model"} & set(fixtures) and item.path.name != "test_conversation.py":
                item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def models():
    with OpenAIServer() as server:
        yield server


@pytest.fixture
def model(models):
    """The model of the module's server, with its first words again."""
    models.script = Script(words=("Nuts", " are", " bad", " for", " Ann", "."), num_tokens=6)
    models.produced = 0
    return models


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(models):
    async with serving(models) as server:
        yield server


@pytest.fixture
def server(servers, model):
    return servers


@pytest_asyncio.fixture(loop_scope="module")
async def http(server):
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=10) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def wire(server):
    async with Wire(server.url) as wire:
        yield wire
