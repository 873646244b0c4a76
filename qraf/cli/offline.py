"""Keys without a server: calls of `/v1/keys`, `/v1/tenants` and `/v1/audit/check`, answered from the journal itself."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from qraf.cli.serve import make_data
from qraf.clock import SystemClock
from qraf.errors import NotFound
from qraf.gateway.security.audit import Audit
from qraf.gateway.security.keys import Keys
from qraf.gateway.security.principal import LOCAL
from qraf.settings import Settings
from qraf.storage.journal import Journal
from qraf.storage.keys import KeyRecord
from qraf.tenants import DEFAULT_TENANT
from qraf.times import format_time

__all__ = ["KeyDesk"]

_BY = "cli"
_ME = msgspec.structs.replace(LOCAL, subject=_BY)


class KeyDesk:
    """Whoever can write the journal's files can do this; that is the whole of its authority.

    Blocks while it opens. A journal that is not there is made only where that `makes` sense: for a first key.

    Raises:
        NotFound: there is no journal. InvalidRequest: the data directory cannot be made.
    """

    def __init__(self, settings: Settings, makes: bool) -> None:
        if not settings.journal_url and not (settings.data / "journal.db").is_file():
            if not makes:
                raise NotFound("journal in", str(settings.data))
            make_data(settings)
        self._journal = Journal.open(settings.journal())
        self._keys = Keys(self._journal.keys, SystemClock())
        self._audit = Audit(self._journal.keys, SystemClock())

    async def call(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """As the REST call of this method and path."""
        parts = urlsplit(path)
        cursor = parse_qs(parts.query).get("cursor", [None])[0]
        match method, parts.path.split("/")[2:]:
            case "POST", ["keys"]:
                return await self._create(body or {})
            case "GET", ["keys"]:
                records, cursor = await self._keys.page(None, cursor, 50)
                return {"data": [_shown(one) for one in records], "next_cursor": cursor}
            case "DELETE", ["keys", key]:
                record = await self._keys.revoke(unquote(key), None)
                await self._audit.changed(_ME, "keys.revoke", record.id, f"{record.role} of tenant {record.tenant}")
                return _shown(record)
            case "GET", ["tenants"]:
                found = await self._keys.tenants()
                return {"data": [{"tenant": one[0], "active_keys": one[1], "keys": one[2]} for one in found]}
            case "GET", ["audit", "check"]:
                head = parse_qs(parts.query).get("head", [None])[0]
                return msgspec.structs.asdict(await self._audit.check(head))
        raise NotFound("route", path)

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    async def _create(self, body: dict[str, Any]) -> dict[str, Any]:
        ttl_s = body.get("ttl_s")
        record, text = await self._keys.create(
            tenant=body.get("tenant", DEFAULT_TENANT),
            role=body["role"],
            name=body["name"],
            scopes=body["scopes"],
            expires_at=None if ttl_s is None else time.time() + ttl_s,
            by=_BY,
        )
        await self._audit.changed(_ME, "keys.create", record.id, f"{record.role} of tenant {record.tenant}")
        return {"api_key": text, **_shown(record)}


def _shown(record: KeyRecord) -> dict[str, Any]:
    is_over = record.expires_at is not None and record.expires_at <= time.time()
    return {
        "key": record.id,
        "tenant": record.tenant,
        "role": record.role,
        "scopes": record.scopes.split(),
        "name": record.name,
        "status": "revoked" if record.revoked_at is not None else "expired" if is_over else "active",
        "created_at": format_time(record.created_at),
        "created_by": record.created_by,
        "expires_at": None if record.expires_at is None else format_time(record.expires_at),
        "revoked_at": None if record.revoked_at is None else format_time(record.revoked_at),
    }
