"""The one place that says which scope each route and each frame needs. What is not in these tables is refused."""

from __future__ import annotations

import re
from typing import Any

from qraf.errors import NotAllowed
from qraf.frames import ClientFrame, Enhance, Hello, Watch
from qraf.gateway.security.principal import Principal
from qraf.state_frames import StateCommand

__all__ = [
    "FRAMES",
    "ORDERS",
    "PUBLIC",
    "ROUTES",
    "TOPICS",
    "check_frame",
    "check_route",
    "check_scope",
    "methods_of",
    "needed",
]

PUBLIC = ""
"""In place of a scope: for everybody, without a credential."""

ANYONE = "anyone"
"""In place of a scope: for whoever has shown a credential."""

ROUTES: dict[tuple[str, str], str] = {
    ("POST", "/v1/sessions"): "sessions:write",
    ("GET", "/v1/sessions"): "sessions:read",
    ("GET", "/v1/sessions/{session}"): "sessions:read",
    ("PATCH", "/v1/sessions/{session}"): "sessions:write",
    ("DELETE", "/v1/sessions/{session}"): "sessions:write",
    ("POST", "/v1/sessions/{session}/pause"): "sessions:write",
    ("POST", "/v1/sessions/{session}/resume"): "sessions:write",
    ("POST", "/v1/memory"): "memory:write",
    ("GET", "/v1/memory"): "memory:read",
    ("POST", "/v1/memory/recall"): "memory:read",
    ("POST", "/v1/memory/forget"): "memory:write",
    ("GET", "/v1/memory/{item_id:path}"): "memory:read",
    ("DELETE", "/v1/memory/{item_id:path}"): "memory:write",
    ("POST", "/v1/enhance"): "responses:write",
    ("GET", "/v1/responses/{response}"): "responses:read",
    ("GET", "/v1/responses/{response}/events"): "responses:read",
    ("POST", "/v1/responses/{response}/cancel"): "responses:write",
    ("GET", "/v1/topology"): "network:read",
    ("GET", "/v1/topology/route"): "network:read",
    ("POST", "/v1/state"): "states:write",
    ("GET", "/v1/state"): "states:read",
    ("POST", "/v1/state/compare"): "states:read",
    ("POST", "/v1/state/measure"): "states:read",
    ("POST", "/v1/state/evolve"): "states:write",
    ("GET", "/v1/state/{state}"): "states:read",
    ("DELETE", "/v1/state/{state}"): "states:write",
    ("POST", "/v1/state/{state}/measure"): "states:read",
    ("POST", "/v1/state/{state}/evolve"): "states:write",
    ("POST", "/v1/state/{state}/merge"): "states:write",
    ("POST", "/v1/state/{state}/tensor"): "states:write",
    ("POST", "/v1/state/{state}/partial_trace"): "states:write",
    ("POST", "/v1/state/{state}/fork"): "states:write",
    ("GET", "/v1/state/{state}/export"): "states:read",
    ("POST", "/v1/quantize"): "services:use",
    ("POST", "/v1/quantize/decode"): "services:use",
    ("POST", "/v1/optimize"): "services:use",
    ("POST", "/v1/correct"): "services:use",
    ("GET", "/v1/services"): "network:operate",
    ("GET", "/v1/operations"): "operations:read",
    ("GET", "/v1/operations/{operation}"): "operations:read",
    ("POST", "/v1/operations/{operation}/cancel"): "operations:write",
    ("DELETE", "/v1/operations/{operation}"): "operations:write",
    ("POST", "/v1/snapshots"): "network:operate",
    ("POST", "/v1/ws-tickets"): ANYONE,
    ("GET", "/v1/whoami"): ANYONE,
    ("GET", "/v1/keys"): "keys:read",
    ("POST", "/v1/keys"): "keys:write",
    ("DELETE", "/v1/keys/{key}"): "keys:write",
    ("GET", "/v1/tenants"): "tenants:read",
    ("GET", "/v1/audit"): "audit:read",
    ("GET", "/v1/audit/check"): "audit:read",
    ("GET", "/v1/usage"): "usage:read",
    # a probe has no key; without one the answer says no more than whether the server is ready
    ("GET", "/v1/health/live"): PUBLIC,
    ("GET", "/v1/health/ready"): PUBLIC,
    ("GET", "/v1/health"): PUBLIC,
    ("GET", "/health/live"): PUBLIC,
    ("GET", "/health/ready"): PUBLIC,
    ("GET", "/health"): PUBLIC,
    ("GET", "/metrics"): "network:operate",
    ("GET", "/v1/asyncapi.json"): PUBLIC,
    ("GET", "/v1/openapi.json"): PUBLIC,
}
"""The scope of each route, by its method and its path as the OpenAPI document has it."""

_PATTERNS = [re.compile(re.sub(r"{[^:}]+(:path)?}", lambda m: ".*" if m[1] else "[^/]+", path)) for _, path in ROUTES]

FRAMES: dict[str, str] = {
    "hello": PUBLIC,  # brings the credential
    "auth.refresh": ANYONE,
    "ping": ANYONE,
    "session.open": "sessions:write",
    "write": "memory:write",
    "recall": "memory:read",
    "enhance": "responses:write",
    "cancel": "responses:write",
    "watch": "sessions:read",
    "unwatch": ANYONE,
    "state": "states:read",
    "decode.open": "services:use",
    "decode.rounds": "services:use",
    "decode.close": "services:use",
}
"""The scope of each frame by its type; for `watch` and `state` the least of what their topics and orders need."""

TOPICS = {"network": "network:operate", "usage": "usage:read", "session": "sessions:read"}
"""The scope of each topic of `watch`."""

ORDERS = {
    "prepare": "states:write",
    "read": "states:read",
    "measure": "states:read",
    "evolve": "states:write",
    "merge": "states:write",
    "tensor": "states:write",
    "partial_trace": "states:write",
    "fork": "states:write",
    "compare": "states:read",
    "export": "states:read",
    "delete": "states:write",
}
"""The scope of each order of a `state` frame."""


def methods_of(path: str) -> list[str]:
    """The methods that an address has, by its path."""
    return sorted({method for (method, _), known in zip(ROUTES, _PATTERNS, strict=True) if known.fullmatch(path)})


def needed(frame: ClientFrame) -> tuple[str, ...]:
    """Every scope that a frame needs."""
    scopes = [FRAMES[_tag(frame)]]
    match frame:
        case Hello() if frame.resume:
            scopes.append("responses:read")
        case StateCommand():
            scopes.append(ORDERS[_tag(frame.order)])
        case Watch():
            scopes.append(TOPICS[frame.topic.partition(":")[0]])
        case Enhance():
            if frame.session is not None or frame.collections is None or frame.collections:
                scopes.append("memory:read")
            if frame.remember:
                scopes.append("memory:write")
    return tuple(dict.fromkeys(scopes))


def check_frame(who: Principal, frame: ClientFrame) -> None:
    """Refuse a frame that its sender may not send; raises NotAllowed."""
    for scope in needed(frame):
        _check(who, scope, f"`{_tag(frame)}`")


def check_route(who: Principal, method: str, path: str) -> None:
    """Refuse a request that its sender may not make; raises NotAllowed, and KeyError for a route without a rule."""
    _check(who, ROUTES[method, path], f"{method} {path}")


def check_scope(who: Principal, scope: str, what: str) -> None:
    """Refuse what needs a scope beyond its route's; raises NotAllowed."""
    _check(who, scope, what)


def _check(who: Principal, scope: str, what: str) -> None:
    if scope not in (PUBLIC, ANYONE) and not who.may(scope):
        raise NotAllowed(what, f"it needs scope '{scope}', which this {who.role or 'nobody'} does not have")


def _tag(kind: Any) -> str:
    return str(kind.__struct_config__.tag)
