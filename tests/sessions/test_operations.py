from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from qraf.clock import FakeClock
from qraf.errors import InvalidRequest, LimitExceeded, NotFound
from qraf.service_orders import Dequantized, OperationView, ServiceAnswer
from qraf.sessions.operations import Operations


def answer(n: int) -> Dequantized:
    return Dequantized(n=n, d=1, rows=None)


async def total(answers: Sequence[ServiceAnswer]) -> ServiceAnswer:
    return answer(sum(one.n for one in answers if isinstance(one, Dequantized)))


class Steps:
    """Steps that wait for a gate each, and know which of them were begun."""

    def __init__(self, n: int) -> None:
        self.gates = [asyncio.Event() for _ in range(n)]
        self.begun: list[int] = []
        self.steps = [lambda index=index: self.step(index) for index in range(n)]

    async def step(self, index: int) -> ServiceAnswer:
        self.begun.append(index)
        await self.gates[index].wait()
        return answer(index + 1)

    def open(self, *indices: int) -> None:
        for index in indices or range(len(self.gates)):
            self.gates[index].set()


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def make(clock: FakeClock, **limits: int) -> Operations:
    options = {"max_open": 3, "kept_s": 600, "max_running": 2, "lanes": 2} | limits
    return Operations(clock, **options)  # type: ignore[arg-type]


async def test_a_job_tells_how_far_it_is_and_gives_its_result(clock: FakeClock):
    operations, steps = make(clock), Steps(4)
    begun = operations.start("nearest", steps.steps, total)
    assert (begun.status, begun.progress, begun.op) == ("queued", 0.0, "nearest")
    await settle()
    assert operations.get(begun.id).status == "running"
    assert steps.begun == [0, 1]  # as many as there are lanes
    steps.open(1)
    await settle()
    assert operations.get(begun.id).progress == 0.25
    assert steps.begun == [0, 1, 2]
    clock.advance(3)
    steps.open()
    await settle()
    done = operations.get(begun.id)
    assert (done.status, done.progress, done.age_s) == ("completed", 1.0, 3.0)
    assert done.result == answer(1 + 2 + 3 + 4)
    assert [one.result for one in operations.list()] == [None]


async def test_a_cancelled_job_begins_no_further_part(clock: FakeClock):
    operations, steps = make(clock, lanes=1), Steps(3)
    begun = operations.start("nearest", steps.steps, total)
    await settle()
    cancelled = await operations.cancel(begun.id)
    steps.open()
    await settle()
    assert cancelled.status == "cancelled"
    assert steps.begun == [0]
    assert operations.get(begun.id) == cancelled
    assert (await operations.cancel(begun.id)).status == "cancelled"


async def test_one_that_waits_for_its_turn_can_be_cancelled_and_the_next_one_runs(clock: FakeClock):
    operations = make(clock, max_running=1)
    first, second, third = Steps(1), Steps(1), Steps(1)
    views = [operations.start("nearest", steps.steps, total) for steps in (first, second, third)]
    await settle()
    assert [operations.get(one.id).status for one in views] == ["running", "queued", "queued"]
    await operations.cancel(views[1].id)
    first.open()
    third.open()
    await settle()
    assert [operations.get(one.id).status for one in views] == ["completed", "cancelled", "completed"]
    assert second.begun == []


async def test_a_part_that_fails_ends_the_job_with_its_fault_and_stops_the_others(clock: FakeClock):
    operations, steps = make(clock), Steps(3)

    async def fail() -> ServiceAnswer:
        raise InvalidRequest("must be square", "/matrices/1")

    begun = operations.start("nearest", [steps.steps[0], fail, steps.steps[2]], total)
    await settle()
    failed = operations.get(begun.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert (failed.error.code, failed.error.pointer) == ("invalid_request", "/matrices/1")
    assert steps.begun == [0]


async def test_a_bug_is_told_without_its_words(clock: FakeClock, caplog: pytest.LogCaptureFixture):
    operations = make(clock)

    async def fail() -> ServiceAnswer:
        raise RuntimeError("a secret")

    begun = operations.start("nearest", [fail], total)
    await settle()
    failed = operations.get(begun.id)
    assert failed.error is not None
    assert failed.error.code == "internal"
    assert "secret" not in failed.error.detail
    assert "a secret" in caplog.text


async def test_more_than_may_be_open_are_refused_until_one_ends(clock: FakeClock):
    operations, steps = make(clock), Steps(1)
    views = [operations.start("nearest", steps.steps, total) for _ in range(3)]
    with pytest.raises(LimitExceeded) as refused:
        operations.start("nearest", steps.steps, total)
    assert refused.value.retryable
    steps.open()
    await settle()
    assert {operations.get(one.id).status for one in views} == {"completed"}
    assert operations.start("nearest", steps.steps, total).status == "queued"
    await operations.close()


async def test_results_are_kept_for_their_time_and_the_newest_only(clock: FakeClock):
    operations, steps = make(clock), Steps(1)
    steps.open()
    views: list[OperationView] = []
    for _ in range(5):
        views.append(operations.start("nearest", steps.steps, total))
        await settle()
        clock.advance(1)
    assert [one.id for one in operations.list()] == [one.id for one in reversed(views[2:])]
    clock.advance(596)
    operations.get(views[3].id)
    clock.advance(2)
    with pytest.raises(NotFound):
        operations.get(views[3].id)
    await operations.drop(views[4].id)
    assert operations.list() == []
    with pytest.raises(NotFound):
        await operations.drop(views[4].id)


async def test_close_cancels_what_runs(clock: FakeClock):
    operations, steps = make(clock), Steps(2)
    begun = operations.start("nearest", steps.steps, total)
    await settle()
    await operations.close()
    await operations.close()
    assert operations.get(begun.id).status == "cancelled"


async def test_orders_and_results_are_bounded_by_their_bytes(clock: FakeClock):
    operations = make(clock, max_bytes=100)
    steps = [Steps(1) for _ in range(2)]
    first = operations.start("nearest", steps[0].steps, total, nbytes=60)
    with pytest.raises(LimitExceeded, match="bytes of operations") as refused:
        operations.start("nearest", steps[1].steps, total, nbytes=60)
    assert refused.value.retryable
    await operations.cancel(first.id)
    operations.start("nearest", steps[1].steps, total, nbytes=60)


async def test_the_oldest_results_go_where_they_hold_too_much(clock: FakeClock):
    operations = make(clock, max_bytes=50)
    begun = []
    for _ in range(3):  # results of some 25 bytes
        steps = Steps(1)
        steps.open()
        begun.append(operations.start("nearest", steps.steps, total))
        await settle()
        clock.advance(1)
    kept = [one.id for one in operations.list()]
    assert begun[2].id in kept
    assert begun[0].id not in kept


async def test_jobs_beside_the_others_take_turns_among_themselves_and_hold_no_other_up(clock: FakeClock):
    operations, hanging, other = make(clock), Steps(1), Steps(1)
    apart = [operations.start("snapshots", hanging.steps, total, is_apart=True) for _ in range(2)]
    view = operations.start("optimize", other.steps, total)
    other.open()
    await settle()
    assert operations.get(view.id).status == "completed"
    assert [operations.get(one.id).status for one in apart] == ["running", "queued"]
    hanging.open()
    await settle()
    assert [operations.get(one.id).status for one in apart] == ["completed", "completed"]
