"""What REST answers with where no frame says it."""

from __future__ import annotations

from typing import Any, Literal, Self

import msgspec

from qraf.gateway.bodies import time_out
from qraf.records import Figures, ForgetReceipt
from qraf.storage.records import SessionRecord

__all__ = ["ForgetOut", "ItemOut", "ItemPage", "ReceiptOut", "SessionOut", "SessionPage"]


class _Out(msgspec.Struct, frozen=True, kw_only=True):
    pass


class ItemOut(_Out, frozen=True, kw_only=True):
    """One remembered item. `seq` rises in the order of writing; `at` is when it was said."""

    item_id: str
    seq: int
    text: str
    speaker: str | None
    role: str
    at: str
    metadata: dict[str, Any]
    pin: bool
    expires_at: str | None
    session: str | None
    collection: str | None
    has_amplitudes: bool


class ItemPage(_Out, frozen=True, kw_only=True):
    """A page of items; `next_cursor` leads to the next page, null on the last."""

    data: tuple[ItemOut, ...]
    next_cursor: str | None


class ReceiptOut(_Out, frozen=True, kw_only=True):
    """What was forgotten on one node, with the figures of its state before and after."""

    session: str | None
    collection: str | None
    forgotten: int
    before: Figures
    after: Figures

    @classmethod
    def of(cls, receipt: ForgetReceipt) -> Self:
        """The receipt as it goes out."""
        kind, _, name = receipt.memory.partition("/")
        return cls(
            session=name if kind == "s" else None,
            collection=name if kind == "c" else None,
            forgotten=receipt.forgotten,
            before=receipt.before,
            after=receipt.after,
        )


class ForgetOut(_Out, frozen=True, kw_only=True):
    """How many items passed the filter, and, unless it was a `dry_run`, a receipt for each node."""

    count: int
    dry_run: bool
    receipts: tuple[ReceiptOut, ...]


class SessionOut(_Out, frozen=True, kw_only=True):
    """A session. `status` tells whether it takes writes and prompts; `state` has the figures of a single one.

    `bits`, `budget_bytes` and `rank` are the session's own; null: what its node says.
    """

    session: str
    status: Literal["open", "paused"]
    created_at: str
    expires_at: str | None
    ttl_s: float | None
    metadata: dict[str, Any]
    node: str
    state: Figures | None = None
    bits: int | None = None
    budget_bytes: int | None = None
    rank: int | None = None

    @classmethod
    def of(cls, record: SessionRecord, node: str, state: Figures | None = None) -> Self:
        """The session as it goes out."""
        return cls(
            session=record.id,
            status=record.state,
            created_at=time_out(record.created_at) or "",
            expires_at=time_out(record.expires_at),
            ttl_s=record.ttl_s,
            metadata=record.metadata,
            node=node,
            state=state,
            bits=record.bits,
            budget_bytes=record.budget_bytes,
            rank=record.rank,
        )


class SessionPage(_Out, frozen=True, kw_only=True):
    """A page of sessions; `next_cursor` leads to the next page, null on the last."""

    data: tuple[SessionOut, ...]
    next_cursor: str | None
