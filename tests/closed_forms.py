"""Systems with exact answers. Each docstring holds the derivation; states are torch complex128."""

from __future__ import annotations

import math

import torch
from torch import Tensor

C = torch.complex128


def binary_entropy(p: float) -> float:
    """h(p) = -p log2 p - (1 - p) log2 (1 - p)."""
    return -sum(x * math.log2(x) for x in (p, 1 - p) if x > 0)


def bell() -> Tensor:
    """(|00> + |11>) / sqrt 2, a ket: pure as a whole, and each half is I / 2 (the Schmidt weights are 1/2, 1/2)."""
    return torch.tensor([1, 0, 0, 1], dtype=C) / math.sqrt(2)


def ghz(n: int) -> Tensor:
    """(|0..0> + |1..1>) / sqrt 2, a ket: every proper part is (|0..0><0..0| + |1..1><1..1|) / 2, one bit of entropy."""
    psi = torch.zeros(2**n, dtype=C)
    psi[0] = psi[-1] = 1 / math.sqrt(2)
    return psi


def plus(n: int) -> Tensor:
    """|+>^n, a ket: uniform over 2^n, so S(diag) = n bits, S = 0: coherence n bits, l1 coherence 2^n - 1."""
    return torch.full((2**n,), 2 ** (-n / 2), dtype=C)


def werner(w: float) -> Tensor:
    """w |Bell><Bell| + (1 - w) I / 4: eigenvalues (1 + 3w)/4 once and (1 - w)/4 three times, halves I / 2."""
    return w * torch.outer(bell(), bell().conj()) + (1 - w) * torch.eye(4, dtype=C) / 4


def werner_spectrum(w: float) -> list[float]:
    """The eigenvalues of `werner(w)`; the largest is also its fidelity with the Bell state."""
    return [(1 + 3 * w) / 4] + 3 * [(1 - w) / 4]


def bloch(x: float, y: float, z: float) -> Tensor:
    """(I + x X + y Y + z Z) / 2: eigenvalues (1 +- |r|)/2, purity (1 + |r|^2)/2; T of two is half |r - s|."""
    return torch.tensor([[1 + z, x - 1j * y], [x + 1j * y, 1 - z]], dtype=C) / 2


def bloch_fidelity(r: tuple[float, float, float], s: tuple[float, float, float]) -> float:
    """Qubits: F = tr rho sigma + 2 sqrt(det rho det sigma) = (1 + r.s + sqrt((1 - r^2)(1 - s^2))) / 2 (Huebner)."""
    dot = sum(a * b for a, b in zip(r, s, strict=True))
    rr, ss = sum(a * a for a in r), sum(b * b for b in s)
    return (1 + dot + math.sqrt(max(0.0, 1 - rr) * max(0.0, 1 - ss))) / 2


def two_kets(overlap: float) -> Tensor:
    """Two real unit vectors (2, 2) with <a|b> = overlap.

    Equally likely, their Gram state is [[1, c], [c, 1]] / 2 with eigenvalues (1 +- c)/2: entropy h((1 + c)/2), and the
    coherence H(p) - S = 1 - h((1 + c)/2) bits that they share.
    """
    return torch.tensor([[1, 0], [overlap, math.sqrt(1 - overlap**2)]], dtype=torch.float64)


def simplex(n: int) -> Tensor:
    """n orthonormal vectors (n, n): equally likely, rho = I / n; entropy log2 n, nothing shared."""
    return torch.eye(n, dtype=torch.float64)


def random_state(d: int, rank: int, seed: int, dtype: torch.dtype = C) -> Tensor:
    """A random factor (rank, d) with unit trace; no closed form, but reproducible."""
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(rank, d, dtype=dtype, generator=generator)
    return factor / torch.linalg.norm(factor)
