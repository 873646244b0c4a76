"""Free-form values (metadata, values of filters) at the door: what JSON can say, finite, of bounded depth."""

from __future__ import annotations

import math
from typing import Any

from msgspec import UNSET, UnsetType, structs

from qraf.errors import InvalidRequest
from qraf.records import Filter

__all__ = ["MAX_DEPTH", "check_filter", "check_number", "check_value"]

MAX_DEPTH = 32
_LOW, _HIGH = -(2**63), 2**64


def check_value(value: Any, pointer: str, depth: int = 0) -> None:
    """Refuse what would not survive a way through JSON and MessagePack.

    Raises:
        InvalidRequest: bytes, times, integers over 64 bits, numbers that are not finite, nesting over 32.
    """
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"is nested deeper than {MAX_DEPTH}", pointer)
    if value is None or isinstance(value, bool | str):
        return
    if isinstance(value, int):
        if not _LOW <= value < _HIGH:
            raise InvalidRequest("an integer must fit into 64 bits", pointer)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidRequest(f"a number must be finite, but is {value}", pointer)
    elif isinstance(value, dict):
        for key, inner in value.items():
            name = str(key).replace("~", "~0").replace("/", "~1")
            if not isinstance(key, str):
                raise InvalidRequest(f"a key must be a string, but is {type(key).__name__}", f"{pointer}/{name}")
            check_value(inner, f"{pointer}/{name}", depth + 1)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            check_value(inner, f"{pointer}/{index}", depth + 1)
    else:
        raise InvalidRequest(f"a value must be one that JSON has, but is {type(value).__name__}", pointer)


def check_filter(filter: Filter | None, pointer: str) -> None:
    """Check the values of a filter; what the filter means is checked where it is used."""
    if filter is None:
        return
    for name in ("AND", "OR"):
        for index, inner in enumerate(getattr(filter, name) or ()):
            check_filter(inner, f"{pointer}/{name}/{index}")
    check_filter(filter.NOT, f"{pointer}/NOT")
    for field in structs.fields(filter)[4:]:
        value = getattr(filter, field.name)
        if value is not UNSET and not isinstance(value, UnsetType):
            check_value(value, f"{pointer}/{field.encode_name}")


def check_number(value: float | None, pointer: str, low: float, high: float) -> None:
    """Refuse a number outside `low` to `high`, NaN included; None passes."""
    if value is None or low <= value <= high:
        return
    span = f"must be {low:.12g} to {high:.12g}"
    raise InvalidRequest(f"{span}, but is {value:g}" if abs(value) < 1e300 else span, pointer)
