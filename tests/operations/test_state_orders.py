"""Orders on states: against QuTiP and closed forms, certificates that hold, and every fault with its pointer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qraf.errors import InvalidRequest
from qraf.operations.compose import merge, partial_trace, tensor
from qraf.operations.evolve import evolve
from qraf.operations.export import export, imported
from qraf.operations.measure import compare, measure
from qraf.operations.prepare import prepare, wanted
from qraf.operations.state import Made, view_of
from qraf.settings import StateSettings
from qraf.state_orders import (
    MEASURES,
    ArrayData,
    Ensemble,
    Measurement,
    Preparation,
    StateEvolveBody,
    StateMeasureBody,
    StateMergeBody,
    StatePartialTraceBody,
    StatePrepareBody,
    Step,
)
from qraf.states.state import State
from tests.examples import examples

LIMITS = StateSettings()
BELL = 'OPENQASM 3.0;\ninclude "stdgates.inc";\nqubit[2] q;\nh q[0];\ncx q[0], q[1];'


def no_encoder(texts: Any) -> Any:
    raise AssertionError("no text was given")


def no_store(state: str, pointer: str) -> Made:
    raise InvalidRequest(f"no state '{state}'", pointer)


def made(**fields: Any) -> Made:
    return prepare([(Preparation(**fields), "")], no_encoder, no_store)[0]


def evolved(one: Made, *steps: Step, loss: float = 0.0) -> Made:
    return evolve([one], StateEvolveBody(steps=steps, loss=loss))[0]


def measured(one: Made, **fields: Any) -> Measurement:
    return measure([one], StateMeasureBody(**fields), LIMITS)[0]


def qobj(one: Made) -> Any:
    import qutip

    return qutip.Qobj(one.state.rho().numpy(), dims=[list(one.state.dims)] * 2)


def random_density(d: int, rank: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    psi = rng.normal(size=(rank, d)) + 1j * rng.normal(size=(rank, d))
    rho = psi.T @ psi.conj()
    return rho / np.trace(rho).real


def numbers(x: Any) -> ArrayData:
    x = np.asarray(x)
    return ArrayData(real=x.real.tolist(), imag=x.imag.tolist())


# ----------------------------------------------------------------------------------------------------- preparations
def test_every_preparation_of_one_state_is_that_state() -> None:
    psi = np.array([1, 0, 0, 1]) / math.sqrt(2)
    rho = np.outer(psi, psi)
    first = made(named="bell")
    ways: list[dict[str, Any]] = [
        {"amplitudes": psi.tolist(), "dims": (2, 2)},
        {"amplitudes": [3.0, 0.0, 0.0, 3.0], "normalize": True, "dims": (2, 2)},
        {"amplitudes": ArrayData(data=psi.astype("<c16").tobytes(), shape=(4,), dtype="complex128"), "dims": (2, 2)},
        {"density": rho.tolist(), "dims": (2, 2)},
        {"density": numbers(7 * rho), "normalize": True, "dims": (2, 2)},
        {"factor": [psi.tolist()], "dims": (2, 2)},
        {"ensemble": Ensemble(kets=[psi.tolist(), (-psi).tolist()], probabilities=(0.25, 0.75)), "dims": (2, 2)},
        {"circuit": BELL},
        {"packet": export(first, "msgpack")[1]},
        {"packet": export(first, "npz")[1]},
    ]
    for way in ways:
        [compared] = compare([(first, made(**way))], MEASURES)
        assert compared.trace_distance == pytest.approx(0, abs=2e-15), way
        assert compared.fidelity == pytest.approx(1, abs=1e-15), way


def test_counts_of_a_bell_pair_come_near_it_and_say_how_far_they_were_moved() -> None:
    bell = made(named="bell")
    counts = {}
    for setting in (a + b for a in "XYZ" for b in "XYZ"):
        counts[setting] = measured(bell, basis=setting, shots=4000, seed=1).counts
    found = made(counts=counts)
    [compared] = compare([(found, bell)], MEASURES)
    assert compared.fidelity is not None
    assert compared.fidelity > 0.97
    assert 0 < found.moved < 0.1


def test_the_bits_of_a_circuit_are_told() -> None:
    run = made(circuit=BELL + "\nbit[2] c;\nc = measure q;")
    assert run.bits == {"00": pytest.approx(0.5), "11": pytest.approx(0.5)}
    assert run.state.figures()["entropy_bits"] == pytest.approx(1)
    assert evolved(run, Step(channel="dephasing", p=0.5)).bits is None


def test_texts_are_encoded_in_one_go() -> None:
    calls = []

    def encode(texts: Any) -> Any:
        calls.append(list(texts))
        return np.eye(4, dtype=np.float32)[: len(texts)]

    order = StatePrepareBody(
        states=tuple(Preparation(**kind) for kind in ({"text": "a"}, {"named": "bell"}, {"text": "b"}))
    )
    found = prepare(wanted(order, 256), encode, no_store)
    assert calls == [["a", "b"]]
    assert [one.state.d for one in found] == [4, 4, 4]


BAD_PREPARATIONS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "/amplitudes", "exactly one"),
    ({"named": "bell", "text": "x"}, "/amplitudes", "exactly one"),
    ({"density": [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]}, "/density", "shape"),
    ({"density": [[0.5, 0.1], [0.2, 0.5]]}, "/density", "Hermitian"),
    ({"density": [[0.0, 0.0], [0.0, 0.0]]}, "/density", "trace 1"),
    ({"density": [[0.0, 0.0], [0.0, 0.0]], "normalize": True}, "/density", "trace above 0"),
    ({"density": [[1.5, 0.0], [0.0, -0.5]]}, "/density", "negative eigenvalue"),
    ({"density": [1.0, 0.0]}, "/density", "shape (d, d)"),
    ({"amplitudes": [1.0, float("nan")]}, "/amplitudes/1", "finite"),
    ({"amplitudes": [1.0, 1.0]}, "/amplitudes", "`normalize`"),
    ({"amplitudes": [0.0, 0.0], "normalize": True}, "/amplitudes", "norm above 0"),
    ({"amplitudes": []}, "/amplitudes", "hold numbers"),
    ({"amplitudes": [[1.0], [0.0, 2.0]]}, "/amplitudes/1", "one length"),
    ({"amplitudes": [0.6, 0.8], "dims": (2, 2)}, "/dims", "product 2"),
    ({"amplitudes": [0.6, 0.8], "dims": ()}, "/dims", "product 2"),
    ({"amplitudes": [1.0] + [0.0] * 4096}, "/amplitudes", "at most 4096"),
    ({"amplitudes": ArrayData(real=[1.0], imag=[0.0, 0.0])}, "/amplitudes/imag", "shape of `real`"),
    ({"amplitudes": ArrayData(data=b"\0" * 7, shape=(1,), dtype="float64")}, "/amplitudes/data", "8 bytes"),
    ({"amplitudes": ArrayData(data=b"\0" * 8, shape=(1,))}, "/amplitudes/dtype", "needs `dtype`"),
    ({"amplitudes": ArrayData(data=b"", shape=(-1,), dtype="float64")}, "/amplitudes/shape", "negative"),
    ({"factor": [[1.0, 1.0]]}, "/factor", "trace 1"),
    ({"ensemble": Ensemble(kets=[[1.0, 0.0]], probabilities=(0.5, 0.5))}, "/ensemble/probabilities", "shape (1,)"),
    ({"ensemble": Ensemble(kets=[[1.0, 0.0]], probabilities=(0.9,))}, "/ensemble/probabilities", "sum to 1"),
    ({"ensemble": Ensemble(kets=[[1.0, 1.0]])}, "/ensemble/kets", "unit norm"),
    ({"counts": {"X": {"0": 1}}}, "/counts", "lacks 2"),
    ({"counts": {"X": {"0": 1}, "Y": {"0": 1}, "Z": {"2": 1}}}, "/counts/Z", "digits"),
    ({"circuit": "qubit[13] q;"}, "/circuit", "at most 12 qubits"),
    ({"circuit": "qubit[2] q;\nnope q[0];"}, "/circuit", "circuit:2:1"),
    ({"named": "bell:sigma"}, "/named", "one such as"),
    ({"packet": b"QRAF"}, "/packet", "header"),
    ({"packet": b"PK\3\4 no archive"}, "/packet", ".npz"),
    ({"state": "st_nothing"}, "/state", "no state"),
    ({"text": "  "}, "/text", "not empty"),
    ({"named": "bell", "normalize": True}, "/normalize", "no effect"),
    ({"named": "bell", "label": "x" * 129}, "/label", "128"),
]


@pytest.mark.parametrize(
    ("fields", "pointer", "need"), BAD_PREPARATIONS, ids=[str(n) for n in range(len(BAD_PREPARATIONS))]
)
def test_a_bad_preparation_is_named(fields: dict[str, Any], pointer: str, need: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        made(**fields)
    assert caught.value.pointer == pointer
    assert need in caught.value.detail


def test_many_point_at_the_one_that_is_wrong_and_stand_alone() -> None:
    good, bad = Preparation(named="bell"), Preparation(named="")
    with pytest.raises(InvalidRequest) as caught:
        prepare(wanted(StatePrepareBody(states=(good, bad)), 256), no_encoder, no_store)
    assert caught.value.pointer == "/states/1/named"
    for order, pointer in (
        (StatePrepareBody(states=(good,), named="bell"), "/named"),
        (StatePrepareBody(states=(good,), label="x"), "/states"),
        (StatePrepareBody(states=()), "/states"),
        (StatePrepareBody(states=(good,) * 4), "/states"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            wanted(order, 3)
        assert caught.value.pointer == pointer


# -------------------------------------------------------------------------------------------------------- evolution
def test_channels_do_to_a_random_state_what_qutip_says(qutip: Any) -> None:
    rho = random_density(4, 3, 1)
    one = made(density=numbers(rho), dims=(2, 2))
    damp = [qutip.Qobj([[1, 0], [0, math.sqrt(0.7)]]), qutip.Qobj([[0, math.sqrt(0.3)], [0, 0]])]
    flip = [math.sqrt(0.8) * qutip.qeye(2), math.sqrt(0.2) * qutip.sigmax()]
    unitary = qutip.rand_unitary(2, seed=3)
    cases = [
        (Step(channel="amplitude_damping", gamma=0.3, subsystems=(1,)), [qutip.tensor(qutip.qeye(2), k) for k in damp]),
        (
            Step(channel="pauli", probabilities={"X": 0.2}, subsystems=(0,)),
            [qutip.tensor(k, qutip.qeye(2)) for k in flip],
        ),
        (Step(unitary=numbers(unitary.full()), subsystems=(1,)), [qutip.tensor(qutip.qeye(2), unitary)]),
        (
            Step(kraus=numbers([k.full() for k in damp]), subsystems=(0,)),
            [qutip.tensor(k, qutip.qeye(2)) for k in damp],
        ),
        (Step(unitary=numbers(np.eye(4)[[0, 2, 1, 3]])), [qutip.core.gates.swap()]),
    ]
    for step, kraus in cases:
        want = sum(k * qutip.Qobj(rho, dims=[[2, 2], [2, 2]]) * k.dag() for k in kraus)
        assert np.abs(qobj(evolved(one, step)).full() - want.full()).max() < 1e-14, step


def test_a_channel_acts_on_each_subsystem_for_itself_unless_told_otherwise() -> None:
    rho = random_density(4, 4, 2)
    one = made(density=numbers(rho), dims=(2, 2))
    each = evolved(one, Step(channel="depolarizing", p=0.5))
    by_hand = evolved(
        one,
        Step(channel="depolarizing", p=0.5, subsystems=(0,)),
        Step(channel="depolarizing", p=0.5, subsystems=(1,)),
    )
    assert torch.allclose(each.state.rho(), by_hand.state.rho(), atol=1e-15)
    together = evolved(one, Step(channel="depolarizing", p=0.5, together=True))
    assert np.allclose(together.state.rho().numpy(), 0.5 * rho + 0.5 * np.eye(4) / 4, atol=1e-15)


def test_a_circuit_on_some_qubits_leaves_the_others_as_they_were() -> None:
    rho = random_density(8, 5, 4)
    one = made(density=numbers(rho), dims=(2, 2, 2))
    after = evolved(one, Step(circuit=BELL + "  // a comment without an end", subsystems=(2, 0)))
    H = np.array([[1, 1], [1, -1]]) / math.sqrt(2)
    on_2 = np.kron(np.eye(4), H)
    cx = np.zeros((8, 8))
    for index in range(8):
        a, b, c = index >> 2, index >> 1 & 1, index & 1
        cx[(a ^ c) << 2 | b << 1 | c, index] = 1  # qubit 2 controls qubit 0
    U = cx @ on_2
    assert np.abs(after.state.rho().numpy() - U @ rho @ U.T).max() < 1e-14


def test_thermal_relaxation_is_t1_and_t2() -> None:
    plus = made(named="plus:1")
    after = evolved(plus, Step(channel="thermal_relaxation", t_s=0.5, t1_s=2.0, t2_s=1.0))
    rho = after.state.rho()
    assert float(rho[1, 1].real) == pytest.approx(0.5 * math.exp(-0.25), abs=1e-15)
    assert abs(complex(rho[0, 1])) == pytest.approx(0.5 * math.exp(-0.5), abs=1e-15)


BAD_STEPS: list[tuple[Step, str, str]] = [
    (Step(), "/steps/0", "exactly one"),
    (Step(channel="dephasing", unitary=[[1.0]], p=0.1), "/steps/0", "exactly one"),
    (Step(channel="dephasing"), "/steps/0/p", "needs `p`"),
    (Step(channel="dephasing", p=0.1, gamma=0.1), "/steps/0/gamma", "takes no"),
    (Step(channel="dephasing", p=1.1), "/steps/0/p", "from 0 to 1"),
    (Step(channel="depolarizing", p=float("nan")), "/steps/0/p", "from 0 to 1"),
    (Step(channel="pauli", probabilities={"X": 0.9, "Z": 0.2}), "/steps/0/probabilities", "sum to 1"),
    (Step(channel="pauli", probabilities={"XX": 0.1}), "/steps/0/probabilities", "1 Pauli letters"),
    (Step(channel="pauli", probabilities={"Q": 0.1}), "/steps/0/probabilities", "Pauli strings"),
    (Step(channel="thermal_relaxation", t_s=1, t1_s=1, t2_s=3), "/steps/0/t2_s", "at most 2 t1_s"),
    (Step(unitary=[[1.0, 0.0], [0.0, 2.0]], subsystems=(0,)), "/steps/0/unitary", "unitary"),
    (Step(unitary=[[1.0, 0.0], [0.0, 1.0]]), "/steps/0/unitary", "dimension 4"),
    (Step(unitary=[1.0, 0.0]), "/steps/0/unitary", "(m, m)"),
    (Step(kraus=[[[0.5, 0.0], [0.0, 0.5]]], subsystems=(0,)), "/steps/0/kraus", "preserve the trace"),
    (Step(kraus=[[[1.0, 0.0]]]), "/steps/0/kraus", "(..., d, d)"),
    (Step(channel="dephasing", p=0.1, subsystems=(2,)), "/steps/0/subsystems", "0 to 1"),
    (Step(channel="dephasing", p=0.1, subsystems=(0, 0)), "/steps/0/subsystems", "once"),
    (Step(channel="dephasing", p=0.1, subsystems=()), "/steps/0/subsystems", "name"),
    (Step(unitary=[[1.0]], together=True), "/steps/0/together", "together anyway"),
    (Step(circuit="qubit[3] q;"), "/steps/0/circuit", "declare 2 qubits"),
    (Step(circuit="qubit[2] q;", subsystems=(1,)), "/steps/0/circuit", "declare 1 qubits"),
]


@pytest.mark.parametrize(("step", "pointer", "need"), BAD_STEPS, ids=[str(number) for number in range(len(BAD_STEPS))])
def test_a_bad_step_is_named(step: Step, pointer: str, need: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        evolved(made(named="bell"), step)
    assert (caught.value.pointer, need in str(caught.value)) == (pointer, True), str(caught.value)


def test_the_number_of_steps_and_the_loss_are_bounded() -> None:
    bell, step = made(named="bell"), Step(channel="dephasing", p=0.1)
    for order, pointer in (
        (StateEvolveBody(steps=()), "/steps"),
        (StateEvolveBody(steps=(step,) * 5), "/steps"),
        (StateEvolveBody(steps=(step,), loss=1.0), "/loss"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            evolve([bell], order, max_steps=4)
        assert caught.value.pointer == pointer


# ------------------------------------------------------------------------------------------------------ certificates
@settings(max_examples=examples(30), deadline=None)
@given(seed=st.integers(0, 2**31), loss=st.sampled_from([0.0, 1e-6, 0.01, 0.2]), p=st.floats(0.0, 1.0))
def test_a_certificate_bounds_what_recompression_did(seed: int, loss: float, p: float) -> None:
    rho = random_density(8, 1 + seed % 8, seed)
    one = made(density=numbers(rho), dims=(2, 2, 2))
    steps = (Step(channel="depolarizing", p=p, subsystems=(1,)), Step(channel="amplitude_damping", gamma=0.2))
    exact, cut = evolved(one, *steps), evolved(one, *steps, loss=loss)
    mixed = [
        merge(each, [one], StateMergeBody(others=(), weights=(0.7, 0.3), loss=loss * (each is cut)))
        for each in (exact, cut)
    ]
    parts = [partial_trace(tensor(each, [each]), StatePartialTraceBody(keep=(0, 1, 4))) for each in mixed]
    for good, rough in ((exact, cut), tuple(mixed), tuple(parts)):
        [apart] = compare([(good, rough)], MEASURES)
        shown, truth = view_of(rough, "st_1", 1, 0), view_of(good, "st_1", 1, 0).figures
        sure, slack = shown.certificate, 1e-9
        assert apart.trace_distance is not None
        assert apart.fidelity is not None
        assert apart.trace_distance <= rough.error + good.error
        assert apart.fidelity >= sure.fidelity - slack
        assert sure.entropy_bits[0] - slack <= truth.entropy_bits <= sure.entropy_bits[1] + slack
        assert sure.purity[0] - slack <= truth.purity <= sure.purity[1] + slack
    assert (loss > 0) or cut.error < 1e-12


@pytest.mark.parametrize("small", [5e-14, -3e-13])
def test_what_counts_as_rounding_is_in_the_certificate(small: float) -> None:
    weights = torch.full((256,), small, dtype=torch.float64)
    weights[0] = 1 - weights[1:].sum()
    rho = weights.diag()
    one = made(density=numbers(rho))
    given = [one, merge(one, [one], StateMergeBody(others=(), weights=(0.5, 0.5)))]
    if small > 0:
        given.append(made(factor=numbers(weights.sqrt().diag())))
    for each in given:
        off = float(torch.linalg.eigvalsh(rho - each.state.rho()).abs().sum()) / 2
        assert 100 * abs(small) < off <= each.error < 512 * abs(small)
    assert made(named="mixed:8").error < 1e-12  # nothing was left out


def test_a_state_of_one_dimension_is_certain() -> None:
    shown = view_of(made(amplitudes=[1.0]), "st_1", 1, 0)
    assert shown.figures.entropy_bits == 0
    assert shown.certificate.entropy_bits == (0, 0)


# --------------------------------------------------------------------------------------------------------- measuring
def test_measurements_are_those_of_qutip(qutip: Any) -> None:
    rho = random_density(6, 3, 5)
    one = made(density=numbers(rho), dims=(2, 3))
    q = qutip.Qobj(rho, dims=[[2, 3], [2, 3]])
    x = qutip.rand_ket(6, seed=1).full()[:, 0]
    found = measured(one, vectors=numbers([x, np.eye(6)[2]]))
    assert found.probabilities == pytest.approx([(x.conj() @ rho @ x).real, rho[2, 2].real], abs=1e-15)
    part = q.ptrace(1).full()
    assert measured(one, basis="computational", subsystems=(1,)).probabilities == pytest.approx(part.diagonal().real)
    y = qutip.rand_ket(3, seed=2).full()[:, 0]
    assert measured(one, vectors=numbers(y), subsystems=(1,)).probabilities == pytest.approx(
        [(y.conj() @ part @ y).real]
    )
    U = qutip.rand_unitary(6, seed=4).full()
    want = np.einsum("kj,jl,kl->k", U.conj(), rho, U).real
    assert measured(one, basis=numbers(U)).probabilities == pytest.approx(want, abs=1e-15)
    H = qutip.rand_herm(6, seed=6)
    observed = measured(one, observable=numbers(H.full()))
    H = qutip.Qobj(H.full(), dims=q.dims)
    assert observed.mean == pytest.approx(qutip.expect(H, q), abs=1e-14)
    assert observed.variance == pytest.approx(qutip.variance(H, q), abs=1e-13)


def test_letters_measure_what_their_kets_measure_and_paulis_their_matrices(qutip: Any) -> None:
    rho = random_density(4, 4, 7)
    one = made(density=numbers(rho), dims=(2, 2))
    kets = {"X": [[1, 1], [1, -1]], "Y": [[1, 1j], [1, -1j]], "Z": [[math.sqrt(2), 0], [0, math.sqrt(2)]]}
    for a in "XYZ":
        for b in "XYZ":
            table = np.kron(np.array(kets[a]), np.array(kets[b])) / 2
            plain, by_kets = measured(one, basis=a + b), measured(one, basis=numbers(table))
            assert plain.probabilities == pytest.approx(by_kets.probabilities, abs=1e-15)
            assert plain.outcomes == ("00", "01", "10", "11")
    paulis = {"X": qutip.sigmax(), "Y": qutip.sigmay(), "Z": qutip.sigmaz(), "I": qutip.qeye(2)}
    terms = {"XY": 0.5, "ZI": -1.5, "YY": 2.0, "II": 0.25}
    H = sum(c * qutip.tensor(paulis[name[0]], paulis[name[1]]) for name, c in terms.items())
    found = measured(one, paulis=terms)
    q = qutip.Qobj(rho, dims=[[2, 2], [2, 2]])
    assert found.mean == pytest.approx(qutip.expect(H, q), abs=1e-14)
    assert found.variance == pytest.approx(qutip.variance(H, q), abs=1e-13)


def test_samples_follow_the_seed_and_the_probabilities() -> None:
    bell = made(named="bell")
    first = measured(bell, basis="ZZ", shots=1000, seed=5)
    assert first.counts == measured(bell, basis="ZZ", shots=1000, seed=5).counts
    assert first.counts is not None
    assert set(first.counts) == {"00", "11"}
    assert sum(first.counts.values()) == 1000
    unnamed = measured(bell, basis="ZZ", shots=1000)
    assert unnamed.counts == measured(bell, basis="ZZ", shots=1000, seed=unnamed.seed).counts


BAD_MEASUREMENTS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "/vectors", "exactly one"),
    ({"basis": "ZZ", "paulis": {"ZZ": 1.0}}, "/vectors", "exactly one"),
    ({"basis": "Z"}, "/basis", "each of 2"),
    ({"basis": "ZQ"}, "/basis", "X, Y, Z"),
    ({"basis": [[1.0, 0.0], [0.0, 1.0]]}, "/basis", "shape (4, 4)"),
    ({"basis": [[1.0, 0.0], [1.0, 0.0]], "subsystems": (0,)}, "/basis", "orthonormal"),
    ({"basis": "ZZ", "subsystems": (0, 2)}, "/subsystems", "0 to 1"),
    ({"basis": "ZZ", "shots": 0}, "/shots", "1 to"),
    ({"basis": "ZZ", "shots": 10**9}, "/shots", "1 to 1000000"),
    ({"basis": "ZZ", "shots": 5, "seed": -1}, "/seed", "0 to"),
    ({"basis": "ZZ", "seed": 1}, "/seed", "`shots`"),
    ({"paulis": {"ZZ": 1.0}, "shots": 5}, "/shots", "`basis`"),
    ({"paulis": {}}, "/paulis", "at least one"),
    ({"paulis": {"ZZ": 1.0, "Z/": 1.0}}, "/paulis/Z~1", "I, X, Y, Z"),
    ({"observable": [[0.0, 1.0], [0.0, 0.0]], "subsystems": (1,)}, "/observable", "Hermitian"),
    ({"observable": [[1.0]]}, "/observable", "dimension 4"),
    ({"vectors": [[1.0, 0.0]]}, "/vectors", "shape (k, 4)"),
    ({"vectors": [[1.0, 0.0, 0.0, 1.0]]}, "/vectors", "unit norm"),
]


@pytest.mark.parametrize(
    ("fields", "pointer", "need"), BAD_MEASUREMENTS, ids=[str(n) for n in range(len(BAD_MEASUREMENTS))]
)
def test_a_bad_measurement_is_named(fields: dict[str, Any], pointer: str, need: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        measured(made(named="bell"), **fields)
    assert (caught.value.pointer, need in caught.value.detail) == (pointer, True), str(caught.value)


# ----------------------------------------------------------------------------------------------------------- several
def test_merge_tensor_and_part_are_those_of_qutip(qutip: Any) -> None:
    a, b = (made(density=numbers(random_density(4, 2, seed)), dims=(2, 2)) for seed in (8, 9))
    mixed = merge(a, [b], StateMergeBody(others=(), weights=(0.25, 0.75)))
    assert np.allclose(qobj(mixed).full(), (0.25 * qobj(a) + 0.75 * qobj(b)).full(), atol=1e-15)
    product = tensor(a, [b])
    assert np.allclose(qobj(product).full(), qutip.tensor(qobj(a), qobj(b)).full(), atol=1e-15)
    part = partial_trace(product, StatePartialTraceBody(keep=(1, 3)))
    assert np.allclose(qobj(part).full(), qobj(product).ptrace([1, 3]).full(), atol=1e-15)
    [found] = compare([(a, b)], MEASURES)
    assert found.fidelity == pytest.approx(qutip.fidelity(qobj(a), qobj(b)) ** 2, abs=1e-7)
    assert found.trace_distance == pytest.approx(qutip.tracedist(qobj(a), qobj(b)), abs=1e-9)
    for bad, pointer in (
        (StateMergeBody(others=(), weights=(0.5,)), "/weights"),
        (StateMergeBody(others=(), weights=(0.5, 0.6)), "/weights"),
        (StateMergeBody(others=(), loss=2.0), "/loss"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            merge(a, [b], bad)
        assert caught.value.pointer == pointer
    with pytest.raises(InvalidRequest) as caught:
        merge(a, [b, made(named="plus:1")], StateMergeBody(others=()))
    assert caught.value.pointer == "/others/1"
    with pytest.raises(InvalidRequest) as caught:
        tensor(made(named="plus:10"), [made(named="plus:10")])
    assert caught.value.pointer == "/others"
    with pytest.raises(InvalidRequest) as caught:
        partial_trace(a, StatePartialTraceBody(keep=()))
    assert caught.value.pointer == "/keep"
    with pytest.raises(InvalidRequest) as caught:
        compare([(a, b), (a, made(named="plus:1"))], MEASURES)
    assert caught.value.pointer == "/pairs/1"
    with pytest.raises(InvalidRequest) as caught:
        compare([(a, b)], ())
    assert caught.value.pointer == "/measures"


def test_exports_come_back_bit_for_bit() -> None:
    one = evolved(made(named="ghz:3"), Step(channel="amplitude_damping", gamma=0.1))
    for form in ("msgpack", "npz"):
        back = imported(export(one, form)[1])  # type: ignore[arg-type]
        assert torch.equal(back.factor, one.state.factor)
        assert back.dims == (2, 2, 2)
    assert isinstance(back, State)
