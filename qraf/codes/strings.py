"""Pauli strings: drawn from a channel, applied to real amplitudes; numpy alone, for processes without torch.

A Pauli string is a pair of masks (x, z); up to a global phase, which no state has, it takes psi to

    psi'_i = (-1)^{parity(z & i)} psi_{i xor x}

The first qubit is the highest bit of an index (the first factor varies slowest).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qraf.errors import InvalidState

__all__ = ["PauliStrings", "Probabilities", "apply_string", "draw_strings", "probability_table", "spelled"]

Probabilities = Sequence[float] | Sequence[Sequence[float]]
"""(pI, pX, pY, pZ) of every qubit alike, or one such row for each qubit."""
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class PauliStrings:
    """Pauli strings, one per ket.

    Attributes:
        x: bits that flip, (n,) int64; the highest of the `num_qubits` bits is the first qubit.
        z: bits whose sign flips, (n,) int64. A qubit in both masks has Y.
        num_qubits: length of every string.
    """

    x: NDArray[np.int64]
    z: NDArray[np.int64]
    num_qubits: int

    @property
    def weight(self) -> int:
        """How many single-qubit Paulis other than I happened, over all strings."""
        return int(np.bitwise_count(self.x | self.z).sum())


def draw_strings(
    n: int, num_qubits: int, probabilities: Probabilities, seed: int | np.random.Generator
) -> PauliStrings:
    """Draw n Pauli strings of `num_qubits` qubits.

    Raises:
        InvalidState: the probabilities are none.
    """
    table = probability_table(probabilities, num_qubits)
    uniform = np.random.default_rng(seed).random((n, num_qubits))
    # 0, 1, 2, 3 = I, X, Y, Z; the last edge is left out so that a sum of 1 - 1e-16 draws no fifth
    which = (uniform[:, :, None] >= np.cumsum(table, axis=1)[None, :, :3]).sum(2)
    bit = np.left_shift(np.int64(1), np.arange(num_qubits - 1, -1, -1))
    x = (((which == 1) | (which == 2)) * bit).sum(1)
    z = ((which >= 2) * bit).sum(1)
    return PauliStrings(x.astype(np.int64), z.astype(np.int64), num_qubits)


def apply_string(psi: NDArray[Any], x: int, z: int) -> NDArray[Any]:
    """Apply one Pauli string to kets (..., 2^n), exactly; real ones stay real.

    Raises:
        InvalidState: the dimension is no power of 2, or a mask has a bit beyond it.

    >>> apply_string(np.array([0.6, 0.8, 0.0, 0.0]), x=2, z=2).tolist()
    [0.0, 0.0, -0.6, -0.8]
    """
    d = psi.shape[-1] if psi.ndim else 0
    if d < 2 or d & (d - 1):
        raise InvalidState("psi", "have dimension 2^n, n at least 1", f"has {d}")
    if not (0 <= x < d and 0 <= z < d):
        raise InvalidState("x, z", f"be masks from 0 to {d - 1}", f"are {x}, {z}")
    index = np.arange(d)
    moved: NDArray[Any] = psi[..., index ^ x]
    return np.where(np.bitwise_count(index & z) & 1, -moved, moved)


def spelled(x: int, z: int, num_qubits: int) -> str:
    """Write one string in letters, the first qubit first.

    >>> spelled(x=6, z=3, num_qubits=3)
    'XYZ'
    """
    bits = range(num_qubits - 1, -1, -1)
    return "".join("IXZY"[(x >> bit & 1) + 2 * (z >> bit & 1)] for bit in bits)


def probability_table(probabilities: Probabilities, num_qubits: int) -> NDArray[np.float64]:
    """Give one checked row of (pI, pX, pY, pZ) for each qubit, (num_qubits, 4)."""
    table = np.asarray(probabilities, np.float64)
    if table.shape not in ((4,), (num_qubits, 4)):
        raise InvalidState("probabilities", f"have shape (4,) or ({num_qubits}, 4)", f"have {table.shape}")
    if not np.isfinite(table).all() or (table < 0).any():
        raise InvalidState("probabilities", "be finite and at least 0", f"are {table.tolist()}")
    off = float(np.abs(table.sum(-1) - 1).max())
    if off > _TOLERANCE:
        raise InvalidState("probabilities", "sum to 1", f"are off by {off:.3g}")
    return np.broadcast_to(table, (num_qubits, 4))
