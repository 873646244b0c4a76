"""Make states: from numbers, from counts of measurements, by name. Nothing is normalised unless that is asked for.

Counts of Pauli measurements become a state in two steps. Linear inversion: every Pauli string's mean is pooled over all
settings that measure it, weighted by shots, and mu = 2^-n sum_P <P> P. Sampling noise leaves mu with negative
eigenvalues, so the nearest physical state is taken (Smolin, Gambetta, Smith, PRL 108, 070502, 2012).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qraf.errors import InvalidState
from qraf.states.checks import check_finite, check_square
from qraf.states.physical import nearest_factor
from qraf.states.state import DIM_MAX, State

__all__ = [
    "QUBITS_MAX",
    "Tomography",
    "from_amplitudes",
    "from_counts",
    "from_density",
    "from_ensemble",
    "linear_inversion",
    "named",
]

QUBITS_MAX = 6
"""Qubits of a state made from counts: 3^6 = 729 settings."""

_PAULIS = np.array([[[1, 0], [0, 1]], [[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]])
_SHOTS_MAX = 2**53  # above this, sums of counts in float64 would be rounded
_BELL = {"phi+": (1, 0, 0, 1), "phi-": (1, 0, 0, -1), "psi+": (0, 1, 1, 0), "psi-": (0, 1, -1, 0)}
_NAMES = "bell, bell:psi-, ghz:3, w:3, plus:2, basis:010, mixed:2 (qubits), mixed:2x3 (dims)"


@dataclass(frozen=True, slots=True)
class Tomography:
    """A state from counts: the state, all shots, and how far the projection moved the linear inversion.

    `moved` is |mu - rho|_1 / 2; 0 when mu was a state. `negativity` is the sum of |negative eigenvalues| of mu.
    """

    state: State
    shots: int
    moved: float
    negativity: float


def from_amplitudes(psi: Tensor, dims: Sequence[int] = (), *, normalize: bool = False) -> State:
    """The pure state of amplitudes (d,).

    Raises:
        InvalidState: no unit norm, unless `normalize`; then a norm of zero.
    """
    return State.of_ket(_normalized(psi, "psi") if normalize else psi, dims)


def from_density(rho: Tensor, dims: Sequence[int] = (), *, normalize: bool = False) -> State:
    """The state of a density matrix (d, d).

    Raises:
        InvalidState: no density operator; with `normalize` any positive trace will do.
    """
    if not normalize:
        return State.of_density(rho, dims)
    check_finite(check_square(rho), "rho")
    trace = float(rho.diagonal(dim1=-2, dim2=-1).sum().real) if rho.ndim == 2 else 0.0
    if rho.ndim == 2 and not trace > torch.finfo(rho.dtype).eps * float(rho.abs().max()):
        raise InvalidState("rho", "have a trace above 0", f"has {trace:.3g}")
    return State.of_density(rho / trace if trace else rho, dims)


def from_ensemble(
    kets: Tensor,
    probabilities: Tensor | Sequence[float] | None = None,
    dims: Sequence[int] = (),
    *,
    normalize: bool = False,
) -> State:
    """The mixture of kets (n, d), equally likely when `probabilities` is left out.

    Raises:
        InvalidState: kets without unit norm or probabilities that do not sum to 1, unless `normalize`.
    """
    if probabilities is not None and not isinstance(probabilities, Tensor):
        probabilities = torch.tensor(probabilities, dtype=torch.float64)
    if normalize:
        kets = _normalized(kets, "kets")
        if probabilities is not None:
            total = float(check_finite(probabilities, "probabilities").sum())
            if not total > 0:
                raise InvalidState("probabilities", "have a sum above 0", f"have {total:.3g}")
            probabilities = probabilities / total
    return State.of_ensemble(kets, probabilities, dims)


def named(name: str) -> State:
    """A known state of qubits by its name.

    `bell` (phi+) and `bell:phi-`, `bell:psi+`, `bell:psi-`; `ghz:n`; `w:n`; `plus:n`, |+> of n qubits; `basis:010`;
    `mixed:n`, maximally mixed, of n qubits, and `mixed:2x3` of any dims.

    Raises:
        InvalidState: no such name, or more than 12 qubits (`mixed`: a dimension above `DIM_MAX`).

    >>> named("mixed:2x3")
    State(d=6, rank=6, dims=(2, 3))
    """
    kind, _, rest = name.partition(":")
    if kind == "bell" and (not rest or rest in _BELL):
        return _pure([float(x) for x in _BELL[rest or "phi+"]])
    if kind == "basis" and rest and not set(rest) - {"0", "1"}:
        _check_qubits(len(rest))
        psi = torch.zeros(2 ** len(rest), dtype=torch.float64)
        psi[int(rest, 2)] = 1
        return State.of_ket(psi, (2,) * len(rest))
    if kind == "mixed" and all(part.isdecimal() and part.isascii() and len(part) < 5 for part in rest.split("x")):
        sizes = tuple(int(part) for part in rest.split("x"))
        return _mixed(sizes if "x" in rest else (2,) * min(sizes[0], 13))
    if kind in ("ghz", "w", "plus") and rest.isdecimal() and rest.isascii() and len(rest) < 5 and int(rest) >= 1:
        n = int(rest)
        _check_qubits(n)
        psi = torch.full((2**n,), float(kind == "plus"), dtype=torch.float64)
        if kind == "ghz":
            psi[0] = psi[-1] = 1
        elif kind == "w":
            psi[[2**k for k in range(n)]] = 1
        return State.of_ket(psi / torch.linalg.vector_norm(psi), (2,) * n)
    raise InvalidState("name", f"be one such as {_NAMES}", f"is {name[:40]!r}")


def from_counts(counts: Mapping[str, Mapping[str, int]], rank: int | None = None) -> Tomography:
    """The nearest physical state to the linear inversion of counts, of at most `rank` if given.

    Args:
        counts: setting -> outcome -> how often, such as {"XX": {"00": 250, "11": 250}, "XY": ...}: one letter and one
            digit a qubit, the first qubit first; 0 is the eigenvalue +1. All 3^n settings of n qubits.
        rank: 1 to 2^n.

    Raises:
        InvalidState: a setting is missing, empty or misspelt, an outcome does not fit, a count is negative, `rank`.
    """
    mu, shots = linear_inversion(counts)
    factor = nearest_factor(mu, rank)
    n = len(next(iter(counts)))
    state = State(factor / torch.linalg.vector_norm(factor), (2,) * n)
    moved = float(torch.linalg.eigvalsh(mu - state.rho()).abs().sum()) / 2
    negative = torch.linalg.eigvalsh(mu).clamp(max=0)
    return Tomography(state, shots, moved, -float(negative.sum()) + 0.0)


def linear_inversion(counts: Mapping[str, Mapping[str, int]]) -> tuple[Tensor, int]:
    """The Hermitian matrix of trace 1 (2^n, 2^n) with the measured means, and all shots. It may not be positive.

    Arguments and errors as of `from_counts`.
    """
    n = _checked(counts)
    total, weight = np.zeros((4,) * n), np.zeros((4,) * n)
    for setting, outcomes in counts.items():
        parity = _parities(outcomes, n)
        letters = ["IXYZ".index(letter) for letter in setting]
        # qubits left out of a parity are measured and ignored: this setting also gives the strings with I there
        place = np.ix_(*((0, letter) for letter in letters))
        total[place] += parity
        weight[place] += parity.flat[0]
    means = total / weight
    for _ in range(n):  # each turn takes the first letter axis and appends that qubit's row and column
        means = np.tensordot(means, _PAULIS, axes=(0, 0))
    order = [*range(0, 2 * n, 2), *range(1, 2 * n, 2)]
    mu = means.transpose(order).reshape(2**n, 2**n) / 2**n
    return torch.from_numpy(np.ascontiguousarray(mu)), int(sum(sum(outcomes.values()) for outcomes in counts.values()))


def _parities(outcomes: Mapping[str, int], n: int) -> NDArray[np.float64]:
    """sum_x count(x) (-1)^{parity of x on a subset} for every subset of qubits: (2,) * n."""
    table = np.zeros((2,) * n)
    for outcome, count in outcomes.items():
        table[tuple(int(digit) for digit in outcome)] = count
    for axis in range(n):
        zero, one = np.take(table, 0, axis), np.take(table, 1, axis)
        table = np.stack((zero + one, zero - one), axis)
    return table


def _checked(counts: Mapping[str, Mapping[str, int]]) -> int:
    if not counts:
        raise InvalidState("counts", "hold all 3^n settings", "is empty")
    n = len(next(iter(counts)))
    if not 1 <= n <= QUBITS_MAX:
        raise InvalidState("counts", f"be of 1 to {QUBITS_MAX} qubits", f"is of {n}")
    for setting, outcomes in counts.items():
        if len(setting) != n or set(setting) - set("XYZ"):
            raise InvalidState("counts", f"name settings of {n} letters X, Y or Z", f"names {setting[:40]!r}")
        for outcome, count in outcomes.items():
            if len(outcome) != n or set(outcome) - set("01"):
                raise InvalidState(
                    f"counts.{setting}", f"name outcomes of {n} digits 0 or 1", f"names {outcome[:40]!r}"
                )
            if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= _SHOTS_MAX:
                raise InvalidState(f"counts.{setting}.{outcome}", "be a whole number, at least 0", f"is {count!r}")
        if not sum(outcomes.values()):
            raise InvalidState(f"counts.{setting}", "hold at least one shot", "holds none")
    missing = ["".join(letters) for letters in product("XYZ", repeat=n) if "".join(letters) not in counts]
    if missing:
        need = f"hold all {3**n} settings of {n} qubits"
        raise InvalidState("counts", need, f"lacks {len(missing)}, {missing[0]} first")
    return n


def _normalized(kets: Tensor, name: str) -> Tensor:
    norm = torch.linalg.vector_norm(check_finite(kets, name), dim=-1, keepdim=True)
    if bool((norm <= 0).any()):
        raise InvalidState(name, "have a norm above 0", "has norm 0")
    unit: Tensor = kets / norm
    return unit


def _pure(amplitudes: list[float]) -> State:
    psi = torch.tensor(amplitudes, dtype=torch.float64)
    return State.of_ket(psi / torch.linalg.vector_norm(psi), (2,) * (len(amplitudes).bit_length() - 1))


def _mixed(dims: tuple[int, ...]) -> State:
    d = math.prod(dims)
    if not 1 <= d <= DIM_MAX:
        raise InvalidState(
            "name", f"name a mixed state of dimension 1 to {DIM_MAX} (12 qubits)", f"names dimension {d}"
        )
    return State(torch.eye(d, dtype=torch.float64) / math.sqrt(d), dims)


def _check_qubits(n: int) -> None:
    if n > DIM_MAX.bit_length() - 1:
        raise InvalidState("name", "name at most 12 qubits", f"names {n}")
