from __future__ import annotations

import asyncio

from qraf.actors.spare import Spare
from qraf.clock import FakeClock


class Maker:
    def __init__(self) -> None:
        self.made = 0
        self.fails = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def make(self) -> int:
        self.made += 1
        number = self.made
        await self.gate.wait()
        if self.fails:
            raise OSError("no room")
        return number


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_one_is_made_ahead_and_the_next_only_after_it_was_taken() -> None:
    maker = Maker()
    spare = Spare(maker.make, FakeClock())
    assert await spare.take() is None
    for _ in range(3):
        spare.keep()
        await settle()
    assert spare.is_ready
    assert maker.made == 1
    assert await spare.take() == 1
    assert not spare.is_ready
    spare.keep()
    assert await spare.take() == 2


async def test_one_in_the_making_is_waited_for() -> None:
    maker = Maker()
    maker.gate.clear()
    spare = Spare(maker.make, FakeClock())
    spare.keep()
    taking = asyncio.create_task(spare.take())
    await settle()
    assert not taking.done()
    maker.gate.set()
    assert await taking == 1


async def test_after_a_failure_it_pauses() -> None:
    maker, clock = Maker(), FakeClock()
    maker.fails = True
    spare = Spare(maker.make, clock, pause_s=15)
    spare.keep()
    await settle()
    assert not spare.is_ready
    spare.keep()
    clock.advance(14)
    spare.keep()
    await settle()
    assert maker.made == 1
    clock.advance(1)
    maker.fails = False
    spare.keep()
    assert await spare.take() == 2


async def test_one_that_fails_while_it_is_awaited_is_none() -> None:
    maker = Maker()
    maker.fails = True
    spare = Spare(maker.make, FakeClock())
    spare.keep()
    assert await spare.take() is None


async def test_close_hands_out_what_is_made_and_stops_what_is_not() -> None:
    maker = Maker()
    spare = Spare(maker.make, FakeClock())
    spare.keep()
    await settle()
    assert await spare.close() == 1
    assert await spare.close() is None
    maker.gate.clear()
    other = Spare(maker.make, FakeClock())
    other.keep()
    await settle()
    assert await other.close() is None
    other.keep()
    await settle()
    assert maker.made == 2


async def test_one_that_is_there_already_may_be_put_in_and_no_second_one() -> None:
    maker = Maker()
    spare = Spare(maker.make, FakeClock())
    assert spare.put(maker.make)
    spare.keep()
    assert not spare.put(maker.make)
    assert await spare.take() == 1
    assert maker.made == 1
