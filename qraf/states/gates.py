"""The gates of OpenQASM 3: the built-in U, and those of stdgates.inc, with the phases that its text gives them.

    U(theta, phi, lambda) = e^{i theta/2} [[cos, -e^{i lambda} sin], [e^{i phi} sin, e^{i (phi + lambda)} cos]]

of theta / 2 (Cross et al., ACM Trans. Quantum Comput. 3, 12, 2022, and the OpenQASM 3 specification, "Gates"). A phase
matters once a gate is controlled: `ctrl @ U` here has the e^{i theta/2}, `ctrl @ u3` the e^{-i (phi + lambda)/2} of
stdgates.inc, while qiskit controls both without. Matrices: first operand slowest, controls first.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["BUILT_IN", "STANDARD", "Matrix", "StandardGate", "controlled"]

Matrix: TypeAlias = NDArray[np.complex128]


@dataclass(frozen=True, slots=True)
class StandardGate:
    """A gate of so many angles on so many qubits."""

    angles: int
    qubits: int
    matrix: Callable[..., Matrix]


def controlled(matrix: Matrix, count: int = 1, *, negative: bool = False) -> Matrix:
    """Act when all `count` new first qubits are 1, or all 0 when `negative`."""
    size = len(matrix) << count
    whole = np.eye(size, dtype=np.complex128)
    place = slice(0, len(matrix)) if negative else slice(size - len(matrix), size)
    whole[place, place] = matrix
    return whole


def _u(theta: float, phi: float, lam: float) -> Matrix:
    cos, sin = math.cos(theta / 2), math.sin(theta / 2)
    rows = [[cos, -cmath.exp(1j * lam) * sin], [cmath.exp(1j * phi) * sin, cmath.exp(1j * (phi + lam)) * cos]]
    return cmath.exp(0.5j * theta) * np.array(rows)


def _u3(theta: float, phi: float, lam: float) -> Matrix:
    return cmath.exp(-0.5j * (phi + lam + theta)) * _u(theta, phi, lam)


def _phase(lam: float) -> Matrix:
    return np.diag([1, cmath.exp(1j * lam)])


def _rx(theta: float) -> Matrix:
    cos, sin = math.cos(theta / 2), math.sin(theta / 2)
    return np.array([[cos, -1j * sin], [-1j * sin, cos]])


def _ry(theta: float) -> Matrix:
    cos, sin = math.cos(theta / 2), math.sin(theta / 2)
    return np.array([[cos, -sin], [sin, cos]], dtype=np.complex128)


def _rz(theta: float) -> Matrix:
    return np.diag([cmath.exp(-0.5j * theta), cmath.exp(0.5j * theta)])


def _cu(theta: float, phi: float, lam: float, gamma: float) -> Matrix:
    return controlled(cmath.exp(1j * (gamma - theta / 2)) * _u(theta, phi, lam))


def _fixed(rows: list[list[complex]]) -> Matrix:
    return np.array(rows, dtype=np.complex128)


_X = _fixed([[0, 1], [1, 0]])
_Y = _fixed([[0, -1j], [1j, 0]])
_H = _fixed([[1, 1], [1, -1]]) / math.sqrt(2)
_SX = _fixed([[1 + 1j, 1 - 1j], [1 - 1j, 1 + 1j]]) / 2
_SWAP = _fixed([[1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
_ONE_QUBIT: dict[str, Matrix] = {
    "id": _fixed([[1, 0], [0, 1]]),
    "x": _X,
    "y": _Y,
    "z": np.diag([1, -1]).astype(np.complex128),
    "h": _H,
    "s": np.diag([1, 1j]),
    "sdg": np.diag([1, -1j]),
    "t": _phase(math.pi / 4),
    "tdg": _phase(-math.pi / 4),
    "sx": _SX,
}
_ROTATIONS: dict[str, Callable[[float], Matrix]] = {"rx": _rx, "ry": _ry, "rz": _rz}


def _constant(matrix: Matrix) -> StandardGate:
    return StandardGate(0, len(matrix).bit_length() - 1, lambda: matrix)


def _turn(rotation: Callable[[float], Matrix], controls: int = 0) -> StandardGate:
    if not controls:
        return StandardGate(1, 1, rotation)
    return StandardGate(1, 1 + controls, lambda theta: controlled(rotation(theta), controls))


BUILT_IN = {"U": StandardGate(3, 1, _u)}
"""Always there."""

STANDARD: dict[str, StandardGate] = {
    **{name: _constant(matrix) for name, matrix in _ONE_QUBIT.items()},
    **{name: _turn(rotation) for name, rotation in _ROTATIONS.items()},
    **{f"c{name}": _turn(rotation, 1) for name, rotation in _ROTATIONS.items()},
    **{name: _turn(_phase) for name in ("p", "phase", "u1")},
    **{name: _turn(_phase, 1) for name in ("cp", "cphase")},
    **{name: _constant(controlled(_X)) for name in ("cx", "CX")},
    "cy": _constant(controlled(_Y)),
    "cz": _constant(controlled(_ONE_QUBIT["z"])),
    "ch": _constant(controlled(_H)),
    "cu": StandardGate(4, 2, _cu),
    "swap": _constant(_SWAP),
    "ccx": _constant(controlled(_X, 2)),
    "cswap": _constant(controlled(_SWAP)),
    "u2": StandardGate(2, 1, lambda phi, lam: _u3(math.pi / 2, phi, lam)),
    "u3": StandardGate(3, 1, _u3),
}
"""What `include "stdgates.inc"` brings."""
