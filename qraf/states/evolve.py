"""Send states through channels, on chosen subsystems, one or many at a time; the rank stays the numerical one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qraf.states.channels import Channel
from qraf.states.checks import eigenvalue_cut
from qraf.states.state import State, principal_rows
from qraf.states.subsystems import check_on, check_room, join, split

__all__ = ["evolve", "evolve_many"]

_BATCH = 2**23  # amplitudes of one batch: 128 MiB


def evolve(state: State, channel: Channel, on: Sequence[int] | None = None, loss: float = 0.0) -> tuple[State, float]:
    """Send a state through a channel and keep the result at its numerical rank.

    Args:
        state: the state.
        channel: one of this module.
        on: indices of the subsystems it acts on, taken as one system in this order; all when left out.
        loss: trace that may be cut off the smallest eigenvalues to save rows.

    Returns:
        The new state, and the trace that was cut: a bound on the trace distance to the exact result.

    Raises:
        InvalidState: the channel does not fit the subsystems, or the result has a rank above `RANK_MAX`.
    """
    return evolve_many([state], channel, on, loss)[0]


def evolve_many(
    states: Sequence[State], channel: Channel, on: Sequence[int] | None = None, loss: float = 0.0
) -> list[tuple[State, float]]:
    """`evolve` for many states in one go; those of one shape go through in one batch."""
    batches: dict[tuple[object, ...], list[int]] = {}
    for index, state in enumerate(states):
        kind = (state.dims, state.rank, state.factor.dtype, state.factor.device)
        batches.setdefault(kind, []).append(index)
    done: dict[int, tuple[State, float]] = {}
    for members in batches.values():
        dims = states[members[0]].dims
        chosen = check_on(range(len(dims)) if on is None else on, dims)
        room = max(1, _BATCH // math.prod(dims) ** 2)
        for start in range(0, len(members), room):
            some = members[start : start + room]
            grown = _evolved(torch.stack([states[index].factor for index in some]), channel, dims, chosen)
            for index, (kept, lost) in zip(some, grown, strict=True):
                done[index] = _cut(State(kept, dims), lost, loss)
    return [done[index] for index in range(len(states))]


def _evolved(
    factors: Tensor, channel: Channel, dims: tuple[int, ...], on: tuple[int, ...]
) -> list[tuple[Tensor, float]]:
    grown = join(channel.rows(split(factors, dims, on), tuple(dims[index] for index in on)), dims, on)
    check_room(*grown.shape[-2:])
    if grown.shape[-2] == 1:
        return [(one, 0.0) for one in grown]
    rows, values = principal_rows(grown)
    ranks = (values > eigenvalue_cut(values)).sum(-1).tolist()
    return [
        (one[:rank] / torch.linalg.vector_norm(one[:rank]), max(0.0, float(spectrum[rank:].sum())))
        for one, rank, spectrum in zip(rows, ranks, values, strict=True)
    ]


def _cut(state: State, lost: float, loss: float) -> tuple[State, float]:
    if not loss:
        return state, lost
    small, more = state.recompressed(loss)
    return small, lost + more
