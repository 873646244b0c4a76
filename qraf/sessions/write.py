"""The write path: checked, cut into passages, durable in the journal, absorbed by the home nodes, answered."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from qraf.clock import Clock
from qraf.errors import InvalidRequest, LimitExceeded, NotFound, QrafError, QuotaExceeded
from qraf.frames import WireItem, WriteDone
from qraf.network.placement import item_node
from qraf.network.topology import Topology
from qraf.records import Figures, Item, collection_memory, session_memory
from qraf.sessions.accounts import Account
from qraf.sessions.commits import Absorber, Batch, ByteBudget, Committer, Lanes, item_of
from qraf.sessions.drafts import Drafted, draft_items
from qraf.sessions.registry import Sessions
from qraf.settings import LimitSettings, OnSecret
from qraf.storage.journal import Journal
from qraf.storage.records import Committed

__all__ = ["Writer"]

log = logging.getLogger(__name__)

_LARGE = 65_536  # bytes from which cutting into passages is left to a thread
_ITEM_BYTES = 256  # what an item weighs beside its text

Absorbing = dict[str, "asyncio.Future[Figures | None]"]


class Writer:
    """Writes of a gateway: `start` before use, `close` after. Belongs to one event loop.

    Bytes under way are bounded by `max_write_bytes_in_flight`: a write waits `write_wait_ms` for room, its turn among
    those of its memory included, then it is refused with the time to try again. What waits has a bound of its own.
    `patience_s` is how long a write waits for a node that is down.
    """

    def __init__(
        self,
        limits: LimitSettings,
        journal: Journal,
        runtime: Absorber,
        sessions: Sessions,
        topology: Topology,
        clock: Clock,
        *,
        patience_s: float = 20.0,
        on_secret: OnSecret = "warn",
    ) -> None:
        self._limits, self._journal, self._runtime = limits, journal, runtime
        self._sessions, self._topology, self._clock = sessions, topology, clock
        self._patience_s, self._on_secret = patience_s, on_secret
        self.budget = ByteBudget(limits.max_write_bytes_in_flight, limits.write_wait_ms, limits.max_queued_write_bytes)
        self._committer = Committer(journal, self._deliver)
        self._lanes = Lanes(runtime, patience_s)
        self._turns: dict[str, _Turn] = {}
        self._absorbing: dict[Batch, Absorbing] = {}  # from the commit to the write that waits for it
        self._tasks: set[asyncio.Task[WriteDone]] = set()
        self._is_open = False

    async def start(self) -> None:
        """Take writes from now on."""
        self._committer.start()
        self._is_open = True

    async def close(self) -> None:
        """Refuse new writes, bring those under way to their end, then stop. Twice is harmless."""
        self._is_open = False
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._patience_s + 5.0)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._committer.close()
        await self._lanes.close()

    @property
    def commits(self) -> int:
        """How many commits the writes so far have taken."""
        return self._committer.commits

    async def write(
        self,
        *,
        session: str | None = None,
        collection: str | None = None,
        items: Sequence[WireItem],
        id: str = "",
        account: Account | None = None,
        when_queued: Callable[[], None] = lambda: None,
    ) -> WriteDone:
        """Write items; durable and absorbed on return. Writes of one memory keep the order of their calls.

        An item that is wrong is among the rejected and the others are written. When a node stays down longer than the
        writer's patience, the items are durable, the answer has empty figures, and the node has them when it is back.
        When a node refuses the items for good (no room), they are taken back and the refusal is raised. `when_queued`
        is called once if the write has to wait for room.

        Cancel: safe; a write that has begun to commit goes on. Twice: the same item ids change nothing.

        Raises:
            InvalidRequest: not exactly one of `session` and `collection`, or no items.
            LimitExceeded: too many items, or too many bytes under way; `retry_after_ms` says when to try again.
            RateExceeded, QuotaExceeded: `account` may not write so much now, or hold so much.
            NotFound: no such session, or no node holds the collection.
            SessionClosed: the session is paused or has expired.
            StorageFailed: nothing was written.
        """
        if not self._is_open:
            raise LimitExceeded("writes while the server stops", 0, retry_after_ms=1000)
        memory = self._memory(session, collection)
        if not items:
            raise InvalidRequest("must have at least one item", "/items")
        if len(items) > self._limits.max_items_per_write:
            raise LimitExceeded("max_items_per_write", self._limits.max_items_per_write, len(items))
        size = sum(map(_weight, items))
        if account is not None:
            await account.write(size)
        until = asyncio.get_running_loop().time() + self._limits.write_wait_ms / 1000
        is_told = self.budget.is_full
        with contextlib.ExitStack() as line:
            line.enter_context(self.budget.line(size))
            if is_told:
                when_queued()
            async with self._turn(memory):
                if session is not None:
                    await self._sessions.writable(session)
                await self.budget.take(size, until, (lambda: None) if is_told else when_queued)
                line.close()
                try:
                    drafted = await self._draft(session, collection, items, size)
                except BaseException:
                    self.budget.give(size)
                    raise
                batch = Batch(memory, session, drafted.drafts, asyncio.get_running_loop().create_future(), {})
                batch.payer = None if account is None else account.payer
                task = asyncio.create_task(self._finish(id, batch, drafted, size, account), name=f"write {memory}")
                self._tasks.add(task)
                task.add_done_callback(self._done)
                if drafted.drafts:
                    self._committer.put(batch)
                else:
                    batch.committed.set_result([])
        return await asyncio.shield(task)

    # ------------------------------------------------------------------------------------------------------- helpers
    def _memory(self, session: str | None, collection: str | None) -> str:
        if (session is None) == (collection is None):
            raise InvalidRequest("name exactly one of `session` and `collection`", "/session")
        if session is not None:
            return session_memory(session)
        assert collection is not None
        if not self._topology.holders(collection):
            raise NotFound("collection", collection)
        return collection_memory(collection)

    @asynccontextmanager
    async def _turn(self, memory: str) -> AsyncIterator[None]:
        """One write of a memory at a time until it is in the committer's queue, in the order of their calls."""
        turn = self._turns.setdefault(memory, _Turn())
        turn.users += 1
        try:
            async with turn.lock:  # serves in order
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[memory]

    async def _draft(
        self, session: str | None, collection: str | None, items: Sequence[WireItem], size: int
    ) -> Drafted:
        def dim_of(item_id: str) -> int:
            return self._topology.node(self._node(session, collection, item_id)).dim

        how = (items, self._limits, self._clock.now(), dim_of, self._on_secret)
        return draft_items(*how) if size < _LARGE else await asyncio.to_thread(draft_items, *how)

    def _node(self, session: str | None, collection: str | None, item_id: str) -> str:
        if session is not None:
            return self._sessions.home(session)
        return item_node(self._topology, collection or "", item_id)

    def _deliver(self, batch: Batch, answer: list[Committed]) -> None:
        """Hand the items of a durable batch to their nodes; called in the order of commits."""
        fresh = {one.seq for one in answer if not one.is_duplicate}
        by_node: dict[str, list[Item]] = {}
        collection = None if batch.session is not None else batch.memory.removeprefix("c/")
        for draft, one in zip(batch.drafts, answer, strict=True):
            if not one.is_duplicate:
                item = item_of(draft, one.seq)
            elif one.seq in batch.old and one.seq not in fresh:
                item = batch.old.pop(one.seq)  # an earlier try may have died before its node had it
            else:
                continue
            by_node.setdefault(self._node(batch.session, collection, one.item_id), []).append(item)
        self._absorbing[batch] = {node: self._lanes.put(node, batch.memory, items) for node, items in by_node.items()}
        self._sessions.note_speakers(batch.memory, (draft.speaker for draft in batch.drafts))

    async def _finish(self, id: str, batch: Batch, drafted: Drafted, size: int, account: Account | None) -> WriteDone:
        try:
            try:
                answer = await batch.committed
            except QuotaExceeded as refusal:
                raise refusal if account is None else account.refused(refusal) from None
            absorbing = self._absorbing.pop(batch, {})
            results = await asyncio.gather(*absorbing.values(), return_exceptions=True)
            fresh = [one for one in answer if not one.is_duplicate]
            for result in results:
                if isinstance(result, QrafError):
                    await self._take_back(batch.memory, [one.seq for one in fresh], absorbing)
                if isinstance(result, BaseException):
                    raise result
            known = [result for result in results if isinstance(result, Figures)]
            # of a collection on several nodes: the largest share
            state = max(known, key=lambda figures: figures.items, default=None)
            if state is None:
                state = Figures() if absorbing else await self._figures(batch)
            return WriteDone(
                id=id,
                accepted=len(fresh),
                duplicates=len(answer) - len(fresh),
                rejected=tuple(drafted.rejected),
                item_ids=tuple(one.item_id for one in fresh),
                state_version=state.version,
                state=state,
                warnings=tuple(drafted.warnings),
            )
        finally:
            self.budget.give(size)

    async def _figures(self, batch: Batch) -> Figures:
        """The figures as they are, after a write of nothing."""
        if batch.session is not None:
            node = self._sessions.home(batch.session)
        else:
            node = self._topology.holders(batch.memory.removeprefix("c/"))[0]
        with contextlib.suppress(QrafError):
            return await self._runtime.figures(node, batch.memory)
        return Figures()

    async def _take_back(self, memory: str, seqs: Sequence[int], nodes: Absorbing) -> None:
        """A node refused for good: the journal and the other nodes must not keep what was never acknowledged."""
        if not seqs:
            return
        await asyncio.to_thread(self._journal.tombstone, memory, seqs, undo=True)
        for node in nodes:
            try:
                await self._runtime.forget(node, memory, seqs)
            except QrafError as fault:
                log.warning("node %s rebuilds without what it refused: %s", node, fault)

    def _done(self, task: asyncio.Task[WriteDone]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its writer may have gone away


class _Turn:
    __slots__ = ("lock", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


def _weight(item: WireItem) -> int:
    return _ITEM_BYTES + len(item.text or "") + 4 * len(item.amplitudes or ())
