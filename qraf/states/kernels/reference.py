"""What a scan is, in the plainest form: every kernel here gives what these few lines give.

A row is a unit state |psi> kept as a code psi'. A query <q| meets it with <q|psi>, of which only <q|psi'> can be
computed; `Code.bound` gives eps^2 >= |psi - psi'|^2 from the row alone, so by Cauchy and Schwarz

    | <q|psi> - score |  <=  |q| (eps + rounding (1 + eps)),     rounding = (d + 32) 2^-24

where the second part covers float32 sums of d products in any order (Higham 2002, section 3.1) and a rotated query in
float32. The interval holds for every row and query; no distribution is assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qraf.errors import InvalidState
from qraf.states.quantize import Array, Code

__all__ = ["Best", "check", "reach", "scan"]


@dataclass(frozen=True, slots=True, eq=False)
class Best:
    """The best rows for each of m queries, k = min(k, n) of them, largest first.

    Attributes:
        index: rows, (m, k).
        score: <q|psi'>, (m, k).
        radius: (m, k); the exact overlap <q|psi> of a unit state lies within score +- radius.
        rest: (m,); no row that is not returned has an exact overlap above it; -inf when all are returned. Where
            `score - radius` of the last one returned is at least `rest`, no other row could have come first.
    """

    index: NDArray[np.int64]
    score: NDArray[np.floating]
    radius: NDArray[np.float64]
    rest: NDArray[np.float64]


def scan(rows: NDArray[np.uint8], queries: Array, d: int, code: Code, k: int = 10) -> Best:
    """Find the `k` coded rows (n, row_bytes) of largest overlap with each real query (m, d).

    Equal scores come in the order of their rows.

    Raises:
        InvalidState: the rows are not of this code, the queries not real, finite and (m, d), or k is below 1.
    """
    q = check(queries, d, k).astype(np.float64)
    score = q @ code.decode(rows, d).astype(np.float64).T
    radius = np.linalg.norm(q, axis=1)[:, None] * reach(code, rows, d)[None, :]
    order = np.argsort(-score, axis=1, kind="stable")
    best, others = order[:, :k], order[:, k:]
    upper = np.take_along_axis(score + radius, others, 1)
    return Best(
        index=best,
        score=np.take_along_axis(score, best, 1),
        radius=np.take_along_axis(radius, best, 1),
        rest=upper.max(1, initial=-np.inf),
    )


def reach(code: Code, rows: NDArray[np.uint8], d: int) -> NDArray[np.float64]:
    """The radius of each row for a unit query, (n,)."""
    eps = np.sqrt(code.bound(rows, d))
    wide: NDArray[np.float64] = eps + (d + 32) * 2.0**-24 * (1 + eps)
    return wide


def check(queries: Array, d: int, k: int) -> NDArray[np.float32]:
    """Queries at the door: real, finite, (m, d), and a k that asks for something."""
    values = np.asarray(queries)
    if np.iscomplexobj(values):
        raise InvalidState("queries", "be real", "are complex")
    if values.ndim != 2 or values.shape[1] != d:
        raise InvalidState("queries", f"have shape (m, {d})", f"has {values.shape}")
    q = values.astype(np.float32)
    if not np.isfinite(q).all():
        raise InvalidState("queries", "be finite", "hold NaN or infinity")
    if k < 1:
        raise InvalidState("k", "be at least 1", f"is {k}")
    return q
