"""Two gateways over one journal: a response of the one is asked for at the other, running, ended, or of a dead one."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import qraf
from qraf.actors.runtime import LocalRuntime
from qraf.client.reconnect import Reconnect
from qraf.errors import ServerError
from qraf.frames import ResponseDone
from qraf.gateway.server import Server
from qraf.sessions.service import Service
from qraf.settings import AuthSettings, GatewaySettings, Settings
from qraf.storage.journal import Journal
from tests.cutting_proxy import cutting
from tests.encoders import HashEncoder
from tests.gateway.conftest import topology
from tests.gateway.test_resume import cut_off, resuming, text_of
from tests.gateway.test_stream import ENHANCE, eventually
from tests.gateway.wire import Wire
from tests.openai_server import OpenAIServer, Script

pytestmark = pytest.mark.slow  # whole services

QUICK = Reconnect(first_s=0.01, most_s=0.05)


@contextlib.asynccontextmanager
async def gateway(model: OpenAIServer, data: Path) -> AsyncIterator[Server]:
    settings = Settings(data=data, gateway=GatewaySettings(port=0), auth=AuthSettings(mode="off"))
    journal, network = Journal.open(settings.journal()), topology()
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


@contextlib.asynccontextmanager
async def two(model: OpenAIServer, data: Path) -> AsyncIterator[tuple[Server, Server]]:
    async with gateway(model, data) as one, gateway(model, data) as other:
        yield one, other


def die(server: Server) -> None:
    """What the journal and the other gateways see of a kill -9: nothing more is written, and the file is not locked."""
    ledger = server.service.ledger
    for task in ledger._tasks:
        task.cancel()
    ledger._tasks.clear()
    assert ledger._life is not None
    os.close(ledger._life._handle)
    ledger._life._handle = -1


async def noted(server: Server, response: str, status: str) -> None:
    table = server.service.journal.responses
    await eventually(lambda: (found := table.find("default", response)) is not None and found.status == status)


async def get(server: Server, response: str) -> tuple[int, dict[str, Any]]:
    async with httpx.AsyncClient(base_url=server.url, trust_env=False) as http:
        got = await http.get(f"/v1/responses/{response}")
        return got.status_code, got.json()


async def test_what_ended_on_one_gateway_is_told_by_the_other(model, tmp_path) -> None:
    model.script = Script(num_tokens=60, tokens_per_s=200)
    async with two(model, tmp_path) as (one, other):
        seen = await cut_off(one, model)
        response = seen[0]["response"]
        await noted(one, response, "completed")
        async with resuming(other, seen[0], seen[-1]["seq"]) as (wire, resumed):
            assert (resumed["result"], resumed["epoch"]) == ("gap", seen[0]["epoch"])
            [done] = await wire.until("response.done")
            status, told = await get(other, response)
            assert (status, told["status"], told["text"]) == (200, "completed", model.script.text(60))
            assert told["seq"] == done["seq"] > seen[-1]["seq"]
            assert done["usage"] == told["usage"]
        async with resuming(other, seen[0], done["seq"]) as (_, resumed):
            assert resumed["result"] == "done"
        async with httpx.AsyncClient(base_url=other.url, trust_env=False) as http:
            events = f"/v1/responses/{response}/events"
            last = await http.get(events, headers={"Last-Event-ID": str(done["seq"] - 1)})
            assert last.text.startswith(f"event: response.done\nid: {done['seq']}\ndata: {{")
            statuses = [(await http.get(f"{events}?after_seq={seq}")).status_code for seq in (1, done["seq"])]
            assert statuses == [410, 204]
        again = ENHANCE | {"generate": {"max_tokens": 2000}, "key": "k", "again": True}
        async with Wire(other.url) as wire:
            await wire.send(again)
            assert text_of(await wire.until("response.done")) == model.script.text(60)


async def test_a_response_whose_gateway_died_has_failed_once_and_for_everybody(model, tmp_path) -> None:
    model.script = Script(num_tokens=2000, tokens_per_s=100)
    async with two(model, tmp_path) as (one, other):
        seen = await cut_off(one, model)
        response, last = seen[0]["response"], seen[-1]["seq"]
        await noted(one, response, "running")
        die(one)
        async with resuming(other, seen[0], last) as (wire, resumed):
            assert resumed["result"] == "replayed"
            [done] = await wire.until("response.done")
            assert (done["seq"], done["status"], done["finish_reason"]) == (last + 1, "failed", "error")
            assert (done["error"]["code"], done["error"]["retryable"]) == ("gateway_lost", True)
            assert (await wire.ask({"type": "ping", "id": "p"}))["type"] == "pong"  # and nothing more
        status, told = await get(other, response)
        assert (status, told["status"], told["error"]["code"]) == (200, "failed", "gateway_lost")
        assert other.service.journal.responses.gateways()[0].epoch == other.service.responses.epoch


async def test_what_another_gateway_runs_can_be_awaited_and_cancelled(model, tmp_path) -> None:
    model.script = Script(num_tokens=2000, tokens_per_s=100)
    async with two(model, tmp_path) as (one, other):
        seen = await cut_off(one, model)
        response = seen[0]["response"]
        await noted(one, response, "running")
        async with resuming(other, seen[0], seen[-1]["seq"]) as (wire, resumed):
            assert resumed["result"] == "elsewhere"
            status, problem = await get(other, response)
            assert (status, problem["code"], problem["retryable"]) == (503, "runs_elsewhere", True)
            assert one.service.ledger.name in problem["detail"]
            ack = await wire.ask({"type": "cancel", "id": "c", "target": response})
            assert ack["status"] == "accepted"
        await noted(one, response, "cancelled")
        assert (await get(other, response))[1]["status"] == "cancelled"
        assert model.running == 0
        seen = await cut_off(one, model)
        await noted(one, seen[0]["response"], "running")
        async with httpx.AsyncClient(base_url=other.url, trust_env=False) as http:
            cancelled = await http.post(f"/v1/responses/{seen[0]['response']}/cancel")
        assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")


async def test_one_that_is_awaited_at_another_gateway_is_not_taken_for_left(model, tmp_path) -> None:
    model.script = Script(num_tokens=2000, tokens_per_s=100)
    async with two(model, tmp_path) as (one, other):
        seen = await cut_off(one, model)
        running = one.service.response(seen[0]["response"])
        await eventually(lambda: running.left_at is not None)
        running.left_at -= 50.0
        left_at = running.left_at
        await noted(one, running.id, "running")
        assert (await get(other, running.id))[0] == 503
        await eventually(lambda: running.left_at > left_at + 40)
        running.cancel()


@pytest.mark.parametrize("fate", ["lives", "dies"])
async def test_the_client_goes_on_at_the_other_gateway(model, tmp_path, fate: str) -> None:
    model.script = Script(num_tokens=120, tokens_per_s=150)
    async with (
        two(model, tmp_path) as (one, other),
        cutting(one.url) as proxy,
        qraf.connect(proxy.url, reconnect=QUICK) as q,
    ):
        response = q.enhance("what is there?", collections=["manuals"], generate={"max_tokens": 120})
        ends = 0
        async for frame in response:
            ends += isinstance(frame, ResponseDone)
            if len(response.text) > 40 and not q.reconnects and not proxy.cuts:
                await noted(one, response.id, "running")
                if fate == "dies":
                    die(one)
                proxy.lead_to(other.url)
                proxy.cut()
        assert ends == 1
        assert response.done is not None
        if fate == "lives":
            assert (response.done.status, response.text) == ("incomplete", model.script.text(120))
            assert response.done.usage.completion_tokens == 120
        else:
            assert response.done.error is not None
            assert (response.done.status, response.done.error.code) == ("failed", "gateway_lost")
            assert response.done.error.retryable
        await q.ping()


async def test_a_command_whose_answer_was_lost_leads_to_the_same_response_at_the_other_gateway(model, tmp_path) -> None:
    model.script = Script(num_tokens=100, tokens_per_s=200)
    before = len(model.requests)
    left = iter([1])  # the welcome goes through, `response.created` does not
    async with two(model, tmp_path) as (one, other), cutting(one.url, lambda: next(left, None)) as proxy:
        async with qraf.connect(proxy.url, reconnect=Reconnect(first_s=0.5, most_s=0.5)) as q:
            response = q.enhance("what is there?", collections=["manuals"], generate={"max_tokens": 100})
            reading = asyncio.create_task(response.result())
            await eventually(lambda: proxy.cuts == 1)
            proxy.lead_to(other.url)
            [begun] = one.service.responses.all_running()
            await noted(one, begun.id, "running")
            done = await reading
            assert (done.status, response.id, response.text) == ("incomplete", begun.id, model.script.text(100))
        assert len(model.requests) == before + 1
        assert not other.service.responses.all_running()


async def test_where_the_journal_does_not_answer_a_client_comes_back_later(model, tmp_path) -> None:
    model.script = Script(num_tokens=2000, tokens_per_s=100)
    async with two(model, tmp_path) as (one, other):
        seen = await cut_off(one, model)
        await noted(one, seen[0]["response"], "running")
        die(one)
        table, find = other.service.journal.responses, other.service.journal.responses.find

        def away(*_: Any) -> None:
            raise qraf.errors.StorageFailed("read response", "away", 1000)

        table.find = away  # type: ignore[method-assign]
        async with Wire(other.url, hello=False) as wire:
            one_of = {"stream": seen[0]["stream"], "epoch": seen[0]["epoch"], "after_seq": seen[-1]["seq"]}
            refused = await wire.ask({"type": "hello", "resume": [one_of]})
            assert (refused["error"]["code"], refused["error"]["retryable"]) == ("storage_failed", True)
            assert await wire.closed() == 1013
        table.find = find  # type: ignore[method-assign]
        async with resuming(other, seen[0], seen[-1]["seq"]) as (wire, _):
            assert (await wire.until("response.done"))[-1]["status"] == "failed"
        with pytest.raises(ServerError, match="no response"):
            async with qraf.connect(other.url) as q:
                await q.response("rsp_nobody")


async def test_a_response_that_is_erased_while_it_is_awaited_elsewhere_ends_as_failed(model, tmp_path) -> None:
    model.script = Script(num_tokens=2000, tokens_per_s=100)
    async with (
        two(model, tmp_path) as (one, other),
        cutting(one.url) as proxy,
        qraf.connect(proxy.url, reconnect=QUICK) as q,
    ):
        await q.open_session("ann")
        response = q.enhance("what is there?", session="ann", generate={"max_tokens": 2000})
        reading = asyncio.create_task(response.result())
        await eventually(lambda: len(response.text) > 10)
        await noted(one, response.id, "running")
        proxy.lead_to(other.url)
        proxy.cut()
        await eventually(lambda: q.reconnects == 1)
        await asyncio.sleep(0.1)
        assert not reading.done()
        await q.sessions.delete("ann")
        with pytest.raises(ServerError, match="no server has this response any more") as failed:
            await reading
        assert failed.value.can_retry
