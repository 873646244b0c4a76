"""State: a density operator kept as a factor of its numerical rank; what every operation takes and gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qraf.errors import InvalidState
from qraf.states import measures
from qraf.states.checks import (
    TOLERANCE,
    check_density,
    check_dims,
    check_factor,
    check_finite,
    check_ket,
    check_weights,
    eigenvalue_cut,
)

__all__ = ["DENSE_MAX", "DIM_MAX", "RANK_MAX", "State", "principal_rows"]

DIM_MAX = 4096
"""The largest dimension of a state: 12 qubits."""

RANK_MAX = 1024
"""The largest numerical rank: an eigendecomposition of a second, a factor of at most 64 MiB."""

DENSE_MAX = 1024
"""Up to this dimension a d x d matrix (16 MiB in complex128) is taken, and made for a figure or an export."""

_SETTLED = 1e-14  # a trace this near 1 is left as it came, so that a state survives export and import bit for bit


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class State:
    """A state rho = L^H L of subsystems `dims`, the first varying slowest; (d,) when left out.

    The factor L (r, d) is checked when made (finite, trace 1 to the tolerance of its dtype), widened to float64 or
    complex128, and brought to its numerical rank: eigenvalues below r eps w_max are rounding. A factor that has that
    rank is kept as it came. `cut` is the sum of what was left out so, and bounds the trace distance to what was given.

    Raises:
        InvalidState: no factor, no row, NaN, a trace off 1, `dims` that do not multiply to d, d above `DIM_MAX`,
            more than `RANK_MAX` rows where d does not limit the rank.

    >>> State.of_ket(torch.tensor([0.6, 0.8])).figures()["purity"]
    1.0
    """

    factor: Tensor
    dims: tuple[int, ...] = ()
    cut: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        factor = check_factor(self.factor)
        if factor.ndim != 2 or not len(factor):
            raise InvalidState("factor", "have shape (r, d) with r >= 1", f"has {tuple(factor.shape)}")
        _check_size(factor.shape[1])
        if min(factor.shape) > RANK_MAX:
            raise InvalidState("factor", f"have rank at most {RANK_MAX}", f"has shape {tuple(factor.shape)}")
        check_finite(factor, "factor")
        dims = check_dims(self.dims or (factor.shape[1],), factor.shape[1])
        trace = float(_wide(factor).abs().square().sum())
        if abs(trace - 1) > TOLERANCE[factor.dtype]:
            raise InvalidState("factor", "have trace 1", f"has {trace:.6g}")
        rows, cut = _compact(_wide(factor))
        object.__setattr__(self, "factor", _settled(rows).resolve_conj().contiguous())
        object.__setattr__(self, "dims", dims)
        object.__setattr__(self, "cut", cut)

    def __repr__(self) -> str:
        return f"State(d={self.d}, rank={self.rank}, dims={self.dims})"

    @classmethod
    def of_ket(cls, psi: Tensor, dims: Sequence[int] = ()) -> State:
        """The pure state |psi><psi| of a unit vector (d,)."""
        check_ket(psi)
        if psi.ndim != 1:
            raise InvalidState("psi", "have shape (d,)", f"has {tuple(psi.shape)}")
        _check_size(len(psi))
        return cls(_unit(_wide(psi)).conj().resolve_conj()[None], tuple(dims))  # L^H L conjugates the right side

    @classmethod
    def of_density(cls, rho: Tensor, dims: Sequence[int] = ()) -> State:
        """The state of a density operator (d, d), checked to the tolerance of its dtype."""
        if rho.ndim != 2:
            raise InvalidState("rho", "have shape (d, d)", f"has {tuple(rho.shape)}")
        if rho.shape[-1] > DENSE_MAX:
            raise InvalidState("rho", f"have d at most {DENSE_MAX}; give a factor", f"has {tuple(rho.shape)}")
        check_density(rho)
        wide = _wide(rho)
        values, vectors = torch.linalg.eigh((wide + wide.mH) / 2)
        # what a narrower dtype rounded is no eigenvalue
        alive = values > eigenvalue_cut(values.to(rho.real.dtype)).to(values.dtype)
        rows = (values[alive].sqrt()[:, None] * vectors[:, alive].mH).flip(0)
        state = cls(_unit(rows), tuple(dims))
        object.__setattr__(state, "cut", state.cut + float(values[~alive].abs().sum()))  # negative ones too
        return state

    @classmethod
    def of_ensemble(cls, psi: Tensor, weights: Tensor | None = None, dims: Sequence[int] = ()) -> State:
        """The ensemble sum_i p_i |psi_i><psi_i| of unit vectors (n, d), equally likely when `weights` is left out."""
        check_ket(psi)
        if psi.ndim != 2 or not len(psi):
            raise InvalidState("psi", "have shape (n, d) with n >= 1", f"has {tuple(psi.shape)}")
        _check_size(psi.shape[1])
        if weights is None:
            weights = torch.full((len(psi),), 1 / len(psi), dtype=torch.float64)
        check_weights(weights, len(psi))
        rows = _wide(psi).conj().resolve_conj() * weights.to(psi.device, torch.float64).sqrt()[:, None]
        return cls(_unit(rows), tuple(dims))

    @classmethod
    def of_factor(cls, factor: Tensor, dims: Sequence[int] = ()) -> State:
        """The state L^H L of a factor (r, d) with unit Frobenius norm."""
        return cls(factor, tuple(dims))

    @property
    def d(self) -> int:
        """The dimension."""
        return int(self.factor.shape[1])

    @property
    def rank(self) -> int:
        """The numerical rank: the rows of the factor."""
        return int(self.factor.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes of the factor."""
        return self.factor.numel() * self.factor.element_size()

    def rho(self) -> Tensor:
        """The density operator (d, d), Hermitian to the last bit."""
        rho = self.factor.mH @ self.factor
        return (rho + rho.mH) / 2

    def kets(self) -> Tensor:
        """The rows as kets (r, d) with rho = sum_k |psi_k><psi_k|; their squared norms sum to 1."""
        return self.factor.conj().resolve_conj()

    def spectrum(self) -> Tensor:
        """The eigenvalues above the cut, largest first, (r,), from the r x r Gram matrix."""
        values: Tensor = torch.linalg.eigvalsh(self.factor @ self.factor.mH)
        return values.flip(0).clamp(min=0)

    def figures(self) -> dict[str, float]:
        """Purity, entropy, effective rank, coherence, rank, trace, and l1 coherence where d x d is small enough.

        `l1_coherence` is there for pure states and for d up to `DENSE_MAX`. Formulas: `qraf.states.measures`.
        """
        values = self.spectrum()
        diagonal = self.factor.abs().square().sum(0)
        entropy = max(0.0, float(measures.entropy_of(values)))
        figures = {
            "purity": min(1.0, float(values.square().sum())),
            "entropy_bits": entropy,
            "effective_rank": 2.0**entropy,
            "coherence_bits": max(0.0, float(measures.entropy_of(diagonal)) - entropy),
            "rank": float(self.rank),
            "trace": float(diagonal.sum()),
        }
        if self.rank == 1:
            figures["l1_coherence"] = float(measures.l1_coherence_ket(self.factor[0]))
        elif self.d <= DENSE_MAX:
            figures["l1_coherence"] = float(measures.l1_coherence(self.rho()))
        return figures

    def recompressed(self, loss: float = 0.0) -> tuple[State, float]:
        """Cut the smallest eigenvalues, of sum at most `loss`, and say what was lost.

        With rho = (1 - lost) rho^ + D, D >= 0 and tr D = lost: T(rho, rho^) <= lost and F(rho, rho^) >= 1 - lost.

        Raises:
            InvalidState: `loss` is outside [0, 1).
        """
        if not 0 <= loss < 1:
            raise InvalidState("loss", "be at least 0 and below 1", f"is {loss}")
        rows, values = principal_rows(self.factor)
        alive = int((values > eigenvalue_cut(values)).sum())
        tails = values.flip(0).cumsum(0).flip(0)  # tails[k]: the trace that keeping k rows would lose
        keep = max(1, min(alive, int((tails > loss).sum())))
        lost = float(tails[keep]) if keep < len(values) else 0.0
        return State(_unit(rows[:keep]), self.dims), lost


def principal_rows(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Orthogonal rows B (..., k, d) with B^H B = L^H L and their squared norms, largest first; k = min(r, d).

    By the smaller of the two Gram matrices: L L^H = U W U^H gives B = U^H L.
    """
    if factor.shape[-2] <= factor.shape[-1]:
        values, vectors = _eigh(factor @ factor.mH)
        rows = vectors.mH @ factor
    else:
        values, vectors = _eigh(factor.mH @ factor)
        rows = values.clamp(min=0).sqrt()[..., :, None] * vectors.mH
    return rows.flip(-2), values.clamp(min=0).flip(-1)


def _eigh(gram: Tensor) -> tuple[Tensor, Tensor]:
    """As torch.linalg.eigh; a Gram matrix that is diagonal up to rounding, as after a measurement, is only sorted."""
    diagonal = gram.diagonal(dim1=-2, dim2=-1).real
    rest = (gram - torch.diag_embed(diagonal)).abs()
    if gram.numel() and bool((rest <= torch.finfo(diagonal.dtype).eps * diagonal.amax(-1)[..., None, None]).all()):
        values, order = diagonal.sort(-1)
        return values, torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)[order].mT
    values, vectors = torch.linalg.eigh(gram)
    return values, vectors


def _compact(factor: Tensor) -> tuple[Tensor, float]:
    """The factor at its numerical rank, and the sum of the eigenvalues that were left out."""
    r, d = factor.shape
    if r == 1:
        return factor, 0.0
    if r > d:
        rows, values = principal_rows(factor)
        alive = values > eigenvalue_cut(values)
        return rows[: int(alive.sum())], float(values[~alive].sum())
    values, vectors = _eigh(factor @ factor.mH)
    alive = values > eigenvalue_cut(values)
    if bool(alive.all()):
        return factor, 0.0
    return (vectors[:, alive].mH @ factor).flip(0), float(values[~alive].abs().sum())


def _check_size(d: int) -> None:
    if d > DIM_MAX:
        raise InvalidState("d", f"be at most {DIM_MAX} (12 qubits)", f"is {d}")


def _wide(x: Tensor) -> Tensor:
    return x.detach().to(torch.complex128 if x.is_complex() else torch.float64)


def _settled(factor: Tensor) -> Tensor:
    return factor if abs(float(factor.abs().square().sum()) - 1) <= _SETTLED else _unit(factor)


def _unit(x: Tensor) -> Tensor:
    norm = float(torch.linalg.vector_norm(x))
    return x / norm if math.isfinite(norm) and norm > 0 else x
