"""The first thing that every HTTP request and WebSocket meets: who asks from where, a request id, and a last net.

A server on loopback answers to loopback names alone, so that no web page reaches it by a name of its own (DNS
rebinding). An `Origin`, where a browser sends one, must be the server's own, one that the settings name, or, for a
server on loopback, a page of this machine (CSRF); reading is left to the browser, which gives no page the answer. A
socket from elsewhere is closed by `Sockets`, after accepting: of a refused upgrade no page learns why.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

import msgspec
from starlette.requests import ClientDisconnect
from ulid import ULID

from qraf import logs
from qraf.errors import NotAllowed, NotAuthenticated, OriginRefused
from qraf.gateway.loopback import is_loopback
from qraf.gateway.metrics import GatewayMeters
from qraf.gateway.problems import PROBLEM_JSON, problem
from qraf.gateway.room import Held, Room
from qraf.gateway.security.authority import Authority
from qraf.gateway.security.keys import FRESH_S
from qraf.gateway.security.limits import rate_headers
from qraf.gateway.security.principal import Principal
from qraf.gateway.stream import Receive, Send
from qraf.settings import GatewaySettings

__all__ = ["Door"]

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_SAFE = ("GET", "HEAD", "OPTIONS")
_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Door:
    """ASGI middleware around everything else."""

    def __init__(
        self, app: App, meters: GatewayMeters, settings: GatewaySettings, authority: Authority, room: Room
    ) -> None:
        self._app, self._meters, self._settings, self._authority = app, meters, settings, authority
        self._room = room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse strangers, name the request, and answer what nobody caught with a bare 500."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        request = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request
        with logs.request(request):
            await self._serve(scope, receive, send, request)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, request: str) -> None:
        held = scope["state"]["held"] = Held(self._room)
        is_started, checked_at = False, time.monotonic()
        began, status = checked_at, 0

        async def sending(event: MutableMapping[str, Any]) -> None:
            nonlocal is_started, checked_at, status
            if event.get("more_body") and time.monotonic() - checked_at > FRESH_S:
                checked_at = time.monotonic()
                await self._check_still(scope["state"].get("principal"))
            if event["type"] == "http.response.start":
                is_started, status = True, event["status"]
                event["headers"] = [*event.get("headers", ()), (b"x-request-id", request.encode())]
                if (account := scope["state"].get("account")) is not None:
                    event["headers"] += rate_headers(account)
                self._meters.requests.labels(str(event["status"])).inc()
            await send(event)

        fault = self._stranger(scope)
        if isinstance(fault, OriginRefused) and scope["type"] == "websocket":
            scope["state"]["refused"] = fault
        elif fault is not None:
            address = scope["client"][0] if scope.get("client") else ""
            action = f"{scope.get('method', 'WS')} {scope['path']}"
            self._authority.audit.refused(None, action, fault, address=address, request=request)
            await _answer(scope, sending, fault, request)
            return
        try:
            await self._app(scope, receive, sending)
        except ClientDisconnect:  # in the middle of its body: nobody is there to be answered
            log.debug("a client went before its request was whole")
        except _Gone as gone:
            log.info("cut off: %s", gone)
            raise
        except Exception as error:
            log.exception("%s %s failed", scope.get("method", "WS"), _route(scope))
            if scope["type"] == "http" and not is_started:
                await _answer(scope, sending, error, request)
            elif scope["type"] == "http":
                raise  # in the middle of a body: the server cuts the connection, which is how the client learns
        finally:
            held.let_go()
            _note(scope, status, time.monotonic() - began)

    def _stranger(self, scope: Scope) -> NotAllowed | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"] if name in (b"host", b"origin")}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        is_local = is_loopback(self._settings.host) and not self._settings.behind_proxy
        if is_local and not is_loopback(_hostname(f"//{host}")):
            return NotAllowed(f"a request for host '{host[:100]}'", "this server answers to loopback names only")
        is_safe = scope["type"] == "http" and scope["method"] in _SAFE
        if origin is None or is_safe or origin in self._settings.origins:
            return None
        if is_loopback(_hostname(origin)) if is_local else _netloc(origin) == host.lower():
            return None
        only = "only pages of this machine may" if is_local else "`gateway.origins` names the pages that may"
        return OriginRefused(f"a request from a page of '{origin[:100]}'", only)

    async def _check_still(self, who: Principal | None) -> None:
        """Cut a long answer off when its reader's credential has expired or was revoked."""
        if who is not None and (faults := await self._authority.refused((who,))):
            raise _Gone(faults[who])


def _request_id(scope: Scope) -> str:
    """The id that the request brings, where it is a plain one, else a new one."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return given.decode() if _ID.fullmatch(given) else f"req_{ULID()}"


def _route(scope: Scope) -> str:
    """The route as it is declared: what stands in a path or a query may be somebody's words."""
    return str(getattr(scope.get("route"), "path", "-"))


def _note(scope: Scope, status: int, seconds: float) -> None:
    method, route = scope.get("method", "WS"), _route(scope)
    level = logging.DEBUG if "/health" in route else logging.INFO
    if log.isEnabledFor(level):
        event = {"method": method, "route": route, "ms": round(1000 * seconds, 3)} | (
            {"status": status} if status else {}
        )
        log.log(level, "served", extra=event)


class _Gone(Exception):
    """In the middle of a body: the server cuts the connection."""

    def __init__(self, fault: NotAuthenticated) -> None:
        super().__init__(str(fault))


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


async def _answer(scope: Scope, send: Send, error: Exception, request: str) -> None:
    document = problem(error, request)
    kind = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    headers = [(b"content-type", PROBLEM_JSON.encode())]
    await send({"type": f"{kind}.start", "status": document["status"], "headers": headers})
    await send({"type": f"{kind}.body", "body": msgspec.json.encode(document)})
