"""`/v1/usage`: what keys have used, by day, and what is left of it. `/v1/audit/check`: whether the log is whole."""

from __future__ import annotations

import asyncio

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from qraf.errors import InvalidRequest, NotAllowed
from qraf.gateway.bodies import PageQuery, answer, gate, principal, query, refused
from qraf.gateway.openapi import operation
from qraf.gateway.security.limits import account_of
from qraf.gateway.security.principal import Principal
from qraf.storage.keys import AuditCheck
from qraf.storage.usage import Counts, date_of, day_named
from qraf.tenants import check_tenant

__all__ = ["TYPES", "router"]

router = APIRouter(tags=["security"])

_DAYS = 30  # where `from` is left out


class UsageQuery(PageQuery, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"since": "from"}):
    """Days (UTC) as dates, both included; left out: the last thirty. `key`: one key's id, or a token's `sub:NAME`.

    `tenant`: for admins of the default tenant, who otherwise see every tenant's.
    """

    since: str | None = None
    to: str | None = None
    key: str | None = None
    tenant: str | None = None


class CheckQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The head of an earlier check, as `LAST:DIGEST`."""

    head: str | None = None


class UsageCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What was used. Items and bytes are those that were written; tokens those that models read and wrote."""

    requests: int
    frames: int
    items: int
    bytes: int
    responses: int
    prompt_tokens: int
    generated_tokens: int


class UsageOut(UsageCounts, frozen=True, kw_only=True):
    """What one key used on one day."""

    day: str
    tenant: str
    key: str


class QuotaOut(msgspec.Struct, frozen=True, kw_only=True):
    """A quota of the caller's key, or for an admin of its tenant: `items` and `bytes` held, or `tokens_per_day`."""

    policy: str
    allowed: int
    used: int


class UsagePage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of days and keys, the newest day first; `total` is of all pages together."""

    data: tuple[UsageOut, ...]
    total: UsageCounts
    quotas: tuple[QuotaOut, ...]
    next_cursor: str | None


TYPES = (UsagePage, UsageOut, UsageCounts, QuotaOut, AuditCheck)


@router.get("/usage", openapi_extra=operation(query=UsageQuery, answer=UsagePage))
async def list_usage(request: Request) -> Response:
    """What keys have used, by day: an admin sees all of its tenant, everybody else its own."""
    asked, who = query(request, UsageQuery), principal(request)
    accounts = gate(request).service.whole.accounts
    await accounts.ledger.flush()  # so that what this caller did before is there
    tenant, key = _whose(request, asked, who)
    days, table = _days(asked, accounts.ledger.day), accounts.table
    rows, cursor = await asyncio.to_thread(table.page, tenant, key, days, asked.cursor, asked.limit)
    total = await asyncio.to_thread(table.total, tenant, key, days)
    data = tuple(UsageOut(day=date_of(one.day), tenant=one.tenant, key=one.key, **_counts(one)) for one in rows)
    quotas = await _quotas(request, who)
    return answer(UsagePage(data=data, total=UsageCounts(**_counts(total)), quotas=quotas, next_cursor=cursor))


@router.get("/audit/check", openapi_extra=operation(query=CheckQuery, answer=AuditCheck))
async def check_audit(request: Request) -> Response:
    """Walk along the audit log's chain of digests: `broken` is the first line that is not as it was written.

    `head` is the digest of the newest line; kept elsewhere, it shows later that no line was cut off at the end.
    """
    who = principal(request)
    if who.governs is not None:
        error = NotAllowed(
            "`/v1/audit/check`", "the log is one for all tenants; it is for admins of the default tenant"
        )
        refused(request, who, "GET /v1/audit/check", error)
        raise error
    return answer(await gate(request).authority.audit.check(query(request, CheckQuery).head))


def _whose(request: Request, asked: UsageQuery, who: Principal) -> tuple[str | None, str | None]:
    """The tenant and the key to tell of; None: all that there are."""
    own = who.key or who.subject
    try:
        if who.role != "admin":
            if asked.key not in (None, own) or asked.tenant not in (None, who.tenant):
                raise NotAllowed("the usage of others", f"this {who.role} sees that of its own key alone")
            return who.tenant, own
        if asked.tenant is not None and who.governs not in (None, asked.tenant):
            raise NotAllowed("the usage of another tenant", f"this admin is of tenant '{who.tenant}'")
    except NotAllowed as error:
        refused(request, who, "GET /v1/usage", error)
        raise
    tenant = who.governs if asked.tenant is None else check_tenant(asked.tenant, "/query/tenant")
    return tenant, asked.key


def _days(asked: UsageQuery, today: int) -> tuple[int, int]:
    days = []
    for name, text, default in (("from", asked.since, today - _DAYS + 1), ("to", asked.to, today)):
        try:
            days.append(default if text is None else day_named(text))
        except ValueError:
            raise InvalidRequest(f"must be a date such as {date_of(today)}", f"/query/{name}") from None
    if days[0] > days[1]:
        raise InvalidRequest("must not be after `to`", "/query/from")
    return days[0], days[1]


async def _quotas(request: Request, who: Principal) -> tuple[QuotaOut, ...]:
    """How the quotas stand: the key's own, and for an admin those of its tenant."""
    accounts = gate(request).service.whole.accounts
    payer, table, day = account_of(accounts, who).payer, accounts.table, accounts.ledger.day
    found: list[QuotaOut] = []
    for scope, key, bounds in (("key", payer.key, payer.of_key), ("tenant", None, payer.of_tenant)):
        if scope == "tenant" and who.role != "admin":
            continue
        held = await asyncio.to_thread(table.held, payer.tenant, key)
        used = await asyncio.to_thread(table.total, payer.tenant, key, (day, day))
        names = ("items", held.items), ("bytes", held.bytes), ("tokens_per_day", used.generated_tokens)
        for (name, value), allowed in zip(names, bounds, strict=True):
            found.append(QuotaOut(policy=f"{scope}.{name}", allowed=allowed, used=value))
    return tuple(found)


def _counts(one: Counts) -> dict[str, int]:
    return {name: getattr(one, name) for name in Counts.__struct_fields__}
