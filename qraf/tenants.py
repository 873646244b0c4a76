"""Tenants: whose a name is. Inside, a tenant's names are `TENANT/NAME`; those of the default tenant stay as they are.

No name that a client may give to a session, a collection or a state holds a slash, so inside names cannot be made from
outside: every one that comes in goes through `inside`, which refuses a slash. A memory's key is `s/` or `c/` and the
inside name of its session or collection, so what one tenant remembers is another memory than what another one does.
"""

from __future__ import annotations

import re

from qraf.errors import InvalidRequest, NotFound, SessionClosed, SessionNotFound, VersionConflict

__all__ = ["DEFAULT_TENANT", "check_tenant", "inside", "outside", "plain", "tenant_of"]

DEFAULT_TENANT = "default"
_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)
_SCOPED = ("session", "collection", "state")  # ids of items may hold slashes of their own


def check_tenant(name: str, pointer: str = "/tenant") -> str:
    """A tenant's name: 1 to 32 lower-case letters, digits and `-`, the first no sign.

    Raises:
        InvalidRequest: it is not.
    """
    if _TENANT.fullmatch(name) is None:
        need = "must be 1 to 32 lower-case letters, digits and -, and begin with a letter or digit"
        raise InvalidRequest(f"{need}, but is {name!r:.80}", pointer)
    return name


def inside(tenant: str, name: str) -> str:
    """The name that a tenant's name has inside.

    Raises:
        ValueError: the name has a slash, so nothing can have it.

    >>> inside("default", "ann"), inside("acme", "ann")
    ('ann', 'acme/ann')
    """
    if "/" in name:
        raise ValueError(name)
    return name if tenant == DEFAULT_TENANT else f"{tenant}/{name}"


def plain(name: str) -> str:
    """The name as its tenant knows it.

    >>> plain("acme/ann"), plain("ann")
    ('ann', 'ann')
    """
    return name.rpartition("/")[2]


def tenant_of(name: str) -> str:
    """Whose an inside name is.

    >>> tenant_of("acme/ann"), tenant_of("ann")
    ('acme', 'default')
    """
    return name.rpartition("/")[0] or DEFAULT_TENANT


def outside(error: BaseException) -> BaseException:
    """An error that names things as their tenant knows them."""
    match error:
        case SessionNotFound(session=session) if "/" in session:
            return SessionNotFound(plain(session))
        case SessionClosed(session=session, reason=reason) if "/" in session:
            return SessionClosed(plain(session), reason)
        case NotFound(kind=kind, name=name) if kind in _SCOPED and "/" in name:
            return NotFound(kind, plain(name))
        case VersionConflict(kind=kind, name=name) if kind in _SCOPED and "/" in name:
            return VersionConflict(kind, plain(name), error.wanted, error.now)
        case _:
            return error
