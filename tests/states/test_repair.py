from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qraf.errors import InvalidState
from qraf.states import measures as m
from qraf.states.checks import check_density
from qraf.states.physical import nearest_state
from qraf.states.repair import align_phase, procrustes, repair, syndromes_of
from tests import closed_forms as exact

R, C = torch.float64, torch.complex128
SEEDS = st.integers(0, 10_000)


def noise_of(d: int, size: float, seed: int) -> torch.Tensor:
    """A Hermitian matrix of that operator norm."""
    error = torch.randn(d, d, dtype=C, generator=torch.Generator().manual_seed(seed))
    error = error + error.mH
    return error * size / float(torch.linalg.matrix_norm(error, 2))


def state(d: int, rank: int, seed: int) -> torch.Tensor:
    factor = exact.random_state(d, rank, seed)
    return factor.mH @ factor


def test_the_three_defects_are_told_apart() -> None:
    zero = torch.diag(torch.tensor([1.0, 0.0], dtype=C))
    skew = torch.tensor([[0, 0.3], [-0.3, 0]], dtype=C)
    wrong = torch.stack((zero, 1.5 * zero, zero + skew, zero + torch.diag(torch.tensor([0.2, -0.2], dtype=C))))
    fixed = repair(wrong)
    assert fixed.syndromes.found.tolist() == [
        [False, False, False],
        [True, False, False],
        [False, True, False],
        [False, False, True],
    ]
    assert fixed.syndromes.trace[1].item() == pytest.approx(0.5)
    assert fixed.syndromes.hermiticity[2].item() == pytest.approx(0.3 * math.sqrt(2))
    assert fixed.syndromes.negativity[3].item() == pytest.approx(0.2)
    assert fixed.changed.tolist() == [False, True, True, True]
    check_density(fixed.rho)


@given(SEEDS, st.integers(1, 6), st.floats(-2, 3), st.floats(0, 2))
def test_how_far_follows_from_the_syndromes(seed: int, rank: int, trace: float, size: float) -> None:
    mu = state(6, rank, seed) * trace + noise_of(6, size, seed) if size else state(6, rank, seed) * trace
    fixed = repair(mu)
    t, n = float(mu.diagonal().sum().real) - 1, float(fixed.syndromes.negativity)
    want = n + t / 2 if n + t >= 0 else abs(t) / 2
    assert float(fixed.moved) == pytest.approx(want, abs=1e-10)
    assert float(m.trace_distance(fixed.rho, (mu + mu.mH) / 2)) == pytest.approx(min(1, want), abs=1e-10)


@given(SEEDS)
def test_distances_are_those_of_what_came(seed: int) -> None:
    mu = torch.randn(3, 5, 5, dtype=C, generator=torch.Generator().manual_seed(seed)) / 5
    fixed = repair(mu)
    away = torch.linalg.matrix_norm(fixed.rho - mu)
    assert torch.allclose(fixed.moved_frobenius, away, atol=1e-13)
    assert torch.allclose(fixed.rho, nearest_state(mu), atol=1e-14)


@given(SEEDS, st.integers(1, 5), st.floats(1e-4, 0.2), st.booleans())
def test_the_true_state_lies_within_the_bound(seed: int, rank: int, size: float, is_known: bool) -> None:
    rho = state(10, rank, seed)
    mu = rho + noise_of(10, size, seed + 1)
    fixed = repair(mu, rank if is_known else None, noise=size * (1 + 1e-9))
    assert float(m.trace_distance(fixed.rho, rho)) <= 2 * rank * size + 1e-12
    assert fixed.bound == pytest.approx(min(1, 2 * (rank if is_known else 10) * size))
    if not is_known:
        assert float(torch.linalg.norm(fixed.rho - rho)) <= float(torch.linalg.norm(mu - rho)) + 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, C])
@pytest.mark.parametrize("d", [1, 2, 64])
def test_a_state_comes_back_bit_for_bit(dtype: torch.dtype, d: int) -> None:
    factor = exact.random_state(d, min(d, 3), 1, dtype)
    rho = factor.mH @ factor
    rho = rho / rho.diagonal().sum().real  # else d = 1 is off by one rounding on some processors
    fixed = repair(rho)
    assert not bool(fixed.changed)
    assert torch.equal(fixed.rho, rho)
    assert float(fixed.moved) == float(fixed.moved_frobenius) == 0
    assert fixed.bound is None
    assert torch.equal(syndromes_of(rho).found, fixed.syndromes.found)


def test_a_known_rank_is_imposed_on_a_state_of_a_higher_one() -> None:
    rho = torch.diag(torch.tensor([0.6, 0.3, 0.1], dtype=R))
    fixed = repair(rho, rank=2)
    assert fixed.rho.diagonal().tolist() == pytest.approx([0.65, 0.35, 0.0])
    assert not bool(fixed.syndromes.found.any())
    assert float(fixed.moved) == pytest.approx(0.1)


@given(SEEDS)
def test_aligned_kets_overlap_by_a_positive_number(seed: int) -> None:
    a, b = exact.random_state(5, 1, seed)[0], exact.random_state(5, 1, seed + 1)[0]
    turned = align_phase(b, a)
    overlap = complex((a.conj() * turned).sum())
    assert overlap.real == pytest.approx(abs(complex((a.conj() * b).sum())), abs=1e-14)
    assert overlap.imag == pytest.approx(0, abs=1e-14)
    assert float(m.fidelity_ket(b, turned)) == pytest.approx(1, abs=1e-14)
    for angle in (0.1, 1.0, 3.0):
        other = b * complex(math.cos(angle), math.sin(angle))
        assert float(torch.linalg.norm(turned - a)) <= float(torch.linalg.norm(other - a)) + 1e-14


def test_orthogonal_kets_and_real_signs() -> None:
    a, b = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=R), torch.tensor([[0.0, -1.0], [-1.0, 0.0]], dtype=R)
    assert align_phase(b, a).tolist() == [[0.0, -1.0], [1.0, 0.0]]


@given(SEEDS, st.integers(1, 4), st.integers(1, 4))
def test_the_nearest_factor_is_at_the_bures_distance(seed: int, r: int, s: int) -> None:
    a, b = exact.random_state(6, r, seed), exact.random_state(6, s, seed + 1)
    turned, unitary = procrustes(a, b)
    n = max(r, s)
    padded = torch.cat((b, torch.zeros(n - s, 6, dtype=C)))
    bures = 2 - 2 * math.sqrt(float(m.fidelity_factor(a, b)))
    assert float(torch.linalg.norm(turned - padded) ** 2) == pytest.approx(bures, abs=1e-12)
    assert torch.allclose(unitary @ unitary.mH, torch.eye(n, dtype=C), atol=1e-13)
    assert torch.allclose(turned.mH @ turned, a.mH @ a, atol=1e-14)


def test_a_turned_factor_finds_its_way_back() -> None:
    a = exact.random_state(64, 8, 0)
    q = torch.linalg.qr(exact.random_state(8, 8, 1)).Q
    near = a + 0.01 * exact.random_state(64, 8, 2)
    turned, _ = procrustes(q @ near, a)
    assert float(torch.linalg.norm(q @ near - a)) > 1
    assert float(torch.linalg.norm(turned - a)) <= 0.01 + 1e-12


def test_what_cannot_be_repaired_is_named() -> None:
    with pytest.raises(InvalidState, match="finite"):
        repair(torch.full((2, 2), math.nan, dtype=R))
    with pytest.raises(InvalidState, match="shape"):
        repair(torch.zeros(2, 3, dtype=R))
    with pytest.raises(InvalidState, match="rank"):
        repair(torch.eye(2, dtype=R), rank=0)
    with pytest.raises(InvalidState, match="noise"):
        repair(torch.eye(2, dtype=R), noise=-1.0)
    with pytest.raises(InvalidState, match="one dimension"):
        align_phase(torch.zeros(2, dtype=R), torch.zeros(3, dtype=R))
