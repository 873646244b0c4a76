"""Filters: trees of conditions over an item's speaker, role, time, id, pin and metadata.

A missing value is null: `eq: null` finds it, `ne: x` holds for it, order and `contains` never do. Values of different
kinds are unequal and have no order (true is not 1). Several operators in one condition must all hold. `contains` finds
a piece of a text, whatever its case, or a member of a list.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import UNSET

from qraf.errors import InvalidRequest
from qraf.records import Filter, Item
from qraf.times import parse_time

__all__ = [
    "FIELDS",
    "MAX_CONDITIONS",
    "MAX_DEPTH",
    "MAX_VALUES",
    "Predicate",
    "item_view",
    "matches",
    "predicate",
    "validate",
]

FIELDS = ("speaker", "role", "at", "item_id", "pin")
MAX_DEPTH, MAX_CONDITIONS, MAX_VALUES = 16, 256, 1000

Predicate = Callable[[Mapping[str, Any]], bool]

_OPERATORS = ("eq", "ne", "in", "gt", "gte", "lt", "lte", "contains")
_PREFIX = "metadata."


def validate(filter: Filter, pointer: str = "/filter") -> None:
    """Check a filter before it is used.

    Raises:
        InvalidRequest: with a JSON pointer to the first fault.
    """
    _validate(filter, pointer, depth=1, budget=[MAX_CONDITIONS])


def matches(filter: Filter | None, item: Mapping[str, Any]) -> bool:
    """Whether an item passes. `item` maps `speaker role at item_id pin metadata`; what is missing is null.

    >>> matches(Filter(field="metadata.kind", eq="note"), {"metadata": {"kind": "note"}})
    True
    """
    return filter is None or predicate(filter)(item)


def predicate(filter: Filter) -> Predicate:
    """The filter as a function, for many items: values are parsed once. `filter` must have passed `validate`."""
    if filter.AND is not None:
        parts = tuple(predicate(part) for part in filter.AND)
        return lambda item: all(part(item) for part in parts)
    if filter.OR is not None:
        parts = tuple(predicate(part) for part in filter.OR)
        return lambda item: any(part(item) for part in parts)
    if filter.NOT is not None:
        inner = predicate(filter.NOT)
        return lambda item: not inner(item)
    field = filter.field or ""
    read = _reader(field)
    tests = tuple(_test(name, value, field == "at") for name, value in _operators(filter))
    return lambda item: all(test(value) for value in (read(item),) for test in tests)


def item_view(item: Item) -> dict[str, Any]:
    """What a filter sees of an item."""
    return {
        "speaker": item.speaker,
        "role": item.role,
        "at": item.at,
        "item_id": item.item_id,
        "pin": item.pin,
        "metadata": item.metadata,
    }


# ------------------------------------------------------------------------------------------------------- evaluation
def _operators(filter: Filter) -> list[tuple[str, Any]]:
    pairs = [(name, getattr(filter, "in_" if name == "in" else name)) for name in _OPERATORS]
    return [(name, value) for name, value in pairs if value is not UNSET]


def _reader(field: str) -> Callable[[Mapping[str, Any]], Any]:
    if field.startswith(_PREFIX):
        key = field[len(_PREFIX) :]
        return lambda item: (item.get("metadata") or {}).get(key)
    return lambda item: item.get(field)


def _test(name: str, wanted: Any, is_time: bool) -> Callable[[Any], bool]:
    if is_time:
        wanted = [_time(one) for one in wanted] if name == "in" else _time(wanted)
    if name == "eq":
        return lambda value: _same(value, wanted)
    if name == "ne":
        return lambda value: not _same(value, wanted)
    if name == "in":
        return lambda value: any(_same(value, one) for one in wanted)
    if name == "contains":
        return lambda value: _contains(value, wanted)
    return lambda value: _ordered(name, value, wanted)


def _time(value: Any) -> Any:
    return None if value is None else parse_time(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(a: Any, b: Any) -> bool:
    if _is_number(a) and _is_number(b):
        return bool(a == b)
    return type(a) is type(b) and bool(a == b)


def _ordered(name: str, value: Any, wanted: Any) -> bool:
    if not (_is_number(value) and _is_number(wanted)) and not (isinstance(value, str) and isinstance(wanted, str)):
        return False
    if name == "gt":
        return bool(value > wanted)
    if name == "gte":
        return bool(value >= wanted)
    return bool(value < wanted) if name == "lt" else bool(value <= wanted)


def _contains(value: Any, wanted: Any) -> bool:
    if isinstance(value, str):
        return isinstance(wanted, str) and wanted.casefold() in value.casefold()
    if isinstance(value, Sequence):
        return any(_same(member, wanted) for member in value)
    return False


# ------------------------------------------------------------------------------------------------------- validation
def _validate(filter: Filter, pointer: str, depth: int, budget: list[int]) -> None:
    budget[0] -= 1
    if budget[0] < 0:
        raise InvalidRequest(f"a filter may have {MAX_CONDITIONS} conditions at most", pointer)
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"a filter may be {MAX_DEPTH} levels deep at most", pointer)
    kinds = [name for name in ("AND", "OR", "NOT", "field") if getattr(filter, name) is not None]
    operators = _operators(filter)
    if len(kinds) != 1:
        came = " and ".join(kinds) if kinds else "none of them"
        raise InvalidRequest(f"a filter has exactly one of AND, OR, NOT and field, but this has {came}", pointer)
    if kinds[0] != "field" and operators:
        raise InvalidRequest(f"`{operators[0][0]}` needs a field beside it", f"{pointer}/{operators[0][0]}")
    if filter.NOT is not None:
        _validate(filter.NOT, f"{pointer}/NOT", depth + 1, budget)
    elif filter.field is not None:
        _validate_condition(filter.field, operators, pointer)
    else:
        parts = filter.AND if filter.AND is not None else filter.OR
        if not parts:
            raise InvalidRequest(f"{kinds[0]} needs at least one filter", f"{pointer}/{kinds[0]}")
        for index, part in enumerate(parts):
            _validate(part, f"{pointer}/{kinds[0]}/{index}", depth + 1, budget)


def _validate_condition(field: str, operators: list[tuple[str, Any]], pointer: str) -> None:
    if field not in FIELDS and not (field.startswith(_PREFIX) and len(field) > len(_PREFIX)):
        near = difflib.get_close_matches(field, [*FIELDS, "metadata.KEY"], n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        known = ", ".join(FIELDS)
        raise InvalidRequest(
            f"a filter knows the fields {known} and metadata.KEY, not {field!r:.80}{hint}", f"{pointer}/field"
        )
    if not operators:
        raise InvalidRequest(f"a condition needs one of {', '.join(_OPERATORS)}", pointer)
    for name, value in operators:
        where = f"{pointer}/{name}"
        if name == "in":
            if not isinstance(value, list | tuple) or len(value) > MAX_VALUES:
                raise InvalidRequest(f"`in` takes a list of {MAX_VALUES} values at most", where)
            for index, one in enumerate(value):
                _validate_value(field, "eq", one, f"{where}/{index}")
        else:
            _validate_value(field, name, value, where)


def _validate_value(field: str, name: str, value: Any, pointer: str) -> None:
    is_equality = name in ("eq", "ne")
    if not (value is None or isinstance(value, str | bool | int | float)):
        raise InvalidRequest("a value must be a text, a number, true, false or null", pointer)
    if value is None and not is_equality:
        raise InvalidRequest(f"`{name}` cannot take null", pointer)
    if field == "at":
        if name == "contains":
            raise InvalidRequest("`contains` does not fit `at`; use gte and lt", pointer)
        if value is not None:
            parse_time(value, pointer)
    elif field == "pin":
        if not is_equality or not isinstance(value, bool):
            raise InvalidRequest("`pin` takes eq, ne or in, with true or false", pointer)
    elif field in FIELDS:
        if not is_equality and name != "contains":
            raise InvalidRequest(f"`{name}` does not fit `{field}`; use eq, ne, in or contains", pointer)
        if not (value is None or isinstance(value, str)):
            raise InvalidRequest(f"`{field}` is compared with a text, not with {value!r:.80}", pointer)
    elif name in ("gt", "gte", "lt", "lte") and isinstance(value, bool):
        raise InvalidRequest(f"`{name}` takes a number or a text", pointer)
