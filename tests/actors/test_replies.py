"""Waiting for an actor's word."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future

import pytest

from qraf.actors.replies import reply


class Ref:
    def __init__(self) -> None:
        self.word: Future[int] = Future()

    def future(self) -> Future[int]:
        return self.word


@pytest.mark.parametrize("steps", range(6))
async def test_a_cancel_that_comes_together_with_the_answer_is_not_lost(steps) -> None:
    ref = Ref()
    task = asyncio.create_task(reply(ref, 5.0))
    await asyncio.sleep(0)
    ref.word.set_result(1)
    for _ in range(steps):
        await asyncio.sleep(0)
    if task.cancel():
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        assert await task == 1


async def test_an_answer_that_does_not_come_is_given_up() -> None:
    with pytest.raises(TimeoutError):
        await reply(Ref(), 0.01)
