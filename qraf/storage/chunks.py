"""Values in pieces, each small enough for one `IN (...)` of a statement."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

__all__ = ["chunks"]

_IN_ONE = 500
_T = TypeVar("_T")


def chunks(values: Iterable[_T]) -> Iterator[list[_T]]:
    """The values in lists of 500; the last has the rest."""
    rest = iter(values)
    while chunk := list(islice(rest, _IN_ONE)):
        yield chunk
