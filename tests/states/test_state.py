from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qraf.errors import InvalidState
from qraf.states import measures
from qraf.states.state import DIM_MAX, State
from tests import closed_forms as exact
from tests.examples import examples

C = torch.complex128


def test_a_bell_pair_has_the_figures_of_a_bell_pair() -> None:
    pair = State.of_ket(exact.bell(), (2, 2))
    assert (pair.d, pair.rank, pair.dims, pair.nbytes) == (4, 1, (2, 2), 64)
    figures = pair.figures()
    want = {"purity": 1, "entropy_bits": 0, "effective_rank": 1, "coherence_bits": 1, "rank": 1, "trace": 1}
    assert figures == pytest.approx(want | {"l1_coherence": 1}, abs=1e-14)
    assert repr(pair) == "State(d=4, rank=1, dims=(2, 2))"


@pytest.mark.parametrize("w", [0.0, 0.25, 0.7, 1.0])
def test_a_werner_state_keeps_its_spectrum_and_rank(w: float) -> None:
    state = State.of_density(exact.werner(w), (2, 2))
    spectrum = sorted((x for x in exact.werner_spectrum(w) if x > 0), reverse=True)
    assert state.spectrum().tolist() == pytest.approx(spectrum, abs=1e-15)
    figures = state.figures()
    assert figures["entropy_bits"] == pytest.approx(-sum(x * math.log2(x) for x in spectrum), abs=1e-13)
    assert figures["purity"] == pytest.approx(sum(x * x for x in spectrum))
    assert figures["l1_coherence"] == pytest.approx(w)
    assert torch.allclose(state.rho(), exact.werner(w), atol=1e-15)


def test_complex_kets_are_not_conjugated() -> None:
    circular = torch.tensor([1, 1j], dtype=C) / math.sqrt(2)
    want = torch.outer(circular, circular.conj())
    for state in (State.of_ket(circular), State.of_ensemble(circular[None]), State.of_density(want)):
        assert torch.allclose(state.rho(), want, atol=1e-15)
        overlap = (state.kets()[0].conj() @ circular).abs()
        assert float(overlap) == pytest.approx(1)


def test_equal_kets_of_an_ensemble_fold_into_one_row() -> None:
    psi = torch.stack([exact.bell()] * 5)
    assert State.of_ensemble(psi).rank == 1
    mixed = State.of_ensemble(exact.simplex(4), torch.tensor([0.5, 0.25, 0.25, 0.0]))
    assert mixed.rank == 3
    assert mixed.factor.dtype == torch.float64
    assert mixed.figures()["entropy_bits"] == 1.5


def test_more_rows_than_dimensions_fold_too() -> None:
    factor = exact.random_state(3, 50, 1)
    state = State.of_factor(factor)
    assert state.rank == 3
    assert torch.allclose(state.rho(), factor.mH @ factor, atol=1e-15)


def test_a_float32_state_is_widened_and_keeps_its_rank() -> None:
    factor = exact.random_state(64, 2, 3, torch.complex64)
    state = State.of_density(factor.mH @ factor)
    assert (state.rank, state.factor.dtype) == (2, C)
    assert float(state.factor.abs().square().sum()) == pytest.approx(1, abs=1e-14)


@given(seed=st.integers(0, 10_000), d=st.integers(1, 9), r=st.integers(1, 12), loss=st.floats(0, 0.9))
@settings(max_examples=examples(60), deadline=None)
def test_recompression_certifies_what_it_loses(seed: int, d: int, r: int, loss: float) -> None:
    scale = torch.logspace(0, -3, r, dtype=torch.float64)[:, None]
    factor = exact.random_state(d, r, seed) * scale
    state = State.of_factor(factor / torch.linalg.norm(factor))
    small, lost = state.recompressed(loss)
    assert lost <= loss
    assert small.rank <= state.rank <= min(d, r)
    assert float(measures.trace_distance_factor(state.factor, small.factor)) <= lost + 1e-13
    assert float(measures.fidelity_factor(state.factor, small.factor)) >= 1 - lost - 1e-13
    exactly, nothing = state.recompressed()
    assert nothing <= 1e-13
    assert torch.allclose(exactly.rho(), state.rho(), atol=1e-14)


def test_recompression_keeps_at_least_one_row() -> None:
    mixed = State.of_ensemble(exact.simplex(4))
    small, lost = mixed.recompressed(0.99)
    assert (small.rank, lost) == (1, pytest.approx(0.75))


def test_a_factor_of_full_rank_is_kept_bit_for_bit() -> None:
    factor = State.of_factor(exact.random_state(8, 3, 4)).factor
    assert torch.equal(State.of_factor(factor).factor, factor)


def test_l1_coherence_of_a_large_mixed_state_is_left_out() -> None:
    assert "l1_coherence" not in State.of_ensemble(torch.eye(2, 1025)).figures()
    big = torch.full((2048,), 2048**-0.5, dtype=torch.float64)
    assert State.of_ket(big).figures()["l1_coherence"] == pytest.approx(2047)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: State(torch.zeros(0, 3)), r"`factor` must have shape \(r, d\) with r >= 1, but has \(0, 3\)"),
        (lambda: State(torch.zeros(2, 3)), "have trace 1, but has 0"),
        (lambda: State(torch.full((1, 3), torch.nan)), "`factor` must be finite"),
        (lambda: State(torch.ones(1, 2)), "have trace 1, but has 2"),
        (lambda: State(torch.ones(2)), r"have shape \(..., r, d\)"),
        (lambda: State(torch.ones(1, 1, 1)), r"have shape \(r, d\)"),
        (lambda: State(torch.ones(1, 1, dtype=torch.int64)), "one of the dtypes"),
        (lambda: State(torch.eye(1, 6), (2, 2)), r"`dims` must be positive with product 6, but is \(2, 2\)"),
        (lambda: State(torch.eye(1, 2 * DIM_MAX)), r"`d` must be at most 4096 \(12 qubits\), but is 8192"),
        (lambda: State.of_ket(torch.eye(1, 8192)[0], (2,) * 13), "at most 4096"),
        (lambda: State.of_density(torch.eye(4097) / 4097), "at most 4096"),
        (lambda: State.of_ket(torch.ones(2)), "`psi` must have unit norm"),
        (lambda: State.of_ket(torch.eye(2)), r"have shape \(d,\)"),
        (lambda: State.of_density(torch.zeros(2, 3)), r"`rho` must have shape \(\.\.\., d, d\)"),
        (lambda: State.of_density(torch.zeros(3)), r"`rho` must have shape \(d, d\)"),
        (lambda: State.of_density(torch.zeros(2, 2)), "have trace 1"),
        (lambda: State.of_density(torch.tensor([[0.5, 0.5], [0.0, 0.5]])), "be Hermitian"),
        (lambda: State.of_density(torch.diag(torch.tensor([1.5, -0.5]))), "no negative eigenvalue"),
        (lambda: State.of_density(torch.full((2, 2), torch.nan)), "be finite"),
        (lambda: State.of_ensemble(torch.zeros(0, 2)), r"\(n, d\) with n >= 1"),
        (lambda: State.of_ensemble(torch.eye(2), torch.tensor([0.5, 0.6])), "`weights` must sum to 1"),
        (lambda: State.of_ensemble(torch.eye(2), torch.tensor([1.0])), r"`weights` must have shape \(2,\)"),
        (lambda: State.of_ket(torch.eye(2)[0]).recompressed(1.0), "`loss` must be at least 0 and below 1"),
    ],
)
def test_what_is_no_state_is_refused_with_the_reason(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(InvalidState, match=message):
        make()
