"""The way of a write from the gateway to its nodes: room for its bytes, one commit for many, absorbed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import msgspec

from qraf.errors import (
    InvalidRequest,
    LimitExceeded,
    NodeDown,
    QrafError,
    QuotaExceeded,
    SealBroken,
    SessionNotFound,
    StorageFailed,
)
from qraf.records import Figures, ForgetReceipt, Item
from qraf.storage.journal import Journal
from qraf.storage.records import Committed, Draft
from qraf.storage.usage import Payer

__all__ = ["Absorber", "Batch", "ByteBudget", "Committer", "Lanes", "item_of"]

log = logging.getLogger(__name__)

_GATHER_S = 0.001  # how long the first write of a commit waits for others
_MAX_COMMIT = 4096  # drafts in one commit
_MAX_ABSORB = 1024  # items in one call to a node
_MAX_CALLS = 2  # under way at once for one memory of a node: one encodes while the other is coded
_MAX_WAITING = 4096  # writes that may wait for room
_FIRST_DELAY_S, _LAST_DELAY_S = 0.05, 1.0


class Absorber(Protocol):
    """What of a runtime a write needs; `absorb` is idempotent by seq."""

    async def absorb(self, node: str, memory: str, items: Sequence[Item]) -> Figures:
        """Encode and take in items that the journal already has; the memory's figures afterwards."""
        ...

    async def figures(self, node: str, memory: str) -> Figures:
        """What a memory's state measures."""
        ...

    async def forget(self, node: str, memory: str, seqs: Sequence[int]) -> ForgetReceipt:
        """Forget items that the journal has tombstoned."""
        ...


class ByteBudget:
    """Room for the bytes of writes under way. Who comes first gets room first.

    When it is full a write waits, `wait_ms` at most, then it is refused; refused at once are writes larger than the
    whole, and those that would wait behind `_MAX_WAITING` others or behind `max_queued_bytes`.
    """

    def __init__(self, max_bytes: int, wait_ms: int, max_queued_bytes: int) -> None:
        self._max_bytes, self._wait_ms, self._max_queued_bytes = max_bytes, wait_ms, max_queued_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.queued = self.queued_bytes = 0
        self.used = 0
        self.refused = 0

    @property
    def is_full(self) -> bool:
        """Whether whoever comes now waits."""
        return bool(self._waiting)

    @contextlib.contextmanager
    def line(self, size: int) -> Iterator[None]:
        """Count a write that waits for its turn or for room.

        Raises:
            LimitExceeded: it is larger than the whole, or too much waits already.
        """
        if size > self._max_bytes:
            self.refused += 1
            raise LimitExceeded("max_write_bytes_in_flight", self._max_bytes, size)
        if self.queued >= _MAX_WAITING or (self.queued and self.queued_bytes + size > self._max_queued_bytes):
            self.refused += 1
            got = self.queued_bytes + size
            raise LimitExceeded("max_queued_write_bytes", self._max_queued_bytes, got, max(100, self._wait_ms))
        self.queued += 1
        self.queued_bytes += size
        try:
            yield
        finally:
            self.queued -= 1
            self.queued_bytes -= size

    async def take(self, size: int, until: float, when_queued: Callable[[], None] = lambda: None) -> None:
        """Wait for room until a time of the loop; `when_queued` is called if it has to. Cancel: safe, nothing is taken.

        Raises:
            LimitExceeded: there was none in time.
        """
        if not self._waiting and self.used + size <= self._max_bytes:
            self.used += size
            return
        if until <= asyncio.get_running_loop().time():
            raise self._full(size)
        when_queued()
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (size, room)
        self._waiting.append(entry)
        try:
            async with asyncio.timeout_at(until):
                await room
        except (TimeoutError, asyncio.CancelledError) as fault:
            if room.done() and not room.cancelled():
                self.give(size)  # it came in the same moment
            else:
                room.cancel()
                self._waiting.remove(entry)
                self.give(0)  # those behind may fit
            if isinstance(fault, TimeoutError):
                raise self._full(size) from None
            raise

    def give(self, size: int) -> None:
        """Give room back."""
        self.used -= size
        while self._waiting and self.used + self._waiting[0][0] <= self._max_bytes:
            wanted, room = self._waiting[0]
            if room.done():  # it is being given up
                break
            self._waiting.popleft()
            self.used += wanted
            room.set_result(None)

    def _full(self, size: int) -> LimitExceeded:
        self.refused += 1
        return LimitExceeded("max_write_bytes_in_flight", self._max_bytes, self.used + size, max(100, self._wait_ms))


@dataclass(eq=False, slots=True)
class Batch:
    """The drafts of one write on their way. `committed` is set when they are durable, or cannot be.

    `old` are the items, by seq, that were there before under the ids of duplicates. `payer`: whom it counts for.
    """

    memory: str
    session: str | None
    drafts: Sequence[Draft]
    committed: asyncio.Future[list[Committed]]
    old: dict[int, Item]
    payer: Payer | None = None


class Committer:
    """Commits batches in the order they come, many in one transaction, in a thread of its own.

    While one commit runs the next one gathers. `deliver` is called for each durable batch, in order, before its
    `committed` is set. Bounded by the bytes that its caller lets in.
    """

    def __init__(self, journal: Journal, deliver: Callable[[Batch, list[Committed]], None]) -> None:
        self._journal, self._deliver = journal, deliver
        self._queue: deque[Batch] = deque()
        self._wake = asyncio.Event()
        self._thread: ThreadPoolExecutor | None = None
        self._task: asyncio.Task[None] | None = None
        self.commits = 0

    def start(self) -> None:
        """Begin to commit."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._task = asyncio.create_task(self._run(), name="committer")

    async def close(self) -> None:
        """Stop; batches that wait are not committed any more, and their writers hear so."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._give_up(self._queue)
        self._queue.clear()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.shutdown)

    def put(self, batch: Batch) -> None:
        """Commit this after what came before."""
        self._queue.append(batch)
        self._wake.set()

    async def _run(self) -> None:
        while True:
            if not self._queue:
                self._wake.clear()
                await self._wake.wait()
                await asyncio.sleep(_GATHER_S)
            batches = self._next()
            try:
                await self._commit(batches)
            except asyncio.CancelledError:
                self._give_up(batches)
                raise

    def _give_up(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            if not batch.committed.done():
                batch.committed.set_exception(StorageFailed("commit items", "the server stops"))

    def _next(self) -> list[Batch]:
        batches, size = [self._queue.popleft()], 0
        while self._queue and (size := size + len(self._queue[0].drafts)) <= _MAX_COMMIT:
            batches.append(self._queue.popleft())
        return batches

    async def _commit(self, batches: list[Batch]) -> None:
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._write, batches)
        except (InvalidRequest, SealBroken) as fault:
            if len(batches) == 1:
                batches[0].committed.set_exception(fault)
            else:  # one of them; it must not stop the others
                for batch in batches:
                    await self._commit([batch])
        except Exception as fault:
            for batch in batches:
                batch.committed.set_exception(fault)
        else:
            for batch, answer in zip(batches, answers, strict=True):
                self._settle(batch, answer)

    def _write(self, batches: list[Batch]) -> list[list[Committed] | Exception]:
        """What became of each; whatever is raised here, nothing of any was written."""
        sessions = {batch.session for batch in batches if batch.session is not None}
        groups = [(batch.memory, batch.drafts) for batch in batches]
        committed = self._journal.commit_many(groups, sessions, [batch.payer for batch in batches])
        self.commits += 1
        return [self._with_old(*pair) for pair in zip(batches, committed, strict=True)]

    def _with_old(self, batch: Batch, answer: list[Committed] | QuotaExceeded) -> list[Committed] | Exception:
        """The answer, once the batch has the items that its duplicates are."""
        if isinstance(answer, QuotaExceeded):
            return answer
        if old := {one.seq for one in answer if one.is_duplicate}:
            try:
                batch.old = self._journal.fetch(old)
            except Exception as fault:
                if all(one.is_duplicate for one in answer):
                    return fault  # nothing of it was written
                log.warning("what %s had before is not handed on again: %s", batch.memory, type(fault).__name__)
        return answer

    def _settle(self, batch: Batch, answer: list[Committed] | Exception) -> None:
        if isinstance(answer, Exception):
            batch.committed.set_exception(answer)
            return
        if not answer and batch.session is not None:
            batch.committed.set_exception(SessionNotFound(batch.session))
            return
        self._deliver(batch, answer)
        batch.committed.set_result(answer)


class Lanes:
    """Brings committed items to their nodes: a few calls at a time for each memory of a node.

    While they run the next call gathers. The order in which a memory absorbs leaves no trace in it, so calls may
    overtake each other. A node that is down is tried again for `patience_s`; after that the answer is None, because
    the node reads the journal before it answers again.
    """

    def __init__(self, runtime: Absorber, patience_s: float) -> None:
        self._runtime, self._patience_s = runtime, patience_s
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def put(self, node: str, memory: str, items: Sequence[Item]) -> asyncio.Future[Figures | None]:
        """Absorb items; the future gives the figures afterwards, or the node's refusal."""
        answer: asyncio.Future[Figures | None] = asyncio.get_running_loop().create_future()
        lane = self._lanes.setdefault((node, memory), _Lane())
        lane.queue.append((items, answer))
        if lane.calls < _MAX_CALLS:
            lane.calls += 1
            task = asyncio.create_task(self._run(lane, node, memory), name=f"absorb {memory} on {node}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return answer

    async def close(self) -> None:
        """Stop; what is not absorbed is in the journal, from where its node reads it."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for lane in self._lanes.values():  # a task that never began has left its lane as it was
            _settle([answer for _, answer in lane.queue], None)
        self._lanes.clear()

    async def _run(self, lane: _Lane, node: str, memory: str) -> None:
        answers: list[asyncio.Future[Figures | None]] = []
        try:
            while lane.queue:
                items, answers = lane.merge()
                try:
                    figures = await self._absorb(node, memory, items)
                except Exception as fault:
                    _settle(answers, fault)
                else:
                    _settle(answers, figures)
        finally:
            _settle(answers, None)  # cancelled: the items are durable
            lane.calls -= 1
            if not lane.calls and not lane.queue:
                self._lanes.pop((node, memory), None)

    async def _absorb(self, node: str, memory: str, items: Sequence[Item]) -> Figures | None:
        waited, delay = 0.0, _FIRST_DELAY_S
        while True:
            try:
                return await self._runtime.absorb(node, memory, items)
            except QrafError as fault:
                if not fault.retryable or (isinstance(fault, LimitExceeded) and fault.retry_after_ms is None):
                    raise
                if waited >= self._patience_s:
                    if not isinstance(fault, NodeDown):
                        raise
                    log.warning("%d items of %s are durable but wait for node %s: %s", len(items), memory, node, fault)
                    return None
            await asyncio.sleep(delay)
            waited, delay = waited + delay, min(2 * delay, _LAST_DELAY_S)


class _Lane:
    """What waits for one memory of one node, and how many calls are under way."""

    __slots__ = ("calls", "queue")

    def __init__(self) -> None:
        self.calls = 0
        self.queue: deque[tuple[Sequence[Item], asyncio.Future[Figures | None]]] = deque()

    def merge(self) -> tuple[list[Item], list[asyncio.Future[Figures | None]]]:
        """The next call: what waits, up to `_MAX_ABSORB` items."""
        first, answer = self.queue.popleft()
        items, answers = list(first), [answer]
        while self.queue and len(items) + len(self.queue[0][0]) <= _MAX_ABSORB:
            more, answer = self.queue.popleft()
            items += more
            answers.append(answer)
        return items, answers


def item_of(draft: Draft, seq: int) -> Item:
    """The item that a draft has become."""
    return Item(seq=seq, **msgspec.structs.asdict(draft))


def _settle(answers: Sequence[asyncio.Future[Figures | None]], result: Figures | Exception | None) -> None:
    for answer in answers:
        if answer.done():
            continue
        if isinstance(result, Exception):
            answer.set_exception(result)
        else:
            answer.set_result(result)
