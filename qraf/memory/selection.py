"""Filters as masks over a memory's columns."""

from __future__ import annotations

from functools import reduce
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from qraf.errors import InvalidRequest
from qraf.filters import predicate
from qraf.memory.items import ROLES, Items
from qraf.records import Filter
from qraf.times import parse_time

__all__ = ["mask"]


def mask(filter: Filter, items: Items) -> NDArray[np.bool_]:
    """Which items pass, (n,). `filter` must have passed `filters.validate`.

    Raises:
        InvalidRequest: the filter asks for `item_id`, which only the journal knows.
    """
    if filter.AND is not None:
        return reduce(np.logical_and, [mask(part, items) for part in filter.AND])
    if filter.OR is not None:
        return reduce(np.logical_or, [mask(part, items) for part in filter.OR])
    if filter.NOT is not None:
        return ~mask(filter.NOT, items)
    field = filter.field or ""
    if field == "speaker":
        return _by_value(filter, field, items.speakers).take(items.speaker)
    if field == "role":
        return _by_value(filter, field, ROLES).take(items.role)
    if field == "pin":
        return _by_value(filter, field, (False, True)).take(items.is_pinned.astype(np.int64))
    if field == "at":
        return _by_time(filter, items.at)
    if field == "item_id":
        raise InvalidRequest("a recall cannot filter by `item_id`; read the item by its id instead", "/filter/field")
    return _by_metadata(filter, items)


def _by_value(filter: Filter, field: str, values: Any) -> NDArray[np.bool_]:
    test = predicate(filter)
    return np.array([test({field: value}) for value in values], bool)


def _by_time(filter: Filter, at: NDArray[np.float64]) -> NDArray[np.bool_]:
    passed = np.ones(len(at), bool)
    if filter.eq is not UNSET:
        passed &= False if filter.eq is None else at == parse_time(filter.eq)
    if filter.ne is not UNSET:
        passed &= True if filter.ne is None else at != parse_time(filter.ne)
    if filter.in_ is not UNSET:
        passed &= np.isin(at, [parse_time(one) for one in filter.in_ if one is not None])
    if filter.gt is not UNSET:
        passed &= at > parse_time(filter.gt)
    if filter.gte is not UNSET:
        passed &= at >= parse_time(filter.gte)
    if filter.lt is not UNSET:
        passed &= at < parse_time(filter.lt)
    if filter.lte is not UNSET:
        passed &= at <= parse_time(filter.lte)
    return passed


def _by_metadata(filter: Filter, items: Items) -> NDArray[np.bool_]:
    test = predicate(filter)
    passed = np.full(len(items), test({"metadata": {}}))
    if items.metadata:
        rows = np.searchsorted(items.seq, np.fromiter(items.metadata, np.int64, len(items.metadata)))
        for row, note in zip(rows.tolist(), items.metadata.values(), strict=True):
            passed[row] = test({"metadata": msgspec.msgpack.decode(note)})
    return passed
