"""The journal's table of snapshots: which there are, how far each goes, and the key that each is sealed under.

A snapshot without its row is nothing: the row has the checksum of its file and a key of its own, sealed under the data
key of its memory. Whatever forgets an item erases the rows of all snapshots that hold it, in the same transaction, so a
file that is left over, copied or put back cannot be opened any more. A row stays until its file is deleted.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Row, Select, and_, delete, func, insert, or_, select, update

from qraf.clock import Clock
from qraf.errors import InvalidState, SealBroken
from qraf.storage import tables
from qraf.storage.fences import Fence, hold
from qraf.storage.keyring import Keyring
from qraf.storage.line import Line, retried
from qraf.storage.seal import DataKey, NotOpened, bound, new_key
from qraf.storage.snapshot_files import Parts, opened, parts_of
from qraf.tenants import tenant_of

__all__ = ["Snapshot", "SnapshotTable", "erase", "read_parts"]

_snapshots, _items = tables.snapshots, tables.items

_WRITING, _READY, _ERASED = "writing", "ready", "erased"
_LONGEST_S = 900.0  # who writes a file for longer has died

Begin = Callable[[str], AbstractContextManager[Connection]]


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot without what stands in it.

    `fit` digests all that a memory must have in common with it. It lacks nothing of the journal up to `through`, and
    its newest item is `last_seq`. `digest` is the SHA-256 of its file, empty while that is written.
    """

    memory: str
    node: str
    store: str
    fit: str
    through: int
    last_seq: int
    items: int
    id: str = ""
    status: str = _WRITING
    made_at: float = 0.0
    size: int = 0
    digest: bytes = b""

    def belongs(self) -> tuple[str | int, ...]:
        """What its pieces are bound to."""
        tenant = tenant_of(self.memory[2:])
        return tenant, self.memory, "snapshot", self.id, self.node, self.fit, self.through, self.last_seq, self.items


class SnapshotTable:
    """The snapshots of a journal, which makes it; every method blocks and may raise `StorageFailed`."""

    def __init__(self, write: Begin, read: Begin, clock: Clock, line: Line, keyring: Keyring) -> None:
        self._write, self._read, self._clock, self.line, self._keyring = write, read, clock, line, keyring

    # -------------------------------------------------------------------------------------------------------- making
    @retried
    def begin(
        self, wanted: Snapshot, seqs: NDArray[np.integer[Any]], fence: Fence | None, num_forgotten: int | None = None
    ) -> tuple[Snapshot, DataKey | None] | None:
        """Enter a snapshot of the items `seqs` before its file is written, and make its key (None: not sealed).

        None: something in it, or that it has counted, was forgotten meanwhile, so it must not be written. What was
        counted is known by `num_forgotten`: what `heads` told before the memory was copied; None: it counts nothing.

        Raises:
            NodeDown: a successor of this host has come forward.
        """
        with self._write("begin snapshot") as connection:
            hold(connection, fence)
            first = int(seqs[0]) if len(seqs) else 0
            if np.isin(_forgotten(connection, wanted.memory, wanted.last_seq, first), seqs).any():
                return None
            if num_forgotten not in (None, _num_forgotten(connection, wanted.memory)):
                return None
            made = msgspec.structs.replace(wanted, id=secrets.token_hex(16), made_at=self._clock.now())
            outer = self._keyring.current(connection, [wanted.memory]).get(wanted.memory)
            plain = b"" if outer is None else new_key()
            row = {name: getattr(made, name) for name in made.__struct_fields__}
            row |= {"key": None, "secret": b""}
            if outer is not None:
                row |= {"key": outer.id, "secret": outer.seal(plain, bound(*made.belongs(), "key"))}
            connection.execute(insert(_snapshots).values(row))
        return made, DataKey(0, plain) if plain else None

    @retried
    def finish(self, made: Snapshot, digest: bytes, size: int, keep: int, fence: Fence | None) -> bool:
        """The file is in place: from now on the snapshot counts, and of its memory the newest `keep` stay.

        False: it was erased meanwhile; its file is to be deleted.

        Raises:
            NodeDown: a successor of this host has come forward.
        """
        with self._write("finish snapshot") as connection:
            hold(connection, fence)
            mine = and_(_snapshots.c.id == made.id, _snapshots.c.status == _WRITING)
            change = update(_snapshots).where(mine).values(status=_READY, digest=digest, size=size)
            if not connection.execute(change).rowcount:
                return False
            same = (
                _snapshots.c.memory == made.memory,
                _snapshots.c.node == made.node,
                _snapshots.c.store == made.store,
                _snapshots.c.status == _READY,
            )
            newest = select(_snapshots.c.id).where(*same).order_by(_snapshots.c.made_at.desc(), _snapshots.c.id)
            old = connection.execute(newest.offset(keep)).scalars().all()
            connection.execute(_erasing(_snapshots.c.id.in_(old)))
        return True

    @retried
    def refuse(self, id: str, fence: Fence | None = None) -> None:
        """Erase a snapshot: it is damaged, or its file could not be written.

        Raises:
            NodeDown: a successor of this host has come forward.
        """
        with self._write("erase snapshot") as connection:
            hold(connection, fence)
            connection.execute(_erasing(_snapshots.c.id == id))

    # ------------------------------------------------------------------------------------------------------- reading
    @retried
    def newest(self, memory: str, store: str, fit: str) -> list[Snapshot]:
        """The snapshots of a memory that fit it, the one that goes furthest first."""
        same = (_snapshots.c.memory == memory, _snapshots.c.store == store, _snapshots.c.fit == fit)
        query = select(_snapshots).where(*same, _snapshots.c.status == _READY)
        return self._listed(query.order_by(_snapshots.c.through.desc(), _snapshots.c.made_at.desc()))

    @retried
    def every(self, memory: str = "") -> list[Snapshot]:
        """All that are there, by memory, the newest first; with `memory` those of one."""
        query = select(_snapshots).where(_snapshots.c.status == _READY)
        if memory:
            query = query.where(_snapshots.c.memory == memory)
        return self._listed(query.order_by(_snapshots.c.memory, _snapshots.c.made_at.desc()))

    @retried
    def key(self, made: Snapshot) -> DataKey | None:
        """What a snapshot is sealed under; None: it is not sealed.

        Raises:
            SealBroken: its key was changed, or is another's, or it is plain in a memory that is sealed.
        """

        def broken(why: str) -> SealBroken:
            return SealBroken(tenant_of(made.memory[2:]), made.memory, f"snapshot '{made.id}'", why)

        with self._read("read snapshot's key") as connection:
            row = connection.execute(select(_snapshots).where(_snapshots.c.id == made.id)).first()
            if row is None or row.status != _READY:
                raise broken("it was erased")
            if row.key is None:
                if self._keyring.sealed(connection, [made.memory]):
                    raise broken("it is not sealed, and its memory is")
                return None
            outer = self._keyring.by_id(connection, [row.key]).get(row.key)
        if outer is None:
            raise broken("its data key is gone")
        try:
            return DataKey(0, outer.open(row.secret, bound(*_snapshot(row).belongs(), "key")))
        except NotOpened:
            raise broken("its key was changed or is another's") from None

    @retried
    def forgotten(self, memory: str, through: int, first: int = 0) -> NDArray[np.int64]:
        """The numbers of a memory's forgotten items, from one to another."""
        with self._read("read forgotten items") as connection:
            return _forgotten(connection, memory, through, first)

    @retried
    def heads(self, memory: str, after_seq: int) -> tuple[NDArray[np.int64], list[str], int]:
        """Live items of a memory after a number: their numbers, ascending, and ids (none for a session's).

        The third is how many items of the memory have been forgotten so far.
        """
        is_shared = memory.startswith("c/")
        columns = _items.c["seq", "item_id"] if is_shared else [_items.c.seq]
        live = or_(_items.c.expires_at.is_(None), _items.c.expires_at > self._clock.now())
        which = (_items.c.memory == memory, _items.c.seq > after_seq, _items.c.forgotten_at.is_(None), live)
        query = select(*columns).where(*which, _items.c.role != "recalled").order_by(_items.c.seq)
        with self._read("read numbers of items") as connection:
            num_forgotten = _num_forgotten(connection, memory)  # first: what is forgotten from here on is told apart
            rows = connection.execute(query).all()
        ids = [row[1] for row in rows] if is_shared else []
        return np.array([row[0] for row in rows], np.int64), ids, num_forgotten

    # ------------------------------------------------------------------------------------------------------ clearing
    @retried
    def erased(self, store: str, limit: int = 1000) -> list[str]:
        """Snapshots of a place whose files are to be deleted; what died while it was written is among them."""
        with self._write("look for erased snapshots") as connection:
            dead = and_(_snapshots.c.status == _WRITING, _snapshots.c.made_at < self._clock.now() - _LONGEST_S)
            connection.execute(_erasing(dead))
            query = select(_snapshots.c.id).where(_snapshots.c.status == _ERASED, _snapshots.c.store == store)
            return list(connection.execute(query.limit(limit)).scalars())

    @retried
    def num_erased(self, store: str) -> int:
        """How many files are to be deleted; cheaper to ask than `erased`."""
        late = and_(_snapshots.c.status == _WRITING, _snapshots.c.made_at < self._clock.now() - _LONGEST_S)
        which = and_(_snapshots.c.store == store, or_(_snapshots.c.status == _ERASED, late))
        with self._read("count erased snapshots") as connection:
            return int(connection.execute(select(func.count()).select_from(_snapshots).where(which)).scalar_one())

    @retried
    def remove(self, ids: Collection[str]) -> None:
        """Strike out snapshots whose files are deleted.

        One that was erased before it was written stays for a quarter of an hour: whoever writes it may still put its
        file in place.
        """
        over = or_(_snapshots.c.size > 0, _snapshots.c.made_at < self._clock.now() - _LONGEST_S)
        with self._write("remove snapshots") as connection:
            gone = _snapshots.c.id.in_(list(ids))
            connection.execute(delete(_snapshots).where(gone, _snapshots.c.status == _ERASED, over))

    def _listed(self, query: Select[Any]) -> list[Snapshot]:
        with self._read("list snapshots") as connection:
            return [_snapshot(row) for row in connection.execute(query).all()]


def read_parts(table: SnapshotTable, one: Snapshot, data: bytes | None) -> Parts:
    """What stands in a snapshot, of its file's bytes; None: there is no file.

    Raises:
        InvalidState: its file is not there or torn, another's, or holds what was forgotten.
        SealBroken: its key does not open, so it is another memory's or an older one.
        StorageFailed: the journal failed.
    """
    if data is None:
        raise InvalidState("snapshot", "have a file", "has none")
    if not hmac.compare_digest(hashlib.sha256(data).digest(), one.digest):
        raise InvalidState("snapshot", "match its checksum", f"does not: it was cut or changed ({len(data)} bytes)")
    key = table.key(one)
    try:
        facts, arrays = parts_of(opened(data, key, one.belongs()))
    except NotOpened:
        raise InvalidState("snapshot", "open with its key", "does not: it was changed, or is another's") from None
    if facts.get("memory") != one.memory or len(arrays.get("seq", ())) != one.items:
        raise InvalidState("snapshot", f"hold {one.items} items of '{one.memory}'", "does not")
    first = int(arrays["seq"][0]) if one.items else 0
    if np.isin(table.forgotten(one.memory, one.last_seq, first), arrays["seq"]).any():
        raise InvalidState("snapshot", "hold nothing that was forgotten", "does: it is an older one")
    return facts, arrays


def erase(connection: Connection, memory: str, from_seq: int = 0) -> None:
    """Erase the snapshots of a memory that hold, or have counted, an item from a number on; in who forgets it."""
    connection.execute(_erasing(and_(_snapshots.c.memory == memory, _snapshots.c.last_seq >= from_seq)))


def _erasing(which: Any) -> Any:
    change = update(_snapshots).where(which, _snapshots.c.status != _ERASED)
    return change.values(status=_ERASED, secret=b"", key=None)


def _forgotten(connection: Connection, memory: str, through: int, first: int) -> NDArray[np.int64]:
    which = (_items.c.memory == memory, _items.c.forgotten_at.is_not(None), _items.c.seq.between(first, through))
    return np.array(connection.execute(select(_items.c.seq).where(*which)).scalars().all(), np.int64)


def _num_forgotten(connection: Connection, memory: str) -> int:
    which = (_items.c.memory == memory, _items.c.forgotten_at.is_not(None))
    return int(connection.execute(select(func.count()).select_from(_items).where(*which)).scalar_one())


def _snapshot(row: Row[Any]) -> Snapshot:
    return Snapshot(**{name: getattr(row, name) for name in Snapshot.__struct_fields__})
