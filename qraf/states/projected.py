"""One scale a row: 2 bits (Lloyd-Max levels) and 1 bit (signs), with a guarantee that needs no cells.

A row y, usually rotated and so nearly Gaussian, becomes a pattern l of levels and one scale: y' = s l.

    lloyd2   l_i in {-1.5104, -0.4528, 0.4528, 1.5104}, the level of sqrt(d) y_i / |y| (Max 1960)
    sign1    l_i = +1 or -1, the sign of y_i

The outer cells have no end, so no half cell bounds the error. Instead s is the length that y has along l,
s* = <y|l> / <l|l>, rounded *down* to float16. Then, for |y| = 1 and any pattern l,

    <y|y'> = s s* <l|l>  >=  s^2 <l|l> = |y'|^2                              because 0 <= s <= s*
    F = <y|y'>^2 / |y'|^2  >=  |y'|^2,      |y - y'|^2 = 1 - 2 <y|y'> + |y'|^2  <=  1 - |y'|^2

so 1 - |y'|^2, which the receiver reads from the row alone, bounds both the infidelity and the squared distance. It is
no worst case over a cell: it lies above the true infidelity by the rounding of s only, at most 2^-9 F. At 1 bit
F = (sum |y_i|)^2 / d, which for a Gaussian direction is 2 / pi = 0.637; at 2 bits 1 - 0.1175.

Codes are packed from the least significant bit (2 bits: four to a byte, the index of the level, ascending; 1 bit:
eight to a byte, set for +), then the scale, little-endian float16. A zero row has scale 0.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qraf.errors import InvalidState

__all__ = [
    "LLOYD2_EDGE",
    "LLOYD2_LEVELS",
    "ProjectedName",
    "code_bytes",
    "decode",
    "encode",
    "length",
    "pattern",
    "scales",
]

ProjectedName = Literal["lloyd2", "sign1"]

_F16_MAX = 65504.0
_INNER, _OUTER = 0.4527800346, 1.5104176085  # lloyd_max.gaussian(2), written down because stored codes need them
LLOYD2_LEVELS = np.array((-_OUTER, -_INNER, _INNER, _OUTER), np.float32)
LLOYD2_EDGE = (_INNER + _OUTER) / 2
_LEVELS = {"lloyd2": LLOYD2_LEVELS, "sign1": np.array((-1.0, 1.0), np.float32)}
_EVERY_BYTE = np.arange(256)[:, None]
_BYTES = {  # the levels that a byte of codes stands for
    "lloyd2": LLOYD2_LEVELS[(_EVERY_BYTE >> np.arange(0, 8, 2)) & 3],
    "sign1": _LEVELS["sign1"][(_EVERY_BYTE >> np.arange(8)) & 1],
}

_BYTE_SQUARES = (_BYTES["lloyd2"].astype(np.float64) ** 2).sum(1)


def encode(y: NDArray[np.float64], name: ProjectedName) -> NDArray[np.uint8]:
    """Code finite rows (n, d)."""
    n, d = y.shape
    if name == "sign1":
        codes = (y >= 0).astype(np.uint8)
    else:
        edge = LLOYD2_EDGE * np.sqrt(_squares(y) / d)[:, None]
        codes = np.where(y >= 0, np.uint8(2), np.uint8(1))
        codes += (y >= edge) & (edge > 0)
        codes -= (y < -edge) & (edge > 0)
    levels = _LEVELS[name].astype(np.float64)[codes]
    along = np.einsum("nd,nd->n", y, levels) / _squares(levels)
    if n and along.max() > _F16_MAX:
        raise InvalidState("x", f"have scales below {_F16_MAX:.0f}", f"needs {along.max():.3g}")
    split = code_bytes(d, name)
    out = np.empty((n, split + 2), np.uint8)
    if name == "sign1":
        out[:, :split] = np.packbits(codes, axis=1, bitorder="little")
    else:
        quads = np.pad(codes, ((0, 0), (0, -d % 4))).reshape(n, split, 4)
        out[:, :split] = quads[:, :, 0] | (quads[:, :, 1] << 2) | (quads[:, :, 2] << 4) | (quads[:, :, 3] << 6)
    out[:, split:] = _rounded_down(along).astype("<f2").view(np.uint8).reshape(n, 2)
    return out


def decode(rows: NDArray[np.uint8], d: int, name: ProjectedName) -> NDArray[np.float32]:
    """Decode rows to s l, (n, d)."""
    return pattern(rows, d, name) * scales(rows)[:, None]


def pattern(rows: NDArray[np.uint8], d: int, name: ProjectedName) -> NDArray[np.float32]:
    """The levels l of each row without its scale, (n, d)."""
    levels = np.take(_BYTES[name], rows[:, : code_bytes(d, name)], axis=0)
    flat: NDArray[np.float32] = levels.reshape(len(rows), levels.shape[1] * levels.shape[2])[:, :d]
    return flat


def scales(rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The scale of each row, (n,)."""
    return np.ascontiguousarray(rows[:, -2:]).view("<f2").astype(np.float32)[:, 0]


def length(rows: NDArray[np.uint8], d: int, name: ProjectedName) -> NDArray[np.float64]:
    """|y'|^2 = s^2 <l|l> of each row, (n,): for a unit row the guaranteed fidelity."""
    total = np.full(len(rows), float(d))
    if name == "lloyd2":
        padding = 4 * code_bytes(d, name) - d  # codes of 0 behind the last one
        packed = _BYTE_SQUARES[rows[:, : code_bytes(d, name)]]
        total = packed.sum(1) - padding * float(LLOYD2_LEVELS[0]) ** 2
    squared: NDArray[np.float64] = scales(rows).astype(np.float64) ** 2 * total
    return squared


def code_bytes(d: int, name: ProjectedName) -> int:
    """Bytes of the codes of a row, in front of its scale."""
    return -(-d // 8) if name == "sign1" else -(-d // 4)


def _squares(x: NDArray[np.float64]) -> NDArray[np.float64]:
    squares: NDArray[np.float64] = np.einsum("nd,nd->n", x, x)
    return squares


def _rounded_down(scale: NDArray[np.float64]) -> NDArray[np.float16]:
    half: NDArray[np.float16] = scale.astype(np.float16)
    down: NDArray[Any] = np.nextafter(half, np.float16(-np.inf))
    return np.maximum(np.where(half.astype(np.float64) > scale, down, half), np.float16(0))
