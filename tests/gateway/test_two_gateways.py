"""Two gateways over one journal: a response of the one is asked for at the other, running, ended, or of a dead one."""

from __future__ import annotations

import asyncio
import contextlib
import json
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
from qraf.frames import ResponseCreated, ResponseDelta, ResponseDone
from qraf.gateway.server import Server
from qraf.sessions import following, ledger
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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What gateways tell each other once a second they tell ten times a second."""
    monkeypatch.setattr(ledger, "_LOOK_S", 0.1)
    monkeypatch.setattr(following, "_LOOK_S", 0.05)
    monkeypatch.setattr(following, "_FIRST_LOOK_S", 0.05)


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


def told(frames: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Frames without what the framing may leave out."""
    return [{key: value for key, value in frame.items() if value is not None} for frame in frames]


async def test_a_socket_that_moves_to_another_gateway_gets_the_very_frames_that_it_missed(
    model, tmp_path, quick
) -> None:
    model.script = Script(num_tokens=300, tokens_per_s=100)
    async with two(model, tmp_path) as (one, other):
        seen = await cut_off(one, model)
        response, last = seen[0]["response"], seen[-1]["seq"]
        await noted(one, response, "running")
        async with resuming(other, seen[0], last) as (wire, resumed):
            assert (resumed["result"], resumed["epoch"]) == ("replayed", seen[0]["epoch"])
            status, told_now = await get(other, response)
            assert (status, told_now["status"], told_now["epoch"]) == (200, "running", seen[0]["epoch"])
            assert model.script.text(300).startswith(told_now["text"])
            assert told_now["text"].startswith(text_of(seen))
            assert told_now["seq"] >= last
            more = await wire.until("response.done")
            assert (await wire.ask({"type": "ping", "id": "p"}))["type"] == "pong"  # and nothing more
        assert [frame["seq"] for frame in more] == list(range(last + 1, last + 1 + len(more)))
        assert text_of(seen + more) == model.script.text(300)
        assert sum(frame["type"] == "response.delta" for frame in more) > 3  # not in one piece at the end
        assert (more[-1]["status"], more[-1]["usage"]["completion_tokens"]) == ("completed", 300)
        async with resuming(one, seen[0], last) as (wire, resumed):  # where it ran they are the same
            assert told(await wire.until("response.done")) == told(more)
        assert (await get(other, response))[1] == (await get(one, response))[1]
        assert not other.service.ledger._following._all


async def test_a_gap_over_another_gateway_is_filled_as_the_protocol_says(model, tmp_path, quick, monkeypatch) -> None:
    """By a client that knows nothing else: the text up to `seq`, no delta up to `seq`, then those after."""
    model.script = Script(num_tokens=400, tokens_per_s=100)
    async with two(model, tmp_path) as (one, other):
        seen = await cut_off(one, model, until=2)
        await eventually(lambda: model.produced > 60)
        one.service.responses.find(seen[0]["response"]).snapshot()
        await noted(one, seen[0]["response"], "running")
        monkeypatch.setattr(ledger, "_MOST_FRAMES", 400)  # a few frames
        async with resuming(other, seen[0], 1) as (wire, resumed):
            assert resumed["result"] == "gap"
            monkeypatch.undo()
            _, now = await get(other, seen[0]["response"])
            more = await wire.until("response.done")
        after = [frame for frame in more if frame["seq"] > now["seq"]]
        assert [frame["seq"] for frame in after] == list(range(now["seq"] + 1, more[-1]["seq"] + 1))
        assert now["text"] + text_of(after) == model.script.text(400)


async def test_over_another_gateway_a_response_is_cancelled_and_read_as_events(model, tmp_path, quick) -> None:
    model.script = Script(num_tokens=2000, tokens_per_s=100)
    async with two(model, tmp_path) as (one, other), httpx.AsyncClient(base_url=other.url, trust_env=False) as http:
        seen = await cut_off(one, model)
        response = seen[0]["response"]
        await noted(one, response, "running")
        async with resuming(other, seen[0], seen[-1]["seq"]) as (wire, resumed):
            assert resumed["result"] == "replayed"
            ack = await wire.until("response.delta")
            assert (await get(other, response))[0] == 200
            await wire.send({"type": "cancel", "id": "c", "target": response})
            frames = ack + await wire.until("response.done")
            assert [frame["status"] for frame in frames if frame["type"] == "ack"] == ["accepted"]
            assert (frames[-1]["status"], frames[-1]["finish_reason"]) == ("cancelled", "cancelled")
        assert model.running == 0
        for follow in (False, True):
            seen = await cut_off(one, model)
            response = seen[0]["response"]
            await noted(one, response, "running")
            if follow:
                assert (await get(other, response))[0] == 200
            cancelled = await http.post(f"/v1/responses/{response}/cancel")
            assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
        model.script = Script(num_tokens=300, tokens_per_s=100)
        seen = await cut_off(one, model)
        await noted(one, seen[0]["response"], "running")
        last = {"Last-Event-ID": str(seen[-1]["seq"])}
        events = (await http.get(f"/v1/responses/{seen[0]['response']}/events", headers=last)).text
        datas = [json.loads(line.removeprefix("data: ")) for line in events.splitlines() if line.startswith("data: ")]
        assert [frame["seq"] for frame in datas] == list(range(seen[-1]["seq"] + 1, datas[-1]["seq"] + 1))
        assert text_of(seen + datas) == model.script.text(300)


async def test_events_over_a_gateway_that_can_follow_no_more_break_off_and_go_on(model, tmp_path, quick) -> None:
    model.script = Script(num_tokens=400, tokens_per_s=100)
    async with two(model, tmp_path) as (one, other), httpx.AsyncClient(base_url=other.url, trust_env=False) as http:
        seen = await cut_off(one, model)
        await noted(one, seen[0]["response"], "running")
        frames = seen
        for _ in range(2):
            last = {"Last-Event-ID": str(frames[-1]["seq"])}
            async with http.stream("GET", f"/v1/responses/{seen[0]['response']}/events", headers=last) as events:
                async for line in events.aiter_lines():
                    if line.startswith("data: "):
                        frames.append(json.loads(line.removeprefix("data: ")))
                        if len(text_of(frames)) > 100:
                            other.service.ledger._following.close()
            assert frames[-1]["type"] != "goodbye"  # after which nobody would come back
            if frames[-1]["type"] == "response.done":
                break
        while frames[-1]["type"] != "response.done":
            last = {"Last-Event-ID": str(frames[-1]["seq"])}
            rest = (await http.get(f"/v1/responses/{seen[0]['response']}/events", headers=last)).text
            frames += [json.loads(line[6:]) for line in rest.splitlines() if line.startswith("data: ")]
        assert [frame["seq"] for frame in frames] == list(range(1, len(frames) + 1))
        assert text_of(frames) == model.script.text(400)


async def test_a_request_with_a_key_is_answered_by_another_gateway_as_a_whole(model, tmp_path, quick) -> None:
    model.script = Script(num_tokens=240, tokens_per_s=100)
    body = {"prompt": "p", "collections": ["manuals"], "key": "k1", "generate": {"max_tokens": 240}}
    async with two(model, tmp_path) as (one, other), httpx.AsyncClient(trust_env=False, timeout=30) as http:
        first = asyncio.create_task(http.post(f"{one.url}/v1/enhance", json=body))
        await eventually(lambda: bool(one.service.responses.all_running()))
        await noted(one, one.service.responses.all_running()[0].id, "running")
        again = (await http.post(f"{other.url}/v1/enhance", json=body)).json()
        assert (again["text"], len(again["hops"])) == (model.script.text(240), 1)
        assert again == (await first).json()


async def test_a_response_whose_gateway_dies_while_another_one_follows_it_ends_once_and_keeps_its_text(
    model, tmp_path, quick
) -> None:
    model.script = Script(num_tokens=2000, tokens_per_s=100)
    async with two(model, tmp_path) as (one, other):
        seen = await cut_off(one, model)
        await noted(one, seen[0]["response"], "running")
        async with resuming(other, seen[0], seen[-1]["seq"]) as (wire, resumed):
            assert resumed["result"] == "replayed"
            more = await wire.until("response.delta")
            die(one)
            more += await wire.until("response.done")
        assert [frame["seq"] for frame in more] == list(range(more[0]["seq"], more[0]["seq"] + len(more)))
        assert (more[-1]["status"], more[-1]["error"]["code"]) == ("failed", "gateway_lost")
        _, now = await get(other, seen[0]["response"])
        assert (now["text"], now["seq"], now["status"]) == (text_of(seen + more), more[-1]["seq"], "failed")
        further = more[-1]["seq"] + 7  # a reader at the one that died may have been there
        async with resuming(other, seen[0], further) as (wire, resumed):
            assert resumed["result"] == "replayed"
            [done] = await wire.until("response.done")
            assert (done["seq"], done["error"]["code"]) == (further + 1, "gateway_lost")
        async with resuming(other, seen[0], further + 1) as (_, resumed):
            assert resumed["result"] == "done"
        async with gateway(model, tmp_path) as third:  # and one that never heard of it
            assert (await get(third, seen[0]["response"]))[1]["text"] == now["text"]
            async with resuming(third, seen[0], seen[-1]["seq"]) as (wire, resumed):
                assert resumed["result"] == "replayed"
                assert told(await wire.until("response.done")) == told(more)


async def test_where_its_gateway_tells_nothing_a_response_is_elsewhere_until_it_has_ended(
    model, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(ledger, "_PATIENCE_S", 0.3)
    model.script = Script(num_tokens=400, tokens_per_s=100)
    async with (
        two(model, tmp_path) as (one, other),
        cutting(one.url) as proxy,
        qraf.connect(proxy.url, reconnect=QUICK) as q,
    ):

        async def nothing(_: object) -> None:
            pass

        monkeypatch.setattr(one.service.ledger, "_tell", nothing)
        response = q.enhance("what is there?", collections=["manuals"], generate={"max_tokens": 400})
        async for _ in response:
            if len(response.text) > 40 and not proxy.cuts:
                await noted(one, response.id, "running")
                proxy.lead_to(other.url)
                proxy.cut()
                status, problem = await get(other, response.id)
                assert (status, problem["code"], problem["retryable"]) == (503, "runs_elsewhere", True)
                assert one.service.ledger.name in problem["detail"]
        assert (response.text, response.gaps) == (model.script.text(400), 1)
        assert response.done is not None
        assert response.done.usage.completion_tokens == 400


async def test_one_that_is_awaited_at_another_gateway_is_not_taken_for_left(model, tmp_path, quick) -> None:
    model.script = Script(num_tokens=2000, tokens_per_s=100)
    async with two(model, tmp_path) as (one, other):
        seen = await cut_off(one, model)
        running = one.service.responses.find(seen[0]["response"])
        await eventually(lambda: running.left_at is not None)
        running.left_at -= 50.0
        left_at = running.left_at
        await noted(one, running.id, "running")
        assert (await get(other, running.id))[0] == 200
        assert running.left_at > left_at + 40
        followed = other.service.responses.find(running.id)
        assert followed.is_elsewhere
        followed.left_at -= 20.0  # nobody asks for it any more
        await eventually(lambda: other.service.responses.find(running.id) is None)
        assert not running.has_ended
        running.cancel()


@pytest.mark.parametrize("fate", ["lives", "dies"])
async def test_the_client_goes_on_at_the_other_gateway(model, tmp_path, quick, fate: str) -> None:
    model.script = Script(num_tokens=300, tokens_per_s=100)
    async with (
        two(model, tmp_path) as (one, other),
        cutting(one.url) as proxy,
        qraf.connect(proxy.url, reconnect=QUICK) as q,
    ):
        response = q.enhance("what is there?", collections=["manuals"], generate={"max_tokens": 300})
        frames, moved = [], 0
        async for frame in response:
            frames.append(frame)
            if len(response.text) > 40 and not q.reconnects and not proxy.cuts:
                await noted(one, response.id, "running")
                if fate == "dies":
                    die(one)
                proxy.lead_to(other.url)
                proxy.cut()
            moved += bool(q.reconnects) and isinstance(frame, ResponseDelta)
        assert [type(frame) for frame in frames].count(ResponseDone) == 1
        assert [frame.seq for frame in frames] == list(range(1, len(frames) + 1))
        assert response.done is not None
        if fate == "lives":
            assert (response.done.status, response.text) == ("incomplete", model.script.text(300))
            assert response.done.usage.completion_tokens == 300
            assert (response.gaps, len(response.hops), response.route is None) == (0, 1, False)
            assert moved >= 2  # in pieces while it runs
        else:
            assert response.done.error is not None
            assert (response.done.status, response.done.error.code) == ("failed", "gateway_lost")
            assert response.done.error.retryable
        await q.ping()


async def test_a_client_that_is_led_there_and_back_sees_one_text(model, tmp_path, quick) -> None:
    """Over the gateway that runs it, one that follows it, one that is stopped while it does, and the first again."""
    model.script = Script(num_tokens=400, tokens_per_s=100)
    async with (
        two(model, tmp_path) as (one, other),
        cutting(one.url) as proxy,
        qraf.connect(proxy.url, reconnect=QUICK) as q,
    ):
        response = q.enhance("what is there?", collections=["manuals"], generate={"max_tokens": 400})
        seqs, places = [], iter([other.url, one.url, other.url, "stop"])
        next_at = 100
        async for frame in response:
            seqs.append(frame.seq)
            if len(response.text) > next_at and (place := next(places, None)) is not None:
                next_at += 300
                await noted(one, response.id, "running")
                if place == "stop":
                    proxy.lead_to(one.url)
                    stopping = asyncio.create_task(other.stop())
                else:
                    proxy.lead_to(place)
                    proxy.cut()
        await stopping
        assert q.reconnects == 4
        assert seqs == list(range(1, len(seqs) + 1))
        assert (response.text, response.gaps) == (model.script.text(400), 0)


async def test_what_nobody_had_heard_of_when_its_gateway_died_is_begun_again_unasked(model, tmp_path) -> None:
    model.script = Script(num_tokens=50, tokens_per_s=200, delay_s=0.3)
    async with (
        two(model, tmp_path) as (one, other),
        cutting(one.url) as proxy,
        qraf.connect(proxy.url, reconnect=QUICK) as q,
    ):
        die(one)  # nothing that it begins from now on is noted
        response = q.enhance("what is there?", collections=["manuals"], generate={"max_tokens": 50})
        kinds, first = [], ""
        async for frame in response:
            kinds.append(type(frame))
            if not proxy.cuts:
                first = response.id
                proxy.lead_to(other.url)
                proxy.cut()
        assert (kinds.count(ResponseCreated), kinds.count(ResponseDone)) == (1, 1)
        assert response.done is not None
        assert (response.done.status, response.text) == ("incomplete", model.script.text(50))
        assert response.id != first
        assert len(response.hops) == 1


async def test_what_nobody_had_heard_of_and_had_said_something_ends_as_failed(model, tmp_path) -> None:
    model.script = Script(num_tokens=2000, tokens_per_s=100)
    async with (
        two(model, tmp_path) as (one, other),
        cutting(one.url) as proxy,
        qraf.connect(proxy.url, reconnect=QUICK) as q,
    ):
        die(one)
        response = q.enhance("what is there?", collections=["manuals"], generate={"max_tokens": 2000})
        async for _ in response:
            if response.text and not proxy.cuts:
                proxy.lead_to(other.url)
                proxy.cut()
        assert response.done is not None
        assert response.done.error is not None
        assert (response.done.error.code, response.done.error.retryable) == ("replay_gone", True)
        assert model.script.text(2000).startswith(response.text)


async def test_over_http_what_nobody_had_heard_of_is_told_so_and_begun_anew(model, tmp_path) -> None:
    model.script = Script(num_tokens=5)
    body = {"prompt": "p", "collections": ["manuals"], "key": "k1", "stream": True, "generate": {"max_tokens": 5}}
    async with gateway(model, tmp_path) as other, httpx.AsyncClient(base_url=other.url, trust_env=False) as http:
        gone = await http.post("/v1/enhance", json=body, headers={"Last-Event-ID": "1"})
        assert (gone.status_code, gone.json()["code"]) == (410, "replay_gone")
        assert (await http.get("/v1/responses/str_x/events", headers={"Last-Event-ID": "1"})).status_code == 404
        anew = await http.post("/v1/enhance", json=body)
        assert (anew.status_code, anew.text.count("event: response.done")) == (200, 1)


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
