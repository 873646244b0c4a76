from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from qraf.errors import InvalidState
from qraf.states.compose import compare, partial_trace
from qraf.states.measurement import outcome_labels, probabilities, sample
from qraf.states.prepare import from_amplitudes, from_counts, from_density, from_ensemble, linear_inversion, named
from qraf.states.state import State
from tests import closed_forms as exact

C = torch.complex128
BASES = {
    "X": torch.tensor([[1, 1], [1, -1]], dtype=C) / math.sqrt(2),
    "Y": torch.tensor([[1, 1j], [1, -1j]], dtype=C) / math.sqrt(2),
    "Z": torch.eye(2, dtype=C),
}


def setting_basis(setting: str) -> torch.Tensor:
    basis = torch.ones(1, 1, dtype=C)
    for letter in setting:
        basis = torch.kron(basis, BASES[letter])
    return basis


def measured(state: State, shots: int, seed: int | None = None) -> dict[str, dict[str, int]]:
    """Counts of every Pauli setting: drawn with a seed, or as near to the probabilities as whole numbers get."""
    found = {}
    for index, letters in enumerate(product("XYZ", repeat=len(state.dims))):
        basis = setting_basis("".join(letters))
        if seed is None:
            counts = (probabilities(state, basis=basis) * shots).round().long()
        else:
            counts = sample(state, shots, seed + index, basis=basis)
        found["".join(letters)] = dict(zip(outcome_labels(state.dims), counts.tolist(), strict=True))
    return found


@pytest.mark.parametrize("n", [1, 2, 3])
def test_exact_counts_give_the_state_back(n: int) -> None:
    state = State(exact.random_state(2**n, 2, n), (2,) * n)
    counts = measured(state, 10**9)
    mu, shots = linear_inversion(counts)
    assert torch.allclose(mu, state.rho(), atol=1e-8)
    assert shots == pytest.approx(3**n * 10**9)
    found = from_counts(counts)
    assert compare(found.state, state).trace_distance < 1e-7
    assert found.state.dims == (2,) * n
    assert found.moved < 1e-7


def test_one_qubit_is_its_bloch_vector() -> None:
    counts = {"X": {"0": 65, "1": 35}, "Y": {"0": 30, "1": 70}, "Z": {"0": 80, "1": 20}}
    found = from_counts(counts)
    assert torch.allclose(found.state.rho(), exact.bloch(0.3, -0.4, 0.6), atol=1e-14)
    assert (found.shots, found.negativity) == (300, 0)


def test_a_bloch_vector_that_is_too_long_lands_on_the_sphere() -> None:
    found = from_counts({"X": {"0": 10}, "Y": {"0": 5, "1": 5}, "Z": {"0": 10}})
    s = 1 / math.sqrt(2)
    assert torch.allclose(found.state.rho(), exact.bloch(s, 0, s), atol=1e-14)
    assert found.state.rank == 1
    assert found.negativity == pytest.approx((math.sqrt(2) - 1) / 2)
    assert found.moved == pytest.approx((math.sqrt(2) - 1) / 2)


def test_sampled_counts_come_nearer_with_more_shots() -> None:
    werner = State.of_density(exact.werner(0.8), (2, 2))
    distances = [
        compare(from_counts(measured(werner, shots, 3)).state, werner).trace_distance for shots in (100, 10_000, 10**6)
    ]
    assert distances[0] < 0.2
    assert distances[1] < 0.02
    assert distances[2] < 0.002


def test_a_known_rank_helps() -> None:
    ghz = named("ghz:3")
    counts = measured(ghz, 100, 5)
    free, pure = from_counts(counts), from_counts(counts, rank=1)
    assert pure.state.rank == 1
    assert compare(pure.state, ghz).trace_distance < compare(free.state, ghz).trace_distance
    assert free.negativity > 0


@pytest.mark.slow
def test_twelve_qubits_may_be_mixed() -> None:
    assert named("mixed:12").figures()["entropy_bits"] == 12


def test_named_states_are_what_their_names_say() -> None:
    assert compare(named("bell"), State.of_ket(exact.bell(), (2, 2))).fidelity == pytest.approx(1)
    bells = [named(f"bell:{which}") for which in ("phi+", "phi-", "psi+", "psi-")]
    gram = [[compare(a, b).fidelity for a in bells] for b in bells]
    assert torch.allclose(torch.tensor(gram), torch.eye(4), atol=1e-14)
    assert compare(named("ghz:4"), State.of_ket(exact.ghz(4), (2,) * 4)).fidelity == pytest.approx(1)
    part = partial_trace(named("w:3"), (0, 1))
    assert part.spectrum().tolist() == pytest.approx([2 / 3, 1 / 3])
    assert named("basis:011").kets()[0].nonzero().tolist() == [[3]]
    assert named("basis:011").dims == (2, 2, 2)
    assert named("plus:3").figures()["coherence_bits"] == pytest.approx(3)
    assert named("mixed:3").figures()["entropy_bits"] == pytest.approx(3)
    assert named("mixed:2x3").dims == (2, 3)
    assert named("mixed:10").rank == 1024
    assert named("ghz:12").d == 4096
    assert named("w:1").kets()[0].tolist() == [0, 1]


def test_normalising_is_asked_for() -> None:
    psi = torch.tensor([3.0, 4.0])
    with pytest.raises(InvalidState, match="`psi` must have unit norm, but is off by 4"):
        from_amplitudes(psi)
    assert probabilities(from_amplitudes(psi, normalize=True)).tolist() == pytest.approx([0.36, 0.64])
    rho = torch.diag(torch.tensor([2.0, 6.0]))
    with pytest.raises(InvalidState, match="`rho` must have trace 1, but is off by 7"):
        from_density(rho)
    assert from_density(rho, normalize=True).spectrum().tolist() == pytest.approx([0.75, 0.25])
    with pytest.raises(InvalidState, match="unit norm"):
        from_ensemble(2 * torch.eye(2))
    mixed = from_ensemble(2 * torch.eye(2), [3, 1], (2,), normalize=True)
    assert mixed.spectrum().tolist() == pytest.approx([0.75, 0.25])
    assert from_ensemble(torch.eye(4), dims=(2, 2)).dims == (2, 2)


ONE = {letter: {"0": 1} for letter in "XYZ"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: from_amplitudes(torch.zeros(2), normalize=True), "`psi` must have a norm above 0"),
        (lambda: from_amplitudes(torch.tensor([math.nan, 1.0]), normalize=True), "`psi` must be finite"),
        (lambda: from_density(torch.zeros(2, 2), normalize=True), "`rho` must have a trace above 0, but has 0"),
        (lambda: from_density(torch.diag(torch.tensor([1.0, -1.0])), normalize=True), "have a trace above 0"),
        (lambda: from_density(torch.diag(torch.tensor([3.0, -1.0])), normalize=True), "no negative eigenvalue"),
        (lambda: from_density(torch.zeros(2, 3), normalize=True), r"have shape \(\.\.\., d, d\)"),
        (lambda: from_density(torch.zeros(1, 2, 2), normalize=True), r"have shape \(d, d\)"),
        (lambda: from_ensemble(torch.eye(2), [0, 0], normalize=True), "`probabilities` must have a sum above 0"),
        (lambda: from_ensemble(torch.eye(2), [0.5, 0.6]), "`weights` must sum to 1"),
        (lambda: named("bell:x"), "`name` must be one such as bell, .* but is 'bell:x'"),
        (lambda: named("ghz"), "be one such as"),
        (lambda: named("ghz:0"), "be one such as"),
        (lambda: named("ghz:13"), "`name` must name at most 12 qubits, but names 13"),
        (lambda: named("basis:" + "0" * 13), "at most 12 qubits"),
        (lambda: named("mixed:13"), r"of dimension 1 to 4096 \(12 qubits\), but names dimension 8192"),
        (lambda: named("mixed:0x2"), "names dimension 0"),
        (lambda: named("mixed:"), "be one such as"),
        (lambda: from_counts({}), "is empty"),
        (lambda: from_counts({"X": {"0": 1}}), "hold all 3 settings of 1 qubits, but lacks 2, Y first"),
        (lambda: from_counts(ONE | {"XX": {"00": 1}}), "name settings of 1 letters X, Y or Z, but names 'XX'"),
        (lambda: from_counts(ONE | {"I": {"0": 1}}), "names 'I'"),
        (lambda: from_counts(ONE | {"Z": {"00": 1}}), "`counts.Z` must name outcomes of 1 digits"),
        (lambda: from_counts(ONE | {"Z": {"0": -1}}), "`counts.Z.0` must be a whole number"),
        (lambda: from_counts(ONE | {"Z": {"0": 0}}), "`counts.Z` must hold at least one shot"),
        (lambda: from_counts({"X" * 7: {}}), "be of 1 to 6 qubits, but is of 7"),
        (lambda: from_counts(ONE, rank=3), "`rank` must be from 1 to 2"),
        (lambda: from_counts(ONE, rank=0), "`rank` must be from 1 to 2"),
    ],
)
def test_what_makes_no_state_is_named(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(InvalidState, match=message):
        make()
