"""Measurement: Born probabilities, samples, the state after an outcome, expectations; on factors.

A basis is given by its kets, (m, m), one a row; the computational one when left out. Outcomes are numbered like the
rows. In the computational basis outcome k has the digits of `outcome_labels`: the first subsystem varies slowest, so
qubits in |01> give "01", where other libraries write "10".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qraf.errors import InvalidState
from qraf.states import measures
from qraf.states.checks import TOLERANCE, check_finite, check_ket, check_square
from qraf.states.state import State
from qraf.states.subsystems import check_on, join, split

__all__ = ["Expectation", "born", "collapse", "expectation", "outcome_labels", "probabilities", "sample"]

SHOTS_MAX = 10**9
_LEAST = 1e-20  # below this probability the state after the outcome would be made of rounding errors


class Expectation(NamedTuple):
    """Mean and variance of an observable."""

    mean: float
    variance: float


def born(state: State, x: Tensor) -> Tensor:
    """The probabilities <x|rho|x> = |L x|^2 of unit vectors x (n, d), or of one (d,): (n,) or ().

    Raises:
        InvalidState: x has another length or not unit norm.
    """
    if x.ndim not in (1, 2) or x.shape[-1] != state.d:
        raise InvalidState("x", f"have shape (n, {state.d})", f"has {tuple(x.shape)}")
    check_ket(x, "x")
    factor, vectors = _alike(state.factor, x)
    return measures.born_factor(factor, vectors).clamp(max=1)


def probabilities(state: State, on: Sequence[int] | None = None, basis: Tensor | None = None) -> Tensor:
    """The probability of every outcome of measuring the subsystems `on` in an orthonormal basis: (m,), sum 1.

    Args:
        state: the state.
        on: subsystems taken as one, in this order; all when left out.
        basis: kets (m, m) of those subsystems, one a row.

    Raises:
        InvalidState: `basis` is not orthonormal or has another dimension; `on` names what is not there.
    """
    amplitudes = _amplitudes(state, on, basis)
    p = amplitudes.abs().square().sum((0, 2))
    return p / p.sum()


def sample(state: State, shots: int, seed: int, on: Sequence[int] | None = None, basis: Tensor | None = None) -> Tensor:
    """Measure `shots` fresh copies and count the outcomes: (m,) int64. The same seed gives the same counts.

    Raises:
        InvalidState: as `probabilities`; `shots` is outside 1 to 10^9, or `seed` is negative.
    """
    if not 1 <= shots <= SHOTS_MAX:
        raise InvalidState("shots", f"be from 1 to {SHOTS_MAX}", f"is {shots}")
    if seed < 0:
        raise InvalidState("seed", "be at least 0", f"is {seed}")
    p = probabilities(state, on, basis).cpu().numpy()
    counts = np.random.Generator(np.random.PCG64(seed)).multinomial(shots, p / p.sum())
    return torch.from_numpy(counts.astype(np.int64))


def collapse(
    state: State, outcome: int, on: Sequence[int] | None = None, basis: Tensor | None = None
) -> tuple[State, float]:
    """The state after outcome number `outcome`, and how likely that was (Lueders' rule).

    Raises:
        InvalidState: as `probabilities`; there is no such outcome, or it never happens.
    """
    chosen = _on(state, on)
    amplitudes = _amplitudes(state, chosen, basis)
    m = amplitudes.shape[1]
    if not 0 <= outcome < m:
        raise InvalidState("outcome", f"be from 0 to {m - 1}", f"is {outcome}")
    kept = amplitudes[:, outcome]
    p = float(kept.abs().square().sum())
    if p <= _LEAST:
        raise InvalidState("outcome", "have a probability above 0", f"has {p:.3g}")
    ket = torch.eye(m)[outcome] if basis is None else basis[outcome]
    parts = kept[:, None, :] * ket.to(kept.device, kept.dtype).conj()[None, :, None]
    return State(join(parts, state.dims, chosen) / math.sqrt(p), state.dims), min(p, 1.0)


def expectation(state: State, observable: Tensor, on: Sequence[int] | None = None) -> Expectation:
    """Mean tr(rho H) and variance of a Hermitian observable (m, m) of the subsystems `on`.

    Raises:
        InvalidState: `observable` is not Hermitian, not finite, or of another dimension.
    """
    if observable.ndim != 2:
        raise InvalidState("observable", "have shape (m, m)", f"has {tuple(observable.shape)}")
    check_finite(check_square(observable, "observable"), "observable")
    skew = float((observable - observable.mH).abs().max())
    if skew > TOLERANCE[observable.dtype] * max(1.0, float(observable.abs().max())):
        raise InvalidState("observable", "be Hermitian", f"differs from its adjoint by {skew:.3g}")
    factor, H = _alike(split(state.factor, state.dims, _on(state, on)), observable)
    if H.shape[0] != factor.shape[1]:
        need = f"act on dimension {factor.shape[1]}, that of the chosen subsystems"
        raise InvalidState("observable", need, f"acts on {H.shape[0]}")
    turned = torch.einsum("ji,rje->rie", H, factor)  # L H
    mean = float((turned * factor.conj()).sum().real)
    return Expectation(mean, float((turned - mean * factor).abs().square().sum()))


def outcome_labels(dims: Sequence[int]) -> list[str]:
    """The outcomes of a computational measurement as digits, first subsystem first; commas where a digit has two.

    >>> outcome_labels((2, 3))
    ['00', '01', '02', '10', '11', '12']
    """
    glue = "" if max(dims) <= 10 else ","
    return [glue.join(map(str, digits)) for digits in product(*(range(size) for size in dims))]


def _amplitudes(state: State, on: Sequence[int] | None, basis: Tensor | None) -> Tensor:
    """L (|k> (x) I): (r, m, rest)."""
    parts = split(state.factor, state.dims, _on(state, on))
    if basis is None:
        return parts
    m = parts.shape[1]
    if basis.shape != (m, m):
        raise InvalidState("basis", f"have shape ({m}, {m}), kets in rows", f"has {tuple(basis.shape)}")
    check_finite(check_square(basis, "basis"), "basis")
    off = float((basis.conj() @ basis.mT - torch.eye(m, dtype=basis.dtype, device=basis.device)).abs().max())
    if off > TOLERANCE[basis.dtype]:
        raise InvalidState("basis", "be orthonormal", f"is off by {off:.3g}")
    factor, kets = _alike(parts, basis)
    return torch.einsum("kj,rje->rke", kets, factor)


def _on(state: State, on: Sequence[int] | None) -> tuple[int, ...]:
    return check_on(range(len(state.dims)) if on is None else on, state.dims)


def _alike(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    is_complex = a.is_complex() or b.is_complex()
    dtype = torch.complex128 if is_complex else torch.float64
    return a.to(dtype), b.to(a.device, dtype)
