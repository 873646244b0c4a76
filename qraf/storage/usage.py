"""What keys and their tenants hold now, and what they have used each day.

`held` is kept by the very transactions that write and forget, and these queue behind each other, so of two writes that
fit alone but not together one is refused, whichever gateways they came to. What an item weighs is on its row: its text,
metadata and amplitudes before they are sealed. Stored states weigh their packets, and count for their tenant alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import date
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Table, and_, delete, func, insert, select, update

from qraf.clock import Clock
from qraf.errors import QuotaExceeded
from qraf.settings import QuotaSettings
from qraf.storage import tables
from qraf.storage.chunks import chunks
from qraf.storage.line import Line, retried
from qraf.storage.pages import check_limit, decode_cursor, encode_cursor
from qraf.tenants import tenant_of

__all__ = [
    "DAY_S",
    "Counts",
    "Held",
    "Payer",
    "Spend",
    "UsageRow",
    "UsageTable",
    "date_of",
    "day_named",
    "day_of",
    "nobody",
]

DAY_S = 86_400
_FIRST = date(1970, 1, 1).toordinal()
_KEPT_S = 7 * DAY_S  # a ledger that has not written for so long is no more
_usage, _held, _items, _ledgers = tables.usage, tables.held, tables.items, tables.ledgers
_HELD = [func.coalesce(func.sum(_held.c[name]), 0) for name in ("items", "bytes")]
_NAMES = ("requests", "frames", "items", "bytes", "responses", "prompt_tokens", "generated_tokens")

Write = Callable[..., AbstractContextManager[Connection]]


class Counts(msgspec.Struct, kw_only=True):
    """What was used. Adds up."""

    requests: int = 0
    frames: int = 0
    items: int = 0
    bytes: int = 0
    responses: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0

    def add(self, other: Counts) -> None:
        """Add another's."""
        for name in _NAMES:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class UsageRow(Counts, kw_only=True):
    """What one key used on one day (days since 1970, UTC)."""

    tenant: str
    key: str
    day: int


class Held(msgspec.Struct, frozen=True):
    """What a tenant, or one of its keys, holds."""

    items: int = 0
    bytes: int = 0


class Payer(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a write counts for, and the most that it may hold or use: (items, bytes, generated tokens a day)."""

    tenant: str
    key: str
    of_tenant: tuple[int, int, int]
    of_key: tuple[int, int, int]


class Spend(msgspec.Struct, frozen=True):
    """Tokens that a model has generated and that nobody has seen yet."""

    payer: Payer
    generated: int
    prompt: int = 0


def date_of(day: int) -> str:
    """A day as a date.

    >>> date_of(20780)
    '2026-11-23'
    """
    return date.fromordinal(_FIRST + day).isoformat()


def day_named(text: str) -> int:
    """The day of a date; raises ValueError.

    >>> day_named("2026-11-23")
    20780
    """
    return date.fromisoformat(text).toordinal() - _FIRST


_UNBOUNDED = (1 << 62,) * 3


def nobody(tenant: str) -> Payer:
    """For what the server itself writes: it is held by the tenant, and nobody has used anything."""
    return Payer(tenant=tenant, key="", of_tenant=_UNBOUNDED, of_key=_UNBOUNDED)


def day_of(seconds: float) -> int:
    """The day of a time, in days since 1970-01-01 (UTC)."""
    return int(seconds // DAY_S)


class UsageTable:
    """Usage of a journal, which makes it; methods block and may raise `StorageFailed`."""

    def __init__(self, write: Write, read: Callable[[str], Any], clock: Clock, line: Line) -> None:
        self._write, self._read, self._clock, self.line = write, read, clock, line
        self._answered: dict[str, tuple[int, list[QuotaExceeded | None]]] = {}  # what was said to the newest batch

    # ----------------------------------------------------------------------------- inside the transactions of others
    def charge(
        self, connection: Connection, wanted: Sequence[tuple[Payer, Mapping[tuple[str, str], int]]]
    ) -> list[QuotaExceeded | None]:
        """Take room for the new items of several writes, each in turn: what refuses it, or None.

        `wanted`: payer, and bytes of each item. An item that an earlier write has taken room for needs none again.
        """
        now: dict[tuple[str, str], list[int]] = {}
        for tenant, keys in _keys_of(payer for payer, _ in wanted).items():
            mine = _held.c.tenant == tenant
            now[tenant, ""] = [int(one) for one in connection.execute(select(*_HELD).where(mine)).one()]
            for chunk in chunks(keys):  # there may be many more
                for row in connection.execute(select(_held).where(mine, _held.c.owner.in_(chunk))):
                    now[tenant, row.owner] = [row.items, row.bytes]
        answers: list[QuotaExceeded | None] = []
        taken: dict[tuple[str, str], list[int]] = {}
        placed: set[tuple[str, str]] = set()
        for payer, sizes in wanted:
            fresh = [size for item, size in sizes.items() if item not in placed]
            items, size = len(fresh), sum(fresh)
            own = now.setdefault((payer.tenant, payer.key), [0, 0]) if payer.key else [0, 0]
            refusal = _refusal("key", own, items, size, payer.of_key) or _refusal(
                "tenant", now[payer.tenant, ""], items, size, payer.of_tenant
            )
            answers.append(refusal)
            if refusal is None:
                placed.update(sizes)
                for one in (own, now[payer.tenant, ""], taken.setdefault((payer.tenant, payer.key), [0, 0])):
                    _grow(one, items, size)
        day = day_of(self._clock.now())
        for (tenant, key), (items, size) in taken.items():
            if not items:
                continue
            _bump(connection, _held, {"tenant": tenant, "owner": key}, {"items": items, "bytes": size})
            if key:
                _bump(connection, _usage, {"tenant": tenant, "day": day, "key": key}, {"items": items, "bytes": size})
        return answers

    def release(self, connection: Connection, which: ColumnElement[bool], *, undo: bool = False) -> None:
        """Give back the room of items that are about to be forgotten; with `undo` they were never used either."""
        totals = (func.count(), func.coalesce(func.sum(_items.c.size), 0))
        query = select(_items.c.memory, _items.c.owner, *totals).where(which).group_by(_items.c.memory, _items.c.owner)
        day = day_of(self._clock.now())
        for memory, owner, items, size in connection.execute(query).all():
            tenant, less = tenant_of(memory[2:]), {"items": -int(items), "bytes": -int(size)}
            _bump(connection, _held, {"tenant": tenant, "owner": owner or ""}, less)
            if undo and owner:
                _bump(connection, _usage, {"tenant": tenant, "day": day, "key": owner}, less)

    def grow_states(self, connection: Connection, grown: Mapping[str, int], quotas: QuotaSettings | None) -> None:
        """Take room for bytes of stored states, by tenant; less than 0 gives it back.

        Raises:
            QuotaExceeded: a tenant would hold more than it may.
        """
        for tenant, size in grown.items():
            if size > 0 and quotas is not None:
                most = quotas.of_tenant(tenant).bytes
                query = select(func.coalesce(func.sum(_held.c["bytes"]), 0)).where(_held.c.tenant == tenant)
                if int(connection.execute(query).scalar_one()) + size > most:
                    raise QuotaExceeded("tenant.bytes", most)
            if size:
                _bump(connection, _held, {"tenant": tenant, "owner": ""}, {"items": 0, "bytes": size})

    # ---------------------------------------------------------------------------------------------------- of their own
    @retried
    def note(
        self,
        counts: Mapping[tuple[str, str, int], Counts],
        spends: Sequence[Spend],
        batch: tuple[str, int] | None = None,
        day: int | None = None,
    ) -> list[QuotaExceeded | None]:
        """Add counts by tenant, key and day, and tokens that are about to be shown; what refuses each of these.

        On return it survives the death of this process, but a machine that loses its power may lose the last of it.
        `batch`: who writes, and the number of what; one that was written already, though its answer was lost, changes
        nothing and is answered as it was. `day`: that of the tokens; left out: today.
        """
        day = day_of(self._clock.now()) if day is None else day
        answers: list[QuotaExceeded | None] = []
        with self._write("write usage", "relaxed") as connection:
            if batch is not None:
                if not self._is_new(connection, *batch):
                    return self._answered[batch[0]][1]
                # before the commit, whose own answer may be lost; of an attempt that was undone the next one's counts
                self._answered[batch[0]] = batch[1], answers
            for (tenant, key, on), one in counts.items():
                _bump(connection, _usage, {"tenant": tenant, "day": on, "key": key}, msgspec.structs.asdict(one))
            used = self._used_by(connection, [spend.payer for spend in spends], day)
            taken: dict[tuple[str, str], list[int]] = {}
            for spend in spends:
                payer, tokens = spend.payer, spend.generated
                at = payer.tenant, payer.key
                refusal = None
                for scope, mine, bound in (("key", at, payer.of_key), ("tenant", (payer.tenant, ""), payer.of_tenant)):
                    if tokens and used.get(mine, 0) + tokens > bound[2]:
                        refusal = QuotaExceeded(f"{scope}.tokens_per_day", bound[2], self._until_midnight_ms())
                        break
                answers.append(refusal)
                if refusal is None:
                    for mine in (at, (payer.tenant, "")):
                        used[mine] = used.get(mine, 0) + tokens
                    _grow(taken.setdefault(at, [0, 0]), spend.prompt, tokens)
            for (tenant, key), (prompt, generated) in taken.items():
                more = {"prompt_tokens": prompt, "generated_tokens": generated}
                _bump(connection, _usage, {"tenant": tenant, "day": day, "key": key}, more)
        return answers

    @retried
    def check_tokens(self, payer: Payer) -> None:
        """Refuse one whose tokens of the day are used up; raises QuotaExceeded."""
        day = day_of(self._clock.now())
        with self._read("read usage") as connection:
            used = self._used_by(connection, [payer], day)
        bounds = (("key", (payer.tenant, payer.key), payer.of_key), ("tenant", (payer.tenant, ""), payer.of_tenant))
        for scope, mine, bound in bounds:
            if used.get(mine, 0) >= bound[2]:
                raise QuotaExceeded(f"{scope}.tokens_per_day", bound[2], self._until_midnight_ms())

    @retried
    def page(
        self,
        tenant: str | None,
        key: str | None,
        days: tuple[int, int],
        cursor: str | None = None,
        limit: int = 50,
    ) -> tuple[list[UsageRow], str | None]:
        """A page of usage from one day to another one, both included, newest day first; None: of every one."""
        check_limit(limit)
        query = select(_usage).where(_which(tenant, key, days)).limit(limit + 1)
        query = query.order_by(_usage.c.day.desc(), _usage.c.tenant, _usage.c.key)
        if cursor is not None:
            day, last, own = decode_cursor("usage", cursor, (int, str, str))
            same = and_(_usage.c.day == day, _usage.c.tenant == last, _usage.c.key > own)
            later = and_(_usage.c.day == day, _usage.c.tenant > last)
            query = query.where((_usage.c.day < day) | later | same)
        with self._read("read usage") as connection:
            found = [UsageRow(**row._mapping) for row in connection.execute(query)]
        end = found[limit - 1] if len(found) > limit else None
        return found[:limit], None if end is None else encode_cursor("usage", end.day, end.tenant, end.key)

    @retried
    def total(self, tenant: str | None, key: str | None, days: tuple[int, int]) -> Counts:
        """The sum of all that `page` would give."""
        columns = [func.coalesce(func.sum(_usage.c[name]), 0).label(name) for name in _NAMES]
        with self._read("read usage") as connection:
            row = connection.execute(select(*columns).where(_which(tenant, key, days))).one()
        return Counts(**{name: int(getattr(row, name)) for name in _NAMES})

    @retried
    def held(self, tenant: str, key: str | None = None) -> Held:
        """What a tenant holds, or what one of its keys does."""
        query = select(*_HELD).where(_held.c.tenant == tenant)
        if key is not None:
            query = query.where(_held.c.owner == key)
        with self._read("read usage") as connection:
            items, size = connection.execute(query).one()
        return Held(int(items), int(size))

    def _is_new(self, connection: Connection, ledger: str, batch: int) -> bool:
        """Mark a batch as written; whether it was not."""
        now = self._clock.now()
        mine = _ledgers.c.id == ledger
        if connection.execute(
            update(_ledgers).where(mine, _ledgers.c.batch < batch).values(batch=batch, at=now)
        ).rowcount:
            return True
        if connection.execute(select(_ledgers.c.batch).where(mine)).first() is not None:
            return False
        connection.execute(delete(_ledgers).where(_ledgers.c.at < now - _KEPT_S))
        connection.execute(insert(_ledgers).values(id=ledger, batch=batch, at=now))
        return True

    def _used_by(self, connection: Connection, payers: Iterable[Payer], day: int) -> dict[tuple[str, str], int]:
        """Generated tokens of a day, by tenant and key; under key "" those of the whole tenant."""
        used: dict[tuple[str, str], int] = {}
        for tenant, keys in _keys_of(payers).items():
            mine, tokens = and_(_usage.c.tenant == tenant, _usage.c.day == day), _usage.c.generated_tokens
            total = connection.execute(select(func.coalesce(func.sum(tokens), 0)).where(mine)).scalar_one()
            used[tenant, ""] = int(total)
            for chunk in chunks(keys):
                for key, spent in connection.execute(select(_usage.c.key, tokens).where(mine, _usage.c.key.in_(chunk))):
                    used[tenant, key] = spent
        return used

    def _until_midnight_ms(self) -> int:
        now = self._clock.now()
        return int(1000 * ((day_of(now) + 1) * DAY_S - now)) + 1


def _which(tenant: str | None, key: str | None, days: tuple[int, int]) -> ColumnElement[bool]:
    chosen = [_usage.c.day >= days[0], _usage.c.day <= days[1]]
    if tenant is not None:
        chosen.append(_usage.c.tenant == tenant)
    if key is not None:
        chosen.append(_usage.c.key == key)
    return and_(*chosen)


def _keys_of(payers: Iterable[Payer]) -> dict[str, set[str]]:
    """The keys of each tenant; whoever has none counts for the tenant alone."""
    keys: dict[str, set[str]] = {}
    for payer in payers:
        keys.setdefault(payer.tenant, set()).update([payer.key] if payer.key else [])
    return keys


def _grow(one: list[int], first: int, second: int) -> None:
    one[0] += first
    one[1] += second


def _refusal(scope: str, now: list[int], items: int, size: int, most: tuple[int, int, int]) -> QuotaExceeded | None:
    if items and now[0] + items > most[0]:
        return QuotaExceeded(f"{scope}.items", most[0])
    if size and now[1] + size > most[1]:
        return QuotaExceeded(f"{scope}.bytes", most[1])
    return None


def _bump(connection: Connection, table: Table, at: dict[str, Any], more: Mapping[str, int]) -> None:
    """Add to a row, or make it; safe, because transactions that write queue."""
    where = and_(*(table.c[name] == value for name, value in at.items()))
    change = update(table).where(where).values({name: table.c[name] + value for name, value in more.items() if value})
    if not any(more.values()) or connection.execute(change).rowcount:
        return
    zeros = {column.name: 0 for column in table.columns if not column.primary_key}
    connection.execute(insert(table).values(at | zeros | dict(more)))
