from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qraf.errors import InvalidState
from qraf.states import measures
from qraf.states.compose import compare, merge, partial_trace, tensor
from qraf.states.state import State
from tests import closed_forms as exact
from tests.examples import examples

C = torch.complex128


def test_a_product_traces_back_to_its_parts() -> None:
    a, b = State.of_density(exact.bloch(0.3, 0, 0.4)), State.of_density(exact.werner(0.5), (2, 2))
    c = State.of_ket(torch.tensor([0.6, 0.8]))
    product = tensor(a, b, c)
    assert product.dims == (2, 2, 2, 2)
    assert torch.allclose(product.rho(), torch.kron(torch.kron(a.rho(), b.rho()), c.rho().to(C)), atol=1e-15)
    assert torch.allclose(partial_trace(product, (0,)).rho(), a.rho(), atol=1e-15)
    assert torch.allclose(partial_trace(product, (2, 1)).rho(), b.rho(), atol=1e-15)
    assert torch.allclose(partial_trace(product, (3,)).rho(), c.rho().to(C), atol=1e-15)
    assert torch.allclose(partial_trace(product, (0, 1, 2, 3)).rho(), product.rho(), atol=1e-15)


@pytest.mark.parametrize("keep", [(0,), (1,), (2,), (0, 2), (2, 1)])
def test_the_partial_trace_of_a_factor_is_that_of_the_matrix(keep: tuple[int, ...]) -> None:
    state = State(exact.random_state(12, 3, 5), (2, 3, 2))
    part = partial_trace(state, keep)
    assert torch.allclose(part.rho(), measures.partial_trace(state.rho(), state.dims, keep), atol=1e-15)
    assert part.dims == tuple(state.dims[index] for index in sorted(keep))


def test_parts_of_a_large_ghz_state_have_rank_two() -> None:
    ghz = State.of_ket(exact.ghz(12), (2,) * 12)
    part = partial_trace(ghz, range(11))
    assert (part.d, part.rank) == (2048, 2)
    assert part.figures()["entropy_bits"] == pytest.approx(1)


def test_a_mixture_is_the_weighted_sum() -> None:
    a, b = State.of_ket(exact.bell(), (2, 2)), State(torch.eye(4) / 2, (2, 2))
    mixed = merge([a, b], [0.7, 0.3])
    assert torch.allclose(mixed.rho(), exact.werner(0.7), atol=1e-15)
    assert torch.allclose(merge([a, a, a]).rho(), a.rho(), atol=1e-15)
    assert merge([a, b], [1.0, 0.0]).rank == 1


@given(seed=st.integers(0, 10_000), d=st.integers(1, 8), r=st.integers(1, 4), s=st.integers(1, 4), t=st.floats(0, 1))
@settings(max_examples=examples(60), deadline=None)
def test_comparisons_agree_with_each_other(seed: int, d: int, r: int, s: int, t: float) -> None:
    a, other = State(exact.random_state(d, r, seed)), State(exact.random_state(d, s, seed + 1))
    b = merge([a, other], [1 - t, t])
    found = compare(a, b)
    assert found.fidelity == pytest.approx(float(measures.fidelity(a.rho(), b.rho())), abs=1e-9)
    assert found.infidelity == pytest.approx(1 - found.fidelity, abs=1e-13)
    assert found.bures_distance**2 == pytest.approx(max(0.0, 2 - 2 * math.sqrt(found.fidelity)), abs=1e-13)
    assert math.cos(found.bures_angle) == pytest.approx(math.sqrt(found.fidelity), abs=1e-13)
    assert found.trace_distance == pytest.approx(float(measures.trace_distance(a.rho(), b.rho())), abs=1e-13)
    assert 1 - math.sqrt(found.fidelity) <= found.trace_distance + 1e-12
    assert found.trace_distance <= math.sqrt(found.infidelity) + 1e-12


def test_near_states_keep_their_bures_distance() -> None:
    angle = 1e-9  # cos(angle) is 1 in double precision
    a = State.of_ket(torch.tensor([1.0, 0.0], dtype=torch.float64))
    b = State.of_ket(torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64))
    found = compare(a, b)
    assert found.bures_angle == pytest.approx(angle, rel=1e-6)
    assert found.infidelity == pytest.approx(angle**2, rel=1e-6)
    assert found.trace_distance == pytest.approx(angle, rel=1e-6)
    assert compare(a, a) == compare(b, b)
    assert compare(a, a).bures_distance == 0


def test_orthogonal_states_are_as_far_as_states_can_be() -> None:
    a, b = (State.of_ket(ket) for ket in torch.eye(2))
    found = compare(a, b)
    assert (found.fidelity, found.trace_distance) == (0, 1)
    assert found.bures_distance == pytest.approx(math.sqrt(2))
    assert found.bures_angle == pytest.approx(math.pi / 2)


@pytest.mark.slow
def test_bures_and_parts_agree_with_qutip() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        import qutip
    a, b = (State(exact.random_state(12, 12, seed), (2, 3, 2)) for seed in (1, 2))

    def qobj(state: State) -> Any:
        return qutip.Qobj(state.rho().numpy(), dims=[list(state.dims)] * 2)

    found = compare(a, b)
    assert found.bures_distance == pytest.approx(qutip.bures_dist(qobj(a), qobj(b)), abs=1e-12)
    assert found.bures_angle == pytest.approx(qutip.bures_angle(qobj(a), qobj(b)), abs=1e-12)
    want = torch.from_numpy(qutip.tensor(qobj(a).ptrace([0, 2]), qobj(b).ptrace([1])).full())
    assert torch.allclose(tensor(partial_trace(a, (0, 2)), partial_trace(b, (1,))).rho(), want, atol=1e-15)


QUBIT = State.of_ket(torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tensor(*[QUBIT] * 13), r"`product` must have dimension at most 4096 \(12 qubits\), but has 8192"),
        (lambda: partial_trace(QUBIT, ()), "`keep` must name some of the subsystems 0 to 0"),
        (lambda: partial_trace(QUBIT, (0, 0)), "once each"),
        (lambda: partial_trace(QUBIT, (1,)), "`keep` must name some"),
        (lambda: merge([]), "`states` must be at least one"),
        (lambda: merge([QUBIT, State(torch.eye(1, 3))]), r"all have dims \(2,\), but one has \(3,\)"),
        (lambda: merge([QUBIT, QUBIT], [0.5, 0.6]), "`weights` must sum to 1"),
        (lambda: merge([QUBIT, QUBIT], [0.5]), r"`weights` must have shape \(2,\)"),
        (lambda: merge([QUBIT, QUBIT], [1.5, -0.5]), "`weights` must be at least 0"),
        (lambda: merge([QUBIT, QUBIT], [math.nan, 0.5]), "be finite"),
        (lambda: compare(QUBIT, State(torch.eye(1, 3))), "have one dimension d, but have 2 and 3"),
    ],
)
def test_what_does_not_fit_is_named(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(InvalidState, match=message):
        make()
