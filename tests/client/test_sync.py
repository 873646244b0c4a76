from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

import qraf
from qraf.errors import CannotConnect, ConnectionLost, InvalidRequest
from qraf.frames import ResponseDelta
from tests.client.scripted import Frame, Peer, ScriptedServer, answer, created, scripted, stamped, write_done

pytestmark = pytest.mark.slow  # a whole service, or processes


async def endless(peer: Peer, frame: Frame) -> None:
    if frame["prompt"] != "endless":
        await answer(peer, frame)
        return
    make = stamped("st_1")
    await peer.send(created(make, frame))
    while True:
        await peer.send(make("response.delta", text="x"))
        await asyncio.sleep(0.001)


async def die(peer: Peer, frame: Frame) -> None:
    peer.ws.transport.abort()


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    ready, stop = threading.Event(), asyncio.Event()
    box: list[ScriptedServer] = []
    loop = asyncio.new_event_loop()

    async def run() -> None:
        async with scripted(enhance=endless, write=write_done, recall=die) as script:
            box.append(script)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    ready.wait()
    yield box[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


def test_sync_client_streams(server: ScriptedServer) -> None:
    with qraf.connect_sync(server.url) as q:
        response = q.enhance("hi")
        assert [frame.text for frame in response if isinstance(frame, ResponseDelta)] == ["Hello", ", ", "world"]
        assert response.text == "Hello, world"
        assert response.done is not None
        assert list(q.enhance("hi").texts()) == ["Hello", ", ", "world"]
        assert q.ping() >= 0


def test_sync_loop_left_early_cancels(server: ScriptedServer) -> None:
    with qraf.connect_sync(server.url) as q:
        for frame in q.enhance("endless"):
            if isinstance(frame, ResponseDelta):
                break
        q.ping()
        assert [frame["target"] for frame in server.of("cancel")] == ["st_1"]


def test_sync_writer_and_write(server: ScriptedServer) -> None:
    with qraf.connect_sync(server.url) as q:
        assert q.write((f"line {number}" for number in range(40)), session="s").accepted == 40
        with q.writer("s") as writer:
            writer.add("one")
            writer.add("two", speaker="Ann")
        assert writer.result.accepted == 2


def test_sync_client_does_not_hang(server: ScriptedServer) -> None:
    before = threading.active_count()
    with qraf.connect_sync(server.url, reconnect=False) as q, pytest.raises(ConnectionLost):
        q.recall("x", collections=["a"])
    with pytest.raises(InvalidRequest, match="closed"):
        q.ping()
    q.close()
    with pytest.raises(CannotConnect), qraf.connect_sync("ws://127.0.0.1:9"):
        pass
    assert threading.active_count() == before
