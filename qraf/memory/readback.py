"""Codes that come back from the journal: which of them can be codes of a unit state at all.

A coded row decodes to psi' within eps_wc of a unit psi, and eps_wc follows from the scales alone (`quantize.bound`), so
a sound row has | |psi'| - 1 | <= eps_wc. The scales themselves are bounded too: a group's cell is at most its largest
amplitude / 7.5 at 4 bits and / 127.5 at 8, and the squares of a unit row's amplitudes sum to 1, so
eps_wc^2 <= group / (4 * 7.5^2), or group / (4 * 127.5^2). A row outside, with NaN or infinity in a scale, or with a
measured loss outside [0, 1], is damaged. A row of zeros is an item that has no amplitudes and is found by its words.
What stays within the bounds cannot be told from a sound row: this is a check of the physics, no checksum.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qraf.states import quantize

__all__ = ["find_damaged"]

_GROUP = 64
_LEVELS = {4: 7.5, 8: 127.5}
_ROOM = 1e-4  # float32 norms of what was coded, and scales rounded up to float16 (2^-10 of a cell)


def find_damaged(codes: Sequence[bytes], dim: int, bits: int) -> NDArray[np.bool_]:
    """Tell which stored codes no absorb could have made, (n,).

    Args:
        codes: coded row and float16 loss each, all of the length that `memory.code_bytes(dim, bits)` gives.
        dim: d.
        bits: precision of the rows.
    """
    if not codes:
        return np.zeros(0, bool)
    width = quantize.row_bytes(dim, bits)
    raw = np.frombuffer(b"".join(codes), np.uint8).reshape(len(codes), -1)
    rows = np.ascontiguousarray(raw[:, :width])
    lost = np.ascontiguousarray(raw[:, width : width + 2]).view("<f2")[:, 0].astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        guaranteed = quantize.bound(rows, dim, bits)
        norm = np.linalg.norm(quantize.decode(rows, dim, bits).astype(np.float64), axis=1)
        near = np.abs(norm - 1) <= np.sqrt(guaranteed) + _ROOM
        if bits in _LEVELS:
            near &= guaranteed <= _GROUP / (4 * _LEVELS[bits] ** 2) * 1.01
        is_sound = (near | (norm == 0)) & np.isfinite(guaranteed) & (lost >= -_ROOM) & (lost <= 1)
    return np.asarray(~is_sound)
