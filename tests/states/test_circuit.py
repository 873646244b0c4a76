from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from qraf.errors import InvalidState, LimitExceeded
from qraf.states import circuit, gate_calls, measures
from qraf.states.channels import Dephasing
from qraf.states.circuit import run_circuit
from qraf.states.compose import compare, partial_trace, tensor
from qraf.states.evolve import evolve
from qraf.states.gates import BUILT_IN, STANDARD, controlled
from qraf.states.prepare import named
from qraf.states.qasm import SOURCE_MAX
from qraf.states.state import State
from tests import closed_forms as exact

pytestmark = pytest.mark.slow  # all of them together

HEAD = 'OPENQASM 3.0;\ninclude "stdgates.inc";\n'


def ket(source: str) -> torch.Tensor:
    state = run_circuit(HEAD + source).state
    assert state.rank == 1
    return state.kets()[0]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal up to a phase of the whole."""
    return abs(1 - float((a.conj() @ b.to(a.dtype)).abs())) < 1e-12


def test_the_first_qubit_varies_slowest() -> None:
    assert ket("qubit[2] q; x q[0];").abs().tolist() == [0, 0, 1, 0]
    assert ket("qubit a; qubit b; x b;").abs().tolist() == [0, 1, 0, 0]
    run = run_circuit(HEAD + "qubit a; qubit[2] b; x b[1];")
    assert run.qubits == ("a", "b[0]", "b[1]")
    assert run.state.dims == (2, 2, 2)


def test_a_bell_pair_by_circuit_is_a_bell_pair() -> None:
    run = run_circuit(HEAD + "qubit[2] q; h q[0]; cx q[0], q[1];")
    assert compare(run.state, named("bell")).fidelity == pytest.approx(1)
    assert (run.bits, run.operations) == ({}, 2)


def test_gates_go_to_every_qubit_of_a_register() -> None:
    assert same(ket("qubit[3] q; h q;"), exact.plus(3))
    assert same(ket("qubit[2] a; qubit[2] b; h a; cx a, b;"), torch.eye(16)[[0, 5, 10, 15]].sum(0) / 2)
    assert same(ket("qubit c; qubit[3] t; x c; cx c, t;"), torch.eye(16)[15])
    assert same(ket("qubit[4] q; x q[1:2]; x q[-1];"), torch.eye(16)[7])
    assert same(ket("qubit[4] q; x q[0:2:3]; x q[{1}];"), torch.eye(16)[14])


def test_definitions_modifiers_loops_and_constants() -> None:
    ghz = """
    const int n = 4; const float half = pi / 2;
    gate turn(t) a { z a; ry(t) a; }  // a Hadamard when t = pi / 2
    gate link a, b { cx a, b; }
    qubit[n] q;
    turn(half) q[0];
    for int i in [0:n - 2] { link q[i], q[i + 1]; }
    """
    found = ket(ghz)
    assert found.abs().tolist() == pytest.approx(exact.ghz(4).abs().tolist())
    assert same(ket("qubit[2] q; h q; ctrl @ z q[0], q[1]; h q[1];"), exact.bell())
    assert same(ket("qubit[2] q; negctrl @ x q[0], q[1];"), torch.eye(4)[1])
    assert same(ket("qubit q; pow(2) @ sx q;"), torch.eye(2)[1])
    assert same(ket("qubit q; h q; pow(-3) @ s q; inv @ s q; h q;"), torch.eye(2)[0])
    assert same(ket("qubit[3] q; x q[0]; x q[1]; ctrl(2) @ x q[0], q[1], q[2];"), torch.eye(8)[7])
    assert same(ket("qubit[2] q; h q[0]; ctrl @ gphase(pi) q[0]; h q[0];"), torch.eye(4)[2])
    assert same(ket("qubit q; for float a in {pi, pi / 2.0} { rx(a) q; } rx(pi / 2) q;"), torch.eye(2)[0])
    back = "qubit[2] q; gate swapped a, b { cx b, a; } x q[1]; inv @ swapped q[0], q[1];"
    assert same(ket(back), torch.eye(4)[3])


def test_a_controlled_gate_keeps_the_phase_of_its_definition() -> None:
    # stdgates.inc makes rx of U and gphase(-theta / 2); without that phase the control would turn
    source = "qubit[2] q; gate my_rx(t) a { U(t, -pi / 2, pi / 2) a; gphase(-t / 2); } h q[0];"
    assert same(ket(source + "ctrl @ my_rx(0.7) q[0], q[1];"), ket("qubit[2] q; h q[0]; crx(0.7) q[0], q[1];"))
    bare = ket("qubit[2] q; h q[0]; ctrl @ U(0.7, -pi / 2, pi / 2) q[0], q[1];")
    assert not same(bare, ket("qubit[2] q; h q[0]; crx(0.7) q[0], q[1];"))


def test_every_standard_gate_is_unitary_and_keeps_its_identities() -> None:
    angles = (0.3, -1.1, 0.7, 2.2)
    for name, gate in {**STANDARD, **BUILT_IN}.items():
        matrix = gate.matrix(*angles[: gate.angles])
        assert matrix.shape == (2**gate.qubits,) * 2, name
        assert np.allclose(matrix @ matrix.conj().T, np.eye(2**gate.qubits), atol=1e-15), name
    g = {name: gate.matrix for name, gate in STANDARD.items()}
    u, phase = BUILT_IN["U"].matrix, np.exp
    assert np.allclose(g["x"](), u(math.pi, 0, math.pi) * phase(-1j * math.pi / 2))
    assert np.allclose(g["h"](), u(math.pi / 2, 0, math.pi) * phase(-1j * math.pi / 4))
    assert np.allclose(g["rx"](0.3), u(0.3, -math.pi / 2, math.pi / 2) * phase(-0.15j))
    assert np.allclose(g["ry"](0.3), u(0.3, 0, 0) * phase(-0.15j))
    assert np.allclose(g["rz"](0.3), g["p"](0.3) * phase(-0.15j))
    assert np.allclose(g["p"](0.3), u(0, 0, 0.3))
    assert np.allclose(g["u3"](*angles[:3]), u(*angles[:3]) * phase(-0.5j * sum(angles[:3])))
    assert np.allclose(g["sx"]() @ g["sx"](), g["x"]())
    assert np.allclose(g["t"]() @ g["t"](), g["s"]())
    assert np.allclose(g["cu"](0.3, 0.1, 0.2, 0.15), controlled(u(0.3, 0.1, 0.2)))


def test_an_unread_measurement_mixes_and_a_read_one_tells() -> None:
    run = run_circuit(HEAD + "qubit[2] q; bit[2] c; h q[0]; cx q[0], q[1]; c = measure q;")
    assert run.bits == pytest.approx({"00": 0.5, "11": 0.5})
    assert run.state.spectrum().tolist() == pytest.approx([0.5, 0.5])
    unread = run_circuit(HEAD + "qubit[2] q; ry(0.8) q[0]; cx q[0], q[1]; measure q[1];").state
    entangled = run_circuit(HEAD + "qubit[2] q; ry(0.8) q[0]; cx q[0], q[1];").state
    assert torch.allclose(unread.rho(), evolve(entangled, Dephasing(1.0), (1,))[0].rho(), atol=1e-15)


def test_bits_stand_in_the_order_of_their_declaration() -> None:
    run = run_circuit(
        HEAD + "qubit[3] q; bit[2] c; bit d; x q[0]; c[0] = measure q[0]; c[1] = measure q[1]; d = measure q[0];"
    )
    assert run.bits == {"10 1": 1.0}


def test_a_reset_forgets_its_qubit_alone() -> None:
    state = run_circuit(HEAD + "qubit[2] q; h q[0]; cx q[0], q[1]; reset q[0];").state
    assert torch.allclose(state.rho(), torch.diag(torch.tensor([0.5, 0.5, 0, 0], dtype=torch.complex128)), atol=1e-15)
    assert compare(run_circuit(HEAD + "qubit[3] q; h q; reset q;").state, named("basis:000")).fidelity == pytest.approx(
        1
    )


def test_teleportation_moves_a_state_by_bits() -> None:
    source = """
    qubit a; qubit[2] pair; bit[2] c;
    U(0.9, 0.4, 1.3) a;
    h pair[0]; cx pair[0], pair[1];
    cx a, pair[0]; h a;
    c[0] = measure a; c[1] = measure pair[0];
    if (c[1] == 1) { x pair[1]; }
    if (c[0]) { z pair[1]; } else { barrier pair; }
    """
    run = run_circuit(HEAD + source)
    assert run.bits == pytest.approx(dict.fromkeys(["00", "01", "10", "11"], 0.25))
    want = run_circuit("qubit a; U(0.9, 0.4, 1.3) a;").state
    assert compare(partial_trace(run.state, (2,)), want).infidelity < 1e-14


def test_a_register_is_a_number_whose_first_bit_is_lowest() -> None:
    source = "qubit[3] q; bit[2] c; x q[0]; c = measure q[0:1]; if (c == 1 && !c[1]) { x q[2]; }"
    assert same(ket(source), torch.eye(8)[5])
    assert same(ket('qubit q; bit[2] c = "10"; if (c == 2) { x q; }'), torch.eye(2)[1])


def test_a_circuit_goes_on_from_a_given_state() -> None:
    mixed = State.of_density(exact.werner(0.6), (2, 2))
    found = run_circuit(HEAD + "qubit[2] q; cx q[0], q[1]; h q[0];", mixed).state
    h, cx = (torch.from_numpy(np.array(STANDARD[name].matrix())) for name in ("h", "cx"))
    U = torch.kron(h, torch.eye(2, dtype=torch.complex128)) @ cx
    assert torch.allclose(found.rho(), U @ mixed.rho() @ U.mH, atol=1e-15)


def test_twelve_qubits_run_and_thirteen_do_not() -> None:
    run = run_circuit(HEAD + "qubit[12] q; h q[0]; for int i in [0:10] { cx q[i], q[i + 1]; }")
    assert compare(run.state, named("ghz:12")).fidelity == pytest.approx(1)
    measured = run_circuit(
        HEAD + "qubit[12] q; bit[12] c; h q[0]; for int i in [0:10] { cx q[i], q[i + 1]; } c = measure q;"
    )
    assert measured.bits == pytest.approx({"0" * 12: 0.5, "1" * 12: 0.5})
    with pytest.raises(InvalidState, match="`circuit:2:1` must have at most 12 qubits in all, but has 13 with these"):
        run_circuit("qubit[10] a;\nqubit[3] b;")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_random_circuits_agree_with_qiskit(seed: int) -> None:
    from qiskit import qasm3, quantum_info
    from qiskit.circuit.random import random_circuit

    n = 2 + seed % 4
    circuit: Any = random_circuit(n, 6, max_operands=min(3, n), seed=seed)
    want = torch.from_numpy(quantum_info.Statevector(circuit.reverse_bits()).data)
    run = run_circuit(qasm3.dumps(circuit))
    assert same(run.state.kets()[0], want)


@pytest.mark.slow
def test_resets_agree_with_qiskit() -> None:
    from qiskit import QuantumCircuit, qasm3, quantum_info
    from qiskit.circuit.random import random_circuit

    for seed in range(3):
        circuit = QuantumCircuit(4)
        circuit.compose(random_circuit(4, 3, max_operands=2, seed=seed), inplace=True)
        circuit.reset(1)
        circuit.compose(random_circuit(4, 3, max_operands=2, seed=seed + 10), inplace=True)
        circuit.reset(2)
        want = torch.from_numpy(quantum_info.DensityMatrix(circuit.reverse_bits()).data)
        assert torch.allclose(run_circuit(qasm3.dumps(circuit)).state.rho(), want, atol=1e-13)


def test_a_circuit_and_its_inverse_leave_nothing() -> None:
    forward = "h q[0]; crx(0.3) q[0], q[2]; swap q[1], q[2]; cp(1.1) q[2], q[0]; u3(0.1, 0.2, 0.3) q[1];"
    forward += " ccx q[0], q[1], q[2];"
    body = forward.replace("q[0]", "a").replace("q[1]", "b").replace("q[2]", "c")
    source = f"qubit[3] q; gate all a, b, c {{ {body} }} x q[1]; all q[0], q[1], q[2]; inv @ all q[0], q[1], q[2];"
    assert same(ket(source), torch.eye(8)[2])
    split = run_circuit(HEAD + f"qubit[3] q; x q[1]; {forward}").state
    whole = run_circuit(
        HEAD + f"qubit[3] q; x q[1]; gate all a, b, c {{ {body} }} pow(1) @ all q[0], q[1], q[2];"
    ).state
    assert torch.allclose(split.kets(), whole.kets(), atol=1e-15)


def test_local_circuits_make_product_states() -> None:
    run = run_circuit(HEAD + "qubit[2] q; rx(0.4) q[0]; ry(1.2) q[1];").state
    parts = [run_circuit(HEAD + f"qubit q; {gate} q;").state for gate in ("rx(0.4)", "ry(1.2)")]
    assert float(measures.trace_distance_factor(run.factor, tensor(*parts).factor)) < 1e-14


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("qubit[2 q;", r"`circuit:1:9` must be OpenQASM 3, but has 'q' where none can be"),
        ("qubit q;\n  h q $;", r"`circuit:2:\d+` must be OpenQASM 3, but is not: token recognition error"),
        ("qubit q; h q", "must be OpenQASM 3, but has the end of the text where none can be"),
        ("OPENQASM 2.0; qreg q[1];", "`circuit:1:1` must be OpenQASM 3, but is OpenQASM 2.0"),
        (" \n", "`circuit` must be OpenQASM 3, but is empty"),
        ("bit c;", "`circuit` must declare at least one qubit"),
        ("qubit[0] q;", "`circuit:1:1` must have a size of at least 1, but has 0"),
        ("qubit[13] q;", "at most 12 qubits in all, but has 13"),
        ("qubit[99999999999] q;", "at most 12 qubits in all"),
        ("qubit q; bit[2000] c;", "at most 1024 bits in all"),
        ("qubit q; h q;", "name gates that are defined, but names 'h'; is include \"stdgates.inc\" missing"),
        ("qubit q; foo q;", "name gates that are defined, but names 'foo'$"),
        ('include "qelib1.inc"; qubit q;', "stdgates.inc only, but has Include 'qelib1.inc'"),
        ("qubit q;\n\n  while (true) { U(0, 0, 0) q; }", "`circuit:3:3` must use declarations, .* but has WhileLoop"),
        ("qubit q; int i = 3;", "but has ClassicalDeclaration"),
        ("qubit q; if (true) { qubit r; }", "(in a block|must be OpenQASM 3)"),
        ("qubit q; bit c; if (!c) { bit d; }", "has ClassicalDeclaration in a block"),
        ("qubit q; def f() { }", "but has SubroutineDefinition"),
        ("qubit q; U(0, 0) q;", "give 'U' 3 parameters, but gives 2"),
        ("qubit q; U(0, 0, 0) q, q;", "give 1 qubits, but gives 2"),
        ("qubit[2] q; ctrl @ U(0, 0, 0) q[0], q[0];", "give different qubits"),
        ("qubit[2] q; qubit[3] r; ctrl @ U(0, 0, 0) q, r;", r"registers of one length, but gives lengths \[2, 3\]"),
        ("qubit q; U(0, 0, 0) r;", "name qubits that are declared, but names 'r'"),
        ("U(0, 0, 0) q; qubit q;", "name qubits that are declared, but names 'q'"),
        ("qubit[2] q; U(0, 0, 0) q[2];", r"name qubits that are declared, but names 'q\[2\]' of 2"),
        ("qubit[2] q; U(0, 0, 0) q[0:5];", "name"),
        ("qubit[2] q; U(0, 0, 0) q[0:0:1];", "step by another number than 0"),
        ("qubit q; bit q;", "give new names, but declares 'q' again"),
        ("qubit q; gate U a { }", "define new gates, but defines 'U' again"),
        ("qubit q; gate g a, a { }", "name every parameter and qubit differently"),
        ("qubit q; gate g a { g a; } g q;", "at most 64 deep"),
        ("qubit q; U(1 / 2, 0, 0) q;", "divide whole numbers without remainder, but has 1/2; write 1.0/2"),
        ("qubit q; U(1 / 0, 0, 0) q;", "hold expressions that have a value"),
        ("qubit q; U(1.0 / 0, 0, 0) q;", "hold expressions that have a value, but one has none: .*division by zero"),
        ("qubit q; U(sqrt(-1), 0, 0) q;", "hold expressions that have a value"),
        ("qubit q; U(2 ** 3000, 0, 0) q;", "hold expressions that have a value"),
        ("qubit q; U((-1) ** 0.5, 0, 0) q;", "hold real numbers"),
        ("qubit q; U(x, 0, 0) q;", "name constants, loop variables or parameters, but names 'x'"),
        ("qubit q; U(2ns, 0, 0) q;", "use numbers, constants, operators and functions, but uses duration literal"),
        ("qubit q; pow(0.5) @ U(0, 0, 0) q;", "have a whole number there, but has 0.5"),
        ("qubit q; pow(pi) @ U(0, 0, 0) q;", "have a whole number there"),
        ("qubit q; ctrl(8) @ U(0, 0, 0) q;", "at most 8 qubits under a modifier, but has 8 and 9"),
        ("qubit q; ctrl(0) @ U(0, 0, 0) q;", "have one control or more"),
        ("qubit q; for int i in [0:1000000] { }", "take at most 32768 steps"),
        ("qubit q; for int i in [0:0:3] { }", "step by another number than 0"),
        ("qubit[2] q; bit c; c = measure q;", "give 2 qubits as many bits, but gives 1"),
        ("qubit q; c = measure q;", "name bits that are declared, but names 'c'"),
        ("qubit q; bit[2] c = 4;", "have a value of 2 bits, but has 4"),
        ("qubit q; bit c; if (d) { }", "names 'd'"),
        ("qubit q; bit c; if (c[3]) { }", r"name bits that are declared, but names 'c\[3\]'"),
        ("qubit q; gphase(0.1) q;", "give gphase no qubits"),
        ("qubit q; barrier r;", "name qubits that are declared, but names 'r'"),
        ("qubit q; bit[13] c; for int i in [0:12] { U(pi / 2, 0, 0) q; c[i] = measure q; }", "mix at most 4096 kets"),
        (" " * (SOURCE_MAX + 1), "have at most 262144 characters"),
        (
            "qubit q; U(" + "(" * 3000 + "0" + ")" * 3000 + ", 0, 0) q;",
            "`circuit:1:111` must nest at most 100 brackets",
        ),
    ],
)
def test_what_is_not_read_is_named_with_line_and_column(source: str, message: str) -> None:
    with pytest.raises(InvalidState, match=message):
        run_circuit(source)


def test_a_bomb_of_definitions_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_calls, "STEPS_MAX", 2000)
    gates = "gate g0 a { U(0, 0, 0) a; }" + "".join(f"gate g{k} a {{ g{k - 1} a; g{k - 1} a; }}" for k in range(1, 40))
    with pytest.raises(InvalidState, match="take at most 2000 steps"):
        run_circuit("qubit q;" + gates + "g39 q;")


def test_a_run_can_be_ended_from_outside_and_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls > 20:
            raise LimitExceeded("states.max_call_s", 1, 2)

    # 64 values of the bits: each of them reads the condition
    measured = "qubit q; bit[6] c; " + "".join(f"h q; c[{k}] = measure q; " for k in range(6))
    loop = "for int i in [1:1000] { if (c[-1] == 1 && c != 63) { x q; } }"
    with pytest.raises(LimitExceeded):
        run_circuit(HEAD + measured + loop, check=check)
    assert calls == 21
    monkeypatch.setattr(circuit, "SECONDS_MAX", 0.0)
    with pytest.raises(InvalidState, match="`circuit` must run in 0 s"):
        run_circuit(HEAD + measured)


def test_conditions_read_bits_by_name_by_place_and_as_numbers() -> None:
    bits = "qubit q; bit[3] c = 6; bit d = 1; const int one = 1; "
    for condition in ("c == 6", "c[-1]", "!c[0] && c[one]", "c > 5 && d", "c + d == 7"):
        assert ket(bits + f"if ({condition}) {{ x q; }}").abs().tolist() == [0, 1], condition
    with pytest.raises(InvalidState, match=r"names 'c\[3\]'"):
        ket(bits + "if (c[3]) { x q; }")


def test_a_given_state_must_fit() -> None:
    with pytest.raises(
        InvalidState, match=r"`circuit` must declare qubits as the state has, of dims \(2, 2\), but declares 1"
    ):
        run_circuit("qubit q;", named("bell"))
