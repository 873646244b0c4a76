"""One socket: commands side by side, streams, cancellation, slow readers, watches, and every way to end."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

from qraf.gateway.protocol import Connection
from qraf.gateway.server import Server
from tests.gateway.conftest import serving
from tests.gateway.wire import Wire
from tests.openai_server import OpenAIServer, Script

pytestmark = pytest.mark.slow  # a whole service, or processes

ENHANCE: dict[str, Any] = {"type": "enhance", "id": "e", "prompt": "Say something."}


async def eventually(check: Any) -> None:
    async with asyncio.timeout(20):
        while not check():
            await asyncio.sleep(0.01)


def slow(model: OpenAIServer, tokens_per_s: float = 40) -> None:
    model.script = Script(num_tokens=2000, tokens_per_s=tokens_per_s)


# ------------------------------------------------------------------------------------------------ commands
async def test_what_follows_a_session_open_waits_for_it(wire) -> None:
    await wire.send({"type": "session.open", "id": "1", "session": "bo"})
    await wire.send({"type": "write", "id": "2", "session": "bo", "items": [{"text": "Hello."}]})
    assert [(await wire.recv())["type"] for _ in range(2)] == ["session.opened", "write.done"]


async def test_an_error_answers_its_command_and_others_go_on(wire) -> None:
    error = await wire.ask({"type": "recall", "id": "1", "session": "nobody", "text": "x"})
    assert (error["type"], error["id"], error["error"]["code"]) == ("error", "1", "session_not_found")
    assert (await wire.ask({"type": "ping", "id": "2"}))["type"] == "pong"


async def test_a_command_id_in_use_is_refused_and_the_first_goes_on(wire, model) -> None:
    slow(model)
    await wire.send(ENHANCE)
    await wire.until("response.delta")
    await wire.send({"type": "ping", "id": "e"})
    error = (await wire.until("error"))[-1]
    assert error["error"]["code"] == "duplicate_id"
    await wire.send({"type": "cancel", "id": "c", "target": "e"})
    assert (await wire.until("response.done"))[-1]["status"] == "cancelled"


async def test_where_nobody_is_asked_a_refresh_is_harmless(wire) -> None:
    assert await wire.ask({"type": "auth.refresh", "id": "1"}) == {"type": "ack", "id": "1", "status": "accepted"}


async def test_a_message_in_fragments_is_one_frame(wire) -> None:
    text = json.dumps({"type": "ping", "id": "ü"}, ensure_ascii=False)
    await wire.ws.send([text[:5], text[5:20], "", text[20:]])
    assert await wire.recv() == {"type": "pong", "id": "ü"}


async def test_more_responses_than_allowed_are_refused(model) -> None:
    slow(model)
    async with serving(model, max_responses=1) as server, Wire(server.url) as wire:
        await wire.send(ENHANCE)
        await wire.send(ENHANCE | {"id": "f"})
        error = (await wire.until("error"))[-1]
        assert (error["id"], error["error"]["code"]) == ("f", "limit_exceeded")
        assert error["error"]["retryable"]


# ------------------------------------------------------------------------------------------------ responses
async def test_a_cancel_stops_the_model_and_ends_the_response_once(wire, model) -> None:
    slow(model)
    await wire.send(ENHANCE)
    await wire.until("response.delta")
    await wire.send({"type": "cancel", "id": "c", "target": "e"})
    frames = await wire.until("response.done")
    assert {"type": "ack", "id": "c", "status": "accepted"} in frames
    assert frames[-1]["status"] == "cancelled"
    late = await wire.ask({"type": "cancel", "id": "c", "target": frames[-1]["stream"]})
    assert late["status"] == "duplicate"
    assert (await wire.ask({"type": "cancel", "id": "c", "target": "nothing"}))["status"] == "not_found"
    await eventually(lambda: model.running == 0)
    assert model.produced < 200


async def test_a_cancel_right_behind_its_command_counts(wire, model) -> None:
    slow(model)
    await wire.send(ENHANCE)
    await wire.send({"type": "cancel", "id": "c", "target": "e"})
    frames = await wire.until("response.done")
    assert frames[-1]["status"] == "cancelled"
    assert [frame["status"] for frame in frames if frame["type"] == "ack"] == ["accepted"]


async def test_a_client_that_goes_for_good_stops_the_model_within_a_token(model) -> None:
    slow(model, tokens_per_s=20)
    async with serving(model, response_grace_s=0) as server:
        wire = await Wire(server.url).__aenter__()
        await wire.send(ENHANCE)
        created = (await wire.until("response.delta"))[0]
        got = model.produced
        wire.ws.transport.abort()
        await eventually(lambda: model.running == 0)
        assert model.produced <= got + 2
        response = server.service.responses.find(created["response"])
        await eventually(lambda: response.status == "cancelled")
        assert response.finish_reason == "disconnected"


async def test_deltas_are_merged_for_as_long_as_hello_says(server, model) -> None:
    model.script = Script(num_tokens=200, tokens_per_s=2000)

    async def deltas(coalesce_ms: int) -> int:
        async with Wire(server.url, hello=False) as wire:
            await wire.ask({"type": "hello", "coalesce_ms": coalesce_ms})
            await wire.send(ENHANCE)
            frames = [frame for frame in await wire.until("response.done") if frame["type"] == "response.delta"]
        assert "".join(frame["text"] for frame in frames) == model.script.text(200)
        assert sum(frame["tokens"] for frame in frames) == 200
        return len(frames)

    assert await deltas(100) < await deltas(0)


async def test_two_responses_on_one_socket_do_not_mix(wire, model) -> None:
    await wire.send(ENHANCE)
    await wire.send(ENHANCE | {"id": "f"})
    frames: list[dict[str, Any]] = []
    while sum(frame["type"] == "response.done" for frame in frames) < 2:
        frames.append(await wire.recv())
    streams = {frame["id"]: frame["stream"] for frame in frames if frame["type"] == "response.created"}
    assert set(streams) == {"e", "f"}
    for stream in streams.values():
        own = [frame for frame in frames if frame["stream"] == stream]
        assert [frame["seq"] for frame in own] == list(range(1, len(own) + 1))
        assert "".join(frame.get("text", "") for frame in own) == "Nuts are bad for Ann."


# ------------------------------------------------------------------------------------------------ slow readers
class Deaf:
    """A client that says hello and then reads nothing at all, with a small window."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def __aenter__(self) -> Deaf:
        url = self._server.url.replace("http", "ws") + "/v1/ws"
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        port = int(self._server.url.rsplit(":", 1)[1])
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        self.ws = await connect(
            url,
            sock=sock,
            subprotocols=["qraf.v1"],
            compression=None,
            proxy=None,
            ping_interval=None,
            max_queue=1,
            max_size=None,
        )
        await self.ws.send('{"type":"hello"}')
        await self.ws.recv()
        self.ws.transport.pause_reading()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.ws.transport.abort()


async def test_a_client_that_never_reads_is_let_go_and_holds_nobody_up(model) -> None:
    async with (
        serving(model, outbox_frames=16, outbox_bytes=65536, send_timeout_s=0.5) as server,
        Wire(server.url) as wire,
    ):
        gate = server.app.state.gate
        await wire.ask({"type": "session.open", "id": "1", "session": "s"})
        items = [{"text": f"word {i} " + "x" * 19_000} for i in range(10)]
        await wire.ask({"type": "write", "id": "2", "session": "s", "items": items})
        async with Deaf(server) as deaf:
            for i in range(40):
                await deaf.ws.send(
                    json.dumps({"type": "recall", "id": str(i), "session": "s", "text": "word", "k": 50})
                )
            assert (await wire.ask({"type": "ping", "id": "p"}))["type"] == "pong"
            await eventually(lambda: len(gate.sockets.outboxes) == 1)
        text = (await _metrics(server)).splitlines()
        assert 'qraf_ws_slow_reader_total{action="closed"} 1.0' in text
        assert 'qraf_ws_closes_total{code="4008"} 1.0' in text


async def test_text_for_a_slow_reader_is_merged_and_none_is_lost(model) -> None:
    model.script = Script(words=("x" * 4000,), num_tokens=2000)
    async with serving(model, outbox_frames=16, send_timeout_s=15) as server, Deaf(server) as deaf:
        await deaf.ws.send(json.dumps(ENHANCE | {"generate": {"max_tokens": 2000}}))
        await eventually(lambda: [r for r in server.service.responses._by_id.values() if r.has_ended])
        deaf.ws.transport.resume_reading()
        frames = []
        while not frames or frames[-1]["type"] != "response.done":
            frames.append(json.loads(await deaf.ws.recv()))
    deltas = [frame for frame in frames if frame["type"] == "response.delta"]
    assert sum(frame["tokens"] for frame in deltas) == 2000
    assert sum(len(frame["text"]) for frame in deltas) == 2000 * 4000
    assert max(frame["tokens"] for frame in deltas) > 30
    assert [frame["seq"] for frame in frames] == list(range(1, len(frames) + 1))


# ------------------------------------------------------------------------------------------------ watches
async def test_a_network_watch_sends_a_snapshot_then_what_changed(wire) -> None:
    ack = await wire.ask({"type": "watch", "id": "1", "topic": "network", "every_ms": 100})
    assert ack == {"type": "ack", "id": "1", "status": "accepted"}
    snapshot = await wire.recv()
    assert (snapshot["type"], snapshot["seq"], snapshot["topology"]) == ("network.snapshot", 1, "lab")
    assert {node["node"] for node in snapshot["nodes"]} >= {"desk", "shelf"}
    assert snapshot["links"][0]["source"] == "desk"
    before = next(node["items"] for node in snapshot["nodes"] if node["node"] == "desk")
    await wire.send({"type": "session.open", "id": "2", "session": "watched"})
    await wire.send({"type": "write", "id": "3", "session": "watched", "items": [{"text": "New."}]})
    for _ in range(50):
        frame = (await wire.until("network.delta"))[-1]
        if any(node["node"] == "desk" and node["items"] == before + 1 for node in frame["nodes"]):
            break
    else:
        pytest.fail("the write never showed")
    assert frame["stream"] == snapshot["stream"]


async def test_a_session_watch_follows_the_figures_and_ends_with_the_session(wire, server) -> None:
    await wire.ask({"type": "session.open", "id": "1", "session": "s"})
    await wire.ask({"type": "watch", "id": "2", "topic": "session:s", "every_ms": 100})
    assert (await wire.recv())["state"]["items"] == 0
    await wire.send({"type": "write", "id": "3", "session": "s", "items": [{"text": "One."}]})
    metrics = (await wire.until("metrics"))[-1]
    assert (metrics["session"], metrics["state"]["items"], metrics["seq"]) == ("s", 1, 2)
    await server.service.delete_session("s")
    error = (await wire.until("error"))[-1]
    assert (error["stream"], error["error"]["code"]) == (metrics["stream"], "session_not_found")


async def test_a_watch_of_nothing_is_refused(wire) -> None:
    error = await wire.ask({"type": "watch", "id": "1", "topic": "session:none"})
    assert (error["id"], error["error"]["code"]) == ("1", "session_not_found")
    assert (await wire.ask({"type": "unwatch", "id": "2", "topic": "session:none"}))["status"] == "not_found"


async def test_usage_counts_this_connection(wire) -> None:
    await wire.ask({"type": "watch", "id": "1", "topic": "usage", "every_ms": 100})
    assert (await wire.recv())["responses"] == 0
    await wire.send(ENHANCE)
    usage = (await wire.until("usage"))[-1]
    while usage["tokens"] < 6:
        usage = (await wire.until("usage"))[-1]
    assert usage["responses"] == 1


async def test_watching_twice_changes_the_pace_and_unwatch_ends_it(wire) -> None:
    await wire.ask({"type": "watch", "id": "1", "topic": "usage"})
    await wire.recv()
    again = await wire.ask({"type": "watch", "id": "2", "topic": "usage", "every_ms": 100})
    assert again["status"] == "duplicate"
    assert (await wire.ask({"type": "unwatch", "id": "3", "topic": "usage"}))["status"] == "accepted"
    assert (await wire.ask({"type": "unwatch", "id": "4", "topic": "usage"}))["status"] == "not_found"


async def test_an_unwatch_right_behind_its_watch_answers_both(wire) -> None:
    await wire.send({"type": "watch", "id": "1", "topic": "network"})
    await wire.send({"type": "unwatch", "id": "2", "topic": "network"})
    await wire.send({"type": "ping", "id": "3"})
    frames = await wire.until("pong")
    assert sorted(frame["id"] for frame in frames if frame["type"] == "ack") == ["1", "2"]


# ------------------------------------------------------------------------------------------------ ends
@pytest.mark.parametrize(("message", "code"), [("nonsense", 4400), (b"\x80", 4400), ("x" * 3000, 4413)])
async def test_bad_messages_close_with_their_code_after_an_error(model, message, code) -> None:
    async with serving(model, max_frame_bytes=2048) as server, Wire(server.url) as wire:
        await wire.send(message)
        assert (await wire.recv())["type"] == "error"
        assert await wire.closed() == code


async def test_a_frame_of_ten_megabytes_is_told_that_it_is_too_large(wire) -> None:
    await wire.send('{"type":"ping","id":"' + "x" * 10_000_000 + '"}')
    assert (await wire.recv())["error"]["code"] == "too_large"
    assert await wire.closed() == 4413


async def test_hello_must_come_in_time(model) -> None:
    async with serving(model, hello_timeout_s=0.1) as server, Wire(server.url, hello=False) as wire:
        assert await wire.closed() == 4408


async def test_without_a_common_subprotocol_the_reason_is_told(server) -> None:
    for subprotocol in (None, "mqtt"):
        async with Wire(server.url, subprotocol=subprotocol, hello=False) as wire:
            assert await wire.closed() == 4406


async def test_too_many_connections_are_told_to_come_later(model) -> None:
    async with serving(model, max_connections=1) as server, Wire(server.url) as first:
        async with Wire(server.url, hello=False) as second:
            assert await second.closed() == 1013
        assert (await first.ask({"type": "ping"}))["type"] == "pong"


async def test_a_stop_ends_responses_and_says_goodbye(model) -> None:
    slow(model)
    async with serving(model) as server, Wire(server.url) as wire:
        await wire.send(ENHANCE)
        await wire.until("response.delta")
        stopping = asyncio.create_task(server.stop())
        frames = await wire.until("goodbye")
        assert [frame["status"] for frame in frames if frame["type"] == "response.done"] == ["cancelled"]
        assert await wire.closed() == 1001
        await stopping


async def test_our_own_fault_is_an_error_without_words_or_at_worst_1011(wire, server, caplog, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(server.service.responses, "find", broken)
    error = await wire.ask({"type": "cancel", "id": "c", "target": "x"})
    assert error["error"] == {
        "code": "internal",
        "title": "Internal error",
        "detail": "an internal error; it was logged",
        "pointer": "",
        "retryable": False,
        "retry_after_ms": None,
    }
    monkeypatch.setattr(Connection, "feed", broken)
    await wire.send({"type": "ping"})
    assert await wire.closed() == 1011
    assert caplog.text.count("RuntimeError: secret") == 2


async def test_no_task_but_the_response_outlives_its_connection(server, model) -> None:
    slow(model)
    before = asyncio.all_tasks()

    def left() -> set[str]:
        return {task.get_name() for task in asyncio.all_tasks() - before if not task.done()}

    async with Wire(server.url) as wire:
        await wire.send(ENHANCE)
        await wire.send({"type": "watch", "id": "w", "topic": "network"})
        frames = await wire.until("response.delta")
    [created] = [frame for frame in frames if frame["type"] == "response.created"]
    await eventually(lambda: left() == {f"response {created['response']}"})
    server.service.responses.find(created["response"]).cancel()
    await eventually(lambda: not left())


async def _metrics(server: Server) -> str:
    async with httpx.AsyncClient(trust_env=False) as http:
        return (await http.get(server.url + "/metrics")).text
