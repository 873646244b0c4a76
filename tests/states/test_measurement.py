from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qraf.errors import InvalidState
from qraf.states.compose import merge, partial_trace, tensor
from qraf.states.measurement import born, collapse, expectation, outcome_labels, probabilities, sample
from qraf.states.state import State
from tests import closed_forms as exact
from tests.examples import examples

C = torch.complex128
X = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
Y = torch.tensor([[0, -1j], [1j, 0]], dtype=C)
Z = torch.diag(torch.tensor([1.0, -1.0]))
PLUS_MINUS = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / math.sqrt(2)
CIRCULAR = torch.tensor([[1, 1j], [1, -1j]], dtype=C) / math.sqrt(2)
BELL = State.of_ket(exact.bell(), (2, 2))


def test_a_bell_pair_agrees_in_two_bases_and_disagrees_in_the_third() -> None:
    assert probabilities(BELL).tolist() == pytest.approx([0.5, 0, 0, 0.5])
    for basis, want in ((PLUS_MINUS, [0.5, 0, 0, 0.5]), (CIRCULAR, [0, 0.5, 0.5, 0])):
        assert probabilities(BELL, basis=torch.kron(basis, basis)).tolist() == pytest.approx(want)
    assert probabilities(BELL, (1,), PLUS_MINUS).tolist() == pytest.approx([0.5, 0.5])
    assert outcome_labels(BELL.dims) == ["00", "01", "10", "11"]
    assert outcome_labels((2, 11))[-1] == "1,10"


def test_born_takes_vectors_of_any_kind() -> None:
    circular = State.of_ket(CIRCULAR[0])
    assert born(circular, CIRCULAR).tolist() == pytest.approx([1, 0], abs=1e-15)
    assert float(born(circular, torch.tensor([1.0, 0.0]))) == pytest.approx(0.5)
    assert born(State.of_ket(torch.tensor([0.6, 0.8])), CIRCULAR).tolist() == pytest.approx([0.5, 0.5])


def test_subsystems_are_taken_in_the_order_named() -> None:
    state = tensor(State.of_ket(torch.tensor([0.0, 1.0])), State.of_ket(torch.tensor([0.0, 0.0, 1.0])))
    assert probabilities(state, (0, 1)).argmax() == 1 * 3 + 2
    assert probabilities(state, (1, 0)).argmax() == 2 * 2 + 1


def test_samples_repeat_with_the_seed_and_follow_the_probabilities() -> None:
    state = State.of_ket(torch.tensor([0.6, 0.8]))
    counts = sample(state, 100_000, seed=7)
    assert torch.equal(counts, sample(state, 100_000, seed=7))
    assert not torch.equal(counts, sample(state, 100_000, seed=8))
    assert int(counts.sum()) == 100_000
    assert abs(int(counts[0]) - 36_000) < 5 * math.sqrt(100_000 * 0.36 * 0.64)
    assert sample(state, 10**9, seed=1).sum() == 10**9


def test_half_a_bell_pair_decides_the_other_half() -> None:
    after, p = collapse(BELL, 1, (0,), PLUS_MINUS)  # finding |-> leaves |->
    assert p == pytest.approx(0.5)
    assert probabilities(after, (1,), PLUS_MINUS).tolist() == pytest.approx([0, 1], abs=1e-15)
    after, _ = collapse(BELL, 0, (0,), CIRCULAR)  # finding |+i> leaves |-i>
    assert probabilities(after, (1,), CIRCULAR).tolist() == pytest.approx([0, 1], abs=1e-15)


@given(seed=st.integers(0, 10_000), r=st.integers(1, 5), on=st.sampled_from([(0,), (1,), (2,), (2, 0), (0, 1, 2)]))
@settings(max_examples=examples(40), deadline=None)
def test_a_measurement_is_repeatable_and_leaves_the_rest_as_it_was_on_average(
    seed: int, r: int, on: tuple[int, ...]
) -> None:
    state = State(exact.random_state(12, r, seed), (2, 3, 2))
    m = math.prod(state.dims[index] for index in on)
    basis = torch.linalg.qr(exact.random_state(m, m, seed))[0]
    p = probabilities(state, on, basis)
    assert float(p.sum()) == pytest.approx(1)
    after = [collapse(state, k, on, basis) for k in range(m)]
    assert [share for _, share in after] == pytest.approx(p.tolist(), abs=1e-14)
    for k, (one, _) in enumerate(after):
        assert float(probabilities(one, on, basis)[k]) == pytest.approx(1)
    rest = [index for index in range(3) if index not in on]
    if rest:
        mixed = merge([one for one, _ in after], p / p.sum())
        assert torch.allclose(partial_trace(mixed, rest).rho(), partial_trace(state, rest).rho(), atol=1e-14)


def test_expectations_have_known_values() -> None:
    assert expectation(BELL, torch.kron(X, X)) == pytest.approx((1, 0), abs=1e-14)
    assert expectation(BELL, torch.kron(Y, Y)) == pytest.approx((-1, 0), abs=1e-14)
    assert expectation(BELL, Z, (1,)) == pytest.approx((0, 1), abs=1e-14)
    bloch = State.of_density(exact.bloch(0.3, -0.4, 0.5))
    for H, want in ((X, 0.3), (Y, -0.4), (Z, 0.5)):
        assert expectation(bloch, H) == pytest.approx((want, 1 - want**2), abs=1e-14)
    sharp = (X + Z) / math.sqrt(2), (Z - X) / math.sqrt(2)
    chsh = torch.kron(Z, sharp[0] + sharp[1]) + torch.kron(X, sharp[0] - sharp[1])
    assert expectation(BELL, chsh).mean == pytest.approx(2 * math.sqrt(2), rel=1e-6)  # Tsirelson's bound


def test_an_expectation_is_the_trace_with_the_matrix() -> None:
    state = State(exact.random_state(12, 3, 4), (2, 3, 2))
    H = exact.random_state(12, 12, 5)
    H = H + H.mH
    mean, variance = expectation(state, H)
    assert mean == pytest.approx(float(torch.trace(state.rho() @ H).real), abs=1e-14)
    assert variance == pytest.approx(float(torch.trace(state.rho() @ H @ H).real) - mean**2, abs=1e-14)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: born(BELL, torch.eye(3)), r"`x` must have shape \(n, 4\), but has \(3, 3\)"),
        (lambda: born(BELL, torch.ones(4)), "`x` must have unit norm"),
        (lambda: born(BELL, torch.full((4,), math.nan)), "be finite"),
        (lambda: probabilities(BELL, (2,)), "`on` must name some of the subsystems 0 to 1"),
        (lambda: probabilities(BELL, basis=PLUS_MINUS), r"`basis` must have shape \(4, 4\), kets in rows"),
        (lambda: probabilities(BELL, (0,), torch.ones(2, 2)), "`basis` must be orthonormal"),
        (lambda: sample(BELL, 0, 1), "`shots` must be from 1 to 1000000000, but is 0"),
        (lambda: sample(BELL, 1, -1), "`seed` must be at least 0"),
        (lambda: collapse(BELL, 4), "`outcome` must be from 0 to 3, but is 4"),
        (lambda: collapse(BELL, 1), "`outcome` must have a probability above 0, but has 0"),
        (lambda: expectation(BELL, torch.ones(2, 3)), r"have shape \(\.\.\., d, d\)"),
        (lambda: expectation(BELL, X), "act on dimension 4, that of the chosen subsystems, but acts on 2"),
        (lambda: expectation(BELL, torch.triu(torch.ones(4, 4))), "`observable` must be Hermitian"),
        (lambda: expectation(BELL, X[None]), r"`observable` must have shape \(m, m\)"),
    ],
)
def test_what_cannot_be_measured_is_named(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(InvalidState, match=message):
        make()
