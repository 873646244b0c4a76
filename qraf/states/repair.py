"""Repair of what should be a state: three defects as syndromes, the nearest state, and how far that went.

    trace        |tr mu - 1|
    hermiticity  |mu - mu^H|_F / 2, the size of the anti-Hermitian part
    negativity   sum of |w_i| over the negative eigenvalues w of the Hermitian part H

A syndrome up to d eps max(1, |mu|_F) is rounding. What is beyond is repaired: Hermitian part, then the state nearest to
it (`physical.nearest_state`). How far that went follows from the syndromes, with t = tr H - 1 and negativity N:

    |rho - H|_1 / 2 = N + t / 2   where N + t >= 0,      |t| / 2 elsewhere

How far it leaves one from the true state: for mu = rho_0 + E with rho_0 of rank r and |E|_op <= noise,

    T(rho, rho_0) <= 2 r noise,      |rho - rho_0|_F <= |mu - rho_0|_F

The first, because every eigenvalue moves by at most noise on to the simplex, so |rho - rho_0|_op <= 2 noise, and
rho - rho_0 has at most r negative eigenvalues; it holds with the rank known or not, and is the constant of Guta, Kahn,
Kueng, Tropp (J. Phys. A 53, 204001, 2020). The second holds where the rank is left out (projection on a convex set).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qraf.errors import InvalidState
from qraf.states.checks import check_factor, check_norm, check_same_dimension, check_square
from qraf.states.physical import hermitian_part, nearest_spectrum
from qraf.states.spectral import eigh, eigvalsh

__all__ = ["DEFECTS", "Repair", "Syndromes", "align_phase", "procrustes", "repair", "syndromes_of"]

DEFECTS = ("trace", "hermiticity", "negativity")


@dataclass(frozen=True, slots=True, eq=False)
class Syndromes:
    """The three defects of matrices (..., d, d), each (...); up to `tolerance`, d eps max(1, |mu|_F), is rounding."""

    trace: Tensor
    hermiticity: Tensor
    negativity: Tensor
    tolerance: Tensor

    @property
    def found(self) -> Tensor:
        """Which defects are there, (..., 3) bool, in the order of `DEFECTS`."""
        return torch.stack((self.trace, self.hermiticity, self.negativity), -1) > self.tolerance[..., None]


@dataclass(frozen=True, slots=True, eq=False)
class Repair:
    """States in place of what came, and how far they are from it.

    Attributes:
        rho: density operators, (..., d, d); a matrix without defects comes back as it is.
        syndromes: what was wrong.
        moved: trace distance from the Hermitian part of what came, |rho - H|_1 / 2: (...).
        moved_frobenius: |rho - mu|_F, from what came itself: (...).
        bound: an upper bound on the trace distance from the true state, in [0, 1]; None where `noise` was not given.
    """

    rho: Tensor
    syndromes: Syndromes
    moved: Tensor
    moved_frobenius: Tensor
    bound: float | None = None

    @property
    def changed(self) -> Tensor:
        """Whether anything was changed, (...) bool."""
        return self.syndromes.found.any(-1)


def repair(mu: Tensor, rank: int | None = None, noise: float | None = None) -> Repair:
    """Find the defects of matrices and give the nearest states.

    Args:
        mu: finite matrices, (..., d, d), real or complex.
        rank: the rank of the true state where it is known; the result has at most this rank. A matrix without defects
            of a higher rank is then changed all the same.
        noise: an upper bound on the operator norm of what was added to the true state, for `bound`.

    Raises:
        InvalidState: mu is not square or not finite, `rank` outside 1 to d, or `noise` negative or not finite.

    >>> fixed = repair(torch.tensor([[1.25, 0.0], [0.0, -0.25]], dtype=torch.float64))
    >>> fixed.rho.tolist(), float(fixed.syndromes.negativity), float(fixed.moved)
    ([[1.0, 0.0], [0.0, 0.0]], 0.25, 0.25)
    """
    if noise is not None and not (math.isfinite(noise) and noise >= 0):
        raise InvalidState("noise", "be finite and at least 0", f"is {noise}")
    d = check_norm(check_square(mu, "mu"), "mu").shape[-1]
    hermitian = hermitian_part(mu)
    values, vectors = eigh(hermitian)
    projected = nearest_spectrum(values, rank)
    syndromes = _syndromes(mu, values)
    changed = syndromes.found.any(-1)
    if rank is not None:
        changed = changed | ((values > syndromes.tolerance[..., None]).sum(-1) > rank)
    change = torch.where(changed[..., None], projected - values, torch.zeros_like(values))
    rho = torch.where(changed[..., None, None], (vectors * projected[..., None, :]) @ vectors.mH, mu)
    skew = torch.where(changed, syndromes.hermiticity, torch.zeros_like(syndromes.hermiticity))
    return Repair(
        rho=rho,
        syndromes=syndromes,
        moved=change.abs().sum(-1) / 2,
        moved_frobenius=(change.square().sum(-1) + skew.square()).sqrt(),
        bound=None if noise is None else min(1.0, 2 * (rank or d) * noise),
    )


def syndromes_of(mu: Tensor) -> Syndromes:
    """Measure the three defects of finite matrices (..., d, d) without repairing them.

    Raises:
        InvalidState: mu is not square or not finite.
    """
    check_norm(check_square(mu, "mu"), "mu")
    return _syndromes(mu, eigvalsh(hermitian_part(mu)))


def align_phase(psi: Tensor, reference: Tensor) -> Tensor:
    """Turn the global phase of kets so that <reference|psi> is real and not negative: (..., d).

    The state |psi><psi| stays; of all phases this one is nearest to the reference. Orthogonal kets stay as they are.

    Raises:
        InvalidState: the dimensions or dtypes differ.
    """
    check_same_dimension(psi, reference, "psi, reference")
    overlap = (reference.conj() * psi).sum(-1, keepdim=True)
    size = overlap.abs()
    phase = torch.where(size > 0, overlap / size.clamp(min=torch.finfo(size.dtype).tiny), torch.ones_like(overlap))
    return psi * phase.conj()


def procrustes(factor: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Turn a factor towards another by the unitary of rows that brings it nearest: (U A, U).

    A and U A stand for the same state. With B A^H = W s V^H (singular values s), U = W V^H minimises |U A - B|_F, and
    |U A - B|_F^2 = tr A^H A + tr B^H B - 2 sum s: for states 2 - 2 sqrt F, the Bures distance squared (Uhlmann 1976).

    Args:
        factor: A, (..., r, d).
        reference: B, (..., s, d); the one with fewer rows is filled with zero rows.

    Returns:
        U A (..., n, d) and U (..., n, n) with n = max(r, s).

    Raises:
        InvalidState: not factors, or dimensions or dtypes differ.
    """
    check_same_dimension(check_factor(factor), check_factor(reference, "reference"), "factor, reference")
    n = max(factor.shape[-2], reference.shape[-2])
    a, b = (torch.nn.functional.pad(x, (0, 0, 0, n - x.shape[-2])) for x in (factor, reference))
    left, _, right = torch.linalg.svd(b @ a.mH)
    unitary: Tensor = left @ right
    return unitary @ a, unitary


def _syndromes(mu: Tensor, values: Tensor) -> Syndromes:
    """Syndromes of mu, with the eigenvalues of its Hermitian part."""
    size: Tensor = torch.linalg.matrix_norm(mu)
    negativity = values.clamp(max=0).abs().sum(-1)
    return Syndromes(
        trace=(mu.diagonal(dim1=-2, dim2=-1).sum(-1) - 1).abs(),
        hermiticity=torch.linalg.matrix_norm(mu - mu.mH) / 2,
        negativity=negativity,
        tolerance=mu.shape[-1] * torch.finfo(values.dtype).eps * size.clamp(min=1),
    )
