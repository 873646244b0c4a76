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
from qraf.states import measures
from qraf.states.checks import check_weights
from qraf.states.state import DIM_MAX, RANK_MAX, State
from qraf.states.subsystems import check_on, check_room, split

__all__ = ["Comparison", "compare", "merge", "partial_trace", "tensor"]


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
        InvalidState: the dimension would pass `DIM_MAX`, or the rank `RANK_MAX`.
    """
    states = (first, *others)
    d, rank = math.prod(state.d for state in states), math.prod(state.rank for state in states)
    if d > DIM_MAX:
        raise InvalidState("product", f"have dimension at most {DIM_MAX} (12 qubits)", f"has {d}")
    if rank > RANK_MAX:
        raise InvalidState("product", f"have rank at most {RANK_MAX}", f"has {rank}")
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
    check_room(*rows.shape)
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
    check_room(sum(state.rank for state in states), states[0].d)
    rows = [
        math.sqrt(share) * one.factor.to(dtype) for share, one in zip(shares.tolist(), states, strict=True) if share
    ]
    factor = torch.cat(rows)
    return State(factor / torch.linalg.vector_norm(factor), states[0].dims)


def compare(a: State, b: State) -> Comparison:
    """Fidelity, trace distance, Bures distance and angle.

    F = |A B^H|_1^2 (Uhlmann 1976). The Bures distance is that of the best aligned purifications, min_U |U A - B|_F
    (Procrustes), and is computed so: 2 - 2 sqrt F would lose half the digits between near states.

    Raises:
        InvalidState: the dimensions differ.
    """
    if a.d != b.d:
        raise InvalidState("states", "have one dimension d", f"have {a.d} and {b.d}")
    A, B = _alike(a.factor, b.factor)
    rank = max(a.rank, b.rank)
    A, B = (torch.nn.functional.pad(one, (0, 0, 0, rank - len(one))) for one in (A, B))
    left, overlap, right = torch.linalg.svd(B @ A.mH)
    distance = min(float(torch.linalg.vector_norm(left @ (right @ A) - B)), math.sqrt(2))
    angle = 2 * math.asin(distance / 2)
    return Comparison(
        fidelity=min(1.0, float(overlap.sum()) ** 2),
        infidelity=math.sin(angle) ** 2,
        trace_distance=float(measures.trace_distance_factor(*_alike(a.factor, b.factor))),
        bures_distance=distance,
        bures_angle=angle,
    )


def _alike(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)
