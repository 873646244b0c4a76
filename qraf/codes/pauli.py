"""Pauli channels on n qubits: exact trajectories of kets, exact maps of density matrices.

A channel applies I, X, Y, Z to a qubit with probabilities (pI, pX, pY, pZ), independently on each qubit. The first
qubit is the highest bit of an index (the first factor varies slowest).

A Pauli string is a pair of masks (x, z); up to a global phase, which no state has, it takes psi to

    psi'_i = (-1)^{parity(z & i)} psi_{i xor x}                                                                  (1)

so a trajectory is a gather and signs, real kets stay real, and no rounding happens at all. On a density matrix the
channel of one qubit needs only the four blocks of that qubit's bit (Nielsen & Chuang, section 8.3):

    rho = [[a, b], [c, e]]  ->  a' = (pI+pZ) a + (pX+pY) e,   b' = (pI-pZ) b + (pX-pY) c,   and alike for e' and c'
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qraf.codes.strings import PauliStrings, Probabilities, draw_strings, probability_table
from qraf.errors import InvalidState

__all__ = ["PauliStrings", "Probabilities", "apply_strings", "apply_to_density", "apply_to_kets", "draw_strings"]


def apply_to_kets(
    psi: Tensor, probabilities: Probabilities, seed: int | np.random.Generator
) -> tuple[Tensor, PauliStrings]:
    """Send kets through the channel: one trajectory each. Their average over many is the channel's density operator.

    Args:
        psi: kets, (..., 2^n), real or complex.
        probabilities: (pI, pX, pY, pZ), or one row for each of the n qubits.
        seed: a seed, or a generator that goes on.

    Returns:
        Kets of the same shape and dtype, equal bit for bit where nothing happened, and what happened.

    Raises:
        InvalidState: the dimension is no power of 2, or the probabilities are none.
    """
    num_qubits = _qubits(psi, "psi")
    strings = draw_strings(psi.shape[:-1].numel(), num_qubits, probabilities, seed)
    return apply_strings(psi, strings), strings


def apply_strings(psi: Tensor, strings: PauliStrings) -> Tensor:
    """Apply one Pauli string to each ket, equation (1).

    Raises:
        InvalidState: there are not as many strings as kets, or their length does not fit the dimension.
    """
    num_qubits, n, d = _qubits(psi, "psi"), psi.shape[:-1].numel(), psi.shape[-1]
    if strings.num_qubits != num_qubits or len(strings.x) != n:
        need = f"be {n} strings of {num_qubits} qubits"
        raise InvalidState("strings", need, f"are {len(strings.x)} of {strings.num_qubits}")
    hit = np.flatnonzero(strings.x | strings.z)  # below the threshold most kets cross untouched
    if not len(hit):
        return psi.clone()
    index = torch.arange(d)
    x, z = (torch.from_numpy(mask[hit])[:, None] for mask in (strings.x, strings.z))
    parity = z & index
    for shift in (16, 8, 4, 2, 1):
        parity ^= parity >> shift
    rows = psi.reshape(n, d)
    chosen = torch.from_numpy(hit).to(psi.device)
    moved = rows[chosen].gather(1, (x ^ index).to(psi.device))
    moved = torch.where((parity & 1).bool().to(psi.device), -moved, moved)
    return rows.index_copy(0, chosen, moved).reshape(psi.shape)


def apply_to_density(rho: Tensor, probabilities: Probabilities) -> Tensor:
    """Send density operators through the channel, exactly.

    Args:
        rho: (..., 2^n, 2^n), real or complex.
        probabilities: (pI, pX, pY, pZ), or one row for each of the n qubits.

    Returns:
        Density operators, same shape and dtype.

    Raises:
        InvalidState: `rho` is not square, its dimension is no power of 2, or the probabilities are none.
    """
    if rho.ndim < 2 or rho.shape[-2] != rho.shape[-1]:
        raise InvalidState("rho", "have shape (..., d, d)", f"has {tuple(rho.shape)}")
    num_qubits = _qubits(rho, "rho")
    table = probability_table(probabilities, num_qubits)
    lead, d, out = rho.shape[:-2], rho.shape[-1], rho
    for qubit, (p_i, p_x, p_y, p_z) in enumerate(table.tolist()):
        if p_i == 1:
            continue
        high, low = 2**qubit, d >> (qubit + 1)
        blocks = out.reshape(-1, high, 2, low, high, 2, low)
        flipped = blocks.flip((2, 5))
        same = torch.tensor([[p_i + p_z, p_i - p_z], [p_i - p_z, p_i + p_z]], dtype=torch.float64)
        cross = torch.tensor([[p_x + p_y, p_x - p_y], [p_x - p_y, p_x + p_y]], dtype=torch.float64)
        real = rho.real.dtype if rho.is_complex() else rho.dtype
        shape = (1, 1, 2, 1, 1, 2, 1)
        keep, swap = (w.to(rho.device, real).reshape(shape) for w in (same, cross))
        out = blocks * keep + flipped * swap
    return out.reshape(*lead, d, d) if out is not rho else rho.clone()


def _qubits(x: Tensor, name: str) -> int:
    d = x.shape[-1] if x.ndim else 0
    if d < 2 or d & (d - 1):
        raise InvalidState(name, "have dimension 2^n, n at least 1", f"has {d}")
    return d.bit_length() - 1
