from __future__ import annotations

import asyncio

import pytest

from qraf.clock import FakeClock
from qraf.errors import LimitExceeded
from qraf.frames import ResponseCreated, ResponseDelta, ResponseDone, ResponseMetrics, ServerFrame
from qraf.sessions.responses import Response, Responses


async def read(response: Response) -> list[ServerFrame]:
    return [frame async for frame in response.frames()]


def created(response: Response) -> ResponseCreated:
    return ResponseCreated(stream=response.stream, seq=0, id=response.command_id, response=response.id)


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


async def test_metrics_that_wait_are_replaced_by_newer_ones() -> None:
    response = Response("1", "me", FakeClock())
    for tokens in (1, 2, 3):
        response.emit(ResponseMetrics(stream=response.stream, seq=0, tokens=tokens))
    response.end("completed")
    frames = await read(response)
    assert [f.tokens for f in frames if isinstance(f, ResponseMetrics)] == [3]


async def test_a_reader_that_waits_is_woken() -> None:
    response = Response("1", "me", FakeClock())
    reader = asyncio.create_task(read(response))
    for piece in ("a", "b", "c"):
        await asyncio.sleep(0)
        response.delta(piece, 1)
    response.end("completed")
    frames = await reader
    assert "".join(f.text for f in frames if isinstance(f, ResponseDelta)) == "abc"


async def test_one_reader_only() -> None:
    response = Response("1", "me", FakeClock())
    response.end("completed")
    await read(response)
    with pytest.raises(RuntimeError, match="one reader"):
        await read(response)


async def test_cancel_is_harmless_when_late() -> None:
    response = Response("1", "me", FakeClock())
    assert response.cancel("stop it")
    assert not response.cancel("again")
    assert response.status == "cancelled"
    assert (await read(response))[-1].finish_reason == "stop it"  # type: ignore[union-attr]


def responses(clock: FakeClock, running: int = 2, kept: int = 2) -> Responses:
    return Responses(clock, max_running=running, max_kept=kept, kept_s=60)


def test_a_response_is_found_by_id_stream_and_its_owners_command() -> None:
    table = responses(FakeClock())
    response = table.create("7", "me")
    assert table.find(response.id) is response
    assert table.find(response.stream) is response
    assert table.find("7", "me") is response
    assert table.find("7", "you") is None
    assert table.find("7") is None


def test_running_responses_are_bounded() -> None:
    table = responses(FakeClock())
    first = table.create("1", "me")
    table.create("2", "me")
    with pytest.raises(LimitExceeded, match="max_running_responses"):
        table.create("3", "me")
    first.end("completed")
    table.create("3", "me")


def test_ended_responses_are_let_go_by_number_and_age() -> None:
    clock = FakeClock()
    table = responses(clock, running=10)
    made = [table.create(str(i), "me") for i in range(4)]
    for response in made[:3]:
        response.end("completed")
    table.sweep()
    assert table.find(made[0].id) is None
    assert table.find("0", "me") is None
    assert table.find(made[1].id) is made[1]
    clock.advance(61)
    table.sweep()
    assert table.find(made[1].id) is None
    assert table.find(made[3].id) is made[3]  # still runs
