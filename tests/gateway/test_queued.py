"""A write beyond the bytes in flight: told that it waits, then done or refused; a client waits with it."""

from __future__ import annotations

import asyncio

import pytest_asyncio

import qraf
from tests.gateway.conftest import serving
from tests.gateway.wire import Wire

ROOM = 4096


@pytest_asyncio.fixture(loop_scope="module")
async def full(model):
    """A server whose room for writes is taken: `give` frees it."""
    async with serving(model, max_write_bytes_in_flight=ROOM, max_queued_write_bytes=3000, write_wait_ms=400) as server:
        budget = server.service.writer.budget
        async with Wire(server.url) as wire:
            await wire.ask({"type": "session.open", "id": "1", "session": "s"})
            budget.used = ROOM
            yield server, wire, lambda: budget.give(ROOM)
            assert (budget.used, budget.queued, budget.queued_bytes) == (0, 0, 0)


def write(name: str, text: str = "x") -> dict:
    return {"type": "write", "id": name, "session": "s", "items": [{"item_id": name, "text": text}]}


async def test_a_write_that_waits_says_so_and_is_then_done(full) -> None:
    _, wire, give = full
    for name in ("a", "b"):
        await wire.send(write(name))
    queued = [await wire.recv() for _ in range(2)]
    assert queued == [{"type": "ack", "id": name, "status": "queued"} for name in ("a", "b")]
    give()
    done = [await wire.recv() for _ in range(2)]
    assert [(one["type"], one["id"], one["accepted"]) for one in done] == [
        ("write.done", name, 1) for name in ("a", "b")
    ]
    assert (await wire.ask(write("c")))["type"] == "write.done"  # there is room: nothing is said of waiting


async def test_a_write_that_found_no_room_in_time_is_refused_and_all_wait_equally_long(full) -> None:
    _, wire, give = full
    started = asyncio.get_running_loop().time()
    for name in ("a", "b"):
        await wire.send(write(name))
    frames = [await wire.recv() for _ in range(4)]
    took = asyncio.get_running_loop().time() - started
    errors = {one["id"]: one["error"] for one in frames if one["type"] == "error"}
    assert [one["status"] for one in frames if one["type"] == "ack"] == ["queued", "queued"]
    assert sorted(errors) == ["a", "b"]
    assert {(one["code"], one["retry_after_ms"]) for one in errors.values()} == {("limit_exceeded", 400)}
    assert 0.35 < took < 0.75  # not one after the other
    give()


async def test_what_waits_has_a_bound_of_its_own(full) -> None:
    _, wire, give = full
    await wire.send(write("a", "x" * 2000))
    assert (await wire.recv())["status"] == "queued"
    refused = (await wire.ask(write("b", "x" * 1000)))["error"]
    assert (refused["code"], refused["retryable"]) == ("limit_exceeded", True)
    assert "max_queued_write_bytes" in refused["detail"]
    give()
    assert (await wire.recv())["accepted"] == 1


async def test_the_client_waits_for_the_answer(full) -> None:
    server, _, give = full
    async with qraf.connect(server.url) as q:
        asyncio.get_running_loop().call_later(0.1, give)
        done = await q.write(session="s", items=[{"item_id": "c", "text": "I am allergic to nuts."}])
        assert done.accepted == 1
