"""Who asks: a tenant, a subject, a role, and the scopes that follow from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import msgspec

from qraf.errors import InvalidRequest
from qraf.tenants import DEFAULT_TENANT

__all__ = ["ANONYMOUS", "LOCAL", "ROLES", "SCOPES", "Principal", "Role", "check_role", "check_scopes", "scopes_of"]

Role = Literal["viewer", "client", "operator", "admin"]

ROLES: tuple[Role, ...] = get_args(Role)
"""From the one that may least to the one that may everything; each may what those before it may."""

SCOPES: dict[str, Role] = {
    "memory:read": "viewer",
    "sessions:read": "viewer",
    "states:read": "viewer",
    "responses:read": "viewer",
    "operations:read": "viewer",
    "network:read": "viewer",
    "usage:read": "viewer",
    "memory:write": "client",
    "sessions:write": "client",
    "states:write": "client",
    "responses:write": "client",
    "operations:write": "client",
    "services:use": "client",
    "network:operate": "operator",
    "keys:read": "admin",
    "keys:write": "admin",
    "tenants:read": "admin",
    "audit:read": "admin",
}
"""Every scope, and the lowest role that has it."""


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks. `key` is the id of the API key that proved it, "" where something else did.

    `expires_at`: seconds since 1970; None: never.
    """

    tenant: str = DEFAULT_TENANT
    subject: str
    role: str
    scopes: frozenset[str]
    expires_at: float | None = None
    key: str = ""

    def may(self, scope: str) -> bool:
        """Whether it has a scope."""
        return scope in self.scopes

    @property
    def governs(self) -> str | None:
        """The tenant whose keys and audit lines it may see; None: every tenant's.

        An admin of the default tenant runs the server and makes the keys of the others; what they hold stays theirs.
        """
        return None if self.tenant == DEFAULT_TENANT else self.tenant


def check_role(role: str, pointer: str = "/role") -> Role:
    """A role by its name; raises InvalidRequest."""
    for known in ROLES:
        if known == role:
            return known
    raise InvalidRequest(f"must be one of {', '.join(ROLES)}, but is {role!r:.80}", pointer)


def check_scopes(scopes: Iterable[str], role: Role, pointer: str = "/scopes") -> tuple[str, ...]:
    """Scopes that narrow a role, each once; raises InvalidRequest where one is not known or is above the role."""
    chosen = tuple(dict.fromkeys(scopes))
    for index, scope in enumerate(chosen):
        if scope not in SCOPES:
            raise InvalidRequest(f"no scope {scope!r:.80}; there are {', '.join(SCOPES)}", f"{pointer}/{index}")
        if scope not in scopes_of(role):
            raise InvalidRequest(f"role '{role}' does not have scope '{scope}'", f"{pointer}/{index}")
    return chosen


def scopes_of(role: Role, only: Iterable[str] = ()) -> frozenset[str]:
    """The scopes of a role; with `only`, those among them."""
    every = frozenset(scope for scope, lowest in SCOPES.items() if ROLES.index(lowest) <= ROLES.index(role))
    return every & frozenset(only) if only else every


ANONYMOUS = Principal(subject="anonymous", role="", scopes=frozenset())
"""Nobody in particular; may see what is public."""

LOCAL = Principal(subject="local", role="admin", scopes=scopes_of("admin"))
"""Whoever is on this machine, where there is no authentication."""
