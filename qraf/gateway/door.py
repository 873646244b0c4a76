"""The first thing that every HTTP request and WebSocket meets: who asks from where, a request id, and a last net.

Without authentication the server is open to its own machine alone. A web page on that machine must not be a way in:
`Host` must name loopback (DNS rebinding), and an `Origin`, where a browser sends one, must be loopback too (CSRF).
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

import msgspec
from ulid import ULID

from qraf.errors import NotAllowed
from qraf.gateway.metrics import GatewayMeters
from qraf.gateway.problems import PROBLEM_JSON, problem
from qraf.gateway.stream import Receive, Send

__all__ = ["Door", "is_loopback"]

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_SAFE = ("GET", "HEAD", "OPTIONS")


def is_loopback(host: str) -> bool:
    """Whether a host name or address, without port, is this machine's loopback.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("::1"), is_loopback("localhost.evil.example")
    (True, True, True, False)
    """
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Door:
    """ASGI middleware around everything else."""

    def __init__(self, app: App, meters: GatewayMeters) -> None:
        self._app, self._meters = app, meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse strangers, name the request, and answer what nobody caught with a bare 500."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        request = f"req_{ULID()}"
        scope.setdefault("state", {})["request_id"] = request
        is_started = False

        async def sending(event: MutableMapping[str, Any]) -> None:
            nonlocal is_started
            if event["type"] == "http.response.start":
                is_started = True
                event["headers"] = [*event.get("headers", ()), (b"x-request-id", request.encode())]
                self._meters.requests.labels(str(event["status"])).inc()
            await send(event)

        fault = _stranger(scope)
        if fault is not None:
            await _answer(scope, sending, fault, request)
            return
        try:
            await self._app(scope, receive, sending)
        except Exception as error:
            log.exception("%s: %s %s failed", request, scope.get("method", "WS"), scope["path"])
            if scope["type"] == "http" and not is_started:
                await _answer(scope, sending, error, request)
            elif scope["type"] == "http":
                raise  # in the middle of a body: the server cuts the connection, which is how the client learns


def _stranger(scope: Scope) -> NotAllowed | None:
    headers = {name: value.decode("latin-1") for name, value in scope["headers"] if name in (b"host", b"origin")}
    host = headers.get(b"host", "")
    if not is_loopback(_hostname(f"//{host}")):
        return NotAllowed(f"a request for host '{host[:100]}'", "this server answers to loopback names only")
    origin = headers.get(b"origin")
    is_safe = scope["type"] == "http" and scope["method"] in _SAFE
    if origin is not None and not is_safe and not is_loopback(_hostname(origin)):
        return NotAllowed(f"a request from a page of '{origin[:100]}'", "only pages of this machine may")
    return None


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
