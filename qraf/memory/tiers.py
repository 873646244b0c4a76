"""The coded rows of a memory's items, some at a lower precision than others.

A memory of so many bits has a ladder of precisions, e.g. 4, 2, 1; an item comes in on the first rung and may step down.
A step is made from the codes that are held: decode, bring to unit norm, code anew. It works on each row alone, so that
a row has the same bytes however and whenever it came down, and a memory that is rebuilt equals the one that grew.

What a step costs is measured, F = <psi'|psi''>^2 of the row before and after. Two errors one after the other are nearly
orthogonal, so the infidelity from the exact state is given as 1 - F_1 F_2; what is guaranteed is the triangle
inequality of angles between rays, theta <= theta_1 + theta_2 with cos^2 theta = F (Fubini-Study).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qraf.errors import InvalidState
from qraf.memory.columns import Column, capacity
from qraf.states import projected, quantize

__all__ = ["Tiers", "composed", "ladder", "rounded_up", "stepped_down"]


def ladder(bits: int) -> tuple[int, ...]:
    """The precisions that items of a memory of so many bits may have, best first.

    >>> ladder(8)
    (8, 4, 2, 1)
    """
    return tuple(sorted((one for one in quantize.BITS if one <= bits), reverse=True))


def stepped_down(
    rows: NDArray[np.uint8], dim: int, bits: int, to_bits: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Rows of `bits` as rows of `to_bits`, and the fidelity of what came out with what went in, (n,)."""
    held = quantize.decode(rows, dim, bits).astype(np.float64)
    norm = np.sqrt(np.einsum("nd,nd->n", held, held))
    unit = np.divide(held, norm[:, None], out=np.zeros_like(held), where=norm[:, None] > 0).astype(np.float32)
    lower = quantize.encode(unit, to_bits)
    kept = np.ones(len(rows))  # an item without amplitudes has nothing to lose
    some = norm > 0
    if some.any():
        kept[some] = quantize.loss(unit[some], lower[some], to_bits)[0]
    return lower, kept


def composed(
    infidelity: NDArray[Any], guaranteed: NDArray[Any], fidelity: NDArray[np.float64]
) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """What states have lost, and have lost at most, after a step of such `fidelity`."""
    lost = 1 - (1 - infidelity.astype(np.float64)) * fidelity
    before = np.arcsin(np.sqrt(np.clip(guaranteed.astype(np.float64), 0, 1)))
    step = np.arcsin(np.sqrt(np.clip(1 - fidelity, 0, 1)))
    return lost.astype(np.float16), rounded_up(np.sin(np.minimum(before + step, np.pi / 2)) ** 2)


def rounded_up(x: NDArray[np.float64]) -> NDArray[np.float16]:
    """Values in [0, 1] as float16, none smaller than it was."""
    half = np.minimum(x, 1.0).astype(np.float16)
    return np.where(half.astype(np.float64) < x, np.nextafter(half, np.float16(2)), half)


class Tiers:
    """Coded rows in the items' order; each has a level, its rung of the ladder, 0 for the best."""

    def __init__(self, dim: int, bits: int) -> None:
        self.dim, self.ladder = dim, ladder(bits)
        self._widths = np.array([quantize.row_bytes(dim, one) for one in self.ladder])
        self._rows: list[Column[Any]] = [Column(np.uint8, width=int(width)) for width in self._widths]
        self._level: Column[Any] | None = None  # while something is lowered

    def __len__(self) -> int:
        return sum(len(column) for column in self._rows)

    @property
    def columns(self) -> list[Column[Any]]:
        """What is allocated."""
        return self._rows if self._level is None else [*self._rows, self._level]

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(column.nbytes for column in self.columns)

    @property
    def level(self) -> NDArray[np.uint8]:
        """The level of each item, (n,)."""
        level: NDArray[np.uint8] = np.zeros(len(self), np.uint8) if self._level is None else self._level.values
        return level

    @property
    def is_lowered(self) -> bool:
        """Whether any item is below the first rung."""
        return self._level is not None

    def counts(self) -> tuple[int, ...]:
        """How many items are on each rung."""
        return tuple(len(column) for column in self._rows)

    def size_of(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """The bytes that so many items on each rung would take, (..., rungs) -> (...)."""
        n = counts.sum(-1)
        size: NDArray[np.int64] = capacities(counts) @ self._widths
        return size + np.where(counts[..., 0] < n, capacities(n), 0)

    # ------------------------------------------------------------------------------------------------------ reading
    def best(self, row: int) -> NDArray[np.uint8] | None:
        """The coded row of an item on the first rung; None for one below it."""
        level = self.level
        if level[row]:
            return None
        coded: NDArray[np.uint8] = self._rows[0].values[int(np.count_nonzero(level[:row] == 0))]
        return coded

    def decoded(self, rows: slice | NDArray[np.int64] = slice(None)) -> NDArray[np.float32]:
        """Decoded amplitudes of `rows`, (k, d)."""
        if self._level is None:
            return quantize.decode(self._rows[0].values[rows], self.dim, self.ladder[0])
        out = np.zeros((len(self.level[rows]), self.dim), np.float32)
        for bits, where, coded in self._parts(rows):
            out[where] = quantize.decode(coded, self.dim, bits)
        return out

    def lengths(self, rows: slice | NDArray[np.int64] = slice(None)) -> NDArray[np.float64] | None:
        """|psi'| of those of `rows` that are coded as projections, with 2 bits or 1, and 0 of the others, (k,).

        None where there are none.
        """
        if self.ladder[0] > 2 and self._level is None:
            return None
        out = np.zeros(len(self.level[rows]))
        for bits, where, coded in self._parts(rows):
            if bits <= 2:
                out[where] = np.sqrt(projected.length(coded, self.dim, "lloyd2" if bits == 2 else "sign1"))
        return out

    def scan(self, q: NDArray[np.float32], rows: slice | NDArray[np.int64] = slice(None)) -> NDArray[np.float32]:
        """<q|psi'> of every query (m, d) with every one of `rows`, (m, k)."""
        if self._level is None:
            return quantize.scan(self._rows[0].values[rows], q, self.dim, self.ladder[0])
        out = np.zeros((len(q), len(self.level[rows])), np.float32)
        for bits, where, coded in self._parts(rows):
            out[:, where] = quantize.scan(coded, q, self.dim, bits)
        return out

    # ------------------------------------------------------------------------------------------------------ changes
    def append(self, rows: NDArray[np.uint8]) -> None:
        """Put items on the first rung behind the others."""
        self._rows[0].append(rows)
        if self._level is not None:
            self._level.append(np.zeros(len(rows), np.uint8))

    def lower(self, rows: NDArray[np.int64], level: int) -> NDArray[np.float64]:
        """Bring `rows`, ascending and all one rung above `level`, down to it; the fidelity of that step, (k,)."""
        held, before = self.level.copy(), level - 1
        where = np.flatnonzero(held == before)
        is_gone = np.isin(where, rows, assume_unique=True)
        codes, fidelity = stepped_down(
            self._rows[before].values[is_gone], self.dim, self.ladder[before], self.ladder[level]
        )
        order = np.argsort(np.concatenate((np.flatnonzero(held == level), rows)), kind="stable")
        self._rows[before].replace(self._rows[before].values[~is_gone])
        self._rows[level].replace(np.concatenate((self._rows[level].values, codes))[order])
        held[rows] = level
        self._hold(held)
        return fidelity

    def take(self, rows: NDArray[np.int64]) -> None:
        """Keep `rows`, in that order."""
        held = self.level
        place = np.zeros(len(held), np.int64)
        for level in range(len(self.ladder)):
            where = held == level
            place[where] = np.arange(int(where.sum()))
        kept = held[rows]
        for level, column in enumerate(self._rows):
            column.replace(column.values[place[rows[kept == level]]])
        self._hold(kept.copy())

    def zero(self, rows: NDArray[np.int64]) -> None:
        """Overwrite `rows` with zeros where they are."""
        for level, column in enumerate(self._rows):
            where = np.flatnonzero(self.level == level)
            column.values[np.isin(where, rows)] = 0

    def parts(self) -> dict[str, NDArray[Any]]:
        """Copies of what is held: `level`, and `rows 0` and so on for each rung."""
        rows = {f"rows {level}": column.values.copy() for level, column in enumerate(self._rows)}
        return {"level": self.level.copy(), **rows}

    def put(self, parts: Mapping[str, NDArray[Any]]) -> None:
        """Hold what `parts` gave, in place of what is here.

        Raises:
            InvalidState: the parts do not belong together.
        """
        level = parts["level"]
        for rung, (column, width) in enumerate(zip(self._rows, self._widths.tolist(), strict=True)):
            rows = parts[f"rows {rung}"]
            count = int(np.count_nonzero(level == rung))
            if rows.shape != (count, width):
                raise InvalidState(f"rows {rung}", f"have shape ({count}, {width})", f"has {rows.shape}")
            column.replace(rows)
        if len(self) != len(level):
            raise InvalidState("level", f"be below {len(self._rows)}", f"is {int(level.max())}")
        self._hold(level)

    def _hold(self, level: NDArray[np.uint8]) -> None:
        if not level.any():
            self._level = None
            return
        self._level = self._level or Column(np.uint8)
        self._level.replace(level)

    def _parts(self, rows: slice | NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64], NDArray[np.uint8]]]:
        """Of each rung: its bits, the places among `rows` that are on it, their codes."""
        held = self.level
        chosen = held[rows]
        out = []
        for level, bits in enumerate(self.ladder):
            where = np.flatnonzero(chosen == level)
            if len(where):
                place = np.cumsum(held == level) - 1
                out.append((bits, where, self._rows[level].values[place[rows][where]]))
        return out


def capacities(n: NDArray[np.int64]) -> NDArray[np.int64]:
    """`columns.capacity` of many numbers at once."""
    rungs = [0]
    most = int(n.max(initial=0))
    while rungs[-1] < most:
        rungs.append(capacity(rungs[-1] + 1))
    ladder = np.array(rungs, np.int64)
    return ladder[np.searchsorted(ladder, n)]
