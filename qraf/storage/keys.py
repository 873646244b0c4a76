"""Who may come in, in the journal's database: API keys, tickets for one socket, and the lines of the audit log.

No secret is here, only what can be compared with one: SHA-256 of 256 random bits needs no slow hash. Nothing changes or
deletes an audit line, and each has a digest of itself and of the one before, so that a change behind our back shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import msgspec
from sqlalchemy import Connection, delete, func, insert, or_, select, update

from qraf.errors import NotFound
from qraf.storage import tables
from qraf.storage.line import Line, retried
from qraf.storage.pages import check_limit, decode_cursor, encode_cursor

__all__ = ["AuditCheck", "AuditRecord", "KeyRecord", "KeyTable", "TicketRecord"]

_keys, _tickets, _audit = tables.keys, tables.tickets, tables.audit
_MANY = 500  # lines in one read of a check

Begin = Callable[[str], AbstractContextManager[Connection]]


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A key without its secret; `id` is the prefix by which it is known."""

    id: str
    digest: bytes
    tenant: str
    role: str
    scopes: str = ""
    name: str = ""
    created_at: float = 0.0
    created_by: str = ""
    expires_at: float | None = None
    revoked_at: float | None = None


class TicketRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A ticket: whose (empty: it was used), and for pages of which origin ("": for programs)."""

    digest: bytes
    principal: bytes
    origin: str
    expires_at: float


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One line: who did what to what, or was kept from it, from where; `times` like it in the same moment."""

    seq: int = 0
    at: float
    tenant: str
    subject: str
    action: str
    target: str
    outcome: str
    detail: str = ""
    address: str = ""
    request: str = ""
    times: int = 1


class AuditCheck(msgspec.Struct, frozen=True, kw_only=True):
    """What a walk along the chain found.

    `broken`: the number of the first line that was changed, or before which one is missing. `head`: the digest of the
    line `last`; that lines were cut off at the end shows when an older head was kept elsewhere. `unchained`: lines of
    a version before there was a chain.
    """

    lines: int
    unchained: int
    broken: int | None
    last: int
    head: str


class KeyTable:
    """Keys, tickets and audit lines of a journal, which makes it; methods block and may raise `StorageFailed`."""

    def __init__(self, write: Begin, read: Begin, line: Line) -> None:
        self._write, self._read, self.line = write, read, line

    # ------------------------------------------------------------------------------------------------------- keys
    def add(self, record: KeyRecord) -> None:
        """Write a key; its id must be new."""
        with self._write("write key") as connection:
            connection.execute(insert(_keys).values(msgspec.structs.asdict(record)))

    @retried
    def find(self, ids: Collection[str]) -> dict[str, KeyRecord]:
        """The keys that are there, revoked and expired ones too."""
        with self._read("read keys") as connection:
            rows = connection.execute(select(_keys).where(_keys.c.id.in_(list(ids))))
            return {row.id: _key(row) for row in rows}

    @retried
    def page(
        self, tenant: str | None, cursor: str | None = None, limit: int = 50
    ) -> tuple[list[KeyRecord], str | None]:
        """A page of a tenant's keys (None: of every tenant's), oldest first, and the cursor of the next one."""
        check_limit(limit)
        query = select(_keys).order_by(_keys.c.created_at, _keys.c.id).limit(limit + 1)
        if tenant is not None:
            query = query.where(_keys.c.tenant == tenant)
        if cursor is not None:
            created_at, last = decode_cursor("keys", cursor, (float, str))
            later = (_keys.c.created_at == created_at) & (_keys.c.id > last)
            query = query.where(or_(_keys.c.created_at > created_at, later))
        with self._read("list keys") as connection:
            found = [_key(row) for row in connection.execute(query)]
        end = found[limit - 1] if len(found) > limit else None
        return found[:limit], None if end is None else encode_cursor("keys", float(end.created_at), end.id)

    @retried
    def revoke(self, id: str, tenant: str | None, now: float) -> KeyRecord:
        """Revoke a tenant's key (None: whichever tenant's); one that is revoked already stays as it is.

        Raises:
            NotFound: the tenant has no such key.
        """
        with self._write("revoke key") as connection:
            row = connection.execute(select(_keys).where(_keys.c.id == id)).first()
            if row is None or tenant not in (None, row.tenant):
                raise NotFound("key", id[:100])
            record = _key(row)
            if record.revoked_at is None:
                record = msgspec.structs.replace(record, revoked_at=now)
                connection.execute(update(_keys).where(_keys.c.id == id).values(revoked_at=now))
        return record

    @retried
    def num_active(self, now: float) -> int:
        """How many keys open something now."""
        alive = or_(_keys.c.expires_at.is_(None), _keys.c.expires_at > now)
        query = select(func.count()).select_from(_keys).where(_keys.c.revoked_at.is_(None), alive)
        with self._read("count keys") as connection:
            return int(connection.execute(query).scalar_one())

    @retried
    def tenants(self, now: float) -> list[tuple[str, int, int]]:
        """Every tenant that has keys, with the number of those that open something now, and of all."""
        alive = _keys.c.revoked_at.is_(None) & or_(_keys.c.expires_at.is_(None), _keys.c.expires_at > now)
        query = select(_keys.c.tenant, func.count().filter(alive), func.count()).group_by(_keys.c.tenant)
        with self._read("list tenants") as connection:
            return sorted((row[0], int(row[1]), int(row[2])) for row in connection.execute(query))

    # ------------------------------------------------------------------------------------------------------ tickets
    def put_ticket(self, ticket: TicketRecord, now: float) -> None:
        """Keep a ticket; those whose time is over go."""
        with self._write("write ticket") as connection:
            connection.execute(delete(_tickets).where(_tickets.c.expires_at <= now))
            connection.execute(insert(_tickets).values(msgspec.structs.asdict(ticket)))

    def take_ticket(self, digest: bytes) -> TicketRecord | None:
        """The ticket, which is then used: of two that ask at once, on whichever gateways, one gets its principal.

        A used one stays, without whose it was, until its time is over. Not repeated when the connection is lost: then
        the ticket may be used, and nobody came in.
        """
        with self._write("take ticket") as connection:
            row = connection.execute(select(_tickets).where(_tickets.c.digest == digest)).first()
            if row is None:
                return None
            unused = (_tickets.c.digest == digest) & (_tickets.c.principal != b"")
            is_mine = connection.execute(update(_tickets).where(unused).values(principal=b"")).rowcount == 1
        principal = bytes(row.principal) if is_mine else b""
        return TicketRecord(digest=bytes(row.digest), principal=principal, origin=row.origin, expires_at=row.expires_at)

    # -------------------------------------------------------------------------------------------------------- audit
    def note(self, lines: Sequence[AuditRecord]) -> None:
        """Add lines."""
        rows = [{key: value for key, value in msgspec.structs.asdict(one).items() if key != "seq"} for one in lines]
        with self._write("write audit") as connection:
            last = connection.execute(select(_audit.c.chain).order_by(_audit.c.seq.desc()).limit(1)).scalar()
            chain = bytes(last or b"")
            for row in rows:
                row["chain"] = chain = _link(chain, row)
            connection.execute(insert(_audit), rows)

    @retried
    def audit(
        self, tenant: str | None, cursor: str | None = None, limit: int = 50
    ) -> tuple[list[AuditRecord], str | None]:
        """A page of a tenant's lines (None: of every tenant's), newest first, and the cursor of the next one."""
        check_limit(limit)
        query = select(*_LINE).order_by(_audit.c.seq.desc()).limit(limit + 1)
        if tenant is not None:
            query = query.where(_audit.c.tenant == tenant)
        if cursor is not None:
            query = query.where(_audit.c.seq < decode_cursor("audit", cursor, (int,))[0])
        with self._read("read audit") as connection:
            found = [AuditRecord(**row._mapping) for row in connection.execute(query)]
        end = found[limit - 1] if len(found) > limit else None
        return found[:limit], None if end is None else encode_cursor("audit", end.seq)

    @retried
    def check_audit(self, head: tuple[int, str] | None = None) -> AuditCheck:
        """Walk along the chain of all lines; a `head` of before (number, digest) must be on the way."""
        lines, unchained, last, chain = 0, 0, 0, b""
        at, digest = head or (0, "")
        while True:
            with self._read("read audit") as connection:
                query = select(_audit).where(_audit.c.seq > last).order_by(_audit.c.seq).limit(_MANY)
                rows = connection.execute(query).all()
            for row in rows:
                last, lines = row.seq, lines + 1
                if row.chain is None and not chain:
                    unchained += 1
                    continue
                if row.chain is None or bytes(row.chain) != _link(chain, dict(row._mapping)):
                    return AuditCheck(lines=lines, unchained=unchained, broken=last, last=last, head=chain.hex())
                chain = bytes(row.chain)
                if last == at:
                    at = 0 if chain.hex() == digest else at
            if len(rows) < _MANY:
                broken = at or None
                return AuditCheck(lines=lines, unchained=unchained, broken=broken, last=last, head=chain.hex())


_LINE = [column for column in _audit.columns if column.name != "chain"]


def _link(before: bytes, row: Mapping[str, Any]) -> bytes:
    """A line's place in the chain: the digest of the one before and of what it says."""
    said = [row[name] for name in AuditRecord.__struct_fields__ if name != "seq"]
    return hashlib.sha256(before + msgspec.json.encode(said)).digest()


def _key(row: Any) -> KeyRecord:
    return KeyRecord(**{**row._mapping, "digest": bytes(row.digest)})
