from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qraf.clock import FakeClock
from qraf.errors import ReplayGone, Superseded
from qraf.frames import (
    ResponseCreated,
    ResponseDelta,
    ResponseDone,
    ResponseHop,
    ResponseMetrics,
    ServerFrame,
)
from qraf.records import Figures
from qraf.sessions.response import Reader, Response
from qraf.sessions.rings import RingPool


async def read(response: Response) -> list[ServerFrame]:
    return [frame async for frame in response.frames()]


async def take(reader: Reader, count: int) -> list[ServerFrame]:
    found: list[ServerFrame] = []
    async for frame in reader.frames():
        found.append(frame)
        if len(found) == count:
            break
    return found


def created(response: Response) -> ResponseCreated:
    return ResponseCreated(stream=response.stream, seq=0, id=response.command_id, response=response.id)


def small(frames: int = 1 << 30, size: int = 1 << 30) -> Response:
    pool = RingPool(max_frames=frames, group_bytes=size, total_bytes=size)
    return Response("1", "me", FakeClock(), pool.open("g"), epoch="e")


def text_of(frames: list[ServerFrame]) -> str:
    return "".join(frame.text for frame in frames if isinstance(frame, ResponseDelta))


async def test_frames_are_stamped_without_holes_and_end_once() -> None:
    response = Response("1", "me", FakeClock())
    response.emit(created(response))
    response.delta("a", 1)
    response.end("completed", "stop")
    response.end("failed", "error")
    response.delta("late", 1)
    frames = await read(response)
    assert [f.seq for f in frames] == [1, 2, 3]  # type: ignore[union-attr]
    assert [type(f) for f in frames] == [ResponseCreated, ResponseDelta, ResponseDone]
    assert response.status == "completed"
    assert response.text == "a"


async def test_deltas_that_wait_are_merged_and_nothing_is_lost() -> None:
    response = Response("1", "me", FakeClock())
    for word in ("one ", "two ", "three"):
        response.delta(word, 2)
    response.end("completed", "stop")
    first = (await read(response))[0]
    assert isinstance(first, ResponseDelta)
    assert (first.text, first.tokens) == ("one two three", 6)


async def test_metrics_that_wait_are_replaced_and_the_text_around_them_is_merged() -> None:
    response = Response("1", "me", FakeClock())
    for tokens in range(1, 1000):
        response.delta(f"{tokens} ", 1)
        response.emit(ResponseMetrics(stream=response.stream, seq=0, tokens=tokens))
    response.delta("end", 1)
    response.end("completed")
    frames = await read(response)
    assert [f.tokens for f in frames if isinstance(f, ResponseMetrics)] == [999]
    assert [type(f).__name__ for f in frames] == ["ResponseDelta", "ResponseMetrics", "ResponseDelta", "ResponseDone"]
    assert text_of(frames) == "".join(f"{n} " for n in range(1, 1000)) + "end"


async def test_a_reader_that_waits_is_woken() -> None:
    response = Response("1", "me", FakeClock())
    reader = asyncio.create_task(read(response))
    for piece in ("a", "b", "c"):
        await asyncio.sleep(0)
        response.delta(piece, 1)
    response.end("completed")
    frames = await reader
    assert "".join(f.text for f in frames if isinstance(f, ResponseDelta)) == "abc"


async def test_cancel_is_harmless_when_late() -> None:
    response = Response("1", "me", FakeClock())
    assert response.cancel("stop it")
    assert not response.cancel("again")
    assert response.status == "cancelled"
    assert (await read(response))[-1].finish_reason == "stop it"  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------ coming back
@given(st.lists(st.tuples(st.sampled_from("dmhrl"), st.integers(0, 3)), max_size=60))
async def test_whatever_is_read_again_is_what_was_read_before(steps: list[tuple[str, int]]) -> None:
    """Any order of text, metrics, hops, reading (r) and leaving to come back with an older `seq` (l)."""
    response, reader = small(), None
    response.emit(created(response))
    said, by_seq, last = "", {}, 0
    reader = response.attach()
    frames = reader.frames()
    for number, (step, size) in enumerate(steps):
        if step == "d":
            said += f"w{number} "
            response.delta(f"w{number} ", 1)
        elif step == "m":
            response.emit(ResponseMetrics(stream=response.stream, seq=0, tokens=number))
        elif step == "h":
            response.emit(ResponseHop(stream=response.stream, seq=0, node=str(number), ms=1.0, state=Figures()))
        elif step == "r":
            for _ in range(size):
                if not (reader.is_behind or response.has_waiting):
                    break
                frame = await anext(frames)
                assert frame.seq == last + 1  # type: ignore[union-attr]
                last += 1
                assert by_seq.setdefault(last, frame) == frame
        else:
            reader.detach()
            last = max(0, last - size)
            reader = response.attach(last)
            assert reader.result == "replayed"
            frames = reader.frames()
    response.end("completed")
    async for frame in frames:
        last += 1
        assert frame.seq == last  # type: ignore[union-attr]
        assert by_seq.setdefault(last, frame) == frame
    assert text_of([by_seq[seq] for seq in sorted(by_seq)]) == said == response.text
    assert [type(f) for f in by_seq.values()].count(ResponseDone) == 1
    assert response.attach(last).result == "done"


async def test_a_newer_reader_supersedes_and_gets_everything() -> None:
    response = small()
    response.delta("a", 1)
    old = asyncio.create_task(take(response.attach(), 9))
    await asyncio.sleep(0)
    new = response.attach(1)
    response.delta("b", 1)
    with pytest.raises(Superseded):
        await old
    response.end("completed")
    assert text_of([frame async for frame in new.frames()]) == "b"


async def test_an_old_reader_that_leaves_does_not_part_the_new_one() -> None:
    response = small()
    response.grace_s = 0
    old, new = response.attach(), response.attach()
    old.detach()
    assert not response.has_ended
    new.detach()
    assert (response.status, response.cancel_reason) == ("cancelled", "disconnected")


async def test_after_too_many_frames_there_is_a_gap_and_the_snapshot_has_the_text() -> None:
    response = small(frames=4)
    response.emit(created(response))
    reader = response.attach()
    frames = reader.frames()
    for number in range(9):
        await anext(frames) if number == 0 else None
        response.delta(f"{number} ", 1)
        await anext(frames)
    reader.detach()
    response.delta("unread ", 1)
    assert response.attach(6).result == "replayed"
    back = response.attach(2)
    assert back.result == "gap"
    told = response.snapshot()
    assert told["text"] == "".join(f"{n} " for n in range(9)) + "unread "
    response.delta("new", 1)
    response.end("completed")
    follows = [frame async for frame in back.frames()]
    assert text_of([f for f in follows if f.seq > told["seq"]]) == "new"  # type: ignore[union-attr]
    assert isinstance(follows[-1], ResponseDone)
    fresh = [frame async for frame in response.attach(0).frames()]
    assert [type(frame) for frame in fresh] == [ResponseCreated, ResponseDone]  # whoever begins learns what it is


async def test_a_seq_that_was_never_given_is_a_gap() -> None:
    response = small()
    response.delta("a", 1)
    assert response.attach(7).result == "gap"


async def test_a_reader_that_is_overtaken_by_the_bound_is_told() -> None:
    response = small(frames=3)
    reader = response.attach()
    for number in range(9):
        response.delta(str(number), 1)
        response.snapshot()
    with pytest.raises(ReplayGone):
        await take(reader, 1)


async def test_the_end_is_told_even_when_nothing_else_is_kept() -> None:
    pool = RingPool(max_frames=100, group_bytes=2000, total_bytes=2000)
    first = Response("1", "me", FakeClock(), pool.open("g"))
    first.delta("x" * 1500, 1)
    first.end("completed")
    await read(first)
    other = Response("2", "me", FakeClock(), pool.open("g"))
    other.delta("y" * 1500, 1)
    other.snapshot()
    assert first.attach(1).result == "replayed"
    assert [type(frame) for frame in await take(first.attach(0), 9)] == [ResponseDone]
    assert pool.size <= 2000
