"""State: a density operator kept as a factor of its numerical rank; what every operation takes and gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qraf.errors import InvalidState
from qraf.states import measures, spectral
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

__all__ = ["DIM_MAX", "RHO_MAX", "State", "principal_rows"]

DIM_MAX = 4096
"""The largest dimension of a state: 12 qubits. A factor of full rank then has 128 MiB, or 256 MiB where complex."""

RHO_MAX = 1024
"""Up to this dimension rho (16 MiB in complex128) is made for a figure or an export of a mixed state."""

_LARGE = 512  # rows that are looked at for full rank before their spectrum is worked out

_SETTLED = 1e-14  # a trace this near 1 is left as it came, so that a state survives export and import bit for bit


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class State:
    """A state rho = L^H L of subsystems `dims`, the first varying slowest; (d,) when left out.

    The factor L (r, d) is checked when made (finite, trace 1 to the tolerance of its dtype), widened to float64 or
    complex128, and brought to its numerical rank: eigenvalues below r eps w_max are rounding. A factor that has that
    rank is kept as it came. `cut` is the sum of what was left out so, and bounds the trace distance to what was given.

    Raises:
        InvalidState: no factor, no row, NaN, a trace off 1, `dims` that do not multiply to d, d above `DIM_MAX`.

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
        _check_size(rho.shape[-1])
        check_density(rho)
        wide = _wide(rho)
        # what a narrower dtype rounded is no eigenvalue
        return cls.of_positive((wide + wide.mH) / 2, dims, torch.finfo(rho.dtype).eps)

    @classmethod
    def of_positive(cls, rho: Tensor, dims: Sequence[int] = (), eps: float = torch.finfo(torch.float64).eps) -> State:
        """The state of a Hermitian matrix (d, d), float64 or complex128, that is known to be one up to rounding `eps`.

        Of a large one of full rank the factor is triangular (Cholesky); else its rows are orthogonal.
        """
        d = len(rho)
        if rho.is_complex() and d >= _LARGE and not bool(rho.imag.any()):
            rho = rho.real.contiguous()
        if d >= _LARGE and spectral.has_full_rank(rho, d * eps * float(torch.linalg.matrix_norm(rho))):
            return cls.of_rank(_unit(torch.linalg.cholesky(rho).mH.resolve_conj().contiguous()), tuple(dims))
        values, vectors = spectral.eigh(rho)
        alive = values > d * eps * values.abs().amax()
        rows = (values[alive].sqrt()[:, None] * vectors[:, alive].mH).flip(0)
        state = cls(_unit(rows), tuple(dims))
        return state.having_lost(float(values[~alive].abs().sum()))  # negative ones too

    @classmethod
    def of_rank(cls, factor: Tensor, dims: tuple[int, ...]) -> State:
        """The state of a factor that is known to be one, float64 or complex128, of the rank of its rows.

        Nothing is looked at again: for what this class has made.
        """
        state = object.__new__(cls)
        for name, value in (("factor", factor), ("dims", check_dims(dims or (factor.shape[1],), factor.shape[1]))):
            object.__setattr__(state, name, value)
        object.__setattr__(state, "cut", 0.0)
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
        rho = spectral.gram(self.factor.mH)
        return (rho + rho.mH) / 2

    def kets(self) -> Tensor:
        """The rows as kets (r, d) with rho = sum_k |psi_k><psi_k|; their squared norms sum to 1."""
        return self.factor.conj().resolve_conj()

    def spectrum(self) -> Tensor:
        """The eigenvalues above the cut, largest first, (r,), from the r x r Gram matrix."""
        return spectral.eigvalsh(spectral.gram(self.factor)).flip(0).clamp(min=0)

    def figures(self) -> dict[str, float]:
        """Purity, entropy, effective rank, coherence, rank, trace, and l1 coherence where d x d is small enough.

        `l1_coherence` is there for pure states and for d up to `RHO_MAX`. Formulas: `qraf.states.measures`.
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
        elif self.d <= RHO_MAX:
            figures["l1_coherence"] = float(measures.l1_coherence(self.rho()))
        return figures

    def having_lost(self, trace: float) -> State:
        """This state with more counted in `cut`: what was left out before it was made."""
        if trace > 0:
            object.__setattr__(self, "cut", self.cut + trace)
        return self

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
        values, vectors = spectral.eigh(spectral.gram(factor))
        rows = spectral.product(vectors.mH, factor)
    else:
        values, vectors = spectral.eigh(spectral.gram(factor.mH))
        rows = values.clamp(min=0).sqrt()[..., :, None] * vectors.mH
    return rows.flip(-2), values.clamp(min=0).flip(-1)


def _compact(factor: Tensor) -> tuple[Tensor, float]:
    """The factor at its numerical rank, and the sum of the eigenvalues that were left out."""
    r, d = factor.shape
    if r == 1:
        return factor, 0.0
    if r > d:
        rows, values = principal_rows(factor)
        alive = values > eigenvalue_cut(values)
        return rows[: int(alive.sum())], float(values[~alive].sum())
    gram = spectral.gram(factor)
    if r >= _LARGE:
        cut = (
            r * torch.finfo(gram.dtype).eps * float(torch.linalg.matrix_norm(gram))
        )  # at least that of `eigenvalue_cut`
        if spectral.has_full_rank(gram, cut):
            return factor, 0.0
    values, vectors = spectral.eigh(gram)
    alive = values > eigenvalue_cut(values)
    if bool(alive.all()):
        return factor, 0.0
    return spectral.product(vectors[:, alive].mH, factor).flip(0), float(values[~alive].abs().sum())


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
