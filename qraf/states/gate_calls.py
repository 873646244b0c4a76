"""Calls of gates in OpenQASM 3: which matrix, on which qubits, within which budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from openqasm3 import ast
from torch import Tensor

from qraf.states.gates import BUILT_IN, STANDARD, Matrix, StandardGate, controlled
from qraf.states.qasm import Number, Scope, evaluate, fault, whole_number
from qraf.states.subsystems import apply_operator

__all__ = ["GateCalls", "Operand", "Registers", "inclusive", "operand_places"]

STEPS_MAX = 2**15  # gates, measurements, resets, turns of loops: a few seconds
WORK_MAX = 2**30  # amplitudes touched in all: about a minute at most
_MODIFIED_MAX = 8  # qubits of a gate under a modifier: its matrix is made
_DEPTH_MAX = 64

Operand: TypeAlias = ast.Identifier | ast.IndexedIdentifier
Registers: TypeAlias = Mapping[str, Sequence[int]]
_Call: TypeAlias = ast.QuantumGate | ast.QuantumPhase


@dataclass(slots=True)
class GateCalls:
    """The gates that a program knows, and what it has spent.

    `operations` counts gates, measurements and resets; `steps` also the turns of loops and calls of defined gates.
    `check` is called at every step, and ends a run by raising.
    """

    check: Callable[[], object] = lambda: None
    constants: dict[str, Number] = field(default_factory=dict)
    defined: dict[str, ast.QuantumGateDefinition] = field(default_factory=dict)
    standard: bool = False
    operations: int = 0
    steps: int = 0
    work: int = 0

    def define(self, gate: ast.QuantumGateDefinition) -> None:
        """Take a definition.

        Raises:
            InvalidState: the name is taken, or two qubits or two parameters share one.
        """
        name = gate.name.name
        if name in self.defined or self._standard(name) is not None:
            raise fault(gate, "define new gates", f"defines '{name}' again")
        names = [one.name for one in (*gate.arguments, *gate.qubits)]
        if len(set(names)) < len(names):
            raise fault(gate, "name every parameter and qubit differently", f"has {', '.join(names)}")
        self.defined[name] = gate

    def apply(self, call: _Call, rows: Tensor, n: int, qubits: Registers, scope: Scope, depth: int = 0) -> Tensor:
        """Apply a gate to kets (R, 2^n); a register of qubits means the gate on each of them.

        Raises:
            InvalidState: no such gate, operands that do not fit, a budget that is spent.
        """
        if depth > _DEPTH_MAX:
            raise fault(call, f"define gates at most {_DEPTH_MAX} deep", "goes deeper")
        found = None if isinstance(call, ast.QuantumPhase) else self._standard(call.name.name)
        if isinstance(call, ast.QuantumPhase) or call.modifiers:
            matrix = self._modified(call, scope, depth)
        elif found is not None:
            matrix = found.matrix(*_angles(call, found.angles, scope))
        else:
            return self._expand(call, rows, n, qubits, scope, depth)
        if len(matrix) == 1:
            if call.qubits:
                raise fault(call, "give gphase no qubits", f"gives {len(call.qubits)}")
            self.spend(call, rows.numel())
            return rows * complex(matrix[0, 0])
        operator = torch.from_numpy(np.ascontiguousarray(matrix))
        for places in _places(call, len(matrix).bit_length() - 1, qubits, scope):
            self.spend(call, rows.numel() * len(matrix) // 2, is_operation=True)
            rows = apply_operator(rows, operator, (2,) * n, places)
        return rows

    def spend(self, at: ast.QASMNode, amplitudes: int, *, is_operation: bool = False) -> None:
        """Count a step.

        Raises:
            InvalidState: that was one too many.
        """
        self.check()
        self.steps += 1
        self.operations += is_operation
        self.work += amplitudes
        if self.steps > STEPS_MAX or self.work > WORK_MAX:
            need = f"take at most {STEPS_MAX} steps and touch {WORK_MAX} amplitudes"
            raise fault(at, need, "takes more")

    def _expand(
        self, call: ast.QuantumGate, rows: Tensor, n: int, qubits: Registers, scope: Scope, depth: int
    ) -> Tensor:
        gate, inner = self._defined(call, scope)
        for places in _places(call, len(gate.qubits), qubits, scope):
            self.spend(call, 0)
            inside = {name.name: [place] for name, place in zip(gate.qubits, places, strict=True)}
            rows = self._body(gate, rows, n, inside, inner, depth)
        return rows

    def _body(
        self, gate: ast.QuantumGateDefinition, rows: Tensor, n: int, qubits: Registers, scope: Scope, depth: int
    ) -> Tensor:
        for step in gate.body:
            if isinstance(step, ast.QuantumGate | ast.QuantumPhase):
                rows = self.apply(step, rows, n, qubits, scope, depth + 1)
            elif not isinstance(step, ast.QuantumBarrier):
                raise fault(step, "define gates by gates only", f"has {type(step).__name__}")
        return rows

    def _modified(self, call: _Call, scope: Scope, depth: int) -> Matrix:
        if isinstance(call, ast.QuantumPhase):
            matrix = np.exp(1j * np.array([[evaluate(call.argument, scope, call)]], dtype=np.complex128))
        else:
            matrix = self._matrix(call, scope, depth)
        for modifier in reversed(call.modifiers):
            kind = modifier.modifier.name
            count = 1 if modifier.argument is None else whole_number(modifier.argument, scope, call)
            if kind == "inv":
                matrix = matrix.conj().T
            elif kind == "pow":
                matrix = np.linalg.matrix_power(matrix if count >= 0 else matrix.conj().T, abs(count))
            else:
                qubits = len(matrix).bit_length() - 1 + count
                if count < 1 or qubits > _MODIFIED_MAX:
                    need = f"have one control or more, and at most {_MODIFIED_MAX} qubits under a modifier"
                    raise fault(call, need, f"has {count} and {qubits}")
                matrix = controlled(matrix, count, negative=kind == "negctrl")
        return matrix

    def _matrix(self, call: ast.QuantumGate, scope: Scope, depth: int) -> Matrix:
        """The matrix of a gate before its modifiers."""
        found = self._standard(call.name.name)
        if found is not None:
            return found.matrix(*_angles(call, found.angles, scope))
        gate, inner = self._defined(call, scope)
        n = len(gate.qubits)
        if n > _MODIFIED_MAX:
            raise fault(call, f"have at most {_MODIFIED_MAX} qubits under a modifier", f"has {n}")
        inside = {name.name: [index] for index, name in enumerate(gate.qubits)}
        before = self.operations
        columns = self._body(gate, torch.eye(2**n, dtype=torch.complex128), n, inside, inner, depth)
        self.operations = before  # the gate counts once, where it is applied
        matrix: Matrix = columns.T.contiguous().numpy()
        return matrix

    def _defined(self, call: ast.QuantumGate, scope: Scope) -> tuple[ast.QuantumGateDefinition, Scope]:
        """A definition, and what its body can name: constants and its own parameters."""
        gate = self.defined.get(call.name.name)
        if gate is None:
            hint = '; is include "stdgates.inc" missing?' if call.name.name in STANDARD and not self.standard else ""
            raise fault(call, "name gates that are defined", f"names '{call.name.name}'{hint}")
        values = _angles(call, len(gate.arguments), scope)
        return gate, {**self.constants, **{one.name: x for one, x in zip(gate.arguments, values, strict=True)}}

    def _standard(self, name: str) -> StandardGate | None:
        if name in self.defined:
            return None
        return BUILT_IN.get(name) or (STANDARD.get(name) if self.standard else None)


def operand_places(
    operand: Operand, registers: Registers, scope: Scope, at: ast.QASMNode, what: str = "qubits"
) -> list[int]:
    """The places that `q`, `q[1]`, `q[-1]`, `q[0:2]` or `q[{0, 3}]` stand for.

    Raises:
        InvalidState: no such register, or an index outside of it.
    """
    name = operand.name if isinstance(operand, ast.Identifier) else operand.name.name
    if name not in registers:
        raise fault(at, f"name {what} that are declared", f"names '{name}'")
    places = list(registers[name])
    for index in [] if isinstance(operand, ast.Identifier) else operand.indices:
        if isinstance(index, list) and len(index) != 1:
            raise fault(at, f"index {what} once", f"has {len(index)} indices")
        wanted = list(_indices(index, len(places), scope, at))
        for k in wanted:
            if not -len(places) <= k < len(places):
                raise fault(at, f"name {what} that are declared", f"names '{name}[{k}]' of {len(places)}")
        places = [places[k] for k in wanted]
    return places


def inclusive(first: int, last: int, step: int, at: ast.QASMNode) -> range:
    """The values of [first:step:last], the last one included.

    Raises:
        InvalidState: a step of 0.
    """
    if step == 0:
        raise fault(at, "step by another number than 0", "steps by 0")
    return range(first, last + (1 if step > 0 else -1), step)


def _indices(
    index: ast.DiscreteSet | list[ast.Expression | ast.RangeDefinition], size: int, scope: Scope, at: ast.QASMNode
) -> Sequence[int]:
    if isinstance(index, ast.DiscreteSet):
        return [whole_number(one, scope, at) for one in index.values]
    only = index[0]
    if not isinstance(only, ast.RangeDefinition):
        return [whole_number(only, scope, at)]
    step = 1 if only.step is None else whole_number(only.step, scope, at)
    ends = (0, size - 1) if step > 0 else (size - 1, 0)
    first = ends[0] if only.start is None else whole_number(only.start, scope, at)
    last = ends[1] if only.end is None else whole_number(only.end, scope, at)
    found = inclusive(first + size if first < 0 else first, last + size if last < 0 else last, step, at)
    if len(found) > size:
        raise fault(at, "name places of the register", f"names {len(found)} of {size}")
    return found


def _places(call: _Call, count: int, qubits: Registers, scope: Scope) -> list[tuple[int, ...]]:
    """The qubits of every single gate: registers of one length go side by side, single qubits with each."""
    if len(call.qubits) != count:
        raise fault(call, f"give {count} qubits", f"gives {len(call.qubits)}")
    operands = [operand_places(one, qubits, scope, call) for one in call.qubits]
    lengths = {len(one) for one in operands} - {1}
    if len(lengths) > 1:
        raise fault(call, "give registers of one length", f"gives lengths {sorted(lengths)}")
    turns = lengths.pop() if lengths else 1
    places = [tuple(one[k if len(one) > 1 else 0] for one in operands) for k in range(turns)]
    for one in places:
        if len(set(one)) < len(one):
            raise fault(call, "give different qubits", "gives one twice")
    return places


def _angles(call: ast.QuantumGate, count: int, scope: Scope) -> list[float]:
    if len(call.arguments) != count:
        raise fault(call, f"give '{call.name.name}' {count} parameters", f"gives {len(call.arguments)}")
    return [evaluate(one, scope, call) for one in call.arguments]
