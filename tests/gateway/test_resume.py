"""Coming back: over a new socket or over HTTP, to what was missed, to a gap, or to an end."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from qraf.gateway.server import Server
from tests.gateway.conftest import serving
from tests.gateway.test_stream import ENHANCE, Deaf, eventually, slow
from tests.gateway.wire import Wire
from tests.openai_server import Script

pytestmark = pytest.mark.slow  # a whole service, or processes

Frame = dict[str, Any]


@contextlib.asynccontextmanager
async def resuming(server: Server, created: Frame, after_seq: int, **change: Any) -> AsyncIterator[tuple[Wire, Frame]]:
    """A new connection that goes on with a stream; gives what became of it."""
    one = {"stream": created["stream"], "epoch": created["epoch"], "after_seq": after_seq} | change
    async with Wire(server.url, hello=False, max_size=None) as wire:
        welcome = await wire.ask({"type": "hello", "resume": [one]})
        assert welcome["type"] == "welcome", welcome
        yield wire, welcome["resumed"][0]


async def cut_off(server: Server, model: Any, until: int = 3) -> list[Frame]:
    """The frames that a client saw of a response before its connection broke."""
    wire = await Wire(server.url).__aenter__()
    await wire.send(ENHANCE | {"generate": {"max_tokens": 2000}})
    frames = await wire.until("response.delta")
    while sum(frame["type"] == "response.delta" for frame in frames) < until:
        frames.append(await wire.recv())
    wire.ws.transport.abort()
    return frames


def text_of(frames: list[Frame]) -> str:
    return "".join(frame["text"] for frame in frames if frame["type"] == "response.delta")


async def metrics(server: Server) -> list[str]:
    async with httpx.AsyncClient(trust_env=False) as http:
        return (await http.get(server.url + "/metrics")).text.splitlines()


async def test_a_client_that_comes_back_gets_what_it_missed_and_then_the_rest(model) -> None:
    async with serving(model) as server:
        model.script = Script(num_tokens=300, tokens_per_s=300)
        seen = await cut_off(server, model)
        got = model.produced
        await eventually(lambda: model.produced > got + 30)  # the model did not stop
        for back_to in (seen[-1]["seq"], 2):  # also to frames that it had seen
            async with resuming(server, seen[0], back_to) as (wire, resumed):
                assert resumed == {"stream": seen[0]["stream"], "result": "replayed", "epoch": seen[0]["epoch"]}
                more = await wire.until("response.done")
                assert [frame["seq"] for frame in more] == list(range(back_to + 1, back_to + 1 + len(more)))
                assert text_of([f for f in seen if f["seq"] <= back_to] + more) == model.script.text(300)
                again = {frame["seq"]: frame for frame in more}
                assert all(again[f["seq"]] == f for f in seen if f["seq"] > back_to)
                assert (await wire.ask({"type": "ping", "id": "p"}))["type"] == "pong"
        async with resuming(server, seen[0], more[-1]["seq"]) as (_, resumed):
            assert resumed["result"] == "done"
        told = await metrics(server)
        assert 'qraf_ws_resume_total{result="replayed"} 2.0' in told
        assert 'qraf_ws_resume_total{result="done"} 1.0' in told


async def test_leaving_is_not_cancelling_until_the_grace_is_over(model) -> None:
    slow(model, tokens_per_s=100)
    async with serving(model, response_grace_s=1) as server:
        seen = await cut_off(server, model, until=1)
        got = model.produced
        await eventually(lambda: model.produced > got + 20)
        assert model.running == 1
        response = server.service.responses.find(seen[0]["response"])
        await eventually(lambda: response.has_ended)
        stopped = model.produced
        assert (response.status, response.finish_reason) == ("cancelled", "disconnected")
        await eventually(lambda: model.running == 0)
        assert model.produced <= stopped + 5  # 50 ms: what it takes a busy machine to hear that the reader has gone
        async with resuming(server, seen[0], seen[-1]["seq"]) as (wire, resumed):
            assert resumed["result"] == "replayed"  # its end is told to one who comes late
            frames = await wire.until("response.done")
            assert frames[-1]["status"] == "cancelled"
            said = text_of(seen + frames)
            # a piece that was being counted when it was cancelled is not shown
            assert said in [model.script.text(stopped - lost) for lost in range(8)]


async def test_an_explicit_cancel_stops_one_that_was_resumed(model) -> None:
    slow(model)
    async with serving(model) as server:
        seen = await cut_off(server, model, until=1)
        async with resuming(server, seen[0], seen[-1]["seq"]) as (wire, _):
            await wire.send({"type": "cancel", "id": "c", "target": seen[0]["stream"]})
            assert (await wire.until("response.done"))[-1]["status"] == "cancelled"
        await eventually(lambda: model.running == 0)


async def test_a_newer_connection_supersedes_and_the_other_streams_of_the_older_one_go_on(model) -> None:
    slow(model)
    async with serving(model) as server, Wire(server.url) as old:
        await old.send(ENHANCE)
        await old.send(ENHANCE | {"id": "f"})
        created: dict[str, Frame] = {}
        while len(created) < 2:
            frame = await old.recv()
            if frame["type"] == "response.created":
                created[frame["id"]] = frame
        async with resuming(server, created["e"], 0) as (wire, resumed):
            assert resumed["result"] == "replayed"
            assert await old.closed() == 4009
            assert (await wire.until("response.delta"))[0] == created["e"]
            assert not server.service.responses.find(created["f"]["response"]).has_ended
            async with resuming(server, created["f"], 0) as (third, _):
                assert (await third.until("response.delta"))[0] == created["f"]
        assert 'qraf_ws_closes_total{code="4009"} 1.0' in await metrics(server)


async def test_what_is_not_known_is_expired(model) -> None:
    async with serving(model, kept_response_s=0.05) as server:
        seen = await cut_off(server, model, until=1)
        async with resuming(server, seen[0], 1, epoch="another") as (_, resumed):
            assert resumed["result"] == "expired"
        async with resuming(server, seen[0], 1, stream=seen[0]["response"]) as (_, resumed):
            assert resumed["result"] == "expired"
        await eventually(lambda: server.service.responses.find(seen[0]["response"]).has_ended)
        await asyncio.sleep(0.1)
        server.service.responses.sweep()
        async with resuming(server, seen[0], 1) as (_, resumed):
            assert (resumed["result"], resumed["epoch"]) == ("expired", server.service.responses.epoch)
        assert 'qraf_ws_resume_total{result="expired"} 3.0' in await metrics(server)


async def test_after_a_gap_the_whole_text_is_fetched_and_the_stream_goes_on_exactly_there(model) -> None:
    model.script = Script(num_tokens=400, tokens_per_s=400)
    async with serving(model, ring_frames=5) as server, httpx.AsyncClient(base_url=server.url, trust_env=False) as http:
        seen = await cut_off(server, model, until=20)
        async with resuming(server, seen[0], 4) as (wire, resumed):
            assert resumed["result"] == "gap"
            told = (await http.get(f"/v1/responses/{seen[0]['response']}")).json()
            assert (told["stream"], told["epoch"]) == (seen[0]["stream"], seen[0]["epoch"])
            more = await wire.until("response.done")
        fresh = [frame for frame in more if frame["seq"] > told["seq"]]
        assert [frame["seq"] for frame in fresh] == list(range(told["seq"] + 1, more[-1]["seq"] + 1))
        assert told["text"] + text_of(fresh) == model.script.text(400)


async def test_a_slow_reader_is_closed_with_4008_and_may_come_back(model) -> None:
    model.script = Script(words=("x" * 4000,), num_tokens=2000)
    async with serving(model, send_timeout_s=1.0, ring_session_bytes=1 << 26) as server:
        async with Deaf(server) as deaf:
            await deaf.ws.send(json.dumps(ENHANCE | {"generate": {"max_tokens": 2000}}))
            await eventually(lambda: not server.app.state.gate.sockets.outboxes)
            [response] = server.service.responses._by_id.values()
        assert 'qraf_ws_slow_reader_total{action="closed"} 1.0' in await metrics(server)
        created = {"stream": response.stream, "epoch": response.epoch}
        async with resuming(server, created, 0) as (wire, resumed):
            assert resumed["result"] == "replayed"
            frames = await wire.until("response.done")
        assert [frame["seq"] for frame in frames] == list(range(1, len(frames) + 1))
        assert text_of(frames) == "x" * 4000 * 2000


# ------------------------------------------------------------------------------------------------ keys
async def test_a_command_with_the_same_key_leads_to_the_same_response(model) -> None:
    model.script = Script(num_tokens=60, tokens_per_s=100)
    async with serving(model) as server:
        wire = await Wire(server.url).__aenter__()
        await wire.send(ENHANCE | {"key": "k"})
        created = (await wire.until("response.delta"))[0]
        wire.ws.transport.abort()
        async with Wire(server.url) as wire:
            await wire.send(ENHANCE | {"id": "again", "key": "k"})
            await wire.send(ENHANCE | {"id": "twice", "key": "k"})
            frames = [await wire.recv()]
            while frames[-1]["type"] != "response.done":
                frames.append(await wire.recv())
            assert frames[0] == created | {"id": "again"}
            errors = [frame for frame in frames if frame["type"] == "error"]
            assert [(frame["id"], frame["error"]["pointer"]) for frame in errors] == [("twice", "/key")]
            assert text_of(frames) == model.script.text(60)
            other = await wire.ask(ENHANCE | {"key": "k", "prompt": "Something else."})
            assert (other["error"]["code"], other["error"]["pointer"]) == ("invalid_request", "/key")
        assert model.produced == 60


async def test_what_is_remembered_under_a_key_is_remembered_once(model) -> None:
    async with serving(model, kept_response_s=0.01) as server, Wire(server.url) as wire:
        await wire.ask({"type": "session.open", "id": "1", "session": "s"})
        ask = ENHANCE | {"session": "s", "remember": True, "key": "k"}
        for _ in range(2):
            await wire.send(ask)
            await wire.until("response.done")
            await asyncio.sleep(0.05)
            server.service.responses.sweep()
        done = await wire.ask({"type": "write", "id": "2", "session": "s", "items": [{"text": "More."}]})
        assert done["state"]["items"] == 3


# ------------------------------------------------------------------------------------------------ HTTP
Event = tuple[str, int | None, Frame]


async def events(response: httpx.Response, most: int = 1 << 30) -> list[Event]:
    found: list[Event] = []
    name, seq = "", None
    async for line in response.aiter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name, seq = value, None
        elif field == "id":
            seq = int(value)
        elif field == "data":
            found.append((name, seq, json.loads(value)))
            if len(found) == most:
                break
    return found


async def test_events_go_on_after_the_last_event_id(model) -> None:
    model.script = Script(num_tokens=200, tokens_per_s=200)
    async with serving(model) as server, httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=10) as http:
        body = {"prompt": "Say something.", "stream": True, "key": "k", "generate": {"max_tokens": 200}}
        async with http.stream("POST", "/v1/enhance", json=body) as response:
            seen = await events(response, 8)
        url = f"/v1/responses/{seen[0][2]['response']}/events"
        async with http.stream("GET", url, headers={"Last-Event-ID": str(seen[-1][1])}) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            seen += await events(response, 8)
        async with http.stream(
            "POST", "/v1/enhance", json=body, headers={"Last-Event-ID": str(seen[-1][1])}
        ) as response:
            seen += await events(response)
        assert [seq for _, seq, _ in seen] == list(range(1, len(seen) + 1))
        assert seen[-1][0] == "response.done"
        assert "".join(data["text"] for name, _, data in seen if name == "response.delta") == model.script.text(200)
        ended = await http.get(url, headers={"Last-Event-ID": str(seen[-1][1])})
        assert (ended.status_code, ended.content) == (204, b"")  # an EventSource stops at 204
        async with http.stream("GET", url, params={"after_seq": 3}) as response:
            assert await events(response) == seen[3:]
        whole = await http.post("/v1/enhance", json=body | {"stream": False, "key": "another"})
        assert whole.json()["text"] == model.script.text(200)


async def test_what_cannot_be_resumed_over_http_is_told(model) -> None:
    slow(model)
    async with (
        serving(model, ring_frames=3) as server,
        httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=10) as http,
    ):
        body = {"prompt": "Say something.", "stream": True}
        async with http.stream("POST", "/v1/enhance", json=body) as response:
            seen = await events(response, 9)
        url = f"/v1/responses/{seen[0][2]['response']}"
        gone = await http.get(f"{url}/events", headers={"Last-Event-ID": "1"})
        assert (gone.status_code, gone.json()["code"]) == (410, "replay_gone")
        told = (await http.get(url)).json()
        async with http.stream("GET", f"{url}/events", params={"after_seq": told["seq"]}) as response:
            assert (await events(response, 1))[0][1] == told["seq"] + 1
        wrong = await http.get(f"{url}/events", headers={"Last-Event-ID": "x"})
        assert (wrong.status_code, wrong.json()["code"]) == (422, "invalid_request")
        assert (await http.get(f"{url}/events", params={"after_seq": -1})).status_code == 422
        header = {"Last-Event-ID": "4"}
        assert (await http.post("/v1/enhance", json=body, headers=header)).status_code == 422
        unknown = await http.post("/v1/enhance", json=body | {"key": "k"}, headers=header)
        assert unknown.status_code == 410
        assert (await http.get("/v1/responses/nothing/events")).status_code == 404
        await http.post(f"{url}/cancel")


async def test_a_reader_over_http_is_superseded_with_a_goodbye(model) -> None:
    slow(model)
    async with serving(model) as server, httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=10) as http:
        body = {"prompt": "Say something.", "stream": True}
        async with http.stream("POST", "/v1/enhance", json=body) as response:
            lines = response.aiter_lines()
            created = json.loads([await anext(lines) for _ in range(3)][2].removeprefix("data: "))
            async with resuming(server, created, 1) as (wire, resumed):
                assert resumed["result"] == "replayed"
                rest = [line async for line in lines]
                assert rest[-3] == "event: goodbye"
                assert (await wire.until("response.delta"))[-1]["text"]
                await wire.send({"type": "cancel", "id": "c", "target": created["stream"]})
                await wire.until("response.done")


async def test_one_that_comes_back_and_goes_at_once_leaves_its_response_unread(model) -> None:
    slow(model)
    async with serving(model, response_grace_s=0.5) as server:
        seen = await cut_off(server, model, until=1)
        one = {"stream": seen[0]["stream"], "epoch": seen[0]["epoch"], "after_seq": 1}
        for _ in range(10):
            wire = await Wire(server.url, hello=False).__aenter__()
            await wire.send({"type": "hello", "resume": [one]})
            wire.ws.transport.abort()
        await eventually(lambda: model.running == 0)
        await eventually(lambda: server.service.responses.unread() == [])
