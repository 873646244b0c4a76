from __future__ import annotations

import asyncio

import pytest

from qraf.gateway.outbox import Outbox, SlowReader


class Newest:
    def __init__(self) -> None:
        self.value = 0

    def take(self) -> str:
        return str(self.value)


async def test_messages_leave_in_order() -> None:
    box = Outbox(10, 100)
    for message in ("a", "b", b"c"):
        box.put(message)
    assert [await box.get() for _ in range(3)] == ["a", "b", b"c"]


async def test_too_many_messages_and_too_many_bytes_are_a_slow_reader() -> None:
    box = Outbox(2, 100)
    box.put("a")
    box.put("b")
    with pytest.raises(SlowReader):
        box.put("c")
    heavy = Outbox(10, 100)
    heavy.put("x" * 60)
    with pytest.raises(SlowReader):
        heavy.put("x" * 60)


async def test_taking_makes_room() -> None:
    box = Outbox(2, 10)
    for _ in range(5):
        box.put("x" * 10)
        await box.get()


async def test_a_slot_waits_once_and_leaves_with_the_newest() -> None:
    box, slot = Outbox(10, 100), Newest()
    assert box.put_slot(slot)
    slot.value = 7
    assert not box.put_slot(slot)
    assert await box.get() == "7"
    assert box.put_slot(slot)
    box.remove(slot)
    assert len(box) == 0


async def test_drained_means_sent_not_only_taken() -> None:
    box = Outbox(10, 100)
    box.put("a")
    await box.get()
    assert not box.is_empty
    reader = asyncio.create_task(box.get())
    await asyncio.wait_for(box.drained(), 10)
    reader.cancel()
