"""The journal: the truth of every memory, in SQL. What `commit` returned is on the disk.

A memory is a key such as `s/alice` or `c/manuals`. An item is live until it is forgotten (a tombstone row stays, its
number is never given again) or expires. Everything here blocks; call it from a thread. One `Journal` serves many
threads, and many processes may open the same database: a file of SQLite's, or one on a PostgreSQL server. Numbers
become visible in rising order, so a reader that follows `seq` misses nothing.

A call whose connection is lost is made again for two seconds. So a commit whose answer was lost tells of its own items
as duplicates, and of a session it made or deleted that somebody else was first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, and_, delete, func, insert, select, update

from qraf.clock import Clock, SystemClock
from qraf.errors import QuotaExceeded, StorageFailed
from qraf.records import session_memory
from qraf.storage import tables
from qraf.storage.answers import AnswerTable
from qraf.storage.chunks import chunks
from qraf.storage.database import is_in_memory, migrate, next_numbers, open_engine, shown_url
from qraf.storage.fences import Fence, FenceTable, hold
from qraf.storage.items import ItemStore, is_kept
from qraf.storage.keys import KeyTable
from qraf.storage.line import Line, retried
from qraf.storage.records import Committed, Draft, SessionRecord
from qraf.storage.responses import ResponseTable
from qraf.storage.rows import check_name, draft_row, made_item, session_row
from qraf.storage.seal import MasterKeys
from qraf.storage.sealed import open_session, plain_scopes, seal_code, seal_item, seal_session
from qraf.storage.snapshots import SnapshotTable, erase
from qraf.storage.states import StateTable
from qraf.storage.usage import Payer, UsageTable, nobody
from qraf.tenants import tenant_of

__all__ = ["Committed", "Draft", "Journal", "SessionRecord"]

_items, _codes, _sessions = tables.items, tables.codes, tables.sessions

Rows = dict[tuple[str, str], tuple[dict[str, Any], Draft]]  # by memory and item id


class Journal(ItemStore):
    """Items, coded amplitudes and sessions in a database. Every method may raise `StorageFailed`.

    Those that read what is sealed may raise `SealBroken`, and `KeysMissing` in a journal opened without master keys.
    """

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        is_shared: bool,
        masters: MasterKeys | None = None,
        makes: bool = False,
    ) -> None:
        super().__init__(engine, clock, is_shared, masters, makes)
        self.usage = UsageTable(self._write, self._read, clock, self.line)
        self.states = StateTable(self._write, self._read, clock, self.line, self._keyring, self.usage)
        self.responses = ResponseTable(self._write, self._read, clock, self.line, self._keyring)
        self.keys = KeyTable(self._write, self._read, self.line)
        self.answers = AnswerTable(self._write, clock, self.line, self._keyring)
        self.fences = FenceTable(self._write, self.line)
        self.snapshots = SnapshotTable(self._write, self._read, clock, self.line, self._keyring)

    @classmethod
    def open(
        cls, url: str, clock: Clock | None = None, masters: MasterKeys | None = None, *, leads: bool = True
    ) -> Journal:
        """Open or make the journal at a SQLAlchemy URL and bring its schema up to date.

        `sqlite:///path/journal.db`, `sqlite:///:memory:` for this process alone, or `postgresql://user@host/database`.

        With `masters` that are on, what is written is sealed. `leads`: the process that serves, which may make the
        first keys; others (hosts) seal when they find that it does.

        Raises:
            StorageFailed: it cannot be opened, or was written by a newer version.
            NotAvailable: another database.
            KeysMissing: it is sealed, and its master keys are not there.
        """
        engine = open_engine(url)
        try:
            Line().call(lambda: migrate(engine))
            clock, is_shared = clock or SystemClock(), not is_in_memory(url)
            if masters is None:
                return cls(engine, clock, is_shared)
            used = cls(engine, clock, is_shared).masters_used()
            makes = masters.is_on and (leads or bool(used))
            if makes and not used:
                masters.make()
            if makes or used:
                masters.check(set(used))
            journal = cls(engine, clock, is_shared, masters, makes)
            if makes and not used:
                journal._mark()
        except StorageFailed as fault:
            engine.dispose()
            if not leads:  # what a host says may reach clients
                raise
            told = f"{fault.reason} (the journal is {shown_url(url)})"
            raise StorageFailed(fault.what, told, fault.retry_after_ms) from fault.__cause__
        except BaseException:
            engine.dispose()
            raise
        return journal

    # ------------------------------------------------------------------------------------------------------- writing
    def commit(self, memory: str, drafts: Sequence[Draft], payer: Payer | None = None) -> list[Committed]:
        """Write drafts in one transaction; durable on return. See `commit_many`.

        Raises:
            QuotaExceeded: its payer may not hold so much.
        """
        [answer] = self.commit_many([(memory, drafts)], (), [payer])
        if isinstance(answer, QuotaExceeded):
            raise answer
        return answer

    @retried
    def commit_many(
        self,
        groups: Sequence[tuple[str, Sequence[Draft]]],
        sessions: Collection[str] = (),
        payers: Sequence[Payer | None] = (),
    ) -> list[list[Committed] | QuotaExceeded]:
        """Write the drafts of several memories in one transaction, durable on return.

        `payers`, one for each group, say whom its new items count for. A group that its payer may not hold is left out
        whole, and the refusal is its answer; the others are written, also what they have in common with it.

        An item id that is live in its memory is a duplicate, inside one call too: the older item stays as it is. An id
        that was forgotten or has expired is written anew, with a new number.

        `sessions` must still be there: of one that was deleted meanwhile nothing is written, and its answers are empty.

        Raises:
            InvalidRequest: a text that is no UTF-8 (half of a surrogate pair), a name that no column holds.
        """
        rows: list[Rows] = [{} for _ in groups]
        for place, (memory, drafts) in enumerate(groups):
            check_name(memory, "a memory")
            for draft in drafts:
                if (memory, draft.item_id) not in rows[place]:
                    rows[place][memory, draft.item_id] = draft_row(memory, draft), draft
        if not any(rows):
            return [[] for _ in groups]
        with self._write("commit items") as connection:
            gone = {session_memory(session) for session in _missing(connection, sessions)}
            rows = [{at: row for at, row in group.items() if at[0] not in gone} for group in rows]
            seqs = self._live_ids(connection, dict.fromkeys(at for group in rows for at in group))
            wanted = [{at: row for at, row in group.items() if at not in seqs} for group in rows]
            refused = self._charge(connection, wanted, groups, payers)
            fresh: Rows = {}
            for place, group in enumerate(wanted):
                for at, made in group.items() if place not in refused else ():
                    fresh.setdefault(at, made)  # of two with one id the first one stays
            if fresh:
                # numbered here, because a row's seal is bound to its number
                seqs.update(zip(fresh, next_numbers(connection, len(fresh)), strict=True))
                keys = self._keyring.current(connection, {memory for memory, _ in fresh})
                for at, (row, _) in fresh.items():
                    row.update(seq=seqs[at], key=None)
                    if at[0] in keys:
                        seal_item(row, keys[at[0]])
                connection.execute(insert(_items), [row for row, _ in fresh.values()])
        self._recent.keep((at[0], made_item(draft, seqs[at])) for at, (_, draft) in fresh.items())
        new = set(fresh)
        answers: list[list[Committed] | QuotaExceeded] = []
        for place, (memory, drafts) in enumerate(groups):
            told: list[Committed] = []
            for draft in drafts if memory not in gone and place not in refused else ():
                at = (memory, draft.item_id)
                told.append(Committed(seqs[at], draft.item_id, at not in new))
                new.discard(at)
            answers.append(refused.get(place, told))
        return answers

    @retried
    def put_codes(self, codes: Mapping[int, bytes], code: str, fence: Fence | None = None) -> None:
        """Keep coded amplitudes of live items, one row per item: newer ones replace older ones.

        `code` names all that decides what the bytes mean, such as `minilm/int4/64`. They can be made again from the
        text, so this does not wait for the disk. Items forgotten in the meantime are left out.

        Raises:
            NodeDown: a successor of the host that `fence` names has come forward; nothing was written.
        """
        if not codes:
            return
        with self._write("write codes", "relaxed") as connection:
            hold(connection, fence)
            for chunk in chunks(codes):
                query = select(*_items.c["seq", "memory", "item_id", "key"]).where(_items.c.seq.in_(chunk), is_kept())
                live = connection.execute(query).all()
                keys = self._keyring.by_id(connection, {row.key for row in live})
                connection.execute(delete(_codes).where(_codes.c.seq.in_(chunk)))
                rows = []
                for memory, seq, item_id, key in ((row.memory, row.seq, row.item_id, row.key) for row in live):
                    if key is None or key in keys:
                        sealed = seal_code(memory, seq, item_id, code, bytes(codes[seq]), keys.get(key))
                        rows.append({"seq": seq, "code": code, "rows": sealed})
                if rows:
                    connection.execute(insert(_codes), rows)

    @retried
    def tombstone(self, memory: str, seqs: Sequence[int], *, undo: bool = False) -> int:
        """Forget items: text, metadata, speaker, amplitudes and codes are overwritten; the number of those found.

        `undo`: they were never acknowledged, so nobody has used anything.
        """
        forgotten, gone = 0, set(seqs)
        with self._write("forget items") as connection:
            for chunk in chunks(seqs):
                forgotten += self._bury(connection, and_(_items.c.memory == memory, _items.c.seq.in_(chunk)), undo)
        self._recent.forget(lambda seq, _: seq in gone)
        self._scrub()
        return forgotten

    @retried
    def drop_memory(self, memory: str) -> int:
        """Forget everything of a memory and destroy its key; the number of items that were there."""
        with self._write("drop memory") as connection:
            forgotten = self._bury(connection, _items.c.memory == memory)
            if memory.startswith("s/"):
                for table in (tables.responses, tables.answers):
                    connection.execute(delete(table).where(table.c.session == memory[2:]))
            erase(connection, memory)
            self._change_key(connection, memory)
        self._recent.forget(lambda _, where: where == memory)
        self._scrub()
        return forgotten

    # ------------------------------------------------------------------------------------------------------- sealing
    def masters_used(self) -> dict[str, int]:
        """How many data keys each master key wraps, by its id."""
        with self._read("read keys") as connection:
            return self._keyring.masters_used(connection)

    @retried
    def seal_plain(self, on_progress: Callable[[int, int], None] | None = None) -> int:
        """Seal what an earlier version, or one with sealing off, has written; how many rows that were.

        A memory at a time, each in one transaction with the making of its key; `on_progress` gets rows done and all.
        """
        if not self._keyring.makes:
            return 0
        with self._read("count unsealed rows") as connection:
            plain = plain_scopes(connection)
            for scope in self._keyring.sealed(connection, plain):
                del plain[scope]  # what is plain in a sealed memory is no old row: reading it says so
        done, total = 0, sum(plain.values())
        for scope, count in sorted(plain.items()):
            with self._write("seal rows") as connection:
                self._keyring.current(connection, [scope])
            done += count
            if on_progress is not None:
                on_progress(done, total)
        if done:
            self._scrub()
        return done

    @retried
    def rewrap(self, limit: int = 500, then: Callable[[], None] | None = None) -> int:
        """Wrap data keys anew that the first master key does not wrap, at most `limit`; how many those were.

        When there were none `then` is called while nobody can make a key.
        """
        with self._write("wrap keys anew") as connection:
            count = self._keyring.rewrap(connection, limit)
            if not count and then is not None:
                then()
        return count

    # ------------------------------------------------------------------------------------------------------- helpers
    def _mark(self) -> None:
        """A first key, by which other processes see that this journal is sealed."""
        with self._write("make a key") as connection:
            self._keyring.current(connection, ["journal"])

    def _change_key(self, connection: Connection, memory: str) -> None:
        """Destroy a memory's key; a session that is still there gets a new one."""
        row = connection.execute(select(_sessions).where(_sessions.c.id == memory[2:])).first()
        if row is None or row.key is None or not memory.startswith("s/"):
            self._keyring.destroy(connection, memory)
            return
        record = open_session(row, self._keyring.by_id(connection, [row.key]), ())
        self._keyring.destroy(connection, memory)
        sealed = seal_session(session_row(record), self._keyring.current(connection, [memory]).get(memory))
        connection.execute(update(_sessions).where(_sessions.c.id == record.id).values(sealed))

    def _live_ids(self, connection: Connection, rows: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """Numbers of the live items among `rows`; expired ones are buried, so that their ids are free."""
        wanted: dict[str, list[str]] = {}
        for memory, item_id in rows:
            wanted.setdefault(memory, []).append(item_id)
        seqs, now = {}, self._clock.now()
        columns = select(_items.c.item_id, _items.c.seq, _items.c.expires_at)
        for memory, ids in wanted.items():
            for chunk in chunks(ids):
                query = columns.where(_items.c.memory == memory, _items.c.item_id.in_(chunk), is_kept())
                for row in connection.execute(query).all():
                    if row.expires_at is not None and row.expires_at <= now:
                        self._bury(connection, _items.c.seq == row.seq)
                    else:
                        seqs[memory, row.item_id] = row.seq
        return seqs

    def _charge(
        self,
        connection: Connection,
        wanted: Sequence[Rows],
        groups: Sequence[tuple[str, Sequence[Draft]]],
        payers: Sequence[Payer | None],
    ) -> dict[int, QuotaExceeded]:
        """Let each group's payer take room for its new rows, and mark them; the groups that may not."""
        asked: dict[int, tuple[Payer, Mapping[tuple[str, str], int]]] = {}
        for place, group in enumerate(wanted):
            payer = payers[place] if payers else None
            for row, _ in group.values():
                row["owner"] = "" if payer is None else payer.key
                row["size"] = len(row["text"]) + len(row["metadata"]) + len(row["amplitudes"] or b"")
            if group:
                sizes = {at: row["size"] for at, (row, _) in group.items()}
                asked[place] = payer or nobody(tenant_of(groups[place][0][2:])), sizes
        answers = zip(asked, self.usage.charge(connection, list(asked.values())), strict=True)
        return {place: refusal for place, refusal in answers if refusal is not None}

    def _bury(self, connection: Connection, which: ColumnElement[bool], undo: bool = False) -> int:
        self.usage.release(connection, and_(which, is_kept()), undo=undo)
        oldest = select(_items.c.memory, func.min(_items.c.seq)).where(which, is_kept()).group_by(_items.c.memory)
        for memory, seq in connection.execute(oldest).all():
            erase(connection, memory, seq)
        chosen = select(_items.c.seq).where(which, is_kept())
        connection.execute(delete(_codes).where(_codes.c.seq.in_(chosen)))
        blank = {"text": b"", "metadata": b"{}", "speaker": None, "amplitudes": None, "expires_at": None, "key": None}
        blank |= {"owner": None, "size": None}
        change = update(_items).where(which, is_kept()).values(**blank, forgotten_at=self._clock.now())
        return connection.execute(change).rowcount


def _missing(connection: Connection, sessions: Collection[str]) -> set[str]:
    found: set[str] = set()
    for chunk in chunks(sessions):
        found.update(connection.execute(select(_sessions.c.id).where(_sessions.c.id.in_(chunk))).scalars())
    return set(sessions) - found
