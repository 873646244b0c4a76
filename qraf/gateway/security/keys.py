"""API keys: `qraf_PREFIX_SECRET`. The prefix names the key and is shown; the secret, 256 random bits, is told once."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
from collections import OrderedDict
from collections.abc import Collection

from qraf.clock import Clock
from qraf.errors import (
    CredentialExpired,
    CredentialInvalid,
    CredentialRevoked,
    InvalidRequest,
    NotAuthenticated,
    StorageFailed,
)
from qraf.gateway.security.principal import Principal, check_role, check_scopes, scopes_of
from qraf.storage.keys import KeyRecord, KeyTable
from qraf.tenants import check_tenant

__all__ = ["FRESH_S", "Keys", "is_key"]

FRESH_S = 0.4
"""How long a key that was looked up is trusted: what another gateway revoked is refused after this."""

_AWAY_S = 60.0  # and while the journal does not answer, when it cannot be revoked either
_MAX_KNOWN = 10_000
_KEY = re.compile(r"qraf_([0-9a-z]{12})_([A-Za-z0-9_-]{43})", re.ASCII)
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
_MAX_NAME = 128


def is_key(text: str) -> bool:
    """Whether a credential means to be an API key."""
    return text.startswith("qraf_")


class Keys:
    """The keys of a journal, as one gateway knows them."""

    def __init__(self, table: KeyTable, clock: Clock) -> None:
        self._table, self._clock = table, clock
        self._known: OrderedDict[str, tuple[float, KeyRecord | None]] = OrderedDict()

    async def create(
        self,
        *,
        tenant: str,
        role: str,
        name: str = "",
        scopes: Collection[str] = (),
        expires_at: float | None = None,
        by: str = "",
    ) -> tuple[KeyRecord, str]:
        """Make a key; its record, and the whole key, which is nowhere else.

        Raises:
            InvalidRequest: a tenant, role, scope, name or time that cannot be.
        """
        known = check_role(role)
        if len(name) > _MAX_NAME or not name.isprintable():
            raise InvalidRequest(f"may have {_MAX_NAME} printable characters", "/name")
        if expires_at is not None and expires_at <= self._clock.now():
            raise InvalidRequest("must be in the future", "/expires_at")
        prefix = "".join(secrets.choice(_ALPHABET) for _ in range(12))
        text = f"qraf_{prefix}_{secrets.token_urlsafe(32)}"
        record = KeyRecord(
            id=prefix,
            digest=_digest(text),
            tenant=check_tenant(tenant),
            role=known,
            scopes=" ".join(check_scopes(scopes, known)),
            name=name,
            created_at=self._clock.now(),
            created_by=by[:256],
            expires_at=expires_at,
        )
        await asyncio.to_thread(self._table.add, record)
        return record, text

    async def verify(self, text: str) -> Principal:
        """Who holds a key.

        Raises:
            CredentialInvalid: no key, or a wrong one. CredentialExpired, CredentialRevoked: it was one.
            StorageFailed: the journal does not answer, and the key was not seen in the last minute.
        """
        found = _KEY.fullmatch(text)
        record = await self._find(found[1]) if found is not None else None
        # one answer for all that was never a key, so that prefixes cannot be tried out
        if record is None or not hmac.compare_digest(record.digest, _digest(text)):
            raise CredentialInvalid("there is no such API key")
        self._check(record)
        role = check_role(record.role)
        return Principal(
            tenant=record.tenant,
            subject=f"key:{record.id}",
            role=role,
            scopes=scopes_of(role, record.scopes.split()),
            expires_at=record.expires_at,
            key=record.id,
        )

    async def revoke(self, id: str, tenant: str | None) -> KeyRecord:
        """Revoke a tenant's key (None: whichever tenant's): at once here, within a second on every other gateway.

        Raises:
            NotFound: the tenant has no such key.
        """
        record = await asyncio.to_thread(self._table.revoke, id, tenant, self._clock.now())
        self._keep(id, record)
        return record

    async def page(self, tenant: str | None, cursor: str | None, limit: int) -> tuple[list[KeyRecord], str | None]:
        """A page of a tenant's keys (None: of every tenant's), oldest first, and the cursor of the next one."""
        return await asyncio.to_thread(self._table.page, tenant, cursor, limit)

    async def tenants(self) -> list[tuple[str, int, int]]:
        """Every tenant that has keys, with the number of those that open something now, and of all."""
        return await asyncio.to_thread(self._table.tenants, self._clock.now())

    async def refused(self, ids: Collection[str]) -> dict[str, NotAuthenticated]:
        """Which of these keys no longer open anything, and why; looked up anew."""
        try:
            records = await asyncio.to_thread(self._table.find, ids)
        except StorageFailed:
            return {}
        faults: dict[str, NotAuthenticated] = {}
        for key in ids:
            self._keep(key, records.get(key))
            try:
                if key not in records:
                    raise CredentialRevoked("the API key is gone")
                self._check(records[key])
            except NotAuthenticated as fault:
                faults[key] = fault
        return faults

    # ------------------------------------------------------------------------------------------------------- helpers
    async def _find(self, id: str) -> KeyRecord | None:
        known = self._known.get(id)
        age_s = None if known is None else self._clock.monotonic() - known[0]
        if known is not None and age_s is not None and age_s < FRESH_S:
            return known[1]
        try:
            record = (await asyncio.to_thread(self._table.find, [id])).get(id)
        except StorageFailed:
            if known is not None and age_s is not None and age_s < _AWAY_S:
                return known[1]
            raise
        self._keep(id, record)
        return record

    def _keep(self, id: str, record: KeyRecord | None) -> None:
        self._known[id] = self._clock.monotonic(), record
        self._known.move_to_end(id)
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)

    def _check(self, record: KeyRecord) -> None:
        if record.revoked_at is not None:
            raise CredentialRevoked(f"API key {record.id} was revoked")
        if record.expires_at is not None and record.expires_at <= self._clock.now():
            raise CredentialExpired(f"API key {record.id} has expired")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
