"""The scan on a CPU: an index over coded rows that gives the best k with certified intervals.

Two passes: a shortlist by the coarse codes (`coarse`: 100 bytes a row at d = 384), then every row of it scored exactly
from its own code. Without the compiled kernels (`native`), or where a shortlist would be most of the rows, one exact
pass over all of them. Scores and intervals are the same either way; what the shortlist may cost is a row, and
`Best.rest` bounds what such a row could have had.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from qraf.errors import InvalidState
from qraf.states.kernels import native
from qraf.states.kernels.coarse import Coarse, pack
from qraf.states.kernels.reference import Best, check, reach
from qraf.states.quantize import Array, Code
from qraf.states.rotation import rotate

__all__ = ["Index", "scan"]

_CHUNK = 4096
_SCORES = 2**25  # held at a time by an exact pass: 128 MiB
_LEAST_CANDIDATES = 256
_SURE = 2.5  # standard errors: one in 160 of the true best is missed at that distance, fewer beyond


def scan(rows: NDArray[np.uint8], queries: Array, d: int, code: Code, k: int = 10) -> Best:
    """Find the best rows in one exact pass; see `reference.scan`. For many scans of the same rows, keep an `Index`."""
    return Index(rows, d, code, coarse=False).scan(queries, k)


class Index:
    """Coded rows (n, row_bytes), kept where they are, and beside them what makes scanning them fast.

    Attributes:
        d: amplitudes per row.
        code: how the rows are coded.

    Raises:
        InvalidState: the rows are not of this code, or there are 2^31 of them or more.
    """

    def __init__(self, rows: NDArray[np.uint8], d: int, code: Code, *, coarse: bool = True) -> None:
        if len(rows) >= 2**31:
            raise InvalidState("rows", "be fewer than 2^31", f"are {len(rows)}")
        self.d, self.code, self._rows = d, code, rows
        self._layout = native.Layout(code.name, d, code.group)
        self._reach = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), _CHUNK):
            piece = reach(code, rows[start : start + _CHUNK], d)
            self._reach[start : start + _CHUNK] = np.nextafter(piece.astype(np.float32), np.float32(np.inf))
        self._farthest = float(self._reach.max(initial=0.0))
        self._coarse: Coarse | None = pack(rows, d, code) if coarse and native.is_here else None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes held beside the rows."""
        return self._reach.nbytes + (0 if self._coarse is None else self._coarse.nbytes)

    def scan(self, queries: Array, k: int = 10, candidates: int | None = None) -> Best:
        """Find the best `k` rows for each query (m, d); see `reference.scan`.

        Args:
            queries: real and finite, (m, d).
            k: how many.
            candidates: rows that the shortlist lets through to the exact scores. More miss less; at half of the rows
                or more there is no shortlist and nothing is missed. Left out: 32 k but at least 256, above 100,000 rows
                sqrt(n / 100,000) times as many; and four times that for the queries whose k-th best is within 2.5
                standard errors of what was let go.

        Raises:
            InvalidState: the queries do not fit, or k or candidates are below 1 and k.
        """
        q = check(queries, self.d, k)
        keep = self._candidates(k) if candidates is None else candidates
        if keep < k:
            raise InvalidState("candidates", f"be at least k = {k}", f"are {keep}")
        k = min(k, len(self))
        asked = _rotated(q) if self.code.rotated else q
        norm = np.linalg.norm(q.astype(np.float64), axis=1)
        index, score = np.empty((len(q), k), np.int64), np.empty((len(q), k), np.float32)
        rest, left = np.empty(len(q)), np.arange(len(q))
        while len(left) and self._coarse is not None and 2 * keep <= len(self):
            found = self._short(self._coarse, q[left], asked[left], norm[left], k, keep)
            index[left], score[left], rest[left], is_likely = found
            left = left[~is_likely] if candidates is None else left[:0]
            keep *= 4
        few = max(1, _SCORES // max(1, len(self)))
        for start in range(0, len(left), few):
            part = left[start : start + few]
            index[part], score[part], rest[part] = self._all(q[part], asked[part], k)
        rest = np.where(np.isneginf(rest), rest, rest + norm * self._farthest)
        return Best(index, score, norm[:, None] * self._reach[index], rest)

    def _candidates(self, k: int) -> int:
        return int(max(32 * k, _LEAST_CANDIDATES) * max(1.0, len(self) / 100_000) ** 0.5)

    def _all(
        self, q: NDArray[np.float32], asked: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float64]]:
        if native.is_here:
            scores = native.overlaps(self._layout, self._rows, asked)
        else:
            scores = self.code.scan(self._rows, q, self.d)
        # one more than asked for is the best of the rest; among equals at the end torch may choose any, so order after
        best = torch.from_numpy(scores).topk(min(k + 1, len(self)), dim=1)
        index, score = best.indices.numpy(), best.values.numpy()
        rest = score[:, k].astype(np.float64) if len(self) > k else np.full(len(q), -np.inf)
        index, score = index[:, :k], score[:, :k]
        order = np.lexsort((index, -score), axis=1)
        return np.take_along_axis(index, order, 1), np.take_along_axis(score, order, 1), rest

    def _short(
        self,
        coarse: Coarse,
        q: NDArray[np.float32],
        asked: NDArray[np.float32],
        norm: NDArray[np.float64],
        k: int,
        keep: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_]]:
        """Rows, scores, what bounds the rest, and whether the shortlist probably held all that it should."""
        rounded = native.ask(asked if self.code.rotated else _rotated(q))
        short = native.shortlist(coarse.codes, coarse.rise, rounded, keep)
        index, score, rest = native.rank(self._layout, self._rows, asked, short.index, short.count, k)
        floor = short.floor * rounded.unit.astype(np.float64)
        # what a row that was let go can have at most, on top of its estimate
        most = floor + norm * coarse.away + rounded.away * coarse.length
        # the error of an estimate is a sum over d rotated amplitudes: nearly normal, deviation |q| |y - f l| / sqrt d
        is_likely = score[:, k - 1] - floor >= _SURE * norm * coarse.away / self.d**0.5
        return index, score, np.maximum(rest, most), is_likely


def _rotated(q: NDArray[np.float32]) -> NDArray[np.float32]:
    return native.rotate(q) if native.is_here else rotate(q).astype(np.float32)
