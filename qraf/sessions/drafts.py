"""What came in as items -> drafts for the journal: checked one by one, documents cut into passages. No I/O."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from ulid import ULID

from qraf.errors import InvalidRequest, LimitExceeded, QrafError, RecalledNotAbsorbed
from qraf.frames import ItemWarning, Rejected, WireItem
from qraf.sessions.faults import error_body
from qraf.settings import LimitSettings, OnSecret
from qraf.storage.records import Draft
from qraf.storage.rows import encode_json
from qraf.text.passages import passages
from qraf.text.secrets import secrets_within
from qraf.times import LATEST, parse_time

__all__ = ["Drafted", "draft_items"]

_ITEM_ID = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,200}")
_SPEAKER = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,200}")


@dataclass(slots=True)
class Drafted:
    """The drafts of a write, in the order of its items, and the items that were refused."""

    drafts: list[Draft] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    warnings: list[ItemWarning] = field(default_factory=list)


def draft_items(
    items: Sequence[WireItem],
    limits: LimitSettings,
    now: float,
    dim_of: Callable[[str], int],
    on_secret: OnSecret = "warn",
) -> Drafted:
    """Check each item by itself: one that is wrong is refused, with its place and why, and the others go on.

    A document becomes passages `ID#0`, `ID#1`, ...: the same text under the same id gives the same ids again. `dim_of`
    tells how many amplitudes the node of an item id takes.
    """
    drafted = Drafted()
    for index, item in enumerate(items):
        try:
            if item.item_id is None:
                item = msgspec.structs.replace(item, item_id=f"itm_{ULID()}")
            item, kinds = _without_secrets(item, f"/items/{index}", on_secret)
            drafts = _draft(item, f"/items/{index}", limits, now, dim_of)
        except QrafError as fault:
            drafted.rejected.append(Rejected(index=index, item_id=_shown(item.item_id), error=error_body(fault)))
        else:
            drafted.drafts += drafts
            is_masked = on_secret == "mask"
            drafted.warnings += [ItemWarning(item_id=item.item_id or "", kind=k, is_masked=is_masked) for k in kinds]
    return drafted


def _without_secrets(item: WireItem, pointer: str, on_secret: OnSecret) -> tuple[WireItem, list[str]]:
    """The item as it may be written, and the kinds of secrets that were in its text and metadata."""
    if on_secret == "off":
        return item, []
    text, in_text = secrets_within(item.text)
    metadata, in_metadata = secrets_within(item.metadata)
    kinds = sorted({one.kind for one in in_text + in_metadata})
    if kinds and on_secret == "refuse":
        where = "text" if in_text else "metadata"
        raise InvalidRequest(
            f"holds what looks like a secret ({', '.join(kinds)}), and is not written", f"{pointer}/{where}"
        )
    if kinds and on_secret == "mask":
        item = msgspec.structs.replace(item, text=text, metadata=metadata)
    return item, kinds


def _draft(
    item: WireItem, pointer: str, limits: LimitSettings, now: float, dim_of: Callable[[str], int]
) -> list[Draft]:
    if item.role == "recalled":
        raise RecalledNotAbsorbed("what was recalled is never absorbed again", f"{pointer}/role")
    if (item.text is None) == (item.amplitudes is None):
        raise InvalidRequest("an item has either `text` or `amplitudes`", pointer)
    item_id = item.item_id or ""
    if _ITEM_ID.fullmatch(item_id) is None:
        raise InvalidRequest("must be 1 to 200 characters without control characters", f"{pointer}/item_id")
    if item.speaker is not None and (_SPEAKER.fullmatch(item.speaker) is None or not item.speaker.strip()):
        raise InvalidRequest("must be a name of 1 to 200 characters without control characters", f"{pointer}/speaker")
    size = len(encode_json(item.metadata, "what came", f"{pointer}/metadata"))
    if size > limits.max_metadata_bytes:
        raise LimitExceeded("max_metadata_bytes", limits.max_metadata_bytes, size)
    at = now if item.at is None else parse_time(item.at, f"{pointer}/at")
    expires_at = None
    if item.ttl_s is not None:
        if not (math.isfinite(item.ttl_s) and item.ttl_s > 0 and now + item.ttl_s < LATEST):
            raise InvalidRequest(f"must be a time of more than 0 seconds, but is {item.ttl_s}", f"{pointer}/ttl_s")
        expires_at = now + item.ttl_s

    def draft(item_id: str, text: str, amplitudes: bytes | None = None) -> Draft:
        return Draft(
            item_id=item_id,
            text=text,
            speaker=item.speaker,
            role=item.role,
            at=at,
            metadata=item.metadata,
            pin=item.pin,
            expires_at=expires_at,
            amplitudes=amplitudes,
        )

    if item.amplitudes is not None:
        return [draft(item_id, "", _amplitudes(item.amplitudes, dim_of(item_id), f"{pointer}/amplitudes"))]
    text = _text(item.text or "", limits, f"{pointer}/text")
    if item.role != "document":
        return [draft(item_id, text)]
    parts = passages(text) or [text]
    return [draft(f"{item_id}#{number}", part) for number, part in enumerate(parts)]


def _text(text: str, limits: LimitSettings, pointer: str) -> str:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as fault:
        raise InvalidRequest(f"has half of a surrogate pair at character {fault.start}", pointer) from None
    if size > limits.max_item_bytes:
        raise LimitExceeded("max_item_bytes", limits.max_item_bytes, size)
    if not text.strip():
        raise InvalidRequest("must not be empty", pointer)
    return text


def _amplitudes(values: Sequence[float], dim: int, pointer: str) -> bytes:
    """Float32 bytes of unit norm."""
    if len(values) != dim:
        raise InvalidRequest(f"must be {dim} numbers, but are {len(values)}", pointer)
    psi = np.asarray(values, dtype=np.float64)
    largest = float(np.max(np.abs(psi)))  # NaN when there is one
    if not math.isfinite(largest):
        raise InvalidRequest("must be finite numbers", pointer)
    if largest == 0.0:
        raise InvalidRequest("must not all be zero", pointer)
    psi = psi / largest  # so that no square overflows or vanishes
    return (psi / np.linalg.norm(psi)).astype(np.float32).tobytes()


def _shown(item_id: str | None) -> str:
    """An id that can go out again; half surrogates cannot."""
    return (item_id or "")[:200].encode("utf-8", "replace").decode()
