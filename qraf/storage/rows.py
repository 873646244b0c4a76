"""Rows of the journal's tables <-> records. Text goes through here, so this is where bad text is refused."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Row

from qraf.errors import InvalidRequest
from qraf.records import Item
from qraf.storage.records import Draft, SessionRecord

__all__ = ["check_name", "draft_row", "encode_json", "item_of", "made_item", "session_of", "session_row"]


def check_name(name: str, what: str, *, is_secret: bool = False) -> str:
    """Refuse a name that a column cannot hold; a secret one is not quoted."""
    if not name or len(name) > 512 or "\0" in name:
        found = f"has {len(name)}" if is_secret else f"is {name!r:.80}"
        raise InvalidRequest(f"{what} must have 1 to 512 characters and no NUL, but {found}")
    _utf8(name, what)
    return name


def encode_json(value: Any, what: str, pointer: str = "") -> bytes:
    """JSON bytes of what a client sent."""
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as fault:
        raise InvalidRequest(f"{what} cannot be written as JSON: {fault}", pointer) from None


def draft_row(memory: str, draft: Draft) -> dict[str, Any]:
    """The row of a draft."""
    if draft.speaker is not None:
        check_name(draft.speaker, "a speaker", is_secret=True)
    return {
        "memory": memory,
        "item_id": check_name(draft.item_id, "an item id"),
        "text": _utf8(draft.text, f"the text of item '{draft.item_id}'"),
        "speaker": draft.speaker,
        "role": draft.role,
        "at": draft.at,
        "metadata": encode_json(draft.metadata, f"the metadata of item '{draft.item_id}'"),
        "pin": draft.pin,
        "expires_at": draft.expires_at,
        "amplitudes": draft.amplitudes,
        "forgotten_at": None,
    }


def made_item(draft: Draft, seq: int) -> Item:
    """The item that a draft has become."""
    return Item(seq=seq, **msgspec.structs.asdict(draft))


def item_of(row: Row[Any]) -> Item:
    """The item of a row of `items`, with codes where the query joined them."""
    return Item(
        seq=row.seq,
        item_id=row.item_id,
        text=row.text.decode(),
        speaker=row.speaker,
        role=row.role,
        at=row.at,
        metadata=msgspec.json.decode(row.metadata),
        pin=row.pin,
        expires_at=row.expires_at,
        amplitudes=row.amplitudes,
        codes=row.rows,
        code=row.code,
    )


def session_row(record: SessionRecord) -> dict[str, Any]:
    """The row of a session."""
    return {
        "id": check_name(record.id, "a session's name"),
        "created_at": record.created_at,
        "metadata": encode_json(record.metadata, f"the metadata of session '{record.id}'"),
        "ttl_s": record.ttl_s,
        "expires_at": record.expires_at,
        "state": record.state,
        "node_hint": record.node_hint,
        "bits": record.bits,
        "budget_bytes": record.budget_bytes,
        "rank": record.rank,
    }


def session_of(row: Row[Any], metadata: bytes) -> SessionRecord:
    """The session of a row, with its metadata in plain JSON."""
    return SessionRecord(
        id=row.id,
        created_at=row.created_at,
        metadata=msgspec.json.decode(metadata),
        ttl_s=row.ttl_s,
        expires_at=row.expires_at,
        state=row.state,
        node_hint=row.node_hint,
        bits=row.bits,
        budget_bytes=row.budget_bytes,
        rank=row.rank,
    )


def _utf8(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as fault:
        raise InvalidRequest(f"{what} has half of a surrogate pair at character {fault.start}") from None
