"""A coarse second code of the same rows, 2 bits an amplitude, laid out for a scan that reads as few bytes as it can.

A row y = R psi' (rotated, so nearly Gaussian) becomes levels l = c - 1.5, c = 0..3, of a cell .9957 |y| / sqrt(d): the
best uniform quantiser of a normal value, mean squared error .1188 where Lloyd-Max has .1175 (Max 1960), and integers
meet integers. With f = <y|y> / <y|l> the estimate f <q|l> is centred (Gao & Long 2024, RaBitQ), and

    | <q|psi'> - f <q8|l> |  <=  |q| |y - f l| + |q - q8| |f l|

for a query rounded to 8 bits, q8. So what a shortlist leaves out is bounded too, if loosely: |y - f l| is about .37,
while the error that is seen is that over sqrt(d).

Layout: blocks of 16 rows; the four bytes of row r in step t hold the amplitudes 16 t ... 16 t + 15; byte j has
16 t + 4 p + j in its bits 2 p and 2 p + 1. A 64-byte load is then one word of each of 16 rows, and no sum over lanes
is ever needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from qraf.errors import InvalidState
from qraf.states.kernels.native import BLOCK, STEP
from qraf.states.quantize import Code
from qraf.states.rotation import matrix

__all__ = ["Coarse", "pack"]

_CELL = 0.9957  # in standard deviations: Max 1960, table II, N = 4
_CHUNK = 256 * BLOCK  # rows packed at a time
_ROUNDING = 2.0**-18  # float32 arithmetic of the rotation, the factors and the estimates, relative to |q| |y|


@dataclass(frozen=True, slots=True, eq=False)
class Coarse:
    """Packed rows and what bounds their estimates.

    Attributes:
        codes: (blocks, steps, 16, 4).
        rise: f of each row, (n,).
        away: the largest |y - f l|.
        length: the largest |f l|.
    """

    codes: NDArray[np.uint8]
    rise: NDArray[np.float32]
    away: float
    length: float

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.codes.nbytes + self.rise.nbytes


def pack(rows: NDArray[np.uint8], d: int, code: Code) -> Coarse:
    """Give coded rows (n, row_bytes) their coarse codes: 2 bits an amplitude and 4 bytes a row.

    Raises:
        InvalidState: the rows are not of this code, or one does not decode to finite amplitudes.
    """
    n, steps = len(rows), -(-d // STEP)
    codes = np.zeros((-(-n // BLOCK), steps, BLOCK, 4), np.uint8)
    rise = np.zeros(n, np.float32)
    away = length = 0.0
    for start in range(0, n, _CHUNK):
        with np.errstate(invalid="ignore", over="ignore"):  # refused below
            y = code.decode(rows[start : start + _CHUNK], d) @ _rotation(d).T
        squares = np.einsum("nd,nd->n", y, y, dtype=np.float64)
        if not np.isfinite(squares).all():
            row = start + int(np.flatnonzero(~np.isfinite(squares))[0])
            raise InvalidState("rows", "decode to finite amplitudes", f"row {row} does not")
        cell = (_CELL * np.sqrt(squares / d)).astype(np.float32)[:, None]
        level = np.clip(np.floor(np.divide(y, cell, out=np.zeros_like(y), where=cell > 0)), -2, 1) + np.float32(0.5)
        along, norm = (np.einsum("nd,nd->n", x, level).astype(np.float64) for x in (y, level))
        factor = np.divide(squares, along, out=np.zeros(len(y)), where=along > 0)
        rise[start : start + len(y)] = factor
        away = max(away, float((factor**2 * norm - 2 * factor * along + squares).max(initial=0.0)))
        length = max(length, float((factor**2 * norm).max(initial=0.0)))
        first, blocks = start // BLOCK, -(-len(y) // BLOCK)
        plain = np.zeros((blocks * BLOCK, steps * STEP), np.uint8)
        plain[: len(y), :d] = level + np.float32(1.5)
        parts = plain.reshape(blocks, BLOCK, steps, 4, 4)
        packed = parts[:, :, :, 0] | parts[:, :, :, 1] << 2 | parts[:, :, :, 2] << 4 | parts[:, :, :, 3] << 6
        codes[first : first + blocks] = packed.transpose(0, 2, 1, 3)
    return Coarse(codes, rise, away**0.5 + _ROUNDING, length**0.5 + _ROUNDING)


@lru_cache(maxsize=8)
def _rotation(d: int) -> NDArray[np.float32]:
    return matrix(d).astype(np.float32)
