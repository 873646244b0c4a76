"""A stream of items into a memory: batched, pipelined within a window, repeated where that can help."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import msgspec

from qraf.client.connection import Connection
from qraf.client.items import Writable, to_wire, wire_bytes
from qraf.errors import InvalidRequest, QrafError, ServerError
from qraf.frames import ErrorBody, ItemWarning, Rejected, WireItem, Write, WriteDone
from qraf.records import Figures

__all__ = ["Writer"]

_FRAME_OVERHEAD = 1024
_Batch = list[tuple[int, WireItem]]


class Writer:
    """Writes items as they come: `async with q.writer("session") as w: await w.add("text")`.

    Items are gathered into frames of at most `batch` items, sent after `linger_s` at the latest, with at most `window`
    frames not answered yet; `add` waits when the window is full, so the writer never holds more than `window + 1`
    frames. A frame (or an item of it) that the server refuses for now is sent again with growing pauses for up to
    `retry_s`: item ids make that harmless. The server keeps the order in which items arrive; only a retry can change
    it, and `window=1` excludes even that. Items that can never be written are in `result.rejected`.

    Leaving the block waits until everything is durable and absorbed; leaving it by an error abandons what was not sent.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        session: str | None = None,
        collection: str | None = None,
        batch: int = 32,
        window: int = 8,
        linger_s: float = 0.02,
        retry_s: float = 60.0,
        keep_ids: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        if (session is None) == (collection is None):
            raise InvalidRequest("exactly one of `session` and `collection` says where to write")
        if batch < 1 or window < 1:
            raise InvalidRequest("`batch` and `window` must be at least 1")
        assert connection.welcome is not None
        limits = connection.welcome.limits
        self._connection, self._session, self._collection = connection, session, collection
        self._batch = min(batch, limits.max_items_per_write)
        self._max_bytes = limits.max_frame_bytes - _FRAME_OVERHEAD
        self._max_text = limits.max_item_bytes
        self._window = asyncio.Semaphore(min(window, limits.max_inflight_writes))
        self._linger_s, self._retry_s, self._keep_ids, self._progress = linger_s, retry_s, keep_ids, progress
        self._buffer: _Batch = []
        self._bytes = 0
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: BaseException | None = None
        self._is_closed = False
        self._accepted = self._duplicates = self._version = 0
        self._ids: dict[int, tuple[str, ...]] = {}
        self._made: set[int] = set()  # items of batches that are not done yet whose ids were made here
        self._rejected: list[Rejected] = []
        self._warnings: list[ItemWarning] = []
        self._state = Figures()

    @property
    def result(self) -> WriteDone:
        """What was written until now, as one `write.done`; `index` of what was rejected counts the calls of `add`."""
        return WriteDone(
            id="",
            accepted=self._accepted,
            duplicates=self._duplicates,
            rejected=tuple(sorted(self._rejected, key=lambda item: item.index)),
            item_ids=tuple(item_id for _, ids in sorted(self._ids.items()) for item_id in ids),
            state_version=self._version,
            state=self._state,
            warnings=tuple(self._warnings),
        )

    async def add(self, item: Writable, **fields: Any) -> str:
        """Take one item (a text, a mapping or a `WireItem`; `fields` override) and return its id.

        Waits while the window is full. Returning does not mean durable: leaving the block, or `flush`, does.

        Raises:
            InvalidRequest: not an item.
            QrafError: an earlier frame failed for good.
        """
        self._check()
        if fields:
            base = {"text": item} if isinstance(item, str) else msgspec.to_builtins(item)
            item = {key: value for key, value in base.items() if key != "type"} | fields
        wire = to_wire(item, self._count)
        has_id = not isinstance(item, str) and (item.item_id if isinstance(item, WireItem) else item.get("item_id"))
        index, size = self._count, wire_bytes(wire)
        self._count += 1
        assert wire.item_id is not None
        if size > self._max_bytes:
            self._reject(index, wire, size)
            return wire.item_id
        if self._bytes + size > self._max_bytes:
            await self._dispatch()
        if not has_id:
            self._made.add(index)
        self._buffer.append((index, wire))
        self._bytes += size
        if len(self._buffer) >= self._batch:
            await self._dispatch()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._linger_s, self._on_linger)
        return wire.item_id

    async def flush(self) -> WriteDone:
        """Send what waits, wait until everything that was added is durable and absorbed, and return `result`."""
        await self._dispatch()
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._check()
        return self.result

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                await self.flush()
        finally:
            self._is_closed = True
            if self._timer is not None:
                self._timer.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    # -------------------------------------------------------------------------------------------------- inside
    def _check(self) -> None:
        if self._failed is not None:
            raise self._failed
        if self._is_closed:
            raise InvalidRequest("this writer is closed")

    def _reject(self, index: int, wire: WireItem, size: int) -> None:
        allowed = min(self._max_text, self._max_bytes)
        detail = f"`max_item_bytes` allows {allowed}, but {size} came"
        body = ErrorBody(code="limit_exceeded", title="Limit exceeded", detail=detail, pointer=f"/items/{index}")
        self._rejected.append(Rejected(index=index, item_id=wire.item_id or "", error=body))
        self._advance(1)

    def _advance(self, items: int) -> None:
        if self._progress is not None and items:
            self._progress(items)

    def _on_linger(self) -> None:
        self._timer = None
        if self._buffer and not self._is_closed:
            self._own(self._dispatch())

    def _own(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and self._failed is None:
            self._failed = error

    async def _dispatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._buffer:
            return
        batch, self._buffer, self._bytes = self._buffer, [], 0
        await self._window.acquire()
        self._own(self._send(batch))

    async def _send(self, batch: _Batch) -> None:
        try:
            await self._send_until_done(batch)
        finally:
            self._window.release()

    async def _send_until_done(self, batch: _Batch) -> None:
        loop = asyncio.get_running_loop()
        give_up, pause_s = loop.time() + self._retry_s, 0.1
        while batch:
            frame = Write(
                id=self._connection.next_id(),
                session=self._session,
                collection=self._collection,
                items=tuple(item for _, item in batch),
            )
            try:
                done = await self._connection.request(frame, WriteDone)
            except ServerError as error:
                if not error.can_retry or loop.time() >= give_up:
                    raise
                wait_s = max(pause_s, (error.retry_after_ms or 0) / 1000)
            else:
                batch = self._take(batch, done, is_last=loop.time() >= give_up)
                wait_s = pause_s
            if batch:
                # jitter, so that several writers do not come back together
                await asyncio.sleep(min(wait_s, 5.0) * random.uniform(0.8, 1.2))
                pause_s = min(pause_s * 2, 5.0)

    def _own_ids(self, batch: _Batch, done: WriteDone) -> tuple[int, tuple[str, ...]]:
        """How many items of a batch this writer has written, and their ids in order.

        An id that was made here can be a duplicate only of an earlier sending whose answer was lost.
        """
        if not done.duplicates:
            return done.accepted, done.item_ids
        names = {item.item_id for _, item in batch}
        told: dict[str | None, list[str]] = {}
        for name in done.item_ids:  # of a document these are passages, `ID#0` and so on
            told.setdefault(name if name in names else name.rpartition("#")[0], []).append(name)
        rejected = {one.index for one in done.rejected}
        ids: list[str] = []
        found = others = 0
        for place, (index, item) in enumerate(batch):
            if item.item_id in told:
                ids += told[item.item_id]
            elif place not in rejected:
                is_own = index in self._made
                ids += [item.item_id or ""] * is_own
                found, others = found + is_own, others + (not is_own)
        return done.accepted + (found if others else done.duplicates), tuple(ids)

    def _take(self, batch: _Batch, done: WriteDone, *, is_last: bool) -> _Batch:
        """Add an answer to the result; returns the items to send again."""
        again: _Batch = []
        for rejected in done.rejected:
            if not 0 <= rejected.index < len(batch):
                raise QrafError(f"the server rejected item {rejected.index} of {len(batch)}")
            if rejected.error.retryable and not is_last:
                again.append(batch[rejected.index])
            else:
                self._rejected.append(msgspec.structs.replace(rejected, index=batch[rejected.index][0]))
        accepted, ids = self._own_ids(batch, done)
        self._accepted += accepted
        self._duplicates += done.accepted + done.duplicates - accepted
        self._warnings += done.warnings
        self._version, self._state = done.state_version, done.state
        if self._keep_ids and ids:
            first = batch[0][0]
            self._ids[first] = self._ids.get(first, ()) + ids
        self._made -= {index for index, _ in batch} - {index for index, _ in again}
        self._advance(len(batch) - len(again))
        return again
