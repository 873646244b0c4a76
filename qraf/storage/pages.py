"""Opaque cursors and the bounds of a page."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Any

import msgspec
from sqlalchemy import Column, ColumnElement, func

from qraf.errors import InvalidRequest
from qraf.tenants import DEFAULT_TENANT

__all__ = ["MAX_PAGE", "check_limit", "decode_cursor", "encode_cursor", "of_tenant"]

MAX_PAGE = 200


def check_limit(limit: int) -> None:
    """Refuse a page size outside 1 to `MAX_PAGE`; it is never cut down silently."""
    if isinstance(limit, bool) or not 1 <= limit <= MAX_PAGE:
        raise InvalidRequest(f"`limit` must be 1 to {MAX_PAGE}, but is {limit}", "/limit")


def of_tenant(name: Column[str], tenant: str) -> ColumnElement[bool]:
    """Whether an inside name in a column is a tenant's."""
    if tenant == DEFAULT_TENANT:
        return ~name.contains("/")
    return func.substr(name, 1, len(tenant) + 1) == f"{tenant}/"


def encode_cursor(scope: str, *position: Any) -> str:
    """A cursor that continues after `position` in `scope` (which list, of which memory)."""
    return base64.urlsafe_b64encode(msgspec.json.encode([_mark(scope), *position])).decode().rstrip("=")


def decode_cursor(scope: str, cursor: str, kinds: tuple[type, ...]) -> list[Any]:
    """The position in a cursor.

    Raises:
        InvalidRequest: no cursor of ours, or one of another list.
    """
    try:
        raw = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        mark, *position = msgspec.json.decode(raw, type=list[Any])
    except (ValueError, binascii.Error, msgspec.DecodeError):
        raise InvalidRequest("no such cursor; leave it out to start at the beginning", "/cursor") from None
    fits = len(position) == len(kinds) and all(type(value) is kind for value, kind in zip(position, kinds, strict=True))
    if mark != _mark(scope) or not fits:
        raise InvalidRequest("this cursor belongs to another list; leave it out to start at the beginning", "/cursor")
    return position


def _mark(scope: str) -> str:
    return hashlib.blake2b(scope.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
