"""Draining and starting, in process: what is refused, what goes on, and for how long."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest

from qraf.actors.runtime import LocalRuntime
from qraf.gateway.server import Server
from qraf.sessions.service import Service
from qraf.settings import AuthSettings, GatewaySettings, Settings
from qraf.storage.journal import Journal
from tests.encoders import HashEncoder
from tests.gateway.conftest import serving, topology
from tests.gateway.wire import Wire
from tests.openai_server import Script

ENHANCE = {"type": "enhance", "id": "e", "prompt": "Say something."}
WRITE = {"type": "write", "id": "w", "collection": "manuals", "items": [{"text": "Press the button."}]}


def within(server: Server, drain_s: float) -> None:
    gateway = server.settings.gateway.model_copy(update={"drain_s": drain_s})
    server.settings = server.settings.model_copy(update={"gateway": gateway})


async def test_what_takes_longer_than_the_bound_is_cut(model) -> None:
    model.script = Script(num_tokens=2000, tokens_per_s=40)
    async with serving(model) as server, Wire(server.url) as wire:
        within(server, 0.5)
        await wire.send(ENHANCE)
        await wire.until("response.delta")
        begun = time.monotonic()
        await server.drain()
        assert 0.5 <= time.monotonic() - begun < 10  # of fifty seconds
        stopping = asyncio.create_task(server.stop())
        frames = await wire.until("goodbye")
        assert [frame["status"] for frame in frames if frame["type"] == "response.done"] == ["cancelled"]
        await stopping


async def test_a_reader_over_http_gets_the_whole_response(model) -> None:
    model.script = Script(num_tokens=20, tokens_per_s=40)
    async with serving(model) as server, httpx.AsyncClient(base_url=server.url, trust_env=False) as http:
        asked = asyncio.create_task(http.post("/v1/enhance", json={"prompt": "Say something.", "collections": None}))
        while not server.service.responses.running():
            await asyncio.sleep(0.01)
        await server.drain()
        await server.stop()
        answer = await asked
        assert (answer.json()["status"], answer.json()["text"]) == ("completed", model.script.text(20))


async def test_nothing_unread_is_waited_for(model) -> None:
    model.script = Script(num_tokens=2000, tokens_per_s=40)
    async with serving(model) as server:
        async with Wire(server.url) as wire:
            await wire.send(ENHANCE)
            await wire.until("response.delta")
        while server.app.state.gate.sockets.outboxes:
            await asyncio.sleep(0.01)
        assert server.service.responses.running() == 1
        begun = time.monotonic()
        await server.drain()
        assert time.monotonic() - begun < 8  # of fifteen seconds


@pytest.mark.parametrize("frame", [ENHANCE, WRITE, {"type": "session.open", "id": "s"}], ids=lambda f: f["type"])
async def test_commands_are_refused_while_draining(model, frame) -> None:
    async with serving(model) as server, Wire(server.url) as wire:
        server.service.drain()
        error = await wire.ask(frame)
        assert error["error"] | {"detail": ""} == {
            "code": "not_ready",
            "title": "Not ready",
            "detail": "",
            "pointer": "",
            "retryable": True,
            "retry_after_ms": 1000,
        }
        assert (await wire.ask({"type": "ping", "id": "p"}))["type"] == "pong"


async def test_a_server_that_starts_is_alive_but_not_ready(model) -> None:
    settings = Settings(
        gateway=GatewaySettings(port=0), auth=AuthSettings(mode="off"), journal_url="sqlite:///:memory:"
    )
    journal = Journal.open(settings.journal())
    network = topology()
    runtime = LocalRuntime(
        network, settings, journal, encoder=lambda: HashEncoder(network.dim), endpoint=model.endpoint
    )
    service = Service(settings, network, journal, runtime)
    server = Server(service, settings)
    url = await server.start()
    try:
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
            assert (await http.get("/health/live")).status_code == 200
            ready = await http.get("/health/ready")
            assert (ready.status_code, ready.json()["degraded"][0]["what"]) == (503, "server")
            refused = await http.get("/v1/sessions")
            assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
            async with Wire(url, hello=False) as wire:
                assert await wire.closed() == 1013
            await service.start()
            assert (await http.get("/health/ready")).status_code == 200
            assert (await http.get("/v1/sessions")).status_code == 200
    finally:
        await server.stop()
        await service.close()
        journal.close()
