"""What goes into the journal and what it tells of sessions: frozen records."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

__all__ = ["Committed", "Draft", "SessionRecord", "SessionState", "StateRecord"]

SessionState = Literal["open", "paused"]


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """An item that is not written yet. Times are seconds since 1970; `amplitudes` are float32 bytes or None."""

    item_id: str
    text: str = ""
    speaker: str | None = None
    role: str = "user"
    at: float = 0.0
    metadata: dict[str, Any] = {}
    pin: bool = False
    expires_at: float | None = None
    amplitudes: bytes | None = None


class Committed(msgspec.Struct, frozen=True):
    """What became of a draft; a duplicate carries the number of the item that was there before."""

    seq: int
    item_id: str
    is_duplicate: bool = False


class SessionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A session as the journal holds it. `node_hint` is the home node at its last opening.

    `bits` is the precision of its memory's codes, `budget_bytes` what the memory may hold, and `rank` how many
    directions its sketch keeps; None: what the node says.
    """

    id: str
    created_at: float
    metadata: dict[str, Any] = {}
    ttl_s: float | None = None
    expires_at: float | None = None
    state: SessionState = "open"
    node_hint: str = ""
    bits: int | None = None
    budget_bytes: int | None = None
    rank: int | None = None


class StateRecord(msgspec.Struct, frozen=True):
    """A stored state: its packet, and what is shown of it (`view`, JSON). Times are seconds since 1970."""

    id: str
    version: int
    view: bytes
    packet: bytes
    created_at: float = 0.0
    updated_at: float = 0.0
