"""Requests in, answers out: bodies and queries are decoded by the same records as frames, errors become problems."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from qraf.errors import InvalidRequest, NotAllowed, NotAuthenticated, NotReady, ProtocolError, QrafError
from qraf.frames import ClientFrame, ErrorBody
from qraf.gateway.commands import check_command
from qraf.gateway.metrics import GatewayMeters
from qraf.gateway.problems import (
    PROBLEM_JSON,
    decoding_fault,
    holds_long_integer,
    http_problem,
    problem,
    problem_of_body,
    unusable,
)
from qraf.gateway.security.authority import Authority
from qraf.gateway.security.guard import PUBLIC, ROUTES, check_frame, check_route, methods_of
from qraf.gateway.security.limits import LIMIT_CODES, account_of
from qraf.gateway.security.principal import ANONYMOUS, Principal
from qraf.gateway.sockets import Sockets
from qraf.gateway.values import check_number
from qraf.sessions.tenants import TenantService
from qraf.settings import Settings
from qraf.times import format_time

if TYPE_CHECKING:
    from qraf.gateway.repeats import Repeats

__all__ = [
    "Gate",
    "PageQuery",
    "address",
    "answer",
    "body_of",
    "enter",
    "failure",
    "gate",
    "note_limit",
    "principal",
    "query",
    "read",
    "refused",
    "request_id",
    "time_out",
    "to_frame",
    "whole_body",
]

T = TypeVar("T")
_LONG = 256 * 1024
_READS = ("GET", "HEAD")
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported_media_type"}


@dataclass(frozen=True, slots=True)
class Gate:
    """What the routes work with: the service as the tenant of the request sees it. On `app.state.gate`."""

    service: TenantService
    settings: Settings
    meters: GatewayMeters
    sockets: Sockets
    authority: Authority
    repeats: Repeats


class PageQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a page starts and how long it is (1 to 200)."""

    cursor: str | None = None
    limit: int = 50


def gate(request: Request) -> Gate:
    """The gate of the application that serves this request, for its tenant."""
    found: Gate = request.app.state.gate
    account = request.scope["state"].get("account")
    return replace(found, service=TenantService(found.service.whole, principal(request).tenant, account))


def principal(request: Request) -> Principal:
    """Who asks, as `enter` found it."""
    who: Principal = request.scope["state"]["principal"]
    return who


async def enter(request: Request) -> None:
    """Let in whoever may use this route; every route depends on it.

    Raises:
        NotAuthenticated: no credential, or a wrong one. NotAllowed: its role may not. StorageFailed: who knows.
        RateExceeded: too many requests.
        NotReady: the server starts, or it stops and this would start something new.
    """
    gateway: Gate = request.app.state.gate
    method, path = request.method, _template(request)
    who = None
    try:
        try:
            who = await gateway.authority.of_headers(request.headers.getlist("authorization"))
        except QrafError:
            if ROUTES[method, path] != PUBLIC:
                raise
            who = ANONYMOUS
        if ROUTES[method, path] != PUBLIC:  # probes are always answered
            request.scope["state"]["principal"] = who
            account = request.scope["state"]["account"] = account_of(gateway.service.whole.accounts, who)
            await account.request()
        check_route(who, method, path)
    except (NotAuthenticated, NotAllowed) as error:
        refused(request, who, f"{method} {path}", error)
        raise
    request.scope["state"]["principal"] = who
    state = gateway.service.whole.health.state
    if state == "ready" or ROUTES[method, path] == PUBLIC:
        return
    if state in ("new", "starting") or not (method in _READS or path.endswith("/cancel")):
        raise NotReady(state)


def refused(request: Request, who: Principal | None, action: str, error: QrafError | ErrorBody) -> None:
    """Note in the audit log that somebody was kept from something."""
    gateway: Gate = request.app.state.gate
    gateway.authority.audit.refused(who, action, error, address=address(request), request=request_id(request))


def note_limit(request: Request, error: QrafError | ErrorBody | None) -> None:
    """Note in the audit log what a rate or a quota refused; nothing else."""
    if error is not None and error.code in LIMIT_CODES and "route" in request.scope:
        refused(request, principal(request), f"{request.method} {_template(request)}", error)


def _template(request: Request) -> str:
    """The path of the request's route, as the guard's table has it."""
    path = str(request.scope["route"].path)
    # FastAPI has tried both: the path with the prefix of the router that is included, and without
    return path if path.startswith("/v1/") or not request.scope["path"].startswith("/v1/") else f"/v1{path}"


def address(request: Request) -> str:
    """Where a request comes from."""
    return request.client.host if request.client is not None else ""


def request_id(request: Request) -> str:
    """The id that the door gave this request; it is in the log and in `x-request-id`."""
    return str(request.scope["state"]["request_id"])


def body_of(frame: type[msgspec.Struct], name: str, extra: Iterable[Any] = ()) -> type[msgspec.Struct]:
    """The body of a REST call that does what a frame does: the frame's fields without `type` and `id`."""
    fields = [
        (field.name, field.type, _default(field)) for field in msgspec.structs.fields(frame) if field.name != "id"
    ]
    made = msgspec.defstruct(
        name, [*fields, *extra], frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
    )
    made.__doc__ = frame.__doc__
    return made


def to_frame(frame: type[T], body: msgspec.Struct, request: Request) -> T:
    """The frame of a body made by `body_of`, checked; its id is the request's."""
    names = set(frame.__struct_fields__) - {"id"}  # type: ignore[attr-defined]
    make: Any = frame
    made: T = make(id=request_id(request), **{name: getattr(body, name) for name in names})
    try:
        check_frame(principal(request), cast("ClientFrame", made))
    except NotAllowed as error:
        refused(request, principal(request), f"{request.method} {_template(request)}", error)
        raise
    check_command(cast("ClientFrame", made), gate(request).settings.limits)
    return made


async def read(request: Request, kind: type[T], most: int | None = None) -> T:
    """The body of a request, decoded; it may have `most` bytes, or as many as a frame.

    Raises:
        HTTPException: 415 for another content type, 413 for a body that is too long.
        ProtocolError: no JSON. InvalidRequest: JSON that does not fit, with a pointer.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise HTTPException(415, f"the body must be application/json, but is '{content_type[:100]}'")
    data = await whole_body(request, most or gate(request).settings.limits.max_frame_bytes)
    try:
        if len(data) > _LONG:  # would keep every other connection waiting
            return await asyncio.to_thread(_decoded, data, kind)
        return _decoded(data, kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(*decoding_fault(error)) from None
    except RecursionError:
        raise ProtocolError("the body is nested too deep") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        fault = await asyncio.to_thread(unusable, data)
        if fault is not None:
            raise InvalidRequest(*fault) from None
        raise ProtocolError(f"the body is no JSON: {error}") from None


def _decoded(data: bytes, kind: type[T]) -> T:
    found = msgspec.json.decode(data, type=kind)
    if holds_long_integer(data) and (fault := unusable(data)) is not None:
        raise InvalidRequest(*fault)
    return found


async def whole_body(request: Request, most: int) -> bytes:
    """The bytes of a request; may be asked for more than once.

    Raises:
        HTTPException: 413 for more than `most`. LimitExceeded: the gateway holds too much of others already.
    """
    known: bytes | None = request.scope["state"].get("body")
    told = request.headers.get("content-length", "0")
    if told.isdigit() and int(told) > most:
        raise HTTPException(413, f"a body may have {most} bytes, but has {told}")
    if known is None:
        parts: list[bytes] = []
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > most:
                break
            request.scope["state"]["held"].add(len(part))
            parts.append(part)
        known = b"".join(parts)
    else:
        size = len(known)
    if size > most:
        raise HTTPException(413, f"a body may have {most} bytes, but has more")
    request.scope["state"]["body"] = known
    return known


def query(request: Request, kind: type[T]) -> T:
    """The query of a request, decoded; a name that is not known or comes twice is refused."""
    given: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name in given:
            raise InvalidRequest("is given twice", f"/query/{name[:100]}")
        given[name] = value
    try:
        found = msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        detail, pointer = decoding_fault(error)
        raise InvalidRequest(detail, f"/query{pointer}") from None
    limit = getattr(found, "limit", None)
    check_number(limit, "/query/limit", 1, 200)
    return found


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer in JSON."""
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


def failure(error: Exception | ErrorBody, request: Request) -> Response:
    """An answer that is a problem."""
    headers: dict[str, str] = {}
    if isinstance(error, ErrorBody):
        document = problem_of_body(error, request_id(request))
    elif isinstance(error, HTTPException):
        code = _HTTP_CODES.get(error.status_code, "http")
        document = http_problem(error.status_code, code, _http_detail(error, request), request_id(request))
        headers |= error.headers or {}
        if error.status_code == 405:  # the framework names the methods of one of the routes with this path
            headers = {"Allow": ", ".join(methods_of(request.url.path))}
    else:
        assert isinstance(error, QrafError)
        document = problem(error, request_id(request))
    if isinstance(error, NotAuthenticated):
        told = "" if type(error) is NotAuthenticated else ', error="invalid_token"'
        headers["WWW-Authenticate"] = f'Bearer realm="qraf"{told}'
    wait_ms = document.get("retry_after_ms")
    if wait_ms is not None:
        headers["Retry-After"] = str(-(-int(wait_ms) // 1000))
    return Response(msgspec.json.encode(document), document["status"], headers, media_type=PROBLEM_JSON)


def time_out(seconds: float | None) -> str | None:
    """A time as it goes out."""
    return None if seconds is None else format_time(seconds)


def _http_detail(error: HTTPException, request: Request) -> str:
    if error.status_code == 404 and error.detail == "Not Found":
        return f"no route {request.url.path[:200]}; /v1/openapi.json lists them"
    if error.status_code == 405:
        allowed = ", ".join(methods_of(request.url.path))
        return f"{request.method} is not for {request.url.path[:200]}" + (f", but {allowed}" if allowed else "")
    return str(error.detail)


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default is not msgspec.NODEFAULT:
        return msgspec.field(default=field.default)
    if field.default_factory is not msgspec.NODEFAULT:
        return msgspec.field(default_factory=field.default_factory)
    return msgspec.field()
