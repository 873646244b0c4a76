"""The journal: the truth of every memory, in SQL. What `commit` returned is on the disk.

A memory is a key such as `s/alice` or `c/manuals`. An item is live until it is forgotten (a tombstone row stays, its
number is never given again) or expires. Everything here blocks; call it from a thread. One `Journal` serves many
threads, and many processes may open the same file.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Engine, Select, and_, delete, func, insert, or_, select, update

from qraf.clock import Clock, SystemClock
from qraf.filters import item_view, predicate, validate
from qraf.records import Filter, Item, session_memory
from qraf.storage import tables
from qraf.storage.database import faults, is_in_memory, migrate, open_engine, scrub
from qraf.storage.pages import check_limit, decode_cursor, encode_cursor
from qraf.storage.records import Committed, Draft, SessionRecord
from qraf.storage.rows import check_name, draft_row, item_of, session_of, session_row

__all__ = ["Committed", "Draft", "Journal", "SessionRecord"]

_CHUNK = 500  # values in one IN (...), rows in one scan of a page
_T = TypeVar("_T")
_items, _codes, _sessions = tables.items, tables.codes, tables.sessions


class Journal:
    """Items, coded amplitudes and sessions in a database. Every method may raise `StorageFailed`."""

    def __init__(self, engine: Engine, clock: Clock, is_shared: bool) -> None:
        self._engine = engine
        self._clock = clock
        # within this process writers queue here, fairly, instead of polling the file's lock
        self._writing = threading.Lock()
        # one connection in memory serves all threads, so reads queue too
        self._reading = nullcontext() if is_shared else self._writing

    @classmethod
    def open(cls, url: str, clock: Clock | None = None) -> Journal:
        """Open or make the journal at a SQLAlchemy URL and bring its schema up to date.

        `sqlite:///path/journal.db`, or `sqlite:///:memory:` for this process alone.

        Raises:
            StorageFailed: it cannot be opened, or was written by a newer version.
            NotAvailable: a database other than SQLite.
        """
        engine = open_engine(url)
        try:
            migrate(engine)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine, clock or SystemClock(), is_shared=not is_in_memory(url))

    def close(self) -> None:
        """Close every connection. Twice is harmless."""
        self._engine.dispose()

    # ------------------------------------------------------------------------------------------------------- writing
    def commit(self, memory: str, drafts: Sequence[Draft]) -> list[Committed]:
        """Write drafts in one transaction; durable on return. See `commit_many`."""
        return self.commit_many([(memory, drafts)])[0]

    def commit_many(
        self, groups: Sequence[tuple[str, Sequence[Draft]]], sessions: Collection[str] = ()
    ) -> list[list[Committed]]:
        """Write the drafts of several memories in one transaction: all or none, durable on return.

        An item id that is live in its memory is a duplicate, inside one call too: the older item stays as it is. An id
        that was forgotten or has expired is written anew, with a new number.

        `sessions` must still be there: of one that was deleted meanwhile nothing is written, and its answers are empty.

        Raises:
            InvalidRequest: a text that is no UTF-8 (half of a surrogate pair), a name that no column holds.
        """
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        for memory, drafts in groups:
            check_name(memory, "a memory")
            for draft in drafts:
                if (memory, draft.item_id) not in rows:
                    rows[memory, draft.item_id] = draft_row(memory, draft)
        if not rows:
            return [[] for _ in groups]
        with self._write("commit items") as connection:
            gone = {session_memory(session) for session in _missing(connection, sessions)}
            rows = {key: row for key, row in rows.items() if key[0] not in gone}
            seqs = self._live_ids(connection, rows)
            fresh = {key: row for key, row in rows.items() if key not in seqs}
            if fresh:
                statement = insert(_items).returning(_items.c.seq, sort_by_parameter_order=True)
                numbers = connection.execute(statement, list(fresh.values())).scalars()
                seqs.update(zip(fresh, numbers, strict=True))
        new = set(fresh)
        answers: list[list[Committed]] = []
        for memory, drafts in groups:
            answers.append([])
            for draft in drafts if memory not in gone else ():
                key = (memory, draft.item_id)
                answers[-1].append(Committed(seqs[key], draft.item_id, key not in new))
                new.discard(key)
        return answers

    def put_codes(self, codes: Mapping[int, bytes], code: str) -> None:
        """Keep coded amplitudes of live items, one row per item: newer ones replace older ones.

        `code` names all that decides what the bytes mean, such as `minilm/int4/64`. They can be made again from the
        text, so this does not wait for the disk. Items forgotten in the meantime are left out.
        """
        if not codes:
            return
        with self._write("write codes", "relaxed") as connection:
            for chunk in _chunks(codes):
                live = set(connection.execute(select(_items.c.seq).where(_items.c.seq.in_(chunk), _kept())).scalars())
                connection.execute(delete(_codes).where(_codes.c.seq.in_(chunk)))
                rows = [{"seq": seq, "code": code, "rows": bytes(codes[seq])} for seq in chunk if seq in live]
                if rows:
                    connection.execute(insert(_codes), rows)

    def tombstone(self, memory: str, seqs: Sequence[int]) -> int:
        """Forget items: text, metadata, speaker, amplitudes and codes are overwritten; the number of those found."""
        forgotten = 0
        with self._write("forget items") as connection:
            for chunk in _chunks(seqs):
                forgotten += self._bury(connection, and_(_items.c.memory == memory, _items.c.seq.in_(chunk)))
        self._scrub()
        return forgotten

    def drop_memory(self, memory: str) -> int:
        """Forget everything of a memory; the number of items that were there."""
        with self._write("drop memory") as connection:
            forgotten = self._bury(connection, _items.c.memory == memory)
        self._scrub()
        return forgotten

    # ------------------------------------------------------------------------------------------------------- reading
    def items(self, memory: str, after_seq: int = 0, limit: int = 1000, code: str | None = None) -> list[Item]:
        """Live items after a number, ascending. `codes` are there where they were stored under `code` (None: any)."""
        query = _select(code).where(_items.c.memory == memory, _items.c.seq > after_seq, self._live())
        with self._read("read items") as connection:
            return [item_of(row) for row in connection.execute(query.order_by(_items.c.seq).limit(limit))]

    def fetch(self, seqs: Iterable[int]) -> dict[int, Item]:
        """Live items by number; those forgotten or expired are missing."""
        found: dict[int, Item] = {}
        with self._read("read items") as connection:
            for chunk in _chunks(seqs):
                rows = connection.execute(_select(None).where(_items.c.seq.in_(chunk), self._live()))
                found.update((row.seq, item_of(row)) for row in rows)
        return found

    def find(self, memory: str, item_id: str) -> Item | None:
        """The live item with this id."""
        query = _select(None).where(_items.c.memory == memory, _items.c.item_id == item_id, self._live())
        with self._read("read item") as connection:
            row = connection.execute(query).first()
        return None if row is None else item_of(row)

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
        size = limit + 1 if passes is None else _CHUNK
        found: list[Item] = []
        while len(found) <= limit:
            chunk = self.items(memory, after, size)
            found += chunk if passes is None else [item for item in chunk if passes(item_view(item))]
            if len(chunk) < size:
                break
            after = chunk[-1].seq
        more = encode_cursor(scope, found[limit - 1].seq) if len(found) > limit else None
        return found[:limit], more

    def expired(self, limit: int = 1000) -> list[tuple[str, int]]:
        """Memory and number of items whose time is over and that are not forgotten yet, for the caller to forget."""
        query = select(_items.c.memory, _items.c.seq).where(_items.c.expires_at <= self._clock.now(), _kept())
        with self._read("read expired items") as connection:
            rows = connection.execute(query.order_by(_items.c.expires_at).limit(limit))
            return [(row.memory, row.seq) for row in rows]

    def speakers(self, memory: str) -> tuple[str, ...]:
        """Who spoke in the live items, in alphabetical order."""
        query = select(_items.c.speaker).distinct()
        query = query.where(_items.c.memory == memory, _items.c.speaker.is_not(None), self._live())
        with self._read("read speakers") as connection:
            return tuple(sorted(connection.execute(query).scalars()))

    def count(self, memory: str) -> int:
        """How many live items a memory has."""
        query = select(func.count()).select_from(_items).where(_items.c.memory == memory, self._live())
        with self._read("count items") as connection:
            return int(connection.execute(query).scalar_one())

    def memories(self, prefix: str = "") -> list[str]:
        """The memories that have live items, by name; `prefix` such as `c/` chooses."""
        query = select(_items.c.memory).distinct().where(self._live()).order_by(_items.c.memory)
        if prefix:
            query = query.where(func.substr(_items.c.memory, 1, len(prefix)) == prefix)
        with self._read("list memories") as connection:
            return list(connection.execute(query).scalars())

    # ------------------------------------------------------------------------------------------------------ sessions
    def create_session(self, record: SessionRecord) -> bool:
        """Write a session unless one of that id is there; whether it was written. Safe against other processes."""
        row = session_row(record)
        with self._write("create session") as connection:
            if connection.execute(select(_sessions.c.id).where(_sessions.c.id == record.id)).first() is not None:
                return False
            connection.execute(insert(_sessions).values(row))
        return True

    def put_session(self, record: SessionRecord) -> None:
        """Write a session, or write it over."""
        row = session_row(record)
        with self._write("write session") as connection:
            connection.execute(delete(_sessions).where(_sessions.c.id == record.id))
            connection.execute(insert(_sessions).values(row))

    def update_session(self, record: SessionRecord) -> bool:
        """Write a session over if it is there; whether it was."""
        row = session_row(record)
        with self._write("write session") as connection:
            return bool(connection.execute(update(_sessions).where(_sessions.c.id == record.id).values(row)).rowcount)

    def get_session(self, id: str) -> SessionRecord | None:
        """The session, expired or not."""
        with self._read("read session") as connection:
            row = connection.execute(select(_sessions).where(_sessions.c.id == id)).first()
        return None if row is None else session_of(row)

    def list_sessions(self, cursor: str | None = None, limit: int = 50) -> tuple[list[SessionRecord], str | None]:
        """A page of sessions, oldest first, and the cursor of the next one."""
        check_limit(limit)
        query = select(_sessions).order_by(_sessions.c.created_at, _sessions.c.id).limit(limit + 1)
        if cursor is not None:
            created_at, last_id = decode_cursor("sessions", cursor, (float, str))
            later = and_(_sessions.c.created_at == created_at, _sessions.c.id > last_id)
            query = query.where(or_(_sessions.c.created_at > created_at, later))
        with self._read("list sessions") as connection:
            found = [session_of(row) for row in connection.execute(query)]
        last = found[limit - 1] if len(found) > limit else None
        return found[:limit], None if last is None else encode_cursor("sessions", float(last.created_at), last.id)

    def expired_sessions(self, limit: int = 100) -> list[SessionRecord]:
        """Sessions whose time is over, for the caller to delete."""
        query = select(_sessions).where(_sessions.c.expires_at <= self._clock.now())
        with self._read("read expired sessions") as connection:
            return [session_of(row) for row in connection.execute(query.order_by(_sessions.c.expires_at).limit(limit))]

    def delete_session(self, id: str) -> bool:
        """Delete the session's row; whether it was there. Its items are `drop_memory`'s."""
        with self._write("delete session") as connection:
            return bool(connection.execute(delete(_sessions).where(_sessions.c.id == id)).rowcount)

    # ------------------------------------------------------------------------------------------------------- helpers
    @contextmanager
    def _write(self, what: str, how: str = "full") -> Iterator[Connection]:
        with faults(what), self._writing, self._engine.execution_options(write=how).begin() as connection:
            yield connection

    @contextmanager
    def _read(self, what: str) -> Iterator[Connection]:
        with faults(what), self._reading, self._engine.connect() as connection:
            yield connection

    def _live(self) -> ColumnElement[bool]:
        return and_(_kept(), or_(_items.c.expires_at.is_(None), _items.c.expires_at > self._clock.now()))

    def _live_ids(self, connection: Connection, rows: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """Numbers of the live items among `rows`; expired ones are buried, so that their ids are free."""
        wanted: dict[str, list[str]] = {}
        for memory, item_id in rows:
            wanted.setdefault(memory, []).append(item_id)
        seqs, now = {}, self._clock.now()
        columns = select(_items.c.item_id, _items.c.seq, _items.c.expires_at)
        for memory, ids in wanted.items():
            for chunk in _chunks(ids):
                query = columns.where(_items.c.memory == memory, _items.c.item_id.in_(chunk), _kept())
                for row in connection.execute(query).all():
                    if row.expires_at is not None and row.expires_at <= now:
                        self._bury(connection, _items.c.seq == row.seq)
                    else:
                        seqs[memory, row.item_id] = row.seq
        return seqs

    def _bury(self, connection: Connection, which: ColumnElement[bool]) -> int:
        chosen = select(_items.c.seq).where(which, _kept())
        connection.execute(delete(_codes).where(_codes.c.seq.in_(chosen)))
        blank = {"text": b"", "metadata": b"{}", "speaker": None, "amplitudes": None, "expires_at": None}
        change = update(_items).where(which, _kept()).values(**blank, forgotten_at=self._clock.now())
        return connection.execute(change).rowcount

    def _scrub(self) -> None:
        with faults("overwrite forgotten items"), self._writing:
            scrub(self._engine)


def _kept() -> ColumnElement[bool]:
    return _items.c.forgotten_at.is_(None)


def _missing(connection: Connection, sessions: Collection[str]) -> set[str]:
    found: set[str] = set()
    for chunk in _chunks(sessions):
        found.update(connection.execute(select(_sessions.c.id).where(_sessions.c.id.in_(chunk))).scalars())
    return set(sessions) - found


def _select(code: str | None) -> Select[Any]:
    joined = _codes.c.seq == _items.c.seq
    if code is not None:
        joined = and_(joined, _codes.c.code == code)
    return select(_items, _codes.c.rows).select_from(_items.outerjoin(_codes, joined))


def _chunks(values: Iterable[_T]) -> Iterator[list[_T]]:
    rest = iter(values)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk
