"""The data keys of a journal: made with a memory, kept wrapped in the table `data_keys`, destroyed with it."""

from __future__ import annotations

import logging
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from qraf.clock import Clock
from qraf.errors import KeysMissing, SealBroken
from qraf.storage import tables
from qraf.storage.chunks import chunks
from qraf.storage.seal import DataKey, MasterKeys, NotOpened, bound, new_key
from qraf.tenants import tenant_of

__all__ = ["Keyring", "responses_scope", "states_scope", "tenant_of_scope"]

_log = logging.getLogger(__name__)

_keys = tables.data_keys
_MOST = 10_000  # unwrapped keys kept
_MOST_BROKEN = 1000  # memories that are remembered as such

Seal = Callable[[Connection, str, DataKey], None]


def states_scope(state: str) -> str:
    """The scope of a stored state's key: there is one for all states of its tenant."""
    return f"states/{tenant_of(state)}"


def responses_scope(tenant: str) -> str:
    """The scope of the key for those responses of a tenant that belong to no session."""
    return f"responses/{tenant}"


def tenant_of_scope(scope: str) -> str:
    """Whose a scope is."""
    kind, _, name = scope.partition("/")
    return name if kind in ("states", "responses") else tenant_of(name)


class Keyring:
    """Data keys by id and scope; those used lately are kept unwrapped. Safe for several threads.

    Args:
        masters: None: nothing can be sealed or opened.
        makes: whether a scope without a key gets one.
        seal_old: called with a new key, in its transaction, to seal what the scope has already.
    """

    def __init__(self, masters: MasterKeys | None, clock: Clock, *, makes: bool, seal_old: Seal) -> None:
        self._masters, self._clock, self._makes, self._seal_old = masters, clock, makes, seal_old
        self._open: OrderedDict[int, DataKey] = OrderedDict()
        self._lock = threading.Lock()
        self._broken: dict[str, float] = {}

    @property
    def makes(self) -> bool:
        """Whether a scope without a key gets one."""
        return self._makes

    @property
    def broken(self) -> dict[str, float]:
        """Memories in which something did not open, and since when (seconds since 1970)."""
        with self._lock:
            return dict(self._broken)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """What does not open here is said once in the log, and kept for health until its memory is dropped."""
        try:
            yield
        except SealBroken as fault:
            with self._lock:
                is_new = fault.memory not in self._broken and len(self._broken) < _MOST_BROKEN
                if is_new:
                    self._broken[fault.memory] = self._clock.now()
            if is_new:
                _log.error("%s", fault)
            raise

    def current(self, connection: Connection, scopes: Collection[str]) -> dict[str, DataKey]:
        """The keys of scopes in a transaction that writes: made where there is none, if keys are made.

        Looked up each time, because another process may have destroyed a key and made a new one.

        Raises:
            KeysMissing: the master keys are needed and not there.
        """
        found: dict[str, DataKey] = {}
        for chunk in chunks(scopes):
            for row in connection.execute(select(_keys).where(_keys.c.scope.in_(chunk))):
                found[row.scope] = self._unwrapped(row)
        if self._makes:
            for scope in scopes:
                if scope not in found:
                    found[scope] = self._make(connection, scope)
        return found

    def by_id(self, connection: Connection, ids: Iterable[int | None]) -> dict[int, DataKey]:
        """Keys by id; those that were destroyed are missing."""
        wanted = {one for one in ids if one is not None}
        with self._lock:
            found = {one: self._open[one] for one in wanted if one in self._open}
            for one in found:
                self._open.move_to_end(one)
        for chunk in chunks(wanted - found.keys()):
            for row in connection.execute(select(_keys).where(_keys.c.id.in_(chunk))):
                found[row.id] = self._unwrapped(row)
        return found

    def sealed(self, connection: Connection, scopes: Collection[str]) -> set[str]:
        """Those of the scopes that have a key, so that nothing of theirs may be unsealed."""
        found: set[str] = set()
        for chunk in chunks(scopes):
            found.update(connection.execute(select(_keys.c.scope).where(_keys.c.scope.in_(chunk))).scalars())
        return found

    def destroy(self, connection: Connection, scope: str) -> None:
        """Destroy a scope's key: what it sealed, in old copies of the database too, cannot be opened any more."""
        gone = connection.execute(select(_keys.c.id).where(_keys.c.scope == scope)).scalars().all()
        connection.execute(delete(_keys).where(_keys.c.scope == scope))
        with self._lock:
            self._broken.pop(scope, None)
            for one in gone:
                self._open.pop(one, None)

    def masters_used(self, connection: Connection) -> dict[str, int]:
        """How many data keys each master key wraps."""
        rows = connection.execute(select(_keys.c.master, func.count()).group_by(_keys.c.master))
        return {row[0]: row[1] for row in rows}

    def rewrap(self, connection: Connection, limit: int) -> int:
        """Wrap keys, at most `limit`, anew by the first master key; how many were not."""
        if self._masters is None:
            raise KeysMissing("there are no master keys to wrap with")
        rows = connection.execute(select(_keys).where(_keys.c.master != self._masters.first()).limit(limit)).all()
        for row in rows:
            master, wrapped = self._masters.wrap(self._plain(row), _belongs(row.scope, row.id))
            connection.execute(update(_keys).where(_keys.c.id == row.id).values(master=master, wrapped=wrapped))
        return len(rows)

    def _make(self, connection: Connection, scope: str) -> DataKey:
        if self._masters is None:
            raise KeysMissing("there are no master keys to seal with")
        number, plain = secrets.randbits(63), new_key()
        master, wrapped = self._masters.wrap(plain, _belongs(scope, number))
        row = {"id": number, "tenant": tenant_of_scope(scope), "scope": scope, "master": master, "wrapped": wrapped}
        connection.execute(insert(_keys).values(**row, created_at=self._clock.now()))
        # not kept yet: the transaction may be undone
        key = DataKey(number, plain)
        self._seal_old(connection, scope, key)
        return key

    def _unwrapped(self, row: Row[Any]) -> DataKey:
        with self._lock:
            key = self._open.get(row.id)
        if key is None:
            key = DataKey(row.id, self._plain(row))
            with self._lock:
                self._open[row.id] = key
                if len(self._open) > _MOST:
                    self._open.popitem(last=False)
        return key

    def _plain(self, row: Row[Any]) -> bytes:
        if self._masters is None:
            raise KeysMissing(f"'{row.scope}' is sealed, and this journal was opened without master keys")
        try:
            return self._masters.unwrap(row.master, row.wrapped, _belongs(row.scope, row.id))
        except NotOpened:
            raise SealBroken(row.tenant, row.scope, "data key", "its wrapping was changed") from None


def _belongs(scope: str, number: int) -> bytes:
    return bound(tenant_of_scope(scope), scope, number, "data key")
