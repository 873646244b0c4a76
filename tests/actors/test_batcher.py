from __future__ import annotations

import asyncio

import pytest

from qraf.actors.batcher import Batcher
from qraf.errors import InvalidRequest, LimitExceeded, NodeDown


class Echo:
    """Answers with ten times what came; holds its answers while `gate` is closed."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.entered = asyncio.Event()
        self.gate.set()

    async def send(self, batch: list[int]) -> list[int | InvalidRequest]:
        self.batches.append(batch)
        self.entered.set()
        await self.gate.wait()
        if 666 in batch:
            raise NodeDown("echo", "dead")
        return [InvalidRequest("odd") if one % 2 else one * 10 for one in batch]


async def test_calls_of_one_moment_go_out_together_and_come_back_in_order() -> None:
    echo = Echo()
    batcher: Batcher[int, int] = Batcher("echo", echo.send, window_ms=0)
    assert await asyncio.gather(*(batcher.call(n) for n in range(0, 20, 2))) == list(range(0, 200, 20))
    assert echo.batches == [list(range(0, 20, 2))]


async def test_a_full_batch_does_not_wait_for_the_window_and_none_is_heavier() -> None:
    echo = Echo()
    batcher: Batcher[int, int] = Batcher("echo", echo.send, window_ms=60_000, max_weight=4)
    answers = [asyncio.create_task(batcher.call(n, weight=2)) for n in (2, 4, 6, 8)]
    assert await asyncio.gather(*answers) == [20, 40, 60, 80]
    assert echo.batches == [[2, 4], [6, 8]]


async def test_an_error_for_one_call_leaves_the_others_alone_and_an_error_of_all_reaches_all() -> None:
    batcher: Batcher[int, int] = Batcher("echo", Echo().send, window_ms=0)
    good, odd = await asyncio.gather(batcher.call(2), batcher.call(3), return_exceptions=True)
    assert good == 20
    assert isinstance(odd, InvalidRequest)
    errors = await asyncio.gather(batcher.call(2), batcher.call(666), return_exceptions=True)
    assert [type(error) for error in errors] == [NodeDown, NodeDown]


async def test_while_all_batches_are_out_calls_gather_and_the_queue_is_bounded() -> None:
    echo = Echo()
    echo.gate.clear()
    batcher: Batcher[int, int] = Batcher("echo", echo.send, window_ms=0, max_inflight=1, max_waiting=3)
    first = asyncio.create_task(batcher.call(2))
    await echo.entered.wait()
    waiting = [asyncio.create_task(batcher.call(n)) for n in (4, 6, 8)]
    await asyncio.sleep(0)
    with pytest.raises(LimitExceeded):
        await batcher.call(10)
    assert batcher.refused == 1
    echo.gate.set()
    assert await asyncio.gather(first, *waiting) == [20, 40, 60, 80]
    assert echo.batches == [[2], [4, 6, 8]]


async def test_a_call_given_up_before_it_is_sent_is_left_out() -> None:
    echo = Echo()
    batcher: Batcher[int, int] = Batcher("echo", echo.send, window_ms=1)
    quitter = asyncio.create_task(batcher.call(4))
    stayer = asyncio.create_task(batcher.call(2))
    await asyncio.sleep(0)
    quitter.cancel()
    assert await stayer == 20
    assert echo.batches == [[2]]


async def test_close_cancels_what_is_out_and_what_waits() -> None:
    echo = Echo()
    echo.gate.clear()
    batcher: Batcher[int, int] = Batcher("echo", echo.send, window_ms=0, max_inflight=1)
    calls = [asyncio.create_task(batcher.call(2))]
    await echo.entered.wait()
    calls.append(asyncio.create_task(batcher.call(4)))
    await asyncio.sleep(0)
    await batcher.close()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError] * 2
