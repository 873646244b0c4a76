"""The nearest density operator to a matrix that should have been one: after noise, after tomography, after rounding.

Smolin, Gambetta, Smith (PRL 108, 070502, 2012): of all states, the one nearest to a Hermitian mu in the Frobenius norm
has the eigenvectors of mu and, for eigenvalues w, max(w_i - theta, 0) with the theta that makes them sum to 1. That
theta does not depend on a shift of all w, so the trace of mu matters to nothing but numbers. With at most `rank`
eigenvalues, the largest ones are kept and projected the same way (Kyrillidis et al., ICML 2013, theorem 1).

Where the paper takes one negative eigenvalue after the other, one sort and one cumulated sum find theta for a batch.
A projection on a convex set: |P(mu) - rho|_F <= |mu - rho|_F for every state rho; not so with `rank`, where the set is
not convex.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qraf.errors import InvalidState
from qraf.states.checks import check_finite, check_norm, check_square
from qraf.states.spectral import eigh

__all__ = ["hermitian_part", "nearest_factor", "nearest_spectrum", "nearest_state"]


def nearest_state(mu: Tensor, rank: int | None = None) -> Tensor:
    """Give the density operator nearest to mu in the Frobenius norm: (..., d, d), dtype and device of mu.

    Args:
        mu: any finite matrices (..., d, d), real or complex; their Hermitian part is taken first, which is the nearest
            Hermitian matrix.
        rank: project on states of at most this rank, 1 to d; any rank when left out.

    Raises:
        InvalidState: mu is not square or not finite, or `rank` is outside 1 to d.

    >>> nearest_state(torch.tensor([[1.25, 0.0], [0.0, -0.25]], dtype=torch.float64)).tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """
    factor = nearest_factor(mu, rank)
    return factor.mH @ factor


def nearest_factor(mu: Tensor, rank: int | None = None) -> Tensor:
    """Give a factor L of the nearest density operator, L^H L = `nearest_state(mu, rank)`: (..., r, d).

    r is the largest rank in the batch; the rows of lower ones are filled with zeros. Arguments as of `nearest_state`.
    """
    check_norm(check_square(mu, "mu"), "mu")
    values, vectors = eigh(hermitian_part(mu))
    projected = nearest_spectrum(values, rank)
    # eigh sorts upwards, so what is left of every spectrum stands at the end
    r = max(1, int((projected > 0).sum(-1).max())) if projected.numel() else 1
    root = projected[..., -r:].sqrt()
    factor: Tensor = root[..., :, None] * vectors[..., -r:].mH
    return factor


def nearest_spectrum(w: Tensor, rank: int | None = None) -> Tensor:
    """Give the nearest probabilities to real numbers w (..., d), in their order; at most `rank` are not 0.

    >>> nearest_spectrum(torch.tensor([0.75, 0.5, -0.25], dtype=torch.float64)).tolist()
    [0.625, 0.375, 0.0]
    """
    d = w.shape[-1] if w.ndim else 0
    if not d or w.is_complex() or not w.is_floating_point():
        raise InvalidState("w", "be real with shape (..., d), d >= 1", f"has shape {tuple(w.shape)} of {w.dtype}")
    check_finite(w, "w")
    kept = d if rank is None else rank
    if not 1 <= kept <= d:
        raise InvalidState("rank", f"be from 1 to {d}", f"is {rank}")
    # theta is at least w_max - 1, so what lies lower falls to 0 whatever it is; and near 0 the sums keep their digits
    centred = (w - w.amax(-1, keepdim=True)).clamp(min=-1)
    top, order = centred.sort(-1, descending=True)
    top = top[..., :kept]
    count = torch.arange(1, kept + 1, dtype=w.dtype, device=w.device)
    theta = (top.cumsum(-1) - 1) / count
    last = (top > theta).sum(-1, keepdim=True).clamp(min=1) - 1
    level = theta.gather(-1, last)
    projected = torch.zeros_like(w)
    projected.scatter_(-1, order[..., :kept], (top - level).clamp(min=0))
    return projected / projected.sum(-1, keepdim=True)


def hermitian_part(mu: Tensor) -> Tensor:
    """Give (mu + mu^H) / 2, the nearest Hermitian matrix in every unitarily invariant norm: (..., d, d)."""
    return mu / 2 + mu.mH / 2
