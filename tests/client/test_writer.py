from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

import qraf.client
from qraf.client.reconnect import Reconnect
from qraf.errors import ConnectionLost, ServerError
from tests.client.scripted import FIGURES, Frame, Peer, error, scripted, write_done


async def test_stream_of_items_is_batched_and_in_order() -> None:
    async def lines() -> AsyncIterator[str]:
        for number in range(100):
            yield f"line {number}"

    seen: list[int] = []
    async with scripted(write=write_done) as server, qraf.connect(server.url) as q:
        done = await q.write(lines(), session="s", progress=seen.append)
        sent = [item["text"] for frame in server.of("write") for item in frame["items"]]
        assert sent == [f"line {number}" for number in range(100)]
        assert max(len(frame["items"]) for frame in server.of("write")) == 16  # the server's own limit
        assert done.accepted == sum(seen) == len(done.item_ids) == 100


async def test_refused_for_now_is_sent_again_with_the_same_ids() -> None:
    count = 0

    async def busy(peer: Peer, frame: Frame) -> None:
        nonlocal count
        count += 1
        if count <= 2:
            await peer.send(error(frame["id"], "limit_exceeded", retryable=True))
        else:
            await write_done(peer, frame)

    async with scripted(write=busy) as server, qraf.connect(server.url) as q:
        done = await q.write(["a", "b"], collection="c")
        frames = server.of("write")
        assert done.accepted == 2
        assert len(frames) == 3
        assert len({frame["id"] for frame in frames}) == 3
        assert frames[0]["items"] == frames[1]["items"] == frames[2]["items"]


async def test_single_items_refused_for_now_are_sent_again() -> None:
    async def picky(peer: Peer, frame: Frame) -> None:
        body = {"code": "storage_failed", "title": "t", "detail": "d", "retryable": True}
        first = len(frame["items"]) > 1
        await peer.send(
            {
                "type": "write.done",
                "id": frame["id"],
                "accepted": len(frame["items"]) - first,
                "rejected": [{"index": 1, "item_id": "x", "error": body}] if first else [],
                "state": FIGURES,
            }
        )

    async with scripted(write=picky) as server, qraf.connect(server.url) as q:
        done = await q.write(["a", "b", "c"], session="s")
        assert (done.accepted, done.rejected) == (3, ())
        assert [item["text"] for item in server.of("write")[1]["items"]] == ["b"]


async def test_refused_for_good_fails_the_write() -> None:
    async def refuse(peer: Peer, frame: Frame) -> None:
        await peer.send(error(frame["id"], "session_closed"))

    async with scripted(write=refuse) as server, qraf.connect(server.url) as q:
        with pytest.raises(ServerError, match="session_closed"):
            await q.write(["a"], session="s")
        assert len(server.of("write")) == 1


async def test_item_that_fits_no_frame_is_rejected_and_the_rest_is_written() -> None:
    async with scripted(write=write_done) as server, qraf.connect(server.url) as q:
        done = await q.write(["a", "x" * 200_000, "b"], session="s")
        assert done.accepted == 2
        assert [(item.index, item.error.code) for item in done.rejected] == [(1, "limit_exceeded")]
        assert [item["text"] for item in server.of("write")[0]["items"]] == ["a", "b"]


async def test_frames_stay_below_the_byte_limit() -> None:
    async with scripted(write=write_done) as server, qraf.connect(server.url) as q:
        done = await q.write(["x" * 30_000] * 7, session="s")
        assert done.accepted == 7
        assert max(len(frame["items"]) for frame in server.of("write")) == 2


async def test_writer_waits_when_the_window_is_full() -> None:
    release = asyncio.Event()

    async def held(peer: Peer, frame: Frame) -> None:
        await release.wait()
        await write_done(peer, frame)

    async with (
        scripted(write=held) as server,
        qraf.connect(server.url) as q,
        q.writer("s", batch=1, window=2) as writer,
    ):
        await writer.add("a")
        await writer.add("b")
        third = asyncio.create_task(writer.add("c"))
        await server.wait_for("write", 2)
        assert await q.ping() >= 0
        assert not third.done()
        release.set()
        await third
        assert (await writer.flush()).accepted == 3


async def test_lone_item_goes_out_by_itself() -> None:
    async with scripted(write=write_done) as server, qraf.connect(server.url) as q, q.writer("s") as writer:
        item_id = await writer.add("hello", speaker="Ann")
        (frame,) = await server.wait_for("write")
        assert frame["items"] == [{"item_id": item_id, "text": "hello", "speaker": "Ann"}]


async def test_lost_connection_ends_the_writer() -> None:
    async def die(peer: Peer, frame: Frame) -> None:
        peer.ws.transport.abort()

    async def stream(q: qraf.client.Client) -> None:
        async with q.writer("s", batch=1) as writer:
            for number in range(1000):
                await writer.add(f"{number}")

    async with scripted(write=die) as server, qraf.connect(server.url, reconnect=False) as q:
        with pytest.raises(ConnectionLost):
            await stream(q)


async def test_what_an_earlier_sending_wrote_counts_as_written_with_its_ids() -> None:
    written = {"mine"}
    seen: list[str] = []

    async def dies_after_writing(peer: Peer, frame: Frame) -> None:
        ids = [item["item_id"] for item in frame["items"]]
        fresh = [name for name in ids if name not in written]
        done = {"accepted": len(fresh), "duplicates": len(ids) - len(fresh), "item_ids": fresh}
        written.update(ids)
        seen.append(frame["id"])
        if len(seen) == 1:
            peer.ws.transport.abort()
        else:
            await peer.send({"type": "write.done", "id": frame["id"], "state": FIGURES} | done)

    quick = Reconnect(first_s=0.005, most_s=0.05)
    async with scripted(write=dies_after_writing) as server, qraf.connect(server.url, reconnect=quick) as q:
        async with q.writer("s", batch=3) as writer:
            ids = [await writer.add("a"), await writer.add("b", item_id="mine"), await writer.add("c")]
        assert (writer.result.accepted, writer.result.duplicates) == (2, 1)
        assert writer.result.item_ids == (ids[0], ids[2])
        assert (await q.write(["d"], session="s")).accepted == 1
        assert not writer._made
