from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qraf.errors import InvalidState
from qraf.states import measures as m
from tests import closed_forms as exact
from tests.examples import examples

C = torch.complex128


def rho_of(psi: torch.Tensor) -> torch.Tensor:
    return torch.outer(psi, psi.conj())


def near(value: torch.Tensor | float, want: float, tolerance: float = 1e-12) -> bool:
    return abs(float(value) - want) <= tolerance


def test_halves_of_a_bell_pair_are_maximally_mixed() -> None:
    for keep in ((0,), (1,)):
        half = m.partial_trace(rho_of(exact.bell()), (2, 2), keep)
        assert torch.allclose(half, torch.eye(2, dtype=C) / 2, atol=1e-15)
    assert near(m.entropy_bits(rho_of(exact.bell())), 0)
    assert near(m.purity(rho_of(exact.bell())), 1)


def test_every_part_of_a_ghz_state_has_one_bit() -> None:
    rho = rho_of(exact.ghz(4))
    for keep in ((0,), (1, 3), (0, 1, 2)):
        part = m.partial_trace(rho, (2, 2, 2, 2), keep)
        assert near(m.entropy_bits(part), 1)
        assert near(m.effective_rank(part), 2)


def test_first_subsystem_varies_slowest() -> None:
    a, b = exact.bloch(0, 0, 1), torch.diag(torch.tensor([0.5, 0.3, 0.2], dtype=C))
    both = torch.kron(a, b)
    assert torch.allclose(m.partial_trace(both, (2, 3), (0,)), a)
    assert torch.allclose(m.partial_trace(both, (2, 3), (1,)), b)


def test_keeping_all_or_nothing() -> None:
    rho = exact.werner(0.3)
    assert torch.equal(m.partial_trace(rho, (2, 2), (1, 0)), rho)
    assert near(m.partial_trace(rho, (2, 2), ()).real.squeeze(), 1)


@pytest.mark.parametrize("w", [0.0, 0.25, 0.7, 1.0])
def test_werner_states(w: float) -> None:
    rho, spectrum = exact.werner(w), exact.werner_spectrum(w)
    assert near(m.entropy_bits(rho), -sum(x * math.log2(x) for x in spectrum if x > 0))
    assert near(m.purity(rho), sum(x * x for x in spectrum))
    assert near(m.fidelity(rho, rho_of(exact.bell())), spectrum[0])
    assert near(m.trace_distance(rho, rho_of(exact.bell())), 3 * (1 - w) / 4)


def test_fidelity_is_the_squared_one() -> None:
    zero, plus = rho_of(torch.tensor([1, 0], dtype=C)), rho_of(exact.plus(1))
    assert near(m.fidelity(zero, plus), 0.5)  # the root would be 0.707
    assert near(m.fidelity_ket(exact.plus(1), 3j * torch.tensor([1, 0], dtype=C)), 0.5)


@pytest.mark.parametrize(("r", "s"), [((0, 0, 0.5), (0.3, 0.2, -0.1)), ((0, 0, 1), (0.6, 0, 0)), ((0.1, 0, 0),) * 2])
def test_qubits_on_the_bloch_ball(r: tuple[float, float, float], s: tuple[float, float, float]) -> None:
    a, b = exact.bloch(*r), exact.bloch(*s)
    # each determinant is a rounding error of 1e-17 near a pure state, and enters under a root
    assert near(m.fidelity(a, b), exact.bloch_fidelity(r, s), 1e-8)
    assert near(m.trace_distance(a, b), math.dist(r, s) / 2)
    assert near(m.purity(a), (1 + sum(x * x for x in r)) / 2)
    assert near(m.entropy_bits(a), exact.binary_entropy((1 + math.hypot(*r)) / 2))


def test_uniform_superposition_has_one_bit_of_coherence_per_qubit() -> None:
    psi = exact.plus(3)
    assert near(m.coherence_bits(rho_of(psi)), 3)
    assert near(m.coherence_bits_factor(psi[None].conj()), 3)
    assert near(m.l1_coherence(rho_of(psi)), 7)
    assert near(m.l1_coherence_ket(psi), 7)


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.9, 1.0])
def test_two_items_share_what_their_overlap_says(overlap: float) -> None:
    psi, p = exact.two_kets(overlap), torch.tensor([0.5, 0.5], dtype=torch.float64)
    entropy = exact.binary_entropy((1 + overlap) / 2)
    assert near(m.gram_coherence_bits(psi, p), 1 - entropy)
    assert near(m.entropy_bits(m.gram_state(psi, p)), entropy)
    assert near(m.coherence_bits(m.gram_state(psi, p)), 1 - entropy)
    assert near(m.gram_state(psi, p)[0, 1], overlap / 2)


def test_factor_and_dense_agree_to_the_last_digits() -> None:
    a, b = exact.random_state(12, 2, 1), exact.random_state(12, 3, 2)
    rho, sigma = a.mH @ a, b.mH @ b
    assert near(m.fidelity(rho, sigma), float(m.fidelity_factor(a, b)), 1e-14)
    assert near(m.trace_distance(rho, sigma), float(m.trace_distance_factor(a, b)), 1e-14)
    assert near(m.entropy_bits(rho), float(m.entropy_bits_factor(a)), 1e-13)
    assert near(m.purity(rho), float(m.purity_factor(a)), 1e-15)
    assert near(m.coherence_bits(rho), float(m.coherence_bits_factor(a)), 1e-13)
    x = exact.random_state(12, 1, 3)
    assert near(m.born_factor(a, x)[0], float((x[0].conj() @ rho @ x[0]).real), 1e-15)
    assert torch.allclose(m.factor_of(rho).mH @ m.factor_of(rho), rho, atol=1e-15)


def test_near_states_keep_their_distance_in_float32() -> None:
    a = exact.random_state(64, 4, 5, torch.float32)
    b = a + 1e-4 * exact.random_state(64, 4, 6, torch.float32)
    b = b / torch.linalg.norm(b)
    want = float(m.trace_distance_factor(a.double(), b.double()))
    assert near(m.trace_distance_factor(a, b), want, 1e-6)
    assert want > 1e-5


def test_batches_give_what_single_states_give() -> None:
    a = torch.stack([exact.random_state(6, 2, seed) for seed in range(6)]).reshape(2, 3, 2, 6)
    b = exact.random_state(6, 3, 9)
    for batched, one in (
        (m.fidelity_factor(a, b), m.fidelity_factor(a[1, 2], b)),
        (m.trace_distance_factor(a, b), m.trace_distance_factor(a[1, 2], b)),
        (m.entropy_bits_factor(a), m.entropy_bits_factor(a[1, 2])),
        (m.purity(a.mH @ a), m.purity(a[1, 2].mH @ a[1, 2])),
        (m.l1_coherence(a.mH @ a), m.l1_coherence(a[1, 2].mH @ a[1, 2])),
    ):
        assert batched.shape == (2, 3)
        assert near(batched[1, 2], float(one), 1e-14)
    assert m.partial_trace(a.mH @ a, (2, 3), (1,)).shape == (2, 3, 3, 3)
    assert m.entropy_bits_factor(a[:0]).shape == (0, 3)


@pytest.mark.slow
def test_gradients_of_a_rank_deficient_state_are_finite_and_right() -> None:
    base = exact.random_state(6, 2, 4, torch.float64)
    deficient = torch.cat((base, torch.zeros(1, 6, dtype=torch.float64))).requires_grad_()
    m.entropy_bits_factor(deficient).backward()
    assert deficient.grad is not None
    assert bool(torch.isfinite(deficient.grad).all())
    a, b = (exact.random_state(6, 2, seed, torch.float64).requires_grad_() for seed in (7, 8))
    for measure in (m.fidelity_factor, m.trace_distance_factor):
        assert torch.autograd.gradcheck(measure, (a, b))
    for single in (m.entropy_bits_factor, m.purity_factor, m.coherence_bits_factor):
        assert torch.autograd.gradcheck(single, (a,))


@given(seed=st.integers(0, 10_000), d=st.integers(1, 9), r=st.integers(1, 5), s=st.integers(1, 5), t=st.floats(0, 1))
@settings(max_examples=examples(60), deadline=None)
def test_distance_and_fidelity_obey_their_inequalities(seed: int, d: int, r: int, s: int, t: float) -> None:
    a, b, c = exact.random_state(d, r, seed), exact.random_state(d, s, seed + 1), exact.random_state(d, r, seed + 2)
    b = torch.cat((math.sqrt(t) * a, math.sqrt(1 - t) * b))  # from equal to unrelated
    distance, fidelity = float(m.trace_distance_factor(a, b)), float(m.fidelity_factor(a, b))
    room = 1e-7  # a root of the rounding of F
    assert 0 <= distance <= 1
    assert 0 <= fidelity <= 1
    assert 1 - math.sqrt(fidelity) <= distance + room  # Fuchs and van de Graaf 1999
    assert distance <= math.sqrt(1 - fidelity) + room
    assert distance <= float(m.trace_distance_factor(a, c) + m.trace_distance_factor(c, b)) + 1e-12
    assert near(m.fidelity_factor(b, a), fidelity, 1e-12)
    assert -1e-12 <= float(m.entropy_bits_factor(b)) <= math.log2(d) + 1e-12
    assert 1 / d - 1e-12 <= float(m.purity_factor(b)) <= 1 + 1e-12


def test_what_is_no_state_is_named() -> None:
    with pytest.raises(InvalidState, match=r"`rho` must have shape \(\.\.\., d, d\), but has \(2, 3\)"):
        m.purity(torch.zeros(2, 3))
    with pytest.raises(InvalidState, match=r"`dims` must be positive with product 4"):
        m.partial_trace(exact.werner(1), (2, 3))
    with pytest.raises(InvalidState, match=r"`keep` must name some of the subsystems 0 to 1"):
        m.partial_trace(exact.werner(1), (2, 2), (2,))
    with pytest.raises(InvalidState, match="have one dimension d"):
        m.fidelity_factor(exact.random_state(3, 1, 0), exact.random_state(4, 1, 0))
    with pytest.raises(InvalidState, match="broadcast"):
        m.fidelity_factor(torch.zeros(2, 1, 3), torch.zeros(3, 1, 3))
    with pytest.raises(InvalidState, match="have one dtype"):
        m.trace_distance(torch.eye(2), torch.eye(2).double())
    with pytest.raises(InvalidState, match="have one of the dtypes"):
        m.purity(torch.eye(2, dtype=torch.int64))
    with pytest.raises(InvalidState, match="at least one row"):
        m.entropy_bits_factor(torch.zeros(0, 3))
