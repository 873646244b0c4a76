"""DensityOperator: a checked dense state with its subsystems, for the door; inside, states are factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qraf.errors import InvalidState
from qraf.states import measures
from qraf.states.checks import TOLERANCE, check_density, check_dims, check_factor, check_ket, check_weights

__all__ = ["DensityOperator"]


@dataclass(frozen=True, slots=True, eq=False)
class DensityOperator:
    """A density operator rho (d, d), checked when made: Hermitian, unit trace, positive.

    `dims` are the subsystem sizes, the first varying slowest; (d,) when left out.

    Raises:
        InvalidState: `rho` is no density operator, or `dims` do not multiply to d.

    >>> DensityOperator.maximally_mixed((2, 2)).entropy_bits
    2.0
    """

    rho: Tensor
    dims: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.rho.ndim != 2:
            raise InvalidState("rho", "have shape (d, d)", f"has {tuple(self.rho.shape)}")
        check_density(self.rho)
        object.__setattr__(self, "dims", check_dims(self.dims or (self.d,), self.d))

    @classmethod
    def of_ket(cls, psi: Tensor, dims: Sequence[int] = ()) -> DensityOperator:
        """The pure state |psi><psi| of a unit vector (d,)."""
        check_ket(psi)
        if psi.ndim != 1:
            raise InvalidState("psi", "have shape (d,)", f"has {tuple(psi.shape)}")
        return cls(torch.outer(psi, psi.conj()), tuple(dims))

    @classmethod
    def mixture(cls, psi: Tensor, weights: Tensor | None = None, dims: Sequence[int] = ()) -> DensityOperator:
        """The ensemble sum_i p_i |psi_i><psi_i| of unit vectors (n, d), equally likely when `weights` is left out."""
        check_ket(psi)
        if psi.ndim != 2 or not len(psi):
            raise InvalidState("psi", "have shape (n, d) with n >= 1", f"has {tuple(psi.shape)}")
        equal = torch.full((len(psi),), 1 / len(psi), dtype=psi.real.dtype)
        weights = equal if weights is None else check_weights(weights.to(psi.real.dtype), len(psi))
        return cls((psi.mT * weights) @ psi.conj(), tuple(dims))

    @classmethod
    def of_factor(cls, factor: Tensor, dims: Sequence[int] = ()) -> DensityOperator:
        """The state L^H L of a factor (r, d) with unit Frobenius norm."""
        check_factor(factor)
        return cls(factor.mH @ factor, tuple(dims))

    @classmethod
    def maximally_mixed(cls, dims: Sequence[int], dtype: torch.dtype = torch.complex128) -> DensityOperator:
        """The state I / d: nothing is known."""
        d = math.prod(dims)
        return cls(torch.eye(d, dtype=dtype) / d, tuple(dims))

    @property
    def d(self) -> int:
        """The dimension."""
        return int(self.rho.shape[-1])

    @property
    def purity(self) -> float:
        """Tr rho^2."""
        return float(measures.purity(self.rho))

    @property
    def entropy_bits(self) -> float:
        """Von Neumann entropy in bits."""
        return float(measures.entropy_bits(self.rho)) + 0.0  # no negative zero

    @property
    def effective_rank(self) -> float:
        """2^S."""
        return float(measures.effective_rank(self.rho))

    @property
    def coherence_bits(self) -> float:
        """Relative entropy of coherence in the computational basis, in bits."""
        return float(measures.coherence_bits(self.rho))

    @property
    def l1_coherence(self) -> float:
        """Sum of the absolute off-diagonal elements."""
        return float(measures.l1_coherence(self.rho))

    def factor(self) -> Tensor:
        """L (r, d) with L^H L = rho and r the numerical rank."""
        rows = measures.factor_of(self.rho)
        return rows[rows.abs().sum(-1) > 0]

    def fidelity(self, other: DensityOperator) -> float:
        """Squared fidelity."""
        return float(measures.fidelity(self.rho, other.rho))

    def trace_distance(self, other: DensityOperator) -> float:
        """|rho - sigma|_1 / 2."""
        return float(measures.trace_distance(self.rho, other.rho))

    def born(self, x: Tensor) -> float:
        """The probability <x|rho|x> of finding the unit vector x (d,)."""
        check_ket(x, "x")
        if x.shape != (self.d,):
            raise InvalidState("x", f"have shape ({self.d},)", f"has {tuple(x.shape)}")
        return float((x.conj() @ self.rho.to(torch.promote_types(x.dtype, self.rho.dtype)) @ x).real)

    def partial_trace(self, keep: Sequence[int] = (0,)) -> DensityOperator:
        """Reduce to the subsystems `keep`, in their order in `dims`."""
        reduced = measures.partial_trace(self.rho, self.dims, keep)
        return DensityOperator(reduced, tuple(self.dims[index] for index in sorted(keep)) or (1,))

    def tensor(self, other: DensityOperator) -> DensityOperator:
        """The product state; this one's subsystems vary slowest."""
        return DensityOperator(torch.kron(self.rho, other.rho), self.dims + other.dims)

    def allclose(self, other: DensityOperator) -> bool:
        """Whether the two are the same state of the same subsystems, to the tolerance of their dtype."""
        tolerance = max(TOLERANCE[self.rho.dtype], TOLERANCE[other.rho.dtype])
        return self.dims == other.dims and float((self.rho - other.rho).abs().max()) <= tolerance
