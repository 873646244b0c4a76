"""Growing arrays that hold no more than they need: the columns in which a memory keeps its items.

The allocated size depends on the content alone, never on how it came in: capacity climbs a fixed ladder (by a 32nd),
and integers take the narrowest type of theirs that fits. A memory that is rebuilt is therefore as large as it was.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Column", "capacity"]

_T = TypeVar("_T", bound=np.generic)
_FIRST, _SLOWNESS = 16, 32


def capacity(n: int) -> int:
    """The smallest rung of the ladder that holds `n` rows.

    >>> capacity(0), capacity(16), capacity(17), capacity(1000)
    (0, 16, 32, 1027)
    """
    if n == 0:
        return 0
    rung = _FIRST
    while rung < n:
        rung += max(_FIRST, rung // _SLOWNESS)
    return rung


class Column(Generic[_T]):
    """One value, or one row of `width` values, for each item.

    `dtypes` is the ladder of types, narrow to wide; values that do not fit widen the whole column. Buffers that are
    left behind are overwritten with zeros, so that nothing of a forgotten item stays in memory that was let go.
    """

    def __init__(self, *dtypes: type[_T], width: int = 0) -> None:
        self._dtypes = dtypes
        self._shape: tuple[int, ...] = (width,) if width else ()
        self._data: NDArray[_T] = np.zeros((0, *self._shape), dtypes[0])
        self._n = 0

    def __len__(self) -> int:
        return self._n

    @property
    def values(self) -> NDArray[_T]:
        """The values, a view that is good until the next change."""
        return self._data[: self._n]

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self._data.nbytes

    def append(self, values: NDArray[Any]) -> None:
        """Put `values` behind the others."""
        n = self._n + len(values)
        dtype = self._fit(values)
        if len(self._data) < n or dtype != self._data.dtype:
            self._move(np.zeros((capacity(n), *self._shape), dtype))
        self._data[self._n : n] = values
        self._n = n

    def replace(self, values: NDArray[Any]) -> None:
        """Hold `values` instead, in the narrowest type."""
        old, self._data = self._data, np.zeros((0, *self._shape), self._dtypes[0])
        self._n = 0
        fresh = np.zeros((capacity(len(values)), *self._shape), self._fit(values))
        fresh[: len(values)] = values
        self._data, self._n = fresh, len(values)
        old.fill(0)

    def size_of(self, values: NDArray[Any]) -> int:
        """Bytes that would be allocated if these were all the values."""
        return int(capacity(len(values)) * self._fit(values, 0).itemsize * np.prod(self._shape, dtype=np.int64))

    def _fit(self, values: NDArray[Any], held: int | None = None) -> np.dtype[Any]:
        held = self._dtypes.index(self._data.dtype.type) if held is None else held
        if len(self._dtypes) == 1 or not len(values):
            return np.dtype(self._dtypes[held])
        largest, smallest = int(values.max()), int(values.min())
        for dtype in self._dtypes[held:]:
            info = np.iinfo(dtype)  # type: ignore[type-var]
            if info.min <= smallest and largest <= info.max:
                return np.dtype(dtype)
        raise OverflowError(f"a column of {self._dtypes[-1].__name__} cannot hold {smallest}..{largest}")

    def _move(self, fresh: NDArray[Any]) -> None:
        fresh[: self._n] = self._data[: self._n]
        old, self._data = self._data, fresh
        old.fill(0)
