"""Checks at the door of `states`: shapes, Hermitian, unit trace, positive. Past the door the numbers are trusted.

Every check returns its argument, so that a door is one line, and raises `InvalidState` with what was needed and what
came. Tolerances sit in one table, by dtype, and grow with d where an eigenvalue is concerned: the smallest eigenvalue
of a valid complex64 state of d = 256 comes out near -1e-8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qraf.errors import InvalidState
from qraf.states import spectral

__all__ = [
    "TOLERANCE",
    "check_density",
    "check_dims",
    "check_factor",
    "check_finite",
    "check_ket",
    "check_norm",
    "check_same_dimension",
    "check_square",
    "check_weights",
    "eigenvalue_cut",
]

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10, torch.complex64: 1e-5, torch.complex128: 1e-10}
"""How far a trace, a norm or a matrix element may be from where it belongs."""

_LARGE = 512  # matrices that are looked at for positivity before their spectrum is worked out


def check_square(rho: Tensor, name: str = "rho") -> Tensor:
    """Let (..., d, d) with d >= 1 of a known dtype pass."""
    _check_dtype(rho, name)
    if rho.ndim < 2 or rho.shape[-1] != rho.shape[-2] or rho.shape[-1] == 0:
        raise InvalidState(name, "have shape (..., d, d)", f"has {tuple(rho.shape)}")
    return rho


def check_factor(factor: Tensor, name: str = "factor") -> Tensor:
    """Let a factor L (..., r, d) of rho = L^H L pass; its trace is the caller's promise."""
    _check_dtype(factor, name)
    if factor.ndim < 2 or factor.shape[-1] == 0:
        raise InvalidState(name, "have shape (..., r, d)", f"has {tuple(factor.shape)}")
    return factor


def check_ket(psi: Tensor, name: str = "psi") -> Tensor:
    """Let unit vectors (..., d) pass."""
    _check_dtype(psi, name)
    if psi.ndim < 1 or psi.shape[-1] == 0:
        raise InvalidState(name, "have shape (..., d)", f"has {tuple(psi.shape)}")
    check_finite(psi, name)
    norm = torch.linalg.vector_norm(psi, dim=-1)
    worst = float((norm - 1).abs().max()) if norm.numel() else 0.0
    if worst > TOLERANCE[psi.dtype]:
        raise InvalidState(name, "have unit norm", f"is off by {worst:.3g}")
    return psi


def check_density(rho: Tensor, name: str = "rho") -> Tensor:
    """Let density operators (..., d, d) pass: finite, Hermitian, unit trace, no negative eigenvalue."""
    check_finite(check_square(rho, name), name)
    if not rho.numel():
        return rho
    tolerance, d = TOLERANCE[rho.dtype], rho.shape[-1]
    skew = float((rho - rho.mH).abs().max())
    if skew > tolerance:
        raise InvalidState(name, "be Hermitian", f"differs from its adjoint by {skew:.3g}")
    trace = rho.diagonal(dim1=-2, dim2=-1).sum(-1)
    off = float((trace - 1).abs().max())
    if off > tolerance:
        raise InvalidState(name, "have trace 1", f"is off by {off:.3g}")
    if rho.ndim == 2 and d >= _LARGE and spectral.has_full_rank(rho, -tolerance * math.sqrt(d)):
        return rho
    least = float(spectral.eigvalsh(rho).min())
    if least < -tolerance * math.sqrt(d):
        raise InvalidState(name, "have no negative eigenvalue", f"has {least:.3g}")
    return rho


def check_weights(weights: Tensor, n: int, name: str = "weights") -> Tensor:
    """Let probabilities (n,) pass: finite, at least 0, sum 1."""
    if weights.shape != (n,):
        raise InvalidState(name, f"have shape ({n},)", f"has {tuple(weights.shape)}")
    check_finite(weights, name)
    if bool((weights < 0).any()):
        raise InvalidState(name, "be at least 0", f"reaches {float(weights.min()):.3g}")
    off = abs(float(weights.double().sum()) - 1)
    if off > TOLERANCE.get(weights.dtype, 1e-5):
        raise InvalidState(name, "sum to 1", f"is off by {off:.3g}")
    return weights


def check_dims(dims: Sequence[int], d: int, name: str = "dims") -> tuple[int, ...]:
    """Let subsystem sizes pass whose product is d; the first varies slowest."""
    if not dims or any(size < 1 for size in dims) or math.prod(dims) != d:
        raise InvalidState(name, f"be positive with product {d}", f"is {tuple(dims)}")
    return tuple(int(size) for size in dims)


def check_same_dimension(a: Tensor, b: Tensor, names: str = "rho, sigma") -> None:
    """Need the same d, the same dtype, and leading shapes that broadcast."""
    if a.dtype != b.dtype:
        raise InvalidState(names, "have one dtype", f"have {a.dtype} and {b.dtype}")
    if a.shape[-1] != b.shape[-1]:
        raise InvalidState(names, "have one dimension d", f"have {a.shape[-1]} and {b.shape[-1]}")
    try:
        np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError as error:
        got = f"have {tuple(a.shape[:-2])} and {tuple(b.shape[:-2])}"
        raise InvalidState(names, "have batch shapes that broadcast", got) from error


def check_finite(x: Tensor, name: str) -> Tensor:
    """Let finite numbers pass."""
    if not bool(torch.isfinite(x).all()):
        raise InvalidState(name, "be finite", "holds NaN or infinity")
    return x


def check_norm(x: Tensor, name: str) -> Tensor:
    """Let matrices (..., r, d) pass whose numbers are finite, and their squares and sums, too."""
    check_finite(x, name)
    if x.numel():
        most = math.sqrt(torch.finfo(x.dtype).max) / (x.shape[-1] * x.shape[-2])
        largest = float(x.abs().max())
        if not largest <= most:
            raise InvalidState(
                name, f"have no number above {most:.3g}, which could not be added up", f"has {largest:.3g}"
            )
    return x


def eigenvalue_cut(values: Tensor) -> Tensor:
    """Below d eps w_max an eigenvalue is rounding: (..., 1). Its square root would be an error of 1e-8."""
    largest = values.detach().abs().amax(-1, keepdim=True)
    return values.shape[-1] * torch.finfo(values.dtype).eps * largest


def _check_dtype(x: Tensor, name: str) -> None:
    if x.dtype not in TOLERANCE:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in TOLERANCE)
        raise InvalidState(name, f"have one of the dtypes {known}", f"has {str(x.dtype).removeprefix('torch.')}")
