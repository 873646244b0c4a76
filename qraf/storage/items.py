"""The items of a journal, as they are read: whole, newest first, by number, by id, in pages."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Select, and_, func, or_, select

from qraf.clock import Clock
from qraf.errors import SealBroken, StorageFailed
from qraf.filters import item_view, predicate, validate
from qraf.records import Filter, Item
from qraf.storage import tables
from qraf.storage.chunks import chunks
from qraf.storage.line import retried
from qraf.storage.pages import check_limit, decode_cursor, encode_cursor
from qraf.storage.recent import Recent
from qraf.storage.seal import MasterKeys
from qraf.storage.sealed import open_items
from qraf.storage.sessions import SessionStore

__all__ = ["ItemStore", "is_kept"]

_SCAN = 500  # rows in one scan of a page
_items, _codes = tables.items, tables.codes


class ItemStore(SessionStore):
    """A journal's items and sessions. Every method may raise `StorageFailed`, and `SealBroken` where it reads."""

    def __init__(
        self, engine: Engine, clock: Clock, is_shared: bool, masters: MasterKeys | None = None, makes: bool = False
    ) -> None:
        super().__init__(engine, clock, is_shared, masters, makes)
        self._recent = Recent()

    @retried
    def items(
        self, memory: str, after_seq: int = 0, limit: int = 1000, code: str | Collection[str] | None = None
    ) -> list[Item]:
        """Live items after a number, ascending.

        `codes` are there where they were stored under `code`, or under one of several (None: any).
        """
        query = _select(code).where(_items.c.memory == memory, _items.c.seq > after_seq, self._live())
        with self._read("read items") as connection:
            return [item for _, item in self._opened(connection, query.order_by(_items.c.seq).limit(limit))]

    @retried
    def newest(
        self, memory: str, through_seq: int, filter: Filter, limit: int, code: Collection[str], most_read: int = 20_000
    ) -> list[Item]:
        """Live items up to a number that pass a filter, newest first, with codes as in `items`.

        At most `limit`; no more than `most_read` items are looked at.
        """
        passes = predicate(filter)
        found: list[Item] = []
        read = 0
        while len(found) < limit and read < most_read:
            query = _select(code).where(_items.c.memory == memory, _items.c.seq <= through_seq, self._live())
            with self._read("read items") as connection:
                rows = self._opened(connection, query.order_by(_items.c.seq.desc()).limit(_SCAN))
            chunk = [item for _, item in rows]
            found += [item for item in chunk if passes(item_view(item))]
            read += len(chunk)
            if len(chunk) < _SCAN:
                break
            through_seq = chunk[-1].seq - 1
        return found[:limit]

    def fetch(self, seqs: Iterable[int]) -> dict[int, Item]:
        """Live items by number; those forgotten or expired are missing, and those of memories that do not open.

        While the database does not answer: those that this process has read or written lately.
        """
        wanted = list(seqs)
        try:
            return self._fetch(wanted)
        except StorageFailed:
            if found := self._recent.find(wanted, self._clock.now()):
                return found
            raise

    @retried
    def _fetch(self, seqs: Sequence[int]) -> dict[int, Item]:
        found: dict[int, Item] = {}
        with self._read("read items") as connection:
            for chunk in chunks(seqs):
                query = _select(None).where(_items.c.seq.in_(chunk), self._live()).order_by(_items.c.seq)
                items = self._sound(connection, query)
                found.update((item.seq, item) for _, item in items)
                self._recent.keep(items)
        return found

    @retried
    def find(self, memory: str, item_id: str) -> Item | None:
        """The live item with this id."""
        query = _select(None).where(_items.c.memory == memory, _items.c.item_id == item_id, self._live())
        with self._read("read item") as connection:
            found = self._opened(connection, query)
        return found[0][1] if found else None

    def page(
        self, memory: str, cursor: str | None = None, limit: int = 50, filter: Filter | None = None
    ) -> tuple[list[Item], str | None]:
        """A page of live items in the order of writing, and the cursor of the next one (None: that was all).

        Raises:
            InvalidRequest: a limit outside 1 to 200, a cursor of another list, or a bad filter.
        """
        check_limit(limit)
        scope = f"items/{memory}"
        after = 0 if cursor is None else decode_cursor(scope, cursor, (int,))[0]
        if filter is not None:
            validate(filter)
        passes = None if filter is None else predicate(filter)
        size = limit + 1 if passes is None else _SCAN
        found: list[Item] = []
        while len(found) <= limit:
            chunk = self.items(memory, after, size)
            found += chunk if passes is None else [item for item in chunk if passes(item_view(item))]
            if len(chunk) < size:
                break
            after = chunk[-1].seq
        more = encode_cursor(scope, found[limit - 1].seq) if len(found) > limit else None
        return found[:limit], more

    @retried
    def expired(self, limit: int = 1000) -> list[tuple[str, int]]:
        """Memory and number of items whose time is over and that are not forgotten yet, for the caller to forget."""
        query = select(_items.c.memory, _items.c.seq).where(_items.c.expires_at <= self._clock.now(), is_kept())
        with self._read("read expired items") as connection:
            rows = connection.execute(query.order_by(_items.c.expires_at).limit(limit))
            return [(row.memory, row.seq) for row in rows]

    @retried
    def speakers(self, memory: str) -> tuple[str, ...]:
        """Who spoke in the live items, in alphabetical order."""
        spoken = (_items.c.memory == memory, _items.c.speaker.is_not(None), self._live())
        # of a sealed item the column holds what stands for the name: the newest item of each tells it
        newest = select(func.max(_items.c.seq)).where(*spoken).group_by(_items.c.speaker)
        with self._read("read speakers") as connection:
            found = self._opened(connection, _select([]).where(_items.c.seq.in_(newest)))
        return tuple(sorted({item.speaker for _, item in found if item.speaker is not None}))

    @retried
    def count(self, memory: str) -> int:
        """How many live items a memory has."""
        query = select(func.count()).select_from(_items).where(_items.c.memory == memory, self._live())
        with self._read("count items") as connection:
            return int(connection.execute(query).scalar_one())

    @retried
    def changes(self, memory: str) -> tuple[int, int]:
        """How many items of a memory have come, and been forgotten or expired, all told; the last one's number."""
        mine = _items.c.memory == memory
        expired = _items.c.expires_at <= self._clock.now()
        which = (mine, and_(mine, _items.c.forgotten_at.is_not(None)), and_(mine, expired, is_kept()))
        counts = [select(func.count()).select_from(_items).where(one).scalar_subquery() for one in which]
        last = select(func.coalesce(func.max(_items.c.seq), 0)).where(mine).scalar_subquery()
        with self._read("count changes") as connection:  # one statement: what expires and is forgotten counts once
            row = connection.execute(select(*counts, last)).one()
        return sum(row[:3]), int(row[3])

    @retried
    def memories(self, prefix: str = "") -> list[str]:
        """The memories that have live items, by name; `prefix` such as `c/` chooses."""
        query = select(_items.c.memory).distinct().where(self._live())
        if prefix:
            query = query.where(func.substr(_items.c.memory, 1, len(prefix)) == prefix)
        with self._read("list memories") as connection:
            return sorted(connection.execute(query).scalars())  # a server may have an order of its own

    # ------------------------------------------------------------------------------------------------------- helpers
    def _opened(self, connection: Connection, query: Select[Any]) -> list[tuple[str, Item]]:
        """The items of a query; read once more if one does not open, because it may have been on its way out."""
        try:
            return open_items(connection, self._keyring, connection.execute(query).all())
        except SealBroken:
            with self._keyring.noting():
                return open_items(connection, self._keyring, connection.execute(query).all())

    def _sound(self, connection: Connection, query: Select[Any]) -> list[tuple[str, Item]]:
        """The items of those memories that open; SealBroken when there are others only."""
        without: list[str] = []
        while True:
            try:
                found = self._opened(connection, query.where(_items.c.memory.not_in(without)))
            except SealBroken as fault:
                if fault.memory in without:
                    raise
                without.append(fault.memory)
                broken = fault
            else:
                if without and not found:
                    raise broken
                return found

    def _live(self) -> ColumnElement[bool]:
        return and_(is_kept(), or_(_items.c.expires_at.is_(None), _items.c.expires_at > self._clock.now()))


def is_kept() -> ColumnElement[bool]:
    """The condition on rows of `items` that they were not forgotten."""
    return _items.c.forgotten_at.is_(None)


def _select(code: str | Collection[str] | None) -> Select[Any]:
    joined = _codes.c.seq == _items.c.seq
    if code is not None:
        joined = and_(joined, _codes.c.code.in_([code] if isinstance(code, str) else code))
    return select(_items, _codes.c.rows, _codes.c.code).select_from(_items.outerjoin(_codes, joined))
