"""Coded factors: a mixed state rho = L^H L in few bytes, with its trace distance guaranteed.

A factor of trace 1 is a unit vector |L> of a larger space, a purification of rho (Uhlmann 1976), and the bounds of
`quantize` hold for it. Partial trace lowers no fidelity, so

    T(rho, rho')  <=  sqrt(1 - |<L|L'>|^2 / <L'|L'>)  <=  ||L - L'||_F,      rho' = L'^H L' / tr L'^H L'

Each row of L is one coded row, complex rows as their real and imaginary halves; the squared bounds of the rows add up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qraf.errors import InvalidState
from qraf.states.checks import check_factor
from qraf.states.measures import fidelity_factor, trace_distance_factor
from qraf.states.quantize import Code

__all__ = ["CodedFactor", "FactorLoss", "decode_factor", "encode_factor", "factor_loss"]


@dataclass(frozen=True, slots=True, eq=False)
class CodedFactor:
    """Coded rows of a factor (r, d) with trace 1, and what reads them."""

    rows: NDArray[np.uint8]
    d: int
    is_complex: bool
    code: Code

    @property
    def nbytes(self) -> int:
        """Bytes of the coded rows."""
        return self.rows.nbytes

    @property
    def bound(self) -> float:
        """The guaranteed trace distance from the exact state, from the rows alone, at most 1."""
        width = 2 * self.d if self.is_complex else self.d
        return min(1.0, math.sqrt(self.code.joint_bound(self.rows, width)))


@dataclass(frozen=True, slots=True)
class FactorLoss:
    """What coding a state lost: fidelity and trace distance as measured, and the guaranteed trace distance."""

    fidelity: float
    trace_distance: float
    bound: float


def encode_factor(factor: Tensor, code: Code) -> CodedFactor:
    """Code a factor (r, d), real or complex, of any positive trace; it is scaled to trace 1 first.

    Raises:
        InvalidState: no factor of shape (r, d), a value that is not finite, or trace 0.
    """
    unit = _unit(factor)
    halves = torch.cat((unit.real, unit.imag), 1) if unit.is_complex() else unit
    return CodedFactor(code.encode(halves), unit.shape[1], unit.is_complex(), code)


def decode_factor(coded: CodedFactor) -> Tensor:
    """The decoded factor at trace 1, (r, d), complex128 or float64.

    Raises:
        InvalidState: the rows are not of this code, or all of them decode to zero.
    """
    halves = torch.from_numpy(coded.code.decode(coded.rows, 2 * coded.d if coded.is_complex else coded.d)).double()
    return _unit(torch.complex(halves[:, : coded.d], halves[:, coded.d :]) if coded.is_complex else halves)


def factor_loss(factor: Tensor, coded: CodedFactor) -> FactorLoss:
    """Measure what coding lost; `factor` is taken at trace 1."""
    exact, kept = _unit(factor), decode_factor(coded)
    if exact.shape != kept.shape:
        raise InvalidState("factor", f"have shape {tuple(kept.shape)}", f"has {tuple(exact.shape)}")
    if exact.is_complex() != kept.is_complex():
        exact, kept = exact.to(torch.complex128), kept.to(torch.complex128)
    fidelity = float(fidelity_factor(exact, kept))
    return FactorLoss(min(1.0, fidelity), float(trace_distance_factor(exact, kept)), coded.bound)


def _unit(factor: Tensor) -> Tensor:
    check_factor(factor)
    if factor.ndim != 2:
        raise InvalidState("factor", "have shape (r, d)", f"has {tuple(factor.shape)}")
    wide = factor.detach().cpu().to(torch.complex128 if factor.is_complex() else torch.float64)
    norm = float(torch.linalg.vector_norm(wide))
    if not np.isfinite(norm) or norm <= 0:
        raise InvalidState("factor", "have a finite trace above 0", f"has {norm**2:g}")
    return wide / norm
