"""Circuits in OpenQASM 3, run exactly: up to 12 qubits, pure or mixed, with measurements, resets and conditions.

The state is kept as kets, each with the values of the classical bits that go with it: a measurement splits every ket in
two, a reset forgets which. So a circuit ends in the exact state and the exact probabilities of its bits; nothing is
sampled. A bit that nobody reads still mixes the state, as it does in the laboratory.

Read: qubit and bit declarations, constants, the gates of stdgates.inc, U, gphase, gate definitions, the modifiers ctrl,
negctrl, inv and pow (whole powers), measure, reset, barrier, `for` over ranges and sets, `if` on bits. All else is a
fault with its line and column. Qubits start in |0>.

**The first qubit declared varies slowest**: `x q[0]` on two qubits gives |10>, index 2. qiskit counts the other way.
Bits are written in the same order, c[0] first, registers apart by a space; as a number c[0] is the lowest, as in the
language.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from openqasm3 import ast
from torch import Tensor

from qraf.errors import InvalidState
from qraf.states.checks import eigenvalue_cut
from qraf.states.gate_calls import GateCalls, Operand, inclusive, operand_places
from qraf.states.qasm import Number, Scope, evaluate, fault, parse, whole_number
from qraf.states.state import DIM_MAX, State, principal_rows

__all__ = ["CircuitRun", "run_circuit"]

QUBITS_MAX = 12
BITS_MAX = 1024
KETS_MAX = DIM_MAX
SECONDS_MAX = 60.0
_NOTHING = 1e-12  # norm of a ket that is made of rounding errors


@dataclass(frozen=True, slots=True)
class CircuitRun:
    """What a circuit leaves: the state of all its qubits, and the probability of every value of its bits.

    `bits` is empty for a circuit without bits. `operations` counts gates, measurements and resets.
    """

    state: State
    qubits: tuple[str, ...]
    bits: dict[str, float]
    operations: int


def run_circuit(source: str, start: State | None = None, check: Callable[[], object] | None = None) -> CircuitRun:
    """Run a program.

    Args:
        source: OpenQASM 3.
        start: the state of the qubits at the start, as many as are declared; |0...0> when left out.
        check: called between steps; what it raises ends the run. By default a run ends after a minute.

    Raises:
        InvalidState: named `circuit:line:column`: no OpenQASM 3, a part that is not read here, more than 12 qubits, a
            mixture of more than `KETS_MAX` kets, too much work.
    """
    program = parse(source)
    try:
        return _Runner(program, start, GateCalls(check or _within(SECONDS_MAX))).run()
    except RecursionError:
        raise InvalidState("circuit", "nest less deeply") from None


@dataclass(frozen=True, slots=True)
class _Kets:
    """Kets (R, 2^n) and the bits that go with each (R, b)."""

    rows: Tensor
    bits: NDArray[np.uint8]


class _WithBits(Mapping[str, Number]):
    """A scope in which conditions also find the bits that go with a ket."""

    def __init__(self, scope: Scope, bits: NDArray[np.uint8], registers: Mapping[str, Sequence[int]]) -> None:
        self._scope, self._bits, self._registers = scope, bits, registers

    def __getitem__(self, name: str) -> Number:
        """`c` as a number, `c[]` its length, `c[2]` one bit; all else is the scope's."""
        register, _, index = name.partition("[")
        if register not in self._registers:
            return self._scope[name]
        places = self._registers[register]
        if not index:
            return sum(int(self._bits[place]) << k for k, place in enumerate(places))
        return len(places) if index == "]" else int(self._bits[places[int(index[:-1])]])

    def __iter__(self) -> Iterator[str]:
        return iter((*self._scope, *self._registers))

    def __len__(self) -> int:
        return len(self._scope) + len(self._registers)


@dataclass(slots=True)
class _Runner:
    program: ast.Program
    start: State | None
    gates: GateCalls
    n: int = 0
    qubits: dict[str, list[int]] = field(default_factory=dict)
    bits: dict[str, list[int]] = field(default_factory=dict)

    def run(self) -> CircuitRun:
        kets = self._begin()
        kets = self._block(self.program.statements, kets, {}, top=True)
        shares = kets.rows.abs().square().sum(-1)
        named: dict[str, float] = {}
        for bits, share in zip(kets.bits, (shares / shares.sum()).tolist(), strict=True):
            label = " ".join("".join(str(bits[index]) for index in places) for places in self.bits.values())
            named[label] = named.get(label, 0.0) + share
        names = [
            name if len(places) == 1 and name in self._scalars() else f"{name}[{k}]"
            for name, places in self.qubits.items()
            for k in range(len(places))
        ]
        norm = torch.linalg.vector_norm(kets.rows)
        state = State(kets.rows.conj() / norm, (2,) * self.n).having_lost(1 - float(norm.square()))  # in folds
        return CircuitRun(state, tuple(names), named if self.bits else {}, self.gates.operations)

    def _scalars(self) -> set[str]:
        declared = (one for one in self.program.statements if isinstance(one, ast.QubitDeclaration))
        return {one.qubit.name for one in declared if one.size is None}

    def _begin(self) -> _Kets:
        """Count qubits and bits first: the vectors must have their size before the first gate."""
        scope: dict[str, Number] = {}
        num_bits, at = 0, None
        for one in self.program.statements:
            if isinstance(one, ast.ConstantDeclaration):
                scope[one.identifier.name] = evaluate(one.init_expression, scope, one)
            elif isinstance(one, ast.QubitDeclaration):
                self.n, at = self.n + _size(one.size, scope, one), one
                if self.n > QUBITS_MAX:
                    raise fault(one, f"have at most {QUBITS_MAX} qubits in all", f"has {self.n} with these")
            elif isinstance(one, ast.ClassicalDeclaration) and isinstance(one.type, ast.BitType):
                num_bits += _size(one.type.size, scope, one)
                if num_bits > BITS_MAX:
                    raise fault(one, f"have at most {BITS_MAX} bits in all", f"has {num_bits} with these")
        if at is None:
            raise InvalidState("circuit", "declare at least one qubit")
        if self.start is None:
            rows = torch.zeros(1, 2**self.n, dtype=torch.complex128)
            rows[0, 0] = 1
        elif self.start.dims == (2,) * self.n:
            rows = self.start.kets().to("cpu", torch.complex128)
        else:
            need = f"declare qubits as the state has, of dims {self.start.dims}"
            raise InvalidState("circuit", need, f"declares {self.n} qubits")
        return _Kets(rows, np.zeros((len(rows), num_bits), dtype=np.uint8))

    # ------------------------------------------------------------------------------------------------- statements
    def _block(
        self,
        statements: Sequence[ast.Statement | ast.Pragma],
        kets: _Kets,
        outer: Scope,
        *,
        top: bool = False,
    ) -> _Kets:
        scope = dict(outer)
        for one in statements:
            kets = self._statement(one, kets, scope, top)
        return kets

    def _statement(self, one: ast.QASMNode, kets: _Kets, scope: dict[str, Number], top: bool) -> _Kets:
        match one:
            case ast.QuantumGate() | ast.QuantumPhase():
                return replace(kets, rows=self.gates.apply(one, kets.rows, self.n, self.qubits, scope))
            case ast.QuantumMeasurementStatement():
                return self._measure(one, one.measure.qubit, one.target, kets, scope)
            case ast.QuantumReset():
                return self._reset(one, kets, scope)
            case ast.QuantumBarrier():
                for operand in one.qubits:
                    if not isinstance(operand, Operand):
                        raise fault(one, "name qubits", "does not")
                    operand_places(operand, self.qubits, scope, one)
                return kets
            case ast.ForInLoop():
                for value in self._values(one, scope):
                    self.gates.spend(one, 0)
                    kets = self._block(one.block, kets, {**scope, one.identifier.name: value})
                return kets
            case ast.BranchingStatement():
                return self._branch(one, kets, scope)
            case ast.CompoundStatement():
                return self._block(one.statements, kets, scope)
            case ast.ConstantDeclaration():
                self._name(one.identifier.name, scope, one)
                scope[one.identifier.name] = evaluate(one.init_expression, scope, one)
                if top:
                    self.gates.constants[one.identifier.name] = scope[one.identifier.name]
                return kets
            case ast.Include() if one.filename == "stdgates.inc":
                self.gates.standard = True
                return kets
            case ast.QubitDeclaration() if top:
                self._name(one.qubit.name, scope, one)
                first = sum(map(len, self.qubits.values()))
                self.qubits[one.qubit.name] = list(range(first, first + _size(one.size, scope, one)))
                return kets
            case ast.ClassicalDeclaration(type=ast.BitType()) if top:
                return self._declare_bits(one, kets, scope)
            case ast.QuantumGateDefinition() if top:
                self._name(one.name.name, scope, one)
                self.gates.define(one)
                return kets
        what = type(one).__name__ + (f" '{one.filename}'" if isinstance(one, ast.Include) else "")
        where = "" if top else " in a block"
        need = "use declarations, gates, measure, reset, barrier, for, if and stdgates.inc only"
        raise fault(one, need, f"has {what}{where}")

    def _declare_bits(self, one: ast.ClassicalDeclaration, kets: _Kets, scope: Scope) -> _Kets:
        assert isinstance(one.type, ast.BitType)
        self._name(one.identifier.name, scope, one)
        first = sum(map(len, self.bits.values()))
        size = _size(one.type.size, scope, one)
        self.bits[one.identifier.name] = list(range(first, first + size))
        if one.init_expression is None:
            return kets
        if isinstance(one.init_expression, ast.QuantumMeasurement):
            return self._measure(one, one.init_expression.qubit, one.identifier, kets, scope)
        value = whole_number(one.init_expression, scope, one)
        if not 0 <= value < 2**size:
            raise fault(one, f"have a value of {size} bits", f"has {value}")
        bits = kets.bits.copy()
        bits[:, first : first + size] = [value >> k & 1 for k in range(size)]
        return replace(kets, bits=bits)

    def _branch(self, one: ast.BranchingStatement, kets: _Kets, scope: dict[str, Number]) -> _Kets:
        known: dict[bytes, bool] = {}
        for bits in kets.bits:
            if bits.tobytes() not in known:
                self.gates.check()  # a condition may be as long as a program, and there are up to 1024 values of bits
                known[bits.tobytes()] = bool(evaluate(one.condition, _WithBits(scope, bits, self.bits), one))
        holds = np.array([known[bits.tobytes()] for bits in kets.bits])
        ends = []
        for mask, block in ((holds, one.if_block), (~holds, one.else_block)):
            if mask.any():
                part = _Kets(kets.rows[torch.from_numpy(mask)], kets.bits[mask])
                ends.append(self._block(block, part, scope))
        self.gates.spend(one, kets.rows.numel())
        return _folded(ends, one)

    def _measure(self, one: ast.Statement, qubit: Operand, target: Operand | None, kets: _Kets, scope: Scope) -> _Kets:
        measured = operand_places(qubit, self.qubits, scope, one)
        places = None if target is None else operand_places(target, self.bits, scope, one, "bits")
        if places is not None and len(places) != len(measured):
            raise fault(one, f"give {len(measured)} qubits as many bits", f"gives {len(places)}")
        for k, index in enumerate(measured):
            self.gates.spend(one, 2 * kets.rows.numel(), is_operation=True)
            parts = kets.rows.reshape(-1, 2**index, 2, 2 ** (self.n - index - 1))
            ends = []
            for value in (0, 1):
                rows = torch.zeros_like(parts)
                rows[:, :, value] = parts[:, :, value]
                bits = kets.bits.copy()
                if places is not None:
                    bits[:, places[k]] = value
                ends.append(_folded([_Kets(rows.reshape(kets.rows.shape), bits)], one))
            kets = _together(ends, one)  # what was found 0 is orthogonal to what was found 1
        return kets

    def _reset(self, one: ast.QuantumReset, kets: _Kets, scope: Scope) -> _Kets:
        for index in operand_places(one.qubits, self.qubits, scope, one):
            self.gates.spend(one, 2 * kets.rows.numel(), is_operation=True)
            parts = kets.rows.reshape(-1, 2**index, 2, 2 ** (self.n - index - 1))
            ends = []
            for value in (0, 1):
                rows = torch.zeros_like(parts)
                rows[:, :, 0] = parts[:, :, value]
                ends.append(_Kets(rows.reshape(kets.rows.shape), kets.bits))
            kets = _folded(ends, one)
        return kets

    def _values(self, one: ast.ForInLoop, scope: Scope) -> Sequence[Number]:
        match one.set_declaration:
            case ast.RangeDefinition(start=ast.Expression() as first, end=ast.Expression() as last, step=step):
                low, high = whole_number(first, scope, one), whole_number(last, scope, one)
                return inclusive(low, high, 1 if step is None else whole_number(step, scope, one), one)
            case ast.DiscreteSet(values=values):
                return [evaluate(value, scope, one) for value in values]
        raise fault(one, "loop over [a:b], [a:step:b] or {a, b, ...}", "does not")

    def _name(self, name: str, scope: Scope, at: ast.QASMNode) -> None:
        if name in self.qubits or name in self.bits or name in scope:
            raise fault(at, "give new names", f"declares '{name}' again")


def _within(seconds: float) -> Callable[[], None]:
    end = time.monotonic() + seconds

    def check() -> None:
        if time.monotonic() > end:
            raise InvalidState("circuit", f"run in {seconds:g} s", "takes longer")

    return check


def _size(node: ast.Expression | None, scope: Scope, at: ast.QASMNode) -> int:
    size = 1 if node is None else whole_number(node, scope, at)
    if size < 1:
        raise fault(at, "have a size of at least 1", f"has {size}")
    return size


def _folded(ends: Sequence[_Kets], at: ast.QASMNode) -> _Kets:
    """Put branches together: kets that go with the same bits become as few as their mixture needs."""
    kets = _together(ends, at, 2 * KETS_MAX)
    if kets.bits.shape[1]:
        values, group = np.unique(kets.bits, axis=0, return_inverse=True)
    else:
        values, group = kets.bits[:1], np.zeros(len(kets.bits), dtype=np.intp)
    if len(values) == len(kets.bits):
        return _together([kets], at)
    parts = [_principal(kets.rows[torch.from_numpy(np.flatnonzero(group == k))]) for k in range(len(values))]
    bits = np.repeat(values, [len(part) for part in parts], axis=0)
    return _together([_Kets(torch.cat(parts), bits)], at)


def _together(ends: Sequence[_Kets], at: ast.QASMNode, most: int = KETS_MAX) -> _Kets:
    rows, bits = torch.cat([end.rows for end in ends]), np.concatenate([end.bits for end in ends])
    alive = (torch.linalg.vector_norm(rows, dim=-1) > _NOTHING).numpy()
    if alive.sum() > most:
        need = f"mix at most {KETS_MAX} kets; leave out measurements that nothing depends on"
        raise fault(at, need, f"mixes {alive.sum()} after this")
    return _Kets(rows[torch.from_numpy(alive)], bits[alive])


def _principal(rows: Tensor) -> Tensor:
    if len(rows) == 1:
        return rows
    principal, values = principal_rows(rows)
    return principal[values > eigenvalue_cut(values)]
