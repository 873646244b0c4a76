"""The journal's table of states: packets under an id and a version that rises by one with each change.

A packet is the truth of a state; `view` is what is shown of it. Writers name the version that they read, so that
nothing is changed that somebody else changed meanwhile, whichever process either ran in.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, Select, and_, delete, func, insert, or_, select, update

from qraf.clock import Clock
from qraf.errors import LimitExceeded, NotFound, SealBroken, VersionConflict
from qraf.settings import QuotaSettings
from qraf.state_orders import StateView
from qraf.storage import tables
from qraf.storage.chunks import chunks
from qraf.storage.fences import Fence, fenced
from qraf.storage.keyring import Keyring, states_scope, tenant_of_scope
from qraf.storage.line import Line, retried
from qraf.storage.pages import check_limit, decode_cursor, encode_cursor, of_tenant
from qraf.storage.records import StateRecord
from qraf.storage.seal import DataKey
from qraf.storage.sealed import open_state, seal_state
from qraf.storage.usage import UsageTable
from qraf.tenants import DEFAULT_TENANT, tenant_of
from qraf.times import format_time

__all__ = ["StateTable", "shown"]

_states = tables.states
_HEAD = (_states.c.id, _states.c.version, _states.c.created_at, _states.c.updated_at, _states.c.view, _states.c.key)

Begin = Callable[[str], AbstractContextManager[Connection]]


class StateTable:
    """The states of a journal, which makes it; every method blocks and may raise `StorageFailed`."""

    def __init__(
        self, write: Begin, read: Begin, clock: Clock, line: Line, keyring: Keyring, usage: UsageTable
    ) -> None:
        self._write, self._read, self._clock, self.line, self._keyring = write, read, clock, line, keyring
        self._usage = usage

    def under(self, fence: Fence | None) -> StateTable:
        """The same states, as a host writes them: `NodeDown` once a successor of it has come forward."""
        mine = copy.copy(self)
        mine._write = fenced(self._write, fence)
        return mine

    @retried
    def put(
        self,
        records: Sequence[StateRecord],
        *,
        max_states: int | None = None,
        max_bytes: int | None = None,
        quotas: QuotaSettings | None = None,
    ) -> list[StateRecord]:
        """Write states in one transaction: all or none, durable on return; the records with their times.

        Version 1 is a new state; one that is there already with this very packet is left as it is, so that a write may
        be repeated. A higher version replaces the one right below it.

        Raises:
            NotFound: a state to change is not there.
            VersionConflict: it is there in another version, or a new one's id is taken.
            LimitExceeded: there would be more than `max_states`, or their packets had more than `max_bytes`.
            QuotaExceeded: a tenant would hold more bytes than it may.
        """
        now = self._clock.now()
        done: list[StateRecord] = []
        new: list[dict[str, Any]] = []
        with self._write("write states") as connection:
            found = _sizes(connection, [record.id for record in records])
            keys = self._keyring.current(connection, {states_scope(record.id) for record in records})
            grown_bytes, grown = 0, Counter[str]()
            for record in records:
                row = _sealed(record, keys.get(states_scope(record.id)))
                row |= {"size": len(record.packet), "updated_at": now}
                old = found.get(record.id)
                if record.version == 1:
                    if old is not None:
                        done.append(self._same(connection, record, old))
                        continue
                    new.append({"id": record.id, "created_at": now, **row})
                    grown_bytes += len(record.packet)
                    grown[tenant_of(record.id)] += len(record.packet)
                    done.append(_stamped(record, now, now))
                    continue
                if old is None:
                    raise NotFound("state", record.id)
                if old.version != record.version - 1:
                    raise VersionConflict("state", record.id, record.version - 1, old.version)
                connection.execute(update(_states).where(_states.c.id == record.id).values(**row))
                grown_bytes += len(record.packet) - old.size
                grown[tenant_of(record.id)] += len(record.packet) - old.size
                done.append(_stamped(record, old.created_at, now))
            self._usage.grow_states(connection, grown, quotas)
            if new:
                connection.execute(insert(_states), new)
            if new or grown_bytes > 0:
                total = connection.execute(select(func.count(), func.coalesce(func.sum(_states.c.size), 0))).one()
                if max_states is not None and new and total[0] > max_states:
                    raise LimitExceeded("states.max_states", max_states, int(total[0]))
                if max_bytes is not None and grown_bytes > 0 and total[1] > max_bytes:
                    raise LimitExceeded("states.max_total_bytes", max_bytes, int(total[1]))
        return done

    def versions(self, ids: Iterable[str]) -> dict[str, int]:
        """The version of each state that is there."""
        return {state: version for state, (version, _) in self.sizes(ids).items()}

    @retried
    def sizes(self, ids: Iterable[str]) -> dict[str, tuple[int, int]]:
        """The version and the bytes of the packet of each state that is there."""
        with self._read("read states") as connection:
            return {state: (row.version, row.size) for state, row in _sizes(connection, ids).items()}

    @retried
    def fetch(self, ids: Iterable[str], *, packets: bool = True) -> dict[str, StateRecord]:
        """The states that are there; without `packets` theirs are empty."""
        columns = (*_HEAD, _states.c.packet) if packets else _HEAD
        found: dict[str, StateRecord] = {}
        with self._read("read states") as connection:
            for chunk in chunks(ids):
                records = self._records(connection, select(*columns).where(_states.c.id.in_(chunk)), packets)
                found.update((record.id, record) for record in records)
        return found

    @retried
    def page(
        self, cursor: str | None = None, limit: int = 50, tenant: str = DEFAULT_TENANT
    ) -> tuple[list[StateRecord], str | None]:
        """A page of a tenant's states without packets, oldest first, and the cursor of the next one."""
        check_limit(limit)
        query = (
            select(*_HEAD)
            .where(of_tenant(_states.c.id, tenant))
            .order_by(_states.c.created_at, _states.c.id)
            .limit(limit + 1)
        )
        if cursor is not None:
            created_at, last_id = decode_cursor("states", cursor, (float, str))
            later = and_(_states.c.created_at == created_at, _states.c.id > last_id)
            query = query.where(or_(_states.c.created_at > created_at, later))
        with self._read("list states") as connection:
            found = self._records(connection, query, False)
        last = found[limit - 1] if len(found) > limit else None
        return found[:limit], None if last is None else encode_cursor("states", float(last.created_at), last.id)

    @retried
    def delete(self, ids: Sequence[str], versions: Sequence[int] | None = None) -> None:
        """Delete states: all or none.

        Raises:
            NotFound: one is not there.
            VersionConflict: one has another version than the one in `versions`.
        """
        with self._write("delete states") as connection:
            for place, state in enumerate(ids):
                query = select(_states.c.version, _states.c.size).where(_states.c.id == state)
                now = connection.execute(query).first()
                if now is None:
                    raise NotFound("state", state)
                if versions is not None and versions[place] != now.version:
                    raise VersionConflict("state", state, versions[place], now.version)
                connection.execute(delete(_states).where(_states.c.id == state))
                self._usage.grow_states(connection, {tenant_of(state): -now.size}, None)

    def _same(self, connection: Connection, record: StateRecord, old: Any) -> StateRecord:
        """A new state that is there already, as it was written then; another one under its id is refused."""
        query = select(*_HEAD, _states.c.packet).where(_states.c.id == record.id)
        [there] = self._records(connection, query, True)
        if old.version != 1 or there.packet != record.packet:
            raise VersionConflict("state", record.id, 0, old.version)
        return there

    def _records(self, connection: Connection, query: Select[Any], packets: bool) -> list[StateRecord]:
        """The records of a query; read once more if one does not open, because it may have been on its way out."""
        try:
            return self._opened(connection, connection.execute(query).all(), packets)
        except SealBroken:
            with self._keyring.noting():
                return self._opened(connection, connection.execute(query).all(), packets)

    def _opened(self, connection: Connection, rows: Sequence[Row[Any]], packets: bool) -> list[StateRecord]:
        keys = self._keyring.by_id(connection, [row.key for row in rows])
        sealed = self._keyring.sealed(connection, {states_scope(row.id) for row in rows if row.key is None})
        opened = []
        for row in rows:
            key, scope = keys.get(row.key), states_scope(row.id)
            if key is None and (row.key is not None or scope in sealed):
                why = "its data key is gone" if row.key is not None else "it is not sealed, and others are"
                raise SealBroken(tenant_of_scope(scope), scope, f"state '{row.id}'", why)
            opened.append(
                StateRecord(
                    id=row.id,
                    version=row.version,
                    created_at=row.created_at,
                    updated_at=row.updated_at,
                    view=open_state(row.id, row.version, "view", row.view, key),
                    packet=open_state(row.id, row.version, "packet", row.packet, key) if packets else b"",
                )
            )
        return opened


def _sealed(record: StateRecord, key: DataKey | None) -> dict[str, Any]:
    return {
        "version": record.version,
        "view": seal_state(record.id, record.version, "view", record.view, key),
        "packet": seal_state(record.id, record.version, "packet", record.packet, key),
        "key": None if key is None else key.id,
    }


def _sizes(connection: Connection, ids: Iterable[str]) -> dict[str, Any]:
    """What is known of the states that are there, without view and packet."""
    columns = (_states.c.id, _states.c.version, _states.c.created_at, _states.c.updated_at, _states.c.size)
    found: dict[str, Any] = {}
    for chunk in chunks(ids):
        found.update((row.id, row) for row in connection.execute(select(*columns).where(_states.c.id.in_(chunk))))
    return found


def _stamped(record: StateRecord, created_at: float, updated_at: float) -> StateRecord:
    return StateRecord(record.id, record.version, record.view, record.packet, created_at, updated_at)


def shown(record: StateRecord) -> StateView:
    """A stored state as it is shown, with its times."""
    view = msgspec.json.decode(record.view, type=StateView)
    created_at, updated_at = format_time(record.created_at), format_time(record.updated_at)
    return msgspec.structs.replace(view, version=record.version, created_at=created_at, updated_at=updated_at)
