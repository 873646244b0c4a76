"""Long jobs: ordered, followed, cancelled; their results are kept for a while.

A job is a list of parts that the services answer one by one, so that its progress is what is done of them and a cancel
takes effect before the next part. Jobs live in this process: a restart forgets them, and nothing stored depends on one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec
from ulid import ULID

from qraf.clock import Clock
from qraf.errors import LimitExceeded, NotFound, QrafError
from qraf.frames import ErrorBody
from qraf.service_orders import OperationResult, OperationStatus, OperationView
from qraf.sessions.faults import error_body
from qraf.tenants import DEFAULT_TENANT
from qraf.times import format_time

__all__ = ["Operation", "Operations"]

log = logging.getLogger(__name__)

_RETRY_MS = 1000
Part = TypeVar("Part", bound=OperationResult)
Step = Callable[[], Awaitable[Part]]
Join = Callable[[Sequence[Part]], Awaitable[OperationResult]]


class Operation:
    """One job: what it is, how far it is, how it ended."""

    def __init__(self, op: str, clock: Clock, tenant: str = DEFAULT_TENANT) -> None:
        self.id, self.op, self.tenant = f"op_{ULID()}", op, tenant
        self.status: OperationStatus = "queued"
        self.progress = 0.0
        self.result: OperationResult | None = None
        self.error: ErrorBody | None = None
        self.created_at, self.ended_at = clock.now(), 0.0
        self.nbytes = 0  # of the order while it is open, of the result afterwards
        self.task: asyncio.Task[None] | None = None
        self._clock = clock

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in ("completed", "failed", "cancelled")

    def end(self, status: OperationStatus) -> None:
        """End once; later ends change nothing."""
        if not self.has_ended:
            self.status, self.ended_at = status, self._clock.now()
            self.nbytes = 0 if self.result is None else len(msgspec.msgpack.encode(self.result))

    def view(self, kept_s: float, *, with_result: bool = True) -> OperationView:
        """The job as it is now."""
        return OperationView(
            id=self.id,
            op=self.op,
            status=self.status,
            progress=self.progress,
            created_at=format_time(self.created_at),
            age_s=max(0.0, self._clock.now() - self.created_at),
            ended_at=format_time(self.ended_at) if self.has_ended else None,
            expires_at=format_time(self.ended_at + kept_s) if self.has_ended else None,
            result=self.result if with_result else None,
            error=self.error,
        )


class Operations:
    """All jobs of a server.

    Args:
        max_open: jobs that run or wait; more are refused. As many that have ended are kept, the newest.
        kept_s: how long one that has ended is kept.
        max_bytes: of the orders of open jobs and the results that are kept; the oldest results go first.
        max_running: jobs that work at once; the others wait in the order in which they came.
        lanes: parts of one job that are under way at once.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        max_open: int,
        kept_s: float,
        max_bytes: int = 512 * 1024 * 1024,
        max_running: int = 2,
        lanes: int = 2,
    ) -> None:
        self._clock, self._max_open, self._kept_s, self._lanes = clock, max_open, kept_s, lanes
        self._max_bytes = max_bytes
        self._all: OrderedDict[str, Operation] = OrderedDict()
        self._slots, self._apart = asyncio.Semaphore(max_running), asyncio.Semaphore(1)

    @property
    def num_open(self) -> int:
        """Jobs that run or wait."""
        return sum(not one.has_ended for one in self._all.values())

    def start(
        self,
        op: str,
        steps: Sequence[Step[Part]],
        join: Join[Part],
        tenant: str = DEFAULT_TENANT,
        nbytes: int = 0,
        *,
        is_apart: bool = False,
    ) -> OperationView:
        """Begin a tenant's job whose steps, each awaited at most once, give the parts that `join` makes the result of.

        `nbytes` is what its order holds until it has ended. `is_apart`: it waits for something that may hang, so it
        takes turns with its like alone, one at a time, and holds no other job up.

        Raises:
            LimitExceeded: as many run or wait as may, or their orders hold as many bytes.
        """
        self.sweep()
        if self.num_open >= self._max_open:
            raise LimitExceeded("operations that run or wait", self._max_open, self.num_open + 1, _RETRY_MS)
        waiting = nbytes + sum(one.nbytes for one in self._all.values() if not one.has_ended)
        if waiting > self._max_bytes:
            raise LimitExceeded("bytes of operations that run or wait", self._max_bytes, waiting, _RETRY_MS)
        operation = Operation(op, self._clock, tenant)
        operation.nbytes = nbytes
        self._all[operation.id] = operation
        operation.task = asyncio.get_running_loop().create_task(
            self._run(operation, steps, join, self._apart if is_apart else self._slots),
            name=f"operation {operation.id}",
        )
        # a task that is cancelled before its first step runs no `finally`
        operation.task.add_done_callback(lambda _: operation.end("cancelled"))
        return operation.view(self._kept_s)

    def get(self, id: str, tenant: str = DEFAULT_TENANT) -> OperationView:
        """A tenant's job with its result; raises NotFound."""
        return self._find(id, tenant).view(self._kept_s)

    def list(self, tenant: str = DEFAULT_TENANT) -> list[OperationView]:
        """Every job of a tenant, newest first, without results."""
        self.sweep()
        own = [one for one in reversed(self._all.values()) if one.tenant == tenant]
        return [one.view(self._kept_s, with_result=False) for one in own]

    async def cancel(self, id: str, tenant: str = DEFAULT_TENANT) -> OperationView:
        """Stop a job before its next part; one that has ended stays as it is. Raises NotFound."""
        operation = self._find(id, tenant)
        await self._stop(operation)
        return operation.view(self._kept_s)

    async def drop(self, id: str, tenant: str = DEFAULT_TENANT) -> OperationView:
        """Cancel a job and forget it with its result. Raises NotFound."""
        view = await self.cancel(id, tenant)
        self._all.pop(id, None)
        return view

    def sweep(self) -> None:
        """Forget the results whose time is over, and the oldest where more are kept than may be, in number or bytes."""
        ended = [one for one in self._all.values() if one.has_ended]
        ended.sort(key=lambda one: one.ended_at)
        excess = len(ended) - self._max_open
        held = sum(one.nbytes for one in self._all.values())
        now = self._clock.now()
        for index, one in enumerate(ended):
            # a single result stays, whatever its size: somebody is about to fetch it
            is_too_much = held > self._max_bytes and index + 1 < len(ended)
            if index < excess or is_too_much or now >= one.ended_at + self._kept_s:
                held -= one.nbytes
                del self._all[one.id]

    async def close(self) -> None:
        """Cancel every job. Twice does nothing more."""
        await asyncio.gather(*(self._stop(one) for one in self._all.values()))

    def _find(self, id: str, tenant: str) -> Operation:
        self.sweep()
        found = self._all.get(id)
        if found is None or found.tenant != tenant:
            raise NotFound("operation", id[:100])
        return found

    @staticmethod
    async def _stop(operation: Operation) -> None:
        if operation.task is not None and not operation.task.done():
            operation.task.cancel()
            await asyncio.gather(operation.task, return_exceptions=True)
        operation.end("cancelled")

    async def _run(
        self, operation: Operation, steps: Sequence[Step[Part]], join: Join[Part], slots: asyncio.Semaphore
    ) -> None:
        try:
            async with slots:
                operation.status = "running"
                answers = await self._answers(operation, steps)
                operation.result = await join(answers)
            operation.progress = 1.0
            operation.end("completed")
            self.sweep()
        except QrafError as error:
            operation.error = error_body(error)
            operation.end("failed")
        except Exception as error:
            log.exception("operation %s failed", operation.id)
            operation.error = error_body(error)
            operation.end("failed")

    async def _answers(self, operation: Operation, steps: Sequence[Step[Part]]) -> Sequence[Part]:
        """The parts' answers; the first fault ends the others. At most `lanes` are under way."""
        answers: dict[int, Part] = {}
        todo = iter(enumerate(steps))

        async def lane() -> None:
            for index, step in todo:
                answers[index] = await step()
                operation.progress = len(answers) / len(steps)

        lanes = [asyncio.create_task(lane()) for _ in range(min(self._lanes, len(steps)))]
        try:
            await asyncio.gather(*lanes)
        finally:
            for one in lanes:
                one.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)
        return [answers[index] for index in range(len(steps))]
