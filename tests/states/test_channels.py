from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qraf.errors import InvalidState
from qraf.states import channels as ch
from qraf.states import measures
from qraf.states.compose import compare
from qraf.states.evolve import evolve, evolve_many
from qraf.states.measurement import born, probabilities
from qraf.states.state import State
from qraf.states.subsystems import apply_operator, join, split
from tests import closed_forms as exact
from tests.examples import examples

C = torch.complex128
X, Z = ch._PAULI["X"], ch._PAULI["Z"]


def embedded(operator: torch.Tensor, dims: Sequence[int], on: Sequence[int]) -> torch.Tensor:
    """The operator on the whole space, column by column."""
    d = math.prod(dims)
    return apply_operator(torch.eye(d, dtype=C), operator.to(C), dims, on).T


def by_definition(rho: torch.Tensor, kraus: torch.Tensor, dims: Sequence[int], on: Sequence[int]) -> torch.Tensor:
    whole = [embedded(operator, dims, on) for operator in kraus]
    return torch.stack([K @ rho.to(C) @ K.mH for K in whole]).sum(0)


def random_unitary(m: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(exact.random_state(m, m, seed))[0]


def random_kraus(m: int, k: int, seed: int) -> torch.Tensor:
    isometry = torch.linalg.qr(exact.random_state(m, k * m, seed))[0]
    return isometry.reshape(k, m, m)


def test_an_operator_acts_where_it_is_told() -> None:
    a, b, c = (exact.random_state(d, d, d) for d in (2, 3, 2))
    eye = torch.eye(2, dtype=C), torch.eye(3, dtype=C), torch.eye(2, dtype=C)
    dims = (2, 3, 2)
    assert torch.allclose(embedded(a, dims, (0,)), torch.kron(torch.kron(a, eye[1]), eye[2]))
    assert torch.allclose(embedded(b, dims, (1,)), torch.kron(torch.kron(eye[0], b), eye[2]))
    both = torch.kron(torch.kron(a, eye[1]), c)
    assert torch.allclose(embedded(torch.kron(a, c), dims, (0, 2)), both)
    assert torch.allclose(embedded(torch.kron(c, a), dims, (2, 0)), both)
    rows = exact.random_state(12, 5, 1)
    assert torch.equal(join(split(rows, dims, (2, 0)), dims, (2, 0)), rows)


CASES = [
    (ch.Depolarizing(0.3), (2, 3, 2), (1,)),
    (ch.Depolarizing(0.3), (2, 3, 2), (2, 0)),
    (ch.Depolarizing(1.0), (2, 3), (0, 1)),
    (ch.Depolarizing(0.0), (5,), (0,)),
    (ch.Dephasing(0.4), (2, 3, 2), (1,)),
    (ch.Dephasing(0.4), (2, 3, 2), (0, 1, 2)),
    (ch.Dephasing(1.0), (2, 3, 2), (2, 1)),
    (ch.PhaseDamping(0.35), (2, 2), (0,)),
    (ch.PhaseDamping(1.0), (2, 3), (1,)),
    (ch.AmplitudeDamping(0.25), (2, 3, 2), (0,)),
    (ch.AmplitudeDamping(0.25), (2, 3, 2), (1,)),
    (ch.AmplitudeDamping(0.6), (2, 3, 2), (0, 1, 2)),
    (ch.AmplitudeDamping(1.0), (4,), (0,)),
    (ch.Relaxation(1e-6, 3e-6, 2e-6), (2, 3, 2), (2, 0)),
    (ch.Relaxation(1e-6, 1e-6, 2e-6), (2,), (0,)),
    (ch.PauliNoise({"XI": 0.1, "ZY": 0.2, "II": 0.7}), (2, 3, 2), (2, 0)),
    (ch.PauliNoise({"Y": 1.0}), (2, 2), (1,)),
    (ch.Kraus(random_kraus(3, 4, 5)), (2, 3, 2), (1,)),
    (ch.Kraus(random_kraus(4, 2, 6)), (2, 3, 2), (2, 0)),
    (ch.Unitary(random_unitary(6, 7)), (2, 3, 2), (1, 2)),
]


@pytest.mark.parametrize(("channel", "dims", "on"), CASES)
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("dtype", [C, torch.float64])
def test_the_closed_form_is_the_kraus_form(
    channel: ch.Channel, dims: tuple[int, ...], on: tuple[int, ...], rank: int, dtype: torch.dtype
) -> None:
    state = State(exact.random_state(math.prod(dims), rank, 11, dtype), dims)
    kraus = channel.kraus(tuple(dims[index] for index in on))
    assert torch.allclose(
        torch.einsum("kji,kjl->il", kraus.conj(), kraus), torch.eye(kraus.shape[1], dtype=C), atol=1e-14
    )
    after, lost = evolve(state, channel, on)
    assert lost <= 1e-14
    assert after.dims == dims
    assert torch.allclose(after.rho().to(C), by_definition(state.rho(), kraus, dims, on), atol=5e-15, rtol=0)


@given(
    seed=st.integers(0, 10_000),
    case=st.sampled_from(CASES),
    rank=st.integers(1, 4),
    loss=st.sampled_from([0.0, 0.01, 0.3]),
)
@settings(max_examples=examples(60), deadline=None)
def test_channels_keep_trace_and_never_raise_a_distance(
    seed: int, case: tuple[ch.Channel, tuple[int, ...], tuple[int, ...]], rank: int, loss: float
) -> None:
    channel, dims, on = case
    a, b = (State(exact.random_state(math.prod(dims), rank, seed + i), dims) for i in (0, 1))
    (x, _), (y, _) = evolve_many([a, b], channel, on)
    assert float(x.factor.abs().square().sum()) == pytest.approx(1, abs=1e-13)
    before = float(measures.trace_distance_factor(a.factor, b.factor))
    assert float(measures.trace_distance_factor(x.factor, y.factor)) <= before + 1e-12
    cut, lost = evolve(a, channel, on, loss)
    assert cut.rank <= x.rank
    assert lost <= loss + 1e-12
    assert float(measures.trace_distance_factor(cut.factor, x.factor)) <= lost + 1e-12


def test_a_batch_gives_what_single_states_give() -> None:
    states = [State(exact.random_state(6, 1 + seed % 3, seed), (2, 3)) for seed in range(7)]
    for (together, _), state in zip(evolve_many(states, ch.AmplitudeDamping(0.3), (1,)), states, strict=True):
        alone, _ = evolve(state, ch.AmplitudeDamping(0.3), (1,))
        assert torch.allclose(together.rho(), alone.rho(), atol=1e-15)
    assert evolve_many([], ch.Depolarizing(0.1)) == []


def test_n_depolarising_steps_keep_their_share_of_the_bloch_vector() -> None:
    state = State.of_density(exact.bloch(0.6, 0, 0.5))
    for _ in range(5):
        state, _ = evolve(state, ch.Depolarizing(0.1))
    left = 0.9**5
    assert torch.allclose(state.rho(), exact.bloch(0.6 * left, 0, 0.5 * left), atol=1e-15)


@pytest.mark.parametrize("d", [2, 5])
def test_depolarising_moves_spectrum_and_purity_by_the_formula(d: int) -> None:
    state, p = State(exact.random_state(d, 2, 3)), 0.35
    after, _ = evolve(state, ch.Depolarizing(p))
    spectrum = torch.cat((state.spectrum(), torch.zeros(d - state.rank, dtype=torch.float64)))
    assert torch.allclose(after.spectrum(), (1 - p) * spectrum + p / d, atol=1e-15)
    q = (1 - p) ** 2
    assert after.figures()["purity"] == pytest.approx(q * state.figures()["purity"] + (1 - q) / d, abs=1e-15)


def test_born_probabilities_follow_the_closed_forms() -> None:
    state, x, p = State(exact.random_state(6, 2, 8)), exact.random_state(6, 1, 9)[0], 0.3
    before = float(born(state, x))
    assert float(born(evolve(state, ch.Depolarizing(p))[0], x)) == pytest.approx((1 - p) * before + p / 6, abs=1e-15)
    diagonal = float((probabilities(state) * x.abs().square()).sum())
    want = (1 - p) * before + p * diagonal
    assert float(born(evolve(state, ch.Dephasing(p))[0], x)) == pytest.approx(want, abs=1e-15)


def test_dephasing_scales_the_l1_coherence_exactly() -> None:
    state = State(exact.random_state(6, 2, 8))
    after, _ = evolve(state, ch.Dephasing(0.3))
    assert after.figures()["l1_coherence"] == pytest.approx(0.7 * state.figures()["l1_coherence"], abs=1e-14)


def test_amplitude_damping_of_a_whole_system_adds_one_row() -> None:
    psi = exact.random_state(512, 1, 2)
    after, _ = evolve(State(psi), ch.AmplitudeDamping(0.2))
    assert after.rank == 2
    assert float(after.rho()[0, 0].real) == pytest.approx(1 - 0.8 * (1 - float(psi[0, 0].abs() ** 2)))


def test_phase_damping_of_a_qubit_is_the_textbook_pair() -> None:
    lam, rho = 0.35, exact.bloch(0.3, -0.4, 0.5)
    textbook = torch.stack(
        [torch.diag(torch.tensor(x, dtype=C)) for x in ([1, math.sqrt(1 - lam)], [0, math.sqrt(lam)])]
    )
    after, _ = evolve(State.of_density(rho), ch.PhaseDamping(lam))
    assert torch.allclose(after.rho(), by_definition(rho, textbook, (2,), (0,)), atol=1e-15)


@pytest.mark.parametrize("t2", [40e-6, 70e-6, 100e-6])
def test_relaxation_leaves_the_exponentials(t2: float) -> None:
    t, t1 = 23e-6, 50e-6
    rho = exact.bloch(0.6, 0.2, -0.7)
    after = evolve(State.of_density(rho), ch.Relaxation(t, t1, t2))[0].rho()
    assert float(after[1, 1].real) == pytest.approx(float(rho[1, 1].real) * math.exp(-t / t1), abs=1e-15)
    assert complex(after[0, 1]) == pytest.approx(complex(rho[0, 1]) * math.exp(-t / t2), abs=1e-15)
    assert torch.allclose(evolve(State.of_density(rho), ch.Relaxation(0, t1, t2))[0].rho(), rho, atol=1e-15)


def test_a_large_pure_state_stays_cheap() -> None:
    ghz = State.of_ket(exact.ghz(12), (2,) * 12)
    half, _ = evolve(ghz, ch.Dephasing(0.5), (4,))
    assert half.rank == 2
    assert half.figures()["purity"] == pytest.approx(0.625)  # coherence halved: eigenvalues 3/4 and 1/4
    noisy, _ = evolve(ghz, ch.Relaxation(1e-6, 50e-6, 70e-6), (0, 1, 2))
    assert noisy.rank <= 2**4
    assert evolve(ghz, ch.Depolarizing(0.0))[0].rank == 1


@pytest.mark.slow  # six seconds alone
@pytest.mark.timeout(90)
def test_twelve_qubits_may_have_full_rank() -> None:
    ghz = State.of_ket(exact.ghz(12), (2,) * 12)
    noisy, _ = evolve(ghz, ch.Depolarizing(0.25))  # all twelve as one system
    assert (noisy.rank, noisy.d, noisy.factor.dtype) == (4096, 4096, torch.float64)
    figures, least = noisy.figures(), 0.25 / 4096
    assert figures["purity"] == pytest.approx(0.75**2 + (1 - 0.75**2) / 4096, abs=1e-13)
    first = 0.75 + least
    assert figures["entropy_bits"] == pytest.approx(-first * math.log2(first) - 4095 * least * math.log2(least))
    assert compare(ghz, noisy).fidelity == pytest.approx(first, abs=1e-12)
    kept, lost = noisy.recompressed(0.25)
    assert kept.rank == 1
    assert lost == pytest.approx(4095 * least)


def test_many_operators_are_folded_on_the_way() -> None:
    letters = [a + b + c + d for a in "IXYZ" for b in "IXYZ" for c in "IXYZ" for d in "IXYZ"]
    noise = ch.PauliNoise(dict.fromkeys(letters, 1 / 256))  # the full twirl forgets everything
    after, _ = evolve(State(exact.random_state(16, 3, 4), (2,) * 4), noise)
    assert torch.allclose(after.rho(), torch.eye(16, dtype=C) / 16, atol=1e-15)
    kraus = ch.Kraus(ch.Depolarizing(0.4).kraus((5, 4)))  # 401 operators
    state = State(exact.random_state(20, 2, 4), (4, 5))
    want, _ = evolve(state, ch.Depolarizing(0.4))
    assert torch.allclose(evolve(state, kraus, (1, 0))[0].rho(), want.rho(), atol=1e-15)


def test_what_folds_on_the_way_leave_out_is_counted() -> None:
    letters = ["".join(one) for one in itertools.product("IXYZ", repeat=5)]
    noise = ch.PauliNoise(dict.fromkeys(letters[1:], 1e-16))
    ground = State.of_ket(torch.eye(32, dtype=C)[0], (2,) * 5)
    after, lost = evolve(ground, noise)
    assert after.rank == 1
    assert lost == pytest.approx((1024 - 32) * 1e-16, rel=0.05)  # 32 strings have no X and no Y


@pytest.fixture(scope="module")
def qutip() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        import qutip
    return qutip


@pytest.mark.slow
def test_relaxation_is_the_lindblad_equation_of_qutip(qutip: Any) -> None:
    t, t1, t2 = 0.7, 1.3, 0.9
    rho = exact.bloch(0.6, 0.2, -0.7)
    lower = qutip.Qobj([[0, 1], [0, 0]])
    jumps = [lower / math.sqrt(t1), qutip.sigmaz() * math.sqrt((1 / t2 - 1 / (2 * t1)) / 2)]
    options = {"atol": 1e-12, "rtol": 1e-10}
    want = qutip.mesolve(0 * qutip.sigmaz(), qutip.Qobj(rho.numpy()), [0, t], jumps, options=options).states[-1]
    after, _ = evolve(State.of_density(rho), ch.Relaxation(t, t1, t2))
    assert torch.allclose(after.rho(), torch.from_numpy(want.full()), atol=1e-8)


@pytest.mark.slow
def test_channels_agree_with_qiskit() -> None:
    from qiskit import quantum_info as qi

    state = State(exact.random_state(8, 2, 9), (2, 2, 2))
    rho = qi.DensityMatrix(state.rho().numpy())
    place = {0: 2, 1: 1, 2: 0}  # qiskit's qubit 0 varies fastest
    for channel, on in (
        (ch.AmplitudeDamping(0.3), (0,)),
        (ch.Relaxation(1.0, 2.0, 3.0), (1,)),
        (ch.Kraus(random_kraus(4, 3, 2)), (2, 0)),
        (ch.Unitary(random_unitary(4, 3)), (0, 1)),
        (ch.PauliNoise({"XZ": 0.2, "YI": 0.1}), (1, 2)),
        (ch.Depolarizing(0.4), (0, 2)),
    ):
        operators = [operator.numpy() for operator in channel.kraus((2,) * len(on))]
        want = rho.evolve(qi.Kraus(operators), qargs=[place[index] for index in reversed(on)]).data
        assert torch.allclose(evolve(state, channel, on)[0].rho(), torch.from_numpy(want), atol=1e-14)
    depolarised = qi.DensityMatrix(rho).evolve(qi.SuperOp(0.6 * qi.SuperOp(qi.Operator.from_label("III"))))
    want = depolarised.data + 0.4 * torch.eye(8).numpy() / 8
    assert torch.allclose(evolve(state, ch.Depolarizing(0.4))[0].rho(), torch.from_numpy(want), atol=1e-14)


ONE = State.of_ket(torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ch.Depolarizing(1.1), "`p` must be from 0 to 1, but is 1.1"),
        (lambda: ch.Dephasing(-0.1), "`p` must be from 0 to 1"),
        (lambda: ch.PhaseDamping(math.nan), "`lam` must be from 0 to 1, but is nan"),
        (lambda: ch.AmplitudeDamping(2), "`gamma` must be from 0 to 1"),
        (lambda: ch.Relaxation(1, 1, 2.1), "`t2_s` must be at most 2 t1_s, but is 2.1 with t1_s = 1"),
        (lambda: ch.Relaxation(-1, 1, 1), "`t_s` must be finite and at least 0"),
        (lambda: ch.Relaxation(1, 0, 1), "`t1_s` must be above 0"),
        (lambda: ch.Relaxation(1, 1, math.nan), "`t2_s` must be above 0"),
        (lambda: ch.PauliNoise({"X": 0.7, "Z": 0.6}), "sum to 1, the identity included, but sum to 1.3"),
        (lambda: ch.PauliNoise({"X": 0.1, "I": 0.1}), "sum to 1, the identity included, but sum to 0.2"),
        (lambda: ch.PauliNoise({"A": 0.1}), "name Pauli strings of one length"),
        (lambda: ch.PauliNoise({}), "name Pauli strings"),
        (lambda: ch.PauliNoise({"X": 0.1, "XX": 0.1}), "one length"),
        (lambda: ch.PauliNoise({"X": math.nan}), "`probabilities.X` must be from 0 to 1"),
        (lambda: evolve(ONE, ch.PauliNoise({"XX": 0.1})), "name 1 Pauli letters a string, but name 2"),
        (lambda: ch.Kraus(torch.stack([X, Z])), r"preserve the trace \(sum K\^H K = I\), but is off by 1"),
        (lambda: ch.Kraus(0.9 * X[None]), r"`kraus` must preserve the trace .* off by 0.19"),
        (lambda: ch.Kraus(X), r"have shape \(k, m, m\)"),
        (lambda: ch.Kraus(torch.zeros(1, 2, 3)), r"have shape \(\.\.\., d, d\)"),
        (lambda: ch.Kraus(torch.full((1, 2, 2), math.nan)), "be finite"),
        (lambda: ch.Unitary(torch.ones(2, 2)), r"`unitary` must be unitary \(U\^H U = I\), but is off by 2"),
        (lambda: ch.Unitary(X[None]), r"have shape \(m, m\)"),
        (
            lambda: evolve(ONE, ch.Unitary(torch.eye(3))),
            "act on dimension 2, that of the chosen subsystems, but acts on 3",
        ),
        (lambda: evolve(ONE, ch.Depolarizing(0.1), (1,)), r"`on` must name some of the subsystems 0 to 0"),
        (lambda: evolve(ONE, ch.Depolarizing(0.1), ()), "`on` must name some"),
        (lambda: evolve(ONE, ch.Depolarizing(0.1), (0, 0)), "once each"),
        (lambda: evolve(State(torch.eye(1, 3)), ch.Relaxation(1, 1, 1)), "name qubits for this channel"),
    ],
)
def test_what_is_no_channel_is_named(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(InvalidState, match=message):
        make()


def test_damping_shrinks_purity_first_and_restores_it_at_the_ground_state() -> None:
    excited = State.of_ket(torch.tensor([0.0, 1.0]))
    purities = [evolve(excited, ch.AmplitudeDamping(g))[0].figures()["purity"] for g in (0, 0.25, 0.5, 0.75, 1)]
    assert purities == pytest.approx([g * g + (1 - g) ** 2 for g in (0, 0.25, 0.5, 0.75, 1)])
    assert all(a > b for a, b in pairwise(purities[:3]))
