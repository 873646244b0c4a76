"""What every command is checked for before it goes to the service, over WebSocket and REST alike."""

from __future__ import annotations

import re

import msgspec

from qraf.decode_frames import DecodeOpen, DecodeRounds
from qraf.errors import InvalidRequest, LimitExceeded
from qraf.frames import ClientFrame, Enhance, Hello, Ping, Recall, SessionOpen, Watch, Write
from qraf.gateway.values import check_filter, check_number, check_value
from qraf.settings import LimitSettings

__all__ = ["MAX_ID", "check_command"]

MAX_ID = 128
_YEAR_S = 366 * 86_400.0
_MANY = 1_000_000
_MAX_RESUMED = 64
_KEY = re.compile(rf"[^\x00-\x1f\x7f\ud800-\udfff]{{1,{MAX_ID}}}")


def check_command(frame: ClientFrame, limits: LimitSettings) -> None:
    """Refuse values that no service could use; what they mean is checked where they are used.

    Raises:
        InvalidRequest: with the JSON pointer of the first fault.
        LimitExceeded: too many items in one write.
    """
    if len(frame.id) > MAX_ID or (not frame.id and not isinstance(frame, Hello | Ping)):
        raise InvalidRequest(f"must have 1 to {MAX_ID} characters, but has {len(frame.id)}", "/id")
    match frame:
        case Hello():
            check_number(frame.coalesce_ms, "/coalesce_ms", 0, 100)
            _resume(frame)
        case SessionOpen():
            _metadata(frame.metadata, "/metadata", limits)
            check_number(frame.ttl_s, "/ttl_s", 0.001, 100 * _YEAR_S)
        case Write():
            _write(frame, limits)
        case Recall():
            if frame.session is None and not frame.collections:
                raise InvalidRequest("name a `session`, `collections`, or both", "/session")
            check_filter(frame.filter, "/filter")
            check_number(frame.token_budget, "/token_budget", 1, _MANY)
            check_number(frame.max_visits, "/max_visits", 1, _MANY)
        case Enhance():
            check_filter(frame.evidence.filter, "/evidence/filter")
            check_number(frame.evidence.token_budget, "/evidence/token_budget", 1, _MANY)
            check_number(frame.evidence.min_probability, "/evidence/min_probability", 0, 1)
            check_number(frame.evidence.min_share, "/evidence/min_share", 0, 1)
            check_number(frame.route.max_visits, "/route/max_visits", 1, _MANY)
            check_number(frame.route.deadline_ms, "/route/deadline_ms", 1, 600_000)
            if frame.generate is not False:
                check_number(frame.generate.seed, "/generate/seed", -(2**31), 2**32 - 1)
            if frame.key is not None and not _KEY.fullmatch(frame.key):
                raise InvalidRequest(f"must have 1 to {MAX_ID} characters, none of them a control character", "/key")
            if frame.metrics is not None:
                check_number(frame.metrics.every_ms, "/metrics/every_ms", 100, 3_600_000)
        case DecodeOpen():
            check_number(frame.shots, "/shots", 1, _MANY)
            check_number(frame.window, "/window", 1, _MANY)
            check_number(frame.commit, "/commit", 1, _MANY)
        case DecodeRounds():
            check_number(frame.rounds, "/rounds", 1, _MANY)
        case Watch():
            check_number(frame.every_ms, "/every_ms", 100, 3_600_000)
            if frame.topic not in ("network", "usage") and not (
                frame.topic.startswith("session:") and len(frame.topic) > len("session:")
            ):
                raise InvalidRequest("must be `network`, `usage` or `session:ID`", "/topic")
        case _:
            pass


def _resume(frame: Hello) -> None:
    if len(frame.resume) > _MAX_RESUMED:
        raise InvalidRequest(f"may name {_MAX_RESUMED} streams, but names {len(frame.resume)}", "/resume")
    seen: set[str] = set()
    for index, one in enumerate(frame.resume):
        if max(len(one.stream), len(one.epoch)) > MAX_ID:
            raise InvalidRequest(f"`stream` and `epoch` have at most {MAX_ID} characters", f"/resume/{index}")
        if one.stream in seen:
            raise InvalidRequest("a stream is named twice", f"/resume/{index}/stream")
        check_number(one.after_seq, f"/resume/{index}/after_seq", 0, 2**53)
        seen.add(one.stream)


def _write(frame: Write, limits: LimitSettings) -> None:
    if (frame.session is None) == (frame.collection is None):
        raise InvalidRequest("name exactly one of `session` and `collection`", "/session")
    if not frame.items:
        raise InvalidRequest("must hold at least one item", "/items")
    if len(frame.items) > limits.max_items_per_write:
        raise LimitExceeded("max_items_per_write", limits.max_items_per_write, len(frame.items))
    for index, item in enumerate(frame.items):  # the rest of an item is refused alone, by the write
        if item.metadata:
            check_value(item.metadata, f"/items/{index}/metadata")


def _metadata(metadata: dict[str, object], pointer: str, limits: LimitSettings) -> None:
    if not metadata:
        return
    check_value(metadata, pointer)
    size = len(msgspec.json.encode(metadata))
    if size > limits.max_metadata_bytes:
        raise InvalidRequest(f"may have {limits.max_metadata_bytes} bytes as JSON, but has {size}", pointer)
