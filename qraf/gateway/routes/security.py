"""`/v1/keys`, `/v1/tenants`, `/v1/audit`, `/v1/ws-tickets`, `/v1/whoami`: who may come in, and who was kept out."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from qraf.errors import InvalidRequest, NotAllowed
from qraf.gateway.bodies import PageQuery, address, answer, gate, principal, query, read, refused, request_id, time_out
from qraf.gateway.openapi import operation
from qraf.gateway.repeats import unrepeatable
from qraf.gateway.security.principal import check_role, scopes_of
from qraf.gateway.values import check_number
from qraf.storage.keys import KeyRecord
from qraf.tenants import DEFAULT_TENANT
from qraf.times import parse_time

__all__ = ["TYPES", "router"]

router = APIRouter(tags=["security"])

_YEARS_S = 100 * 366 * 86_400.0
_KEY = {"key": "the key's id, which is its prefix"}


class KeyBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key to make: for which tenant (left out: the caller's), with which role.

    `scopes` narrow the role. The key ends at `expires_at`, or after `ttl_s`; with neither, never.
    """

    role: str = "client"
    tenant: str | None = None
    name: str = ""
    scopes: tuple[str, ...] = ()
    expires_at: str | float | None = None
    ttl_s: float | None = None


class KeyOut(msgspec.Struct, frozen=True, kw_only=True):
    """A key without its secret. `key` is its id: the part after `qraf_`."""

    key: str
    tenant: str
    role: str
    scopes: tuple[str, ...]
    name: str
    status: str
    created_at: str
    created_by: str
    expires_at: str | None
    revoked_at: str | None


class NewKeyOut(KeyOut, frozen=True, kw_only=True):
    """A new key: `api_key` is all of it, told this once."""

    api_key: str


class KeyPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of keys; `next_cursor` leads to the next page, null on the last."""

    data: tuple[KeyOut, ...]
    next_cursor: str | None


class TenantOut(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant: its keys that open something now, and all it ever had."""

    tenant: str
    active_keys: int
    keys: int


class TenantList(msgspec.Struct, frozen=True, kw_only=True):
    """Every tenant that has keys, by name."""

    data: tuple[TenantOut, ...]


class AuditOut(msgspec.Struct, frozen=True, kw_only=True):
    """One line: who did what to what, or was kept from it; `times` counts what was alike in the same moment."""

    seq: int
    at: str
    tenant: str
    subject: str
    action: str
    target: str
    outcome: str
    detail: str
    address: str
    request: str
    times: int


class AuditPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of lines, newest first; `next_cursor` leads to the next page, null on the last."""

    data: tuple[AuditOut, ...]
    next_cursor: str | None


class TicketOut(msgspec.Struct, frozen=True, kw_only=True):
    """A ticket: offer `subprotocol` beside `qraf.v1` to open one socket, before `expires_at`."""

    subprotocol: str
    expires_at: str


class PrincipalOut(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks, and what it may."""

    tenant: str
    subject: str
    role: str
    scopes: tuple[str, ...]
    expires_at: str | None


TYPES = (KeyBody, KeyOut, NewKeyOut, KeyPage, TenantList, TenantOut, AuditPage, AuditOut, TicketOut, PrincipalOut)


@router.post(
    "/keys",
    status_code=201,
    openapi_extra=operation(
        body=KeyBody, answer=NewKeyOut, status=201, example={"role": "client", "tenant": "acme", "ttl_s": 86400}
    ),
)
async def create_key(request: Request) -> Response:
    """Make a key; the answer has all of it, and nothing else ever will."""
    unrepeatable(request)
    body, who, authority = await read(request, KeyBody), principal(request), gate(request).authority
    tenant = body.tenant or who.tenant
    try:
        if who.governs not in (None, tenant):
            raise NotAllowed(f"a key for tenant '{tenant[:100]}'", f"this admin is of tenant '{who.tenant}'")
        # a narrowed key must not make itself a wider one
        beyond = (frozenset(body.scopes) or scopes_of(check_role(body.role))) - who.scopes
        if beyond:
            raise NotAllowed("a key that may more than its maker", f"beyond it: {', '.join(sorted(beyond))}"[:300])
    except NotAllowed as error:
        refused(request, who, "POST /v1/keys", error)
        raise
    record, text = await authority.keys.create(
        tenant=tenant,
        role=body.role,
        name=body.name,
        scopes=body.scopes,
        expires_at=_end(request, body),
        by=who.subject,
    )
    detail = f"{record.role} of tenant {record.tenant}"
    await authority.audit.changed(
        who, "keys.create", record.id, detail, address=address(request), request=request_id(request)
    )
    made = NewKeyOut(api_key=text, **msgspec.structs.asdict(_out(request, record)))
    return answer(made, 201, {"Location": f"/v1/keys/{record.id}", "Cache-Control": "no-store"})


@router.get("/keys", openapi_extra=operation(query=PageQuery, answer=KeyPage))
async def list_keys(request: Request) -> Response:
    """A page of the tenant's keys; an admin of the default tenant sees every tenant's."""
    asked, authority = query(request, PageQuery), gate(request).authority
    records, cursor = await authority.keys.page(principal(request).governs, asked.cursor, asked.limit)
    return answer(KeyPage(data=tuple(_out(request, one) for one in records), next_cursor=cursor))


@router.delete("/keys/{key}", openapi_extra=operation(path=_KEY, answer=KeyOut))
async def revoke_key(request: Request) -> Response:
    """Revoke a key: refused at once here, and within a second on every gateway; its sockets are closed."""
    who, authority = principal(request), gate(request).authority
    record = await authority.keys.revoke(request.path_params["key"], who.governs)
    detail = f"{record.role} of tenant {record.tenant}"
    await authority.audit.changed(
        who, "keys.revoke", record.id, detail, address=address(request), request=request_id(request)
    )
    return answer(_out(request, record))


@router.get("/tenants", openapi_extra=operation(answer=TenantList))
async def list_tenants(request: Request) -> Response:
    """Every tenant that has keys; an admin of another tenant than the default one sees its own."""
    own = principal(request).governs
    found = await gate(request).authority.keys.tenants()
    made = (TenantOut(tenant=name, active_keys=active, keys=every) for name, active, every in found)
    return answer(TenantList(data=tuple(one for one in made if own in (None, one.tenant))))


@router.get("/audit", openapi_extra=operation(query=PageQuery, answer=AuditPage))
async def list_audit(request: Request) -> Response:
    """A page of the audit log, newest first. Nothing changes or deletes a line."""
    asked = query(request, PageQuery)
    lines, cursor = await gate(request).authority.audit.page(principal(request).governs, asked.cursor, asked.limit)
    made = (AuditOut(**{**msgspec.structs.asdict(one), "at": time_out(one.at) or ""}) for one in lines)
    return answer(AuditPage(data=tuple(made), next_cursor=cursor))


@router.post("/ws-tickets", status_code=201, openapi_extra=operation(answer=TicketOut, status=201))
async def create_ticket(request: Request) -> Response:
    """A ticket for one socket, good for a minute, for the caller, and for pages of the origin that asks."""
    unrepeatable(request)
    origin = request.headers.get("origin", "")
    if len(origin) > 512:
        raise InvalidRequest("may have 512 characters", "/headers/origin")
    ticket, expires_at = await gate(request).authority.tickets.issue(principal(request), origin)
    made = TicketOut(subprotocol=ticket, expires_at=time_out(expires_at) or "")
    return answer(made, 201, {"Cache-Control": "no-store"})


@router.get("/whoami", openapi_extra=operation(answer=PrincipalOut))
async def whoami(request: Request) -> Response:
    """Who asks, and what it may."""
    who = principal(request)
    made = PrincipalOut(
        tenant=who.tenant or DEFAULT_TENANT,
        subject=who.subject,
        role=who.role,
        scopes=tuple(sorted(who.scopes)),
        expires_at=time_out(who.expires_at),
    )
    return answer(made)


def _end(request: Request, body: KeyBody) -> float | None:
    if body.expires_at is not None and body.ttl_s is not None:
        raise InvalidRequest("give `expires_at` or `ttl_s`, not both", "/ttl_s")
    if body.ttl_s is not None:
        check_number(body.ttl_s, "/ttl_s", 1, _YEARS_S)
        return gate(request).authority.clock.now() + body.ttl_s
    return None if body.expires_at is None else parse_time(body.expires_at, "/expires_at")


def _out(request: Request, record: KeyRecord) -> KeyOut:
    now = gate(request).authority.clock.now()
    is_over = record.expires_at is not None and record.expires_at <= now
    return KeyOut(
        key=record.id,
        tenant=record.tenant,
        role=record.role,
        scopes=tuple(record.scopes.split()),
        name=record.name,
        status="revoked" if record.revoked_at is not None else "expired" if is_over else "active",
        created_at=time_out(record.created_at) or "",
        created_by=record.created_by,
        expires_at=time_out(record.expires_at),
        revoked_at=time_out(record.revoked_at),
    )
