"""From amplitudes, or from codes that a journal kept, to the coded rows of a memory, with what was lost on the way."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from qraf.errors import InvalidState
from qraf.memory.tiers import composed, ladder, rounded_up, stepped_down
from qraf.states import quantize

__all__ = ["Coded", "code_bytes", "coded_exactly", "read_codes", "written_code"]

Coded: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16]]
"""Rows (n, width), what coding them lost (n,), and what it lost at most (n,)."""

_LOSS_BYTES = 2  # float16 behind the coded amplitudes


def code_bytes(dim: int, bits: int = 4) -> int:
    """Bytes of an item's codes as `absorb` gives and takes them: the coded row, then its measured infidelity.

    >>> code_bytes(384)
    206
    """
    return quantize.row_bytes(dim, bits) + _LOSS_BYTES


def coded_exactly(amplitudes: NDArray[np.float32], bits: int) -> Coded:
    """Code rows at unit norm; a row of zeros, an item without amplitudes, loses nothing.

    Raises:
        InvalidState: a value is not finite.
    """
    if not np.isfinite(amplitudes).all():
        raise InvalidState("amplitudes", "be finite", "hold NaN or infinity")
    norm = np.linalg.norm(amplitudes.astype(np.float64), axis=1, keepdims=True)
    unit = np.divide(amplitudes, norm, out=np.zeros(amplitudes.shape), where=norm > 0).astype(np.float32)
    rows = quantize.encode(unit, bits)
    infidelity = np.zeros(len(unit), np.float16)
    some = norm[:, 0] > 0
    if some.any():
        infidelity[some] = 1 - quantize.loss(unit[some], rows[some], bits)[0]
    return rows, infidelity, _at_most(rows, unit.shape[1], bits)


def read_codes(codes: Sequence[bytes], dim: int, bits: int, to_bits: int) -> Coded:
    """Read codes of `bits`, stepping down to `to_bits` where these are fewer.

    Raises:
        InvalidState: there is no such precision, it is below `to_bits`, or codes have the wrong length.
    """
    if bits not in quantize.BITS or bits < to_bits:
        raise InvalidState("codes", f"have {to_bits} bits or more", f"have {bits}")
    width = code_bytes(dim, bits)
    wrong = next((len(code) for code in codes if len(code) != width), width)
    if wrong != width:
        raise InvalidState("codes", f"have {width} bytes", f"has {wrong}")
    raw = np.frombuffer(b"".join(codes), np.uint8).reshape(len(codes), width)
    rows = np.ascontiguousarray(raw[:, :-_LOSS_BYTES])
    infidelity = np.ascontiguousarray(raw[:, -_LOSS_BYTES:]).view("<f2")[:, 0].astype(np.float16)
    guaranteed = _at_most(rows, dim, bits)
    for above, below in pairwise(one for one in ladder(bits) if one >= to_bits):
        rows, fidelity = stepped_down(rows, dim, above, below)
        infidelity, guaranteed = composed(infidelity, guaranteed, fidelity)
    return rows, infidelity, guaranteed


def written_code(row: NDArray[np.uint8], infidelity: np.float16) -> bytes:
    """One item's codes for the journal."""
    code: bytes = row.tobytes() + np.array(infidelity, "<f2").tobytes()
    return code


def _at_most(rows: NDArray[np.uint8], dim: int, bits: int) -> NDArray[np.float16]:
    """The guaranteed infidelity of coded unit rows; 0 for a row of zeros, which is no state."""
    guaranteed = rounded_up(quantize.bound(rows, dim, bits))
    if bits <= 2:  # on a grid the cells of a zero row have no width
        guaranteed[~quantize.decode(rows, dim, bits).any(axis=1)] = 0
    return guaranteed
