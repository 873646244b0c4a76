from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

import qraf
from qraf.errors import CannotConnect, ConnectionLost, InvalidRequest, ServerError, TimedOut
from qraf.frames import ResponseDelta, ResponseDone, WireItem
from tests.client.scripted import FIGURES, Frame, Peer, answer, created, error, scripted, stamped


async def opened(peer: Peer, frame: Frame) -> None:
    name = frame.get("session") or "se_1"
    await peer.send({"type": "session.opened", "id": frame["id"], "session": name, "created": True, "state": FIGURES})


async def silence(peer: Peer, frame: Frame) -> None:
    return


@pytest.mark.parametrize("framing", ["msgpack", "json"])
async def test_response_streams_in_both_framings(framing: str) -> None:
    async with scripted(session_open=opened, enhance=answer) as server:
        async with qraf.connect(server.url, framing=framing) as q:
            session = await q.open_session("kitchen")
            assert (session.session, session.created, session.state.items) == ("kitchen", True, 1)
            response = q.enhance("hi", session="kitchen")
            frames = [frame async for frame in response]
            assert isinstance(frames[-1], ResponseDone)
            assert [frame.text for frame in frames if isinstance(frame, ResponseDelta)] == ["Hello", ", ", "world"]
            assert response.text == "Hello, world"
            assert response.evidence[0].probability == 0.7
            assert response.route is not None
            assert response.hops[0].items_scanned == 3
            assert response.done is frames[-1]
        assert not server.of("cancel")


async def test_texts_yield_only_the_generated_text() -> None:
    async with scripted(enhance=answer) as server, qraf.connect(server.url, reconnect=False) as q:
        assert [piece async for piece in q.enhance("hi").texts()] == ["Hello", ", ", "world"]
        done = await q.enhance("hi").result()
        assert done.status == "completed"


async def test_leaving_the_loop_cancels_at_the_server() -> None:
    async def endless(peer: Peer, frame: Frame) -> None:
        make = stamped("st_1")
        await peer.send(created(make, frame))
        while True:
            await peer.send(make("response.delta", text="x"))
            await asyncio.sleep(0.001)

    async with scripted(enhance=endless) as server, qraf.connect(server.url, reconnect=False) as q:
        async for frame in q.enhance("hi"):
            if isinstance(frame, ResponseDelta):
                break
        (cancel,) = await server.wait_for("cancel")
        assert cancel["target"] == "st_1"
        assert await q.ping() >= 0


async def test_closing_the_client_cancels_what_streams() -> None:
    async def begin(peer: Peer, frame: Frame) -> None:
        await peer.send(created(stamped("st_9"), frame))

    async with scripted(enhance=begin) as server:
        async with qraf.connect(server.url, reconnect=False) as q:
            frames = aiter(q.enhance("hi"))
            await anext(frames)
        (cancel,) = await server.wait_for("cancel")
        assert cancel["target"] == "st_9"
        with pytest.raises(ConnectionLost):
            await anext(frames)


async def test_refused_command_is_a_server_error() -> None:
    async def refuse(peer: Peer, frame: Frame) -> None:
        await peer.send(error(frame["id"], "session_not_found", pointer="/session"))

    async with scripted(enhance=refuse, session_open=refuse) as server, qraf.connect(server.url, reconnect=False) as q:
        with pytest.raises(ServerError) as failed:
            await q.open_session("nowhere", create=False)
        assert (failed.value.error_code, failed.value.pointer) == ("session_not_found", "/session")
        with pytest.raises(ServerError):
            await q.enhance("hi", session="nowhere").result()
        assert await q.ping() >= 0
        assert not server.of("cancel")


async def test_failed_response_ends_and_result_raises() -> None:
    async def fail(peer: Peer, frame: Frame) -> None:
        make = stamped("st_1")
        await peer.send(created(make, frame))
        body = {"code": "engine_failed", "title": "t", "detail": "gone", "retryable": True}
        await peer.send(make("response.done", status="failed", error=body))

    async with scripted(enhance=fail) as server, qraf.connect(server.url, reconnect=False) as q:
        response = q.enhance("hi")
        kinds = [type(frame).__name__ async for frame in response]
        assert kinds == ["ResponseCreated", "ResponseDone"]
        with pytest.raises(ServerError, match="engine_failed"):
            await response.result()


async def test_every_waiting_call_ends_when_the_server_dies() -> None:
    async def begin(peer: Peer, frame: Frame) -> None:
        await peer.send(created(stamped("st_1"), frame))

    script = scripted(enhance=begin, recall=silence, session_open=silence, watch=silence)
    async with script as server, qraf.connect(server.url, reconnect=False) as q:

        async def follow() -> None:
            async for _ in q.watch():
                pass

        waiting = [
            asyncio.create_task(q.recall("x", collections=["a"])),
            asyncio.create_task(q.open_session()),
            asyncio.create_task(q.enhance("hi").result()),
            asyncio.create_task(q.write("hi", session="s")),
            asyncio.create_task(follow()),
        ]
        for kind in ("recall", "session.open", "enhance", "write", "watch"):
            await server.wait_for(kind)
        server.peers[0].ws.transport.abort()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [ConnectionLost] * 5
        assert not q.is_open
        with pytest.raises(ConnectionLost):
            await q.ping()


async def test_silent_server_is_taken_for_lost() -> None:
    async with (
        scripted(ping=silence, recall=silence) as server,
        qraf.connect(server.url, heartbeat_s=0.1, reconnect=False) as q,
    ):
        with pytest.raises(ConnectionLost, match="silent"):
            await q.recall("x", collections=["a"])


async def test_answer_that_never_comes_times_out() -> None:
    async with scripted(recall=silence, enhance=silence) as server, qraf.connect(server.url, timeout_s=0.1) as q:
        with pytest.raises(TimedOut, match="recall"):
            await q.recall("x", collections=["a"])
        with pytest.raises(TimedOut):
            await q.enhance("hi").result()
        assert q.is_open


async def test_close_code_and_last_fault_are_told() -> None:
    async def shut(peer: Peer, frame: Frame) -> None:
        await peer.send(error("", "protocol"))
        await peer.ws.close(4413)

    async with scripted(recall=shut) as server, qraf.connect(server.url, reconnect=False) as q:
        with pytest.raises(ConnectionLost, match=r"frame too large.*detail of protocol") as lost:
            await q.recall("x", collections=["a"])
        assert lost.value.close == 4413


async def test_nobody_listening_is_told_as_such() -> None:
    async with scripted() as server:
        url = server.url
    with pytest.raises(CannotConnect, match="no server at ws://127"):
        async with qraf.connect(url):
            pass


async def test_slow_reader_loses_no_text_and_delays_nobody() -> None:
    text = [f"{number} " for number in range(3000)]

    async def fast(peer: Peer, frame: Frame) -> None:
        await answer(peer, frame, tuple(text))

    async with scripted(enhance=fast) as server, qraf.connect(server.url, reconnect=False) as q:
        slow = q.enhance("slow")
        frames = aiter(slow)
        await anext(frames)
        for _ in range(3):
            assert await q.enhance("fast").result()
        deltas = [frame async for frame in frames if isinstance(frame, ResponseDelta)]
        assert slow.text == "".join(text)
        assert len(deltas) < 300
        assert sum(delta.tokens for delta in deltas) == len(text)


async def test_response_is_read_once() -> None:
    async with scripted(enhance=answer) as server, qraf.connect(server.url, reconnect=False) as q:
        async with q.enhance("hi") as response:
            assert [piece async for piece in response.texts()]
        with pytest.raises(InvalidRequest, match="read once"):
            _ = [frame async for frame in response]


async def test_watch_gives_snapshot_then_deltas_and_unwatches() -> None:
    async def watch(peer: Peer, frame: Frame) -> None:
        make = stamped("st_w")
        await peer.send({"type": "ack", "id": frame["id"], "status": "accepted"})
        node = {"node": "n1", "role": "memory"}
        await peer.send(make("network.snapshot", topology="t", nodes=[node]))
        for items in range(5):
            await peer.send(make("network.delta", nodes=[node | {"items": items}]))

    async with scripted(watch=watch) as server, qraf.connect(server.url, reconnect=False) as q:
        seen = []
        async for frame in q.watch("network", every_ms=100):
            seen.append(frame)
            if len(seen) == 1:
                with pytest.raises(InvalidRequest, match="watched already"):
                    await anext(q.watch("network"))
            if frame.nodes[0].items == 4:
                break
        assert type(seen[0]).__name__ == "NetworkSnapshot"
        (unwatch,) = await server.wait_for("unwatch")
        assert unwatch["topic"] == "network"


async def test_cancelled_call_leaves_the_connection_usable() -> None:
    async with scripted(recall=silence) as server, qraf.connect(server.url, reconnect=False) as q:
        call = asyncio.create_task(q.recall("x", collections=["a"]))
        await server.wait_for("recall")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await q.ping() >= 0


async def test_bad_choices_are_refused_before_they_are_sent() -> None:
    async with scripted() as server, qraf.connect(server.url, reconnect=False) as q:
        with pytest.raises(InvalidRequest, match="/generate"):
            q.enhance("hi", generate={"max_token": 3})
        with pytest.raises(InvalidRequest, match="/items/0"):
            await q.write({"txt": "hi"}, session="s")
        with pytest.raises(InvalidRequest, match="exactly one"):
            await q.write("hi", session="s", collection="c")
        assert server.received == []


async def test_item_of_a_wire_item_keeps_its_fields() -> None:
    from tests.client.scripted import write_done

    async with scripted(write=write_done) as server, qraf.connect(server.url, reconnect=False) as q:
        await q.write(WireItem(text="hi", speaker="Ann", role="assistant", at=3.0), session="s")
        (item,) = server.of("write")[0]["items"]
        assert item == item | {"text": "hi", "speaker": "Ann", "role": "assistant", "at": 3.0}
        assert item["item_id"].startswith("it_")


@pytest.mark.slow
def test_client_is_light() -> None:
    heavy = ("torch", "ray", "fastapi", "pydantic", "sqlalchemy", "networkx", "typer")
    code = f"import sys, qraf.client; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
