"""The state of a memory: its sketch, its figures, its mean, all of them functions of the items alone.

Rows are folded into the sketch in fixed blocks in order of seq, from the decoded codes: the first 1,024 at once, later
ones by 256. What is not folded yet is read from the coded rows. So a memory that is rebuilt from the journal has the
same bits as the one that grew, and a memory of fewer than 1,024 items has exact figures and pays for no sketch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qraf.errors import InvalidState
from qraf.memory.items import Items
from qraf.states.sketch import Sketch

__all__ = ["Fold"]

_FIRST_BLOCK, _BLOCK = 1024, 256
_TINY = 1e-12  # relative weight below which an item no longer counts in the state


class Fold:
    """What is folded: the sketch and the summed amplitudes of the first `rows` items.

    With a half-life weights are 2^((at - newest) / half life), so the newest item weighs 1 and only ratios matter.
    """

    def __init__(self, dim: int, rank: int, half_life_s: float | None) -> None:
        self._dim, self._rank, self._half_life_s = dim, rank, half_life_s
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next use folds again from the items."""
        self.rows = 0
        self._sketch: Sketch | None = None
        self._total = np.zeros(0)
        self._newest = -np.inf

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays held."""
        return self._total.nbytes + (0 if self._sketch is None else self._sketch.nbytes)

    def most_bytes(self, items: int) -> int:
        """The most that `nbytes` can be with so many items, whatever was asked of the memory."""
        rank = min(self._rank, self._dim)
        return 2 * rank * self._dim + 8 * rank + 8 * self._dim if _folded_rows(items) else 0

    def changed_from(self, row: int) -> None:
        """Items from `row` on are new or gone; what was folded of them must be folded again."""
        if row < self.rows:
            self.reset()

    def parts(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What is folded, to be put elsewhere: facts, and copies of the arrays."""
        sketch = b"" if self._sketch is None else self._sketch.to_bytes()
        return {"rows": self.rows, "newest": self._newest, "sketch": sketch}, {"total": self._total.copy()}

    def put(self, facts: Mapping[str, Any], parts: Mapping[str, NDArray[Any]]) -> None:
        """Hold what `parts` gave, in place of what is here.

        Raises:
            InvalidState: the sketch is damaged, or another memory's.
        """
        rows, total = int(facts["rows"]), parts["total"]
        sketch = Sketch.from_bytes(facts["sketch"]) if facts["sketch"] else None
        most = min(self._rank, self._dim)
        if sketch is not None and (sketch.dim, sketch.rank) != (self._dim, most):
            raise InvalidState("sketch", f"have rank {most} of {self._dim}", f"has {sketch.rank} of {sketch.dim}")
        if total.shape != ((self._dim,) if rows else (0,)) or (sketch is None) != (rows == 0):
            raise InvalidState("sketch", f"go with {rows} rows", "does not")
        self.rows, self._newest = rows, float(facts["newest"])
        self._sketch, self._total = sketch, total.astype(np.float64)

    def sketch(self, items: Items) -> Sketch:
        """The sketch of all items: a copy, with the rows that are not folded in it."""
        self._advance(items)
        whole = self._empty() if self._sketch is None else self._sketch.copy()
        tail, newest = self._tail(items)
        if self._sketch is not None:
            whole.decay(self._gamma(newest))
        whole.update(tail, self._weights(items.at[self.rows :], newest))
        return whole

    def open_rows(self, items: Items) -> tuple[NDArray[np.float32], NDArray[np.float64]] | None:
        """All unit rows and their weights while nothing is folded; None afterwards."""
        self._advance(items)
        if self.rows:
            return None
        tail, newest = self._tail(items)
        return tail, self._weights(items.at, newest)

    def mean(self, items: Items) -> NDArray[np.float64]:
        """The mean of the item amplitudes, (d,)."""
        self._advance(items)
        tail, _ = self._tail(items)
        total = tail.sum(0, dtype=np.float64)
        if self.rows:
            total = total + self._total
        mean: NDArray[np.float64] = total / max(1, len(items))
        return mean

    def _advance(self, items: Items) -> None:
        end = _folded_rows(len(items))
        while self.rows < end:
            block = slice(self.rows, max(_FIRST_BLOCK, self.rows + _BLOCK))
            unit, at = _unit(items.coded.decoded(block)), items.at[block]
            newest = max(self._newest, float(at.max()))
            if self._sketch is None:
                self._sketch, self._total = self._empty(), np.zeros(self._dim)
            else:
                self._sketch.decay(self._gamma(newest))
            self._sketch.update(unit, self._weights(at, newest))
            self._total = self._total + unit.sum(0, dtype=np.float64)
            self._newest, self.rows = newest, block.stop

    def _empty(self) -> Sketch:
        return Sketch(self._dim, min(self._rank, self._dim), dtype="float16")

    def _tail(self, items: Items) -> tuple[NDArray[np.float32], float]:
        at = items.at[self.rows :]
        newest = max([self._newest, float(at.max())] if len(at) else [self._newest])
        return _unit(items.coded.decoded(slice(self.rows, None))), newest

    def _gamma(self, newest: float) -> float:
        if self._half_life_s is None or newest <= self._newest:
            return 1.0
        return float(max(np.exp2((self._newest - newest) / self._half_life_s), _TINY))

    def _weights(self, at: NDArray[np.float64], newest: float) -> NDArray[np.float64]:
        if self._half_life_s is None:
            return np.ones(len(at))
        weights: NDArray[np.float64] = np.maximum(np.exp2((at - newest) / self._half_life_s), _TINY)
        return weights


def _unit(decoded: NDArray[np.float32]) -> NDArray[np.float32]:
    norm = np.linalg.norm(decoded, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.divide(decoded, norm, out=np.zeros_like(decoded), where=norm > 0)
    return unit


def _folded_rows(n: int) -> int:
    return 0 if n < _FIRST_BLOCK else _FIRST_BLOCK + (n - _FIRST_BLOCK) // _BLOCK * _BLOCK
