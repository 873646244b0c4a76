"""Purity, entropy, effective rank, coherence, fidelity, trace distance: dense, and on factors where it is cheap.

A factor L (..., r, d) stands for rho = L^H L, of rank at most r. Everything is batched over leading dimensions.

Conventions, each pinned by a test with a known value:
  fidelity         squared (Jozsa): F = (tr sqrt(sqrt(rho) sigma sqrt(rho)))^2, in [0, 1]; QuTiP gives sqrt F
  entropy          bits (base 2); QuTiP gives nats
  trace distance   T = |rho - sigma|_1 / 2, in [0, 1]
  subsystems       the first factor of `dims` varies slowest; `keep` names what stays

Eigenvalues below d eps w_max count as zero. Inputs need a shape and a known dtype (`checks`); that they are states is
the caller's promise, because testing it costs as much as the measure. Gradients flow through the factor functions, for
any rank and any degenerate spectrum (`gradients`); dense entropy, coherence, fidelity and trace distance refuse them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qraf.errors import InvalidState
from qraf.states.checks import (
    check_dims,
    check_factor,
    check_same_dimension,
    check_square,
    check_weights,
    eigenvalue_cut,
)
from qraf.states.gradients import at_least, at_most, no_gradient, nuclear_norm, root, signed_trace_norm

__all__ = [
    "born_factor",
    "coherence_bits",
    "coherence_bits_factor",
    "effective_rank",
    "effective_rank_factor",
    "entropy_bits",
    "entropy_bits_factor",
    "entropy_of",
    "factor_of",
    "fidelity",
    "fidelity_factor",
    "fidelity_ket",
    "gram_coherence_bits",
    "gram_state",
    "l1_coherence",
    "l1_coherence_ket",
    "partial_trace",
    "purity",
    "purity_factor",
    "trace_distance",
    "trace_distance_factor",
]


def entropy_of(probabilities: Tensor) -> Tensor:
    """Shannon entropy in bits along the last axis; values below the cut count as zero, and 0 log 0 = 0.

    >>> entropy_of(torch.tensor([0.5, 0.25, 0.25, 0.0])).item()
    1.5
    """
    alive = probabilities > eigenvalue_cut(probabilities)
    safe = torch.where(alive, probabilities, torch.ones_like(probabilities))
    return -(safe * safe.log2()).sum(-1)


def purity(rho: Tensor) -> Tensor:
    """Tr rho^2, in [1/d, 1]: (...)."""
    return check_square(rho).abs().square().sum((-2, -1))


def purity_factor(factor: Tensor) -> Tensor:
    """Tr rho^2 = |L L^H|_F^2 for rho = L^H L: (...)."""
    return _gram(check_factor(factor)).abs().square().sum((-2, -1))


def entropy_bits(rho: Tensor) -> Tensor:
    """Von Neumann entropy S = -tr rho log2 rho in bits, in [0, log2 d]: (...)."""
    return entropy_of(torch.linalg.eigvalsh(no_gradient(check_square(rho), "rho", "entropy_bits_factor")))


def entropy_bits_factor(factor: Tensor) -> Tensor:
    """Von Neumann entropy in bits from the r x r Gram matrix L L^H, which has the same spectrum: (...)."""
    return entropy_of(torch.linalg.eigvalsh(_gram(check_factor(factor))))


def effective_rank(rho: Tensor) -> Tensor:
    """2^S, in [1, d]: how many equally likely orthogonal states would be as mixed: (...)."""
    return torch.exp2(entropy_bits(rho))


def effective_rank_factor(factor: Tensor) -> Tensor:
    """2^S from the factor: (...)."""
    return torch.exp2(entropy_bits_factor(factor))


def coherence_bits(rho: Tensor) -> Tensor:
    """Relative entropy of coherence in the computational basis, S(diag rho) - S(rho), in bits: (...).

    Baumgratz, Cramer, Plenio, PRL 113, 140401 (2014).
    """
    diagonal = no_gradient(check_square(rho), "rho", "coherence_bits_factor").diagonal(dim1=-2, dim2=-1)
    return (entropy_of(diagonal.real) - entropy_bits(rho)).clamp(min=0)


def coherence_bits_factor(factor: Tensor) -> Tensor:
    """Relative entropy of coherence with diag rho = sum_k |L_ki|^2, in O(r d + r^3): (...)."""
    diagonal = check_factor(factor).abs().square().sum(-2)
    return at_least(entropy_of(diagonal) - entropy_bits_factor(factor), 0)


def gram_state(psi: Tensor, weights: Tensor) -> Tensor:
    """The Gram state G_ij = sqrt(p_i p_j) <psi_i|psi_j> of an ensemble, (n, n): the spectrum of rho, diagonal p.

    Args:
        psi: unit vectors, (n, d).
        weights: probabilities, (n,).
    """
    factor = _weighted(psi, weights)
    return (factor @ factor.mH).conj()  # <psi_i|psi_j> conjugates the first


def gram_coherence_bits(psi: Tensor, weights: Tensor) -> Tensor:
    """Relative entropy of coherence of the Gram state, H(p) - S(rho), in bits: what the items have in common.

    0 for orthogonal items, H(p) for equal ones. (The Holevo bound is S(rho): what is not shared can be told apart.)
    """
    return at_least(entropy_of(weights) - entropy_bits_factor(_weighted(psi, weights)), 0)


def l1_coherence(rho: Tensor) -> Tensor:
    """Sum of |rho_ij| over i != j, in [0, d - 1]: (...). Baumgratz, Cramer, Plenio 2014."""
    size = check_square(rho).abs()
    return size.sum((-2, -1)) - size.diagonal(dim1=-2, dim2=-1).sum(-1)


def l1_coherence_ket(psi: Tensor) -> Tensor:
    """L1 coherence of a pure state without its matrix: (sum_i |psi_i|)^2 - 1 for unit psi (..., d): (...)."""
    size = psi.abs()
    return size.sum(-1).square() - size.square().sum(-1)


def fidelity(rho: Tensor, sigma: Tensor) -> Tensor:
    """Squared (Jozsa) fidelity of two density operators, in [0, 1]: (...)."""
    for each, name in ((rho, "rho"), (sigma, "sigma")):
        no_gradient(each, name, "fidelity_factor")
    return fidelity_factor(factor_of(rho), factor_of(sigma))


def fidelity_factor(a: Tensor, b: Tensor) -> Tensor:
    """Squared fidelity of A^H A and B^H B: F = |A B^H|_1^2 (Uhlmann 1976), r x r singular values: (...)."""
    check_same_dimension(check_factor(a, "a"), check_factor(b, "b"), "a, b")
    return at_most(nuclear_norm(a @ b.mH).square(), 1)


def fidelity_ket(psi: Tensor, phi: Tensor) -> Tensor:
    """|<psi|phi>|^2 / (<psi|psi> <phi|phi>) of vectors (..., d) of any length but zero: (...)."""
    overlap = (psi.conj() * phi).sum(-1).abs().square()
    return at_most(overlap / (psi.abs().square().sum(-1) * phi.abs().square().sum(-1)), 1)


def trace_distance(rho: Tensor, sigma: Tensor) -> Tensor:
    """T = |rho - sigma|_1 / 2, in [0, 1]: the best bias in telling the two apart (Helstrom): (...)."""
    check_same_dimension(check_square(rho), check_square(sigma, "sigma"))
    for each, name in ((rho, "rho"), (sigma, "sigma")):
        no_gradient(each, name, "trace_distance_factor")
    values: Tensor = torch.linalg.eigvalsh(rho - sigma)
    return (values.abs().sum(-1) / 2).clamp(max=1)


def trace_distance_factor(a: Tensor, b: Tensor) -> Tensor:
    """Trace distance of A^H A and B^H B: with [A; B]^H = Q R, T = sum |eig(R diag(1, -1) R^H)| / 2: (...).

    By QR, not by Gram matrices: those lose half the digits between near states.
    """
    check_same_dimension(check_factor(a, "a"), check_factor(b, "b"), "a, b")
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    stack = torch.cat((a.expand(*batch, *a.shape[-2:]), b.expand(*batch, *b.shape[-2:])), -2)
    signs = torch.ones(stack.shape[-2], dtype=stack.real.dtype, device=stack.device)
    signs[a.shape[-2] :] = -1
    return at_most(signed_trace_norm(stack, signs) / 2, 1)


def born_factor(factor: Tensor, x: Tensor) -> Tensor:
    """Born probabilities <x|rho|x> = |L x|^2 of vectors x (n, d) for one factor (r, d): (n,)."""
    check_factor(factor)
    if x.shape[-1] != factor.shape[-1]:
        raise InvalidState("x", f"have shape (n, {factor.shape[-1]})", f"has {tuple(x.shape)}")
    return (x @ factor.mT).abs().square().sum(-1)


def factor_of(rho: Tensor) -> Tensor:
    """A factor L (..., d, d) with L^H L = rho; directions below the cut are zero rows."""
    values, vectors = torch.linalg.eigh(no_gradient(check_square(rho), "rho", "the factor itself"))
    size = torch.where(values > eigenvalue_cut(values), values, torch.zeros_like(values)).clamp(min=0).sqrt()
    factor: Tensor = size[..., :, None] * vectors.mH
    return factor


def partial_trace(rho: Tensor, dims: Sequence[int], keep: Sequence[int] = (0,)) -> Tensor:
    """Reduce to the subsystems `keep`, in their order in `dims`: (..., k, k).

    Args:
        rho: density operators, (..., d, d).
        dims: subsystem sizes with product d; the first varies slowest.
        keep: indices of what stays, without repetition.

    Raises:
        InvalidState: `dims` do not multiply to d, or `keep` names a subsystem twice or one that is not there.
    """
    sizes = check_dims(dims, check_square(rho).shape[-1])
    n, batch = len(sizes), rho.shape[:-2]
    if len(set(keep)) != len(keep) or any(not 0 <= index < n for index in keep):
        raise InvalidState("keep", f"name some of the subsystems 0 to {n - 1}, once each", f"is {tuple(keep)}")
    kept = sorted(keep)
    rest = [index for index in range(n) if index not in kept]
    order = [*kept, *rest]
    lead = len(batch)
    axes = [*range(lead), *(lead + i for i in order), *(lead + n + i for i in order)]
    size = 1
    for index in kept:
        size *= sizes[index]
    other = rho.shape[-1] // size
    parted = rho.reshape(*batch, *sizes, *sizes).permute(axes).reshape(*batch, size, other, size, other)
    return parted.diagonal(dim1=-3, dim2=-1).sum(-1)


def _gram(factor: Tensor) -> Tensor:
    if factor.shape[-2] == 0:
        raise InvalidState("factor", "have at least one row", f"has {tuple(factor.shape)}")
    return factor @ factor.mH if factor.shape[-2] <= factor.shape[-1] else factor.mH @ factor


def _weighted(psi: Tensor, weights: Tensor) -> Tensor:
    if psi.ndim != 2:
        raise InvalidState("psi", "have shape (n, d)", f"has {tuple(psi.shape)}")
    check_weights(weights.detach(), len(psi))
    return psi * root(weights)[:, None]
