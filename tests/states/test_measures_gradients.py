"""Gradients of the figures through the factor, above all where eigenvalues meet or vanish."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qraf.errors import InvalidState
from qraf.states import measures as m
from tests.closed_forms import random_state
from tests.examples import examples

R, C = torch.float64, torch.complex128


def deficient(base: Tensor) -> Tensor:
    """The same state with a row of zeros and with one row split in two: rank below the number of rows."""
    return torch.cat((base[:-1], base[-1:] * 0.6, base[-1:] * 0.8, torch.zeros_like(base[:1])))


def flat(d: int, r: int, dtype: torch.dtype) -> Tensor:
    """r orthonormal rows / sqrt r: one eigenvalue 1 / r, r times."""
    q, _ = torch.linalg.qr(random_state(d, d, 3, dtype))
    return q[:r] / math.sqrt(r)


def uneven(d: int, dtype: torch.dtype) -> Tensor:
    """Eigenvalues .4 .4 .1 .1: two degenerate pairs."""
    q, _ = torch.linalg.qr(random_state(d, d, 4, dtype))
    return q[:4] * torch.tensor([0.4, 0.4, 0.1, 0.1], dtype=R).sqrt()[:, None]


CASES = {
    "generic": lambda dtype: random_state(5, 3, 1, dtype),
    "more rows than dimensions": lambda dtype: random_state(3, 5, 1, dtype),
    "pure": lambda dtype: random_state(4, 1, 1, dtype),
    "rank-deficient": lambda dtype: deficient(random_state(5, 2, 1, dtype)),
    "maximally mixed": lambda dtype: flat(4, 4, dtype),
    "degenerate pairs": lambda dtype: uneven(6, dtype),
    "basis states": lambda dtype: torch.eye(3, dtype=dtype) / math.sqrt(3),
}
SINGLE = (m.entropy_bits_factor, m.effective_rank_factor, m.purity_factor, m.coherence_bits_factor)


def central(f: Callable[[Tensor], Tensor], at: Tensor, along: Tensor, h: float = 1e-6) -> float:
    return float((f(at + h * along) - f(at - h * along)) / (2 * h))


def central_of_two(
    f: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor, u: Tensor, v: Tensor, h: float = 1e-6
) -> float:
    return float((f(a + h * u, b + h * v) - f(a - h * u, b - h * v)) / (2 * h))


def slope(f: Callable[[Tensor], Tensor], at: Tensor, along: Tensor) -> float:
    """The derivative of f along a direction, by autograd."""
    x = at.clone().requires_grad_()
    (grad,) = torch.autograd.grad(f(x), x)
    assert is_finite(grad)
    return float((grad.conj() * along).sum().real)


def slopes(f: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor, u: Tensor, v: Tensor) -> float:
    """The derivative of f along a direction of both arguments, by autograd."""
    return slope(lambda x: f(x, b), a, u) + slope(lambda x: f(a, x), b, v)


def is_finite(grad: Tensor) -> bool:
    return bool(torch.isfinite(grad.abs()).all())


@pytest.mark.parametrize("dtype", [R, C], ids=["real", "complex"])
@pytest.mark.parametrize("case", CASES)
def test_figures_of_one_state(case: str, dtype: torch.dtype) -> None:
    factor = CASES[case](dtype)
    for seed in range(3):
        along = random_state(factor.shape[-1], factor.shape[-2], 50 + seed, dtype)
        for f in SINGLE:
            assert slope(f, factor, along) == pytest.approx(central(f, factor, along), abs=2e-5), f.__name__


@pytest.mark.parametrize("dtype", [R, C], ids=["real", "complex"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("other", ["generic", "rank-deficient", "maximally mixed", "the same", "orthogonal"])
def test_figures_of_two_states(case: str, other: str, dtype: torch.dtype) -> None:
    a = CASES[case](dtype)
    d = a.shape[-1]
    if other == "orthogonal":
        if len(a) >= d:
            pytest.skip("nothing is orthogonal to a state of full rank")
        b = torch.linalg.qr(a.mH, mode="complete").Q[:, len(a) :].mH
        b = b / torch.linalg.norm(b)
    else:
        b = {"generic": lambda: random_state(d, 2, 9, dtype), "rank-deficient": lambda: deficient(flat(d, 2, dtype)),
             "maximally mixed": lambda: flat(d, d, dtype), "the same": lambda: a.clone()}[other]()  # fmt: skip
    a, b = 0.9 * a, 0.9 * b  # below the bounds of a state: there a value is clamped, its gradient is not
    for seed in range(2):
        u, v = random_state(d, len(a), 60 + seed, dtype), random_state(d, len(b), 70 + seed, dtype)
        for f in (m.fidelity_factor, m.trace_distance_factor):
            assert slopes(f, a, b, u, v) == pytest.approx(central_of_two(f, a, b, u, v), abs=3e-5), f.__name__


@pytest.mark.parametrize("dtype", [R, C], ids=["real", "complex"])
def test_closed_forms(dtype: torch.dtype) -> None:
    factor = uneven(6, dtype).requires_grad_()
    (grad,) = torch.autograd.grad(m.entropy_bits_factor(factor), factor)
    weight = torch.tensor([0.4, 0.4, 0.1, 0.1], dtype=R)
    want = -2 * (weight.log2() + 1 / math.log(2))[:, None] * factor  # 2 f'(G) L
    assert torch.allclose(grad, want.detach(), atol=1e-12)
    half = flat(4, 4, dtype).requires_grad_()
    (grad,) = torch.autograd.grad(m.purity_factor(half), half)
    assert torch.allclose(grad, half.detach(), atol=1e-14)  # 4 G L with G = I / 4


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [R, C], ids=["real", "complex"])
def test_autograd_agrees_with_every_partial_derivative(dtype: torch.dtype) -> None:
    a, b = (0.9 * random_state(4, 3, seed, dtype) for seed in (5, 6))
    for pair in (m.fidelity_factor, m.trace_distance_factor):
        assert torch.autograd.gradcheck(pair, (a.requires_grad_(), b.requires_grad_()))
        batched = torch.stack((a.detach(), 0.5 * b.detach())).requires_grad_()
        assert torch.autograd.gradcheck(pair, (batched, b))
    x = random_state(4, 5, 7, dtype).requires_grad_()
    assert torch.autograd.gradcheck(m.born_factor, (a, x))
    assert torch.autograd.gradcheck(m.fidelity_ket, (a[0], 0.3 * b[0]))


def test_maximum_and_minimum_have_no_slope_along_states() -> None:
    """F of equal states is the largest, T of equal states the smallest value: along normalised paths both are flat."""
    a = uneven(6, C)
    along = random_state(6, 4, 11)
    along = along - a * (a.conj() * along).sum().real  # keeps the trace
    assert slope(lambda x: m.fidelity_factor(x, a), a, along) == pytest.approx(0, abs=1e-12)
    assert slope(lambda x: m.trace_distance_factor(x, a), a, along) == pytest.approx(0, abs=1e-12)


def test_a_pure_born_probability_that_is_zero() -> None:
    psi = torch.tensor([[1.0, 0.0]], dtype=R, requires_grad=True)
    (grad,) = torch.autograd.grad(m.born_factor(psi, torch.tensor([[0.0, 1.0]], dtype=R)).sum(), psi)
    assert torch.equal(grad, torch.zeros(1, 2, dtype=R))


def test_an_ensemble_with_a_weight_of_zero() -> None:
    psi = random_state(4, 3, 2, R)
    psi = (psi / torch.linalg.norm(psi, dim=1, keepdim=True)).requires_grad_()
    weights = torch.tensor([0.5, 0.5, 0.0], dtype=R, requires_grad=True)
    grads = torch.autograd.grad(m.gram_coherence_bits(psi, weights), (psi, weights))
    assert all(map(is_finite, grads))
    assert float(grads[1][2]) == 0


@settings(max_examples=examples(40), deadline=None)
@given(
    d=st.integers(1, 6),
    r=st.integers(1, 5),
    repeats=st.integers(1, 3),
    zeros=st.integers(0, 2),
    seed=st.integers(0, 999),
)
def test_gradients_are_finite_whatever_the_rank(d: int, r: int, repeats: int, zeros: int, seed: int) -> None:
    base = random_state(d, r, seed)
    rows = torch.cat((*[base] * repeats, torch.zeros(zeros, d, dtype=C)))
    factor = (rows / torch.linalg.norm(rows)).requires_grad_()
    other = random_state(d, r, seed + 1)
    total = sum(f(factor) for f in SINGLE)
    total = total + m.fidelity_factor(factor, other) + m.trace_distance_factor(factor, other)
    total = total + m.trace_distance_factor(factor, factor.detach())
    (grad,) = torch.autograd.grad(total, factor)
    assert is_finite(grad)


@pytest.mark.parametrize(
    "f", [m.entropy_bits, m.effective_rank, m.coherence_bits, m.factor_of, lambda x: m.fidelity(x, x.detach()),
          lambda x: m.fidelity(x.detach(), x), lambda x: m.trace_distance(x.detach(), x)]
)  # fmt: skip
def test_dense_states_refuse_a_gradient_and_say_what_has_one(f: Callable[[Tensor], Tensor]) -> None:
    rho = (torch.eye(2, dtype=C) / 2).requires_grad_()
    with pytest.raises(InvalidState, match="ask for no gradient"):
        f(rho)
    with torch.no_grad():
        f(rho)


def test_dense_polynomials_have_gradients() -> None:
    rho = (torch.eye(4, dtype=C) / 4).requires_grad_()
    assert torch.autograd.gradcheck(m.purity, (rho,))
    assert torch.autograd.gradcheck(lambda x: m.partial_trace(x, (2, 2)), (rho,))
