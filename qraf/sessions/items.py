"""The items of a session or a collection: found, paged, and forgotten: one, what a filter matches, what has expired."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from qraf.actors.runtime import Runtime
from qraf.errors import InvalidRequest, NotFound, QrafError
from qraf.filters import validate
from qraf.network.placement import item_node, session_node
from qraf.network.topology import Topology
from qraf.records import Figures, Filter, ForgetReceipt, Item, collection_memory, session_memory
from qraf.sessions.recall import Recaller
from qraf.sessions.registry import Sessions
from qraf.storage.journal import Journal

__all__ = ["Items"]

log = logging.getLogger(__name__)

_MOST_EXPIRED = 1000  # items that are forgotten at a time because their time is over


class Items:
    """What the journal and the nodes hold item by item. Every method takes exactly one of session and collection.

    Raises:
        InvalidRequest: both are named, or none, or the filter cannot be.
        SessionNotFound, NotFound: there is no such session, collection or item.
    """

    def __init__(
        self, journal: Journal, runtime: Runtime, topology: Topology, sessions: Sessions, recaller: Recaller
    ) -> None:
        self._journal, self._runtime, self._topology = journal, runtime, topology
        self._sessions, self._recaller = sessions, recaller

    async def memory(self, session: str | None, collection: str | None) -> str:
        """The name of the memory that holds them."""
        if (session is None) == (collection is None):
            raise InvalidRequest("name exactly one of `session` and `collection`", "/session")
        if session is not None:
            await self._sessions.get(session)
            return session_memory(session)
        if not self._topology.holders(collection or ""):
            raise NotFound("collection", collection or "")
        return collection_memory(collection or "")

    async def get(self, session: str | None, collection: str | None, item_id: str) -> Item:
        """One item with its text."""
        return await self._find(await self.memory(session, collection), item_id)

    async def page(
        self, session: str | None, collection: str | None, cursor: str | None, limit: int, filter: Filter | None = None
    ) -> tuple[list[Item], str | None]:
        """A page of items in the order they were written, and the cursor of the next one."""
        if filter is not None:
            validate(filter)
        memory = await self.memory(session, collection)
        return await asyncio.to_thread(self._journal.page, memory, cursor, limit, filter)

    async def delete(
        self, session: str | None, collection: str | None, item_id: str, dry_run: bool = False
    ) -> ForgetReceipt:
        """Forget one item; with `dry_run`, see only whether it is there."""
        memory = await self.memory(session, collection)
        item = await self._find(memory, item_id)
        if dry_run:
            name = memory[2:]
            node = item_node(self._topology, name, item_id) if session is None else session_node(self._topology, name)
            figures = await self._runtime.figures(node, memory)
            return ForgetReceipt(memory, 1, figures, figures)
        receipts = await self._forget(memory, [item.seq])
        return next(
            (receipt for receipt in receipts if receipt.forgotten), ForgetReceipt(memory, 1, Figures(), Figures())
        )

    async def forget(
        self, session: str | None, collection: str | None, filter: Filter, dry_run: bool = False
    ) -> tuple[int, list[ForgetReceipt]]:
        """Forget every item that matches; with `dry_run`, count them only."""
        validate(filter)
        memory = await self.memory(session, collection)
        seqs: list[int] = []
        cursor: str | None = None
        while True:
            page, cursor = await asyncio.to_thread(self._journal.page, memory, cursor, 200, filter)
            seqs += [item.seq for item in page]
            if cursor is None:
                break
        if dry_run or not seqs:
            return len(seqs), []
        return len(seqs), await self._forget(memory, seqs)

    async def forget_expired(self) -> None:
        """Forget every item, of all memories, whose time is over."""
        while expired := await asyncio.to_thread(self._journal.expired, _MOST_EXPIRED):
            by_memory: dict[str, list[int]] = {}
            for memory, seq in expired:
                by_memory.setdefault(memory, []).append(seq)
            for memory, seqs in by_memory.items():
                await self._forget(memory, seqs)
            if len(expired) < _MOST_EXPIRED:
                break

    async def _find(self, memory: str, item_id: str) -> Item:
        item = await asyncio.to_thread(self._journal.find, memory, item_id)
        if item is None:
            raise NotFound("item", item_id)
        return item

    async def _forget(self, memory: str, seqs: Sequence[int]) -> list[ForgetReceipt]:
        name = memory[2:]
        nodes = (session_node(self._topology, name),) if memory.startswith("s/") else self._topology.holders(name)
        for node in nodes:
            # a memory that nobody has asked since the start is opened while it has the items: for `before`
            with contextlib.suppress(QrafError):
                await self._runtime.figures(node, memory)
        # the journal first: whatever dies after this, a rebuilt memory does not know the items any more
        await asyncio.to_thread(self._journal.tombstone, memory, seqs)
        receipts = []
        for node in nodes:  # each forgets what it has of them
            try:
                receipts.append(await self._runtime.forget(node, memory, seqs))
            except QrafError as error:
                log.warning("node %s rebuilds without what was forgotten: %s", node, error)
        self._recaller.touch()
        return receipts
