"""States of several: product, part, mixture, and how far two are apart; all on factors, d x d matrices never.

Forking a state needs nothing: a `State` never changes, so two names may hold one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qraf.errors import InvalidState
from qraf.states import measures, spectral
from qraf.states.checks import check_weights
from qraf.states.state import DIM_MAX, State
from qraf.states.subsystems import check_on, split, stack

__all__ = ["Comparison", "compare", "merge", "partial_trace", "tensor"]

_SVD_S = 4e-9  # seconds of one core for n^3, complex
_LARGE = 512


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far two states are apart.

    `fidelity` is the squared one (Jozsa), F; `infidelity` is 1 - F with all its digits. `trace_distance` is
    |rho - sigma|_1 / 2. `bures_distance` is sqrt(2 - 2 sqrt F) and `bures_angle` arccos sqrt F, in radians.
    """

    fidelity: float
    infidelity: float
    trace_distance: float
    bures_distance: float
    bures_angle: float


def tensor(first: State, *others: State) -> State:
    """The product state; the first one's subsystems vary slowest.

    Raises:
        InvalidState: the dimension would pass `DIM_MAX`.
    """
    states = (first, *others)
    d = math.prod(state.d for state in states)
    if d > DIM_MAX:
        raise InvalidState("product", f"have dimension at most {DIM_MAX} (12 qubits)", f"has {d}")
    factor = first.factor
    for other in others:
        factor = torch.kron(*_alike(factor, other.factor))
    return State(factor, tuple(size for state in states for size in state.dims))


def partial_trace(state: State, keep: Sequence[int]) -> State:
    """Reduce to the subsystems `keep`, in their order in `dims`.

    Raises:
        InvalidState: `keep` is empty, or names a subsystem twice or one that is not there.
    """
    kept = sorted(check_on(keep, state.dims, "keep"))
    rows = split(state.factor, state.dims, kept).movedim(-1, -2).flatten(0, 1)  # each basis state traced out is a row
    return State(rows, tuple(state.dims[index] for index in kept))


def merge(states: Sequence[State], weights: Sequence[float] | Tensor | None = None) -> State:
    """The mixture sum_i w_i rho_i of states of the same subsystems, equally likely when `weights` is left out.

    Raises:
        InvalidState: no state, different `dims`, or weights that are no probabilities.
    """
    if not states:
        raise InvalidState("states", "be at least one")
    for state in states:
        if state.dims != states[0].dims:
            raise InvalidState("states", f"all have dims {states[0].dims}", f"one has {state.dims}")
    n = len(states)
    given = [1 / n] * n if weights is None else weights
    shares = given if isinstance(given, Tensor) else torch.tensor(given, dtype=torch.float64)
    check_weights(shares, n)
    complex_ones = any(state.factor.is_complex() for state in states)
    dtype = torch.complex128 if complex_ones else torch.float64
    pairs = zip(shares.tolist(), states, strict=True)
    factor = stack(math.sqrt(share) * one.factor.to(dtype) for share, one in pairs if share)
    norm = torch.linalg.vector_norm(factor)
    mixed = State(factor / norm, states[0].dims)
    return mixed.having_lost(1 - float(norm.square()))  # in folds on the way


def compare(a: State, b: State) -> Comparison:
    """Fidelity, trace distance, Bures distance and angle.

    F = |A B^H|_1^2 (Uhlmann 1976). The Bures distance is that of the best aligned purifications, min_U |U A - B|_F
    (Procrustes), and is computed so: 2 - 2 sqrt F would lose half the digits between near states.

    Raises:
        InvalidState: the dimensions differ.
    """
    if a.d != b.d:
        raise InvalidState("states", "have one dimension d", f"have {a.d} and {b.d}")
    A, B = sorted(_alike(a.factor, b.factor), key=len, reverse=True)
    spectral.announce(_SVD_S * len(A) * len(B) ** 2)
    left, overlap, right = torch.linalg.svd(B @ A.mH, full_matrices=False)
    turned = right @ A  # where B has fewer rows, what they cannot meet of A is a distance of its own
    distance = float(torch.linalg.vector_norm(left @ turned - B))
    if len(B) < len(A):
        distance = math.hypot(distance, float(torch.linalg.vector_norm(A - right.mH @ turned)))
    distance = min(distance, math.sqrt(2))
    angle = 2 * math.asin(distance / 2)
    return Comparison(
        fidelity=min(1.0, float(overlap.sum()) ** 2),
        infidelity=math.sin(angle) ** 2,
        trace_distance=_trace_distance(a, b),
        bures_distance=distance,
        bures_angle=angle,
    )


def _trace_distance(a: State, b: State) -> float:
    if a.d >= _LARGE and a.rank + b.rank > a.d // 2:  # nothing is gained by the factors, and the matrix may have blocks
        values = spectral.eigvalsh(torch.sub(*_alike(a.rho(), b.rho())))
        return min(1.0, float(values.abs().sum()) / 2)
    return float(measures.trace_distance_factor(*_alike(a.factor, b.factor)))


def _alike(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)
