"""Many small calls to one host become few: collect for a moment, send together, hand the answers out again."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from qraf.errors import LimitExceeded, NodeDown, QrafError

__all__ = ["Batcher"]

In = TypeVar("In")
Out = TypeVar("Out")


class Batcher(Generic[In, Out]):
    """Merges calls; belongs to one event loop.

    A batch goes out `window_ms` after its first call, or when it weighs `max_weight`, if fewer than `max_inflight`
    batches are out; else it grows until one returns. When `max_waiting` calls wait, more are refused.

    Args:
        name: for the error that says what is full.
        send: sends a batch; answers in order, or an error for single calls, or raises for all of them.
    """

    def __init__(
        self,
        name: str,
        send: Callable[[list[In]], Awaitable[Sequence[Out | QrafError]]],
        *,
        window_ms: float = 1.0,
        max_weight: int = 64,
        max_waiting: int = 4096,
        max_inflight: int = 4,
    ) -> None:
        self._name, self._send = name, send
        self._window_s, self._max_weight = window_ms / 1e3, max_weight
        self._max_waiting, self._max_inflight = max_waiting, max_inflight
        self._queue: deque[tuple[In, int, asyncio.Future[Out]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._closed = False
        self.sent = 0  # batches
        self.refused = 0

    @property
    def waiting(self) -> int:
        """Calls that are not sent yet."""
        return len(self._queue)

    async def call(self, item: In, weight: int = 1) -> Out:
        """Send `item` with others and return its answer.

        Cancel: safe; a call that is not sent yet is left out, the answer of one that is sent is dropped.

        Raises:
            LimitExceeded: `max_waiting` calls wait already.
            NodeDown: closed.
        """
        if self._closed:
            raise NodeDown(self._name, "closed")
        if len(self._queue) >= self._max_waiting:
            self.refused += 1
            raise LimitExceeded(f"calls that wait for {self._name}", self._max_waiting, len(self._queue) + 1, 500)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Out] = loop.create_future()
        self._queue.append((item, weight, answer))
        if _is_full(self._queue, self._max_weight):
            self._flush()
        elif self._timer is None and len(self._sending) < self._max_inflight:
            self._timer = loop.call_later(self._window_s, self._flush)
        return await answer

    async def close(self) -> None:
        """Cancel what is out and what waits. Twice does nothing."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        while self._queue:
            self._queue.popleft()[2].cancel()
        for task in tuple(self._sending):
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._queue and len(self._sending) < self._max_inflight:
            batch: list[tuple[In, asyncio.Future[Out]]] = []
            weight = 0
            while self._queue and (not batch or weight + self._queue[0][1] <= self._max_weight):
                item, its_weight, answer = self._queue.popleft()
                if not answer.done():
                    batch.append((item, answer))
                    weight += its_weight
            if batch:
                task = asyncio.get_running_loop().create_task(self._deliver(batch))
                self._sending.add(task)
                task.add_done_callback(self._returned)

    def _returned(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        if self._queue and self._timer is None:
            self._flush()

    async def _deliver(self, batch: list[tuple[In, asyncio.Future[Out]]]) -> None:
        self.sent += 1
        try:
            answers = await self._send([item for item, _ in batch])
        except asyncio.CancelledError:
            for _, answer in batch:
                answer.cancel()
            raise
        except Exception as error:
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        for (_, answer), value in zip(batch, answers, strict=True):
            if answer.done():
                continue
            if isinstance(value, QrafError):
                answer.set_exception(value)
            else:
                answer.set_result(value)


def _is_full(queue: deque[tuple[In, int, asyncio.Future[Out]]], weight: int) -> bool:
    total = 0
    for _, its_weight, _ in queue:
        total += its_weight
        if total >= weight:
            return True
    return False
