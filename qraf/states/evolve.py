"""Send states through channels, on chosen subsystems, one or many at a time; the rank stays the numerical one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qraf.states import dense
from qraf.states.channels import Channel
from qraf.states.checks import eigenvalue_cut
from qraf.states.spectral import announce
from qraf.states.state import State, principal_rows
from qraf.states.subsystems import check_on, join, split

__all__ = ["evolve", "evolve_dense", "evolve_many"]

_BATCH = 2**23  # amplitudes of one batch: 128 MiB
_DENSE_FROM = 2048
# seconds of one core for d^2 and for d^3, complex and real
_PASS_S, _CHOLESKY_S = {True: 3e-8, False: 1e-8}, {True: 5e-11, False: 1.2e-11}


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
        InvalidState: the channel does not fit the subsystems.
    """
    return evolve_many([state], channel, on, loss)[0]


def evolve_many(
    states: Sequence[State], channel: Channel, on: Sequence[int] | None = None, loss: float = 0.0
) -> list[tuple[State, float]]:
    """`evolve` for many states in one go; those of one shape go through in one batch."""
    batches: dict[tuple[object, ...], list[int]] = {}
    done: dict[int, tuple[State, float]] = {}
    for index, state in enumerate(states):
        made = None if loss else evolve_dense(state, channel, [on])
        if made is not None:
            done[index] = made, made.cut
            continue
        kind = (state.dims, state.rank, state.factor.dtype, state.factor.device)
        batches.setdefault(kind, []).append(index)
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


def evolve_dense(state: State, channel: Channel, targets: Sequence[Sequence[int] | None]) -> State | None:
    """The state after the channel on one target after the other (None: all as one), by its density matrix.

    None where its factor is the better way: below d = 2048, where the rank stays far from d, for some channels.
    """
    if state.d < _DENSE_FROM:
        return None
    chosen = [check_on(range(len(state.dims)) if on is None else on, state.dims) for on in targets]
    rows = state.rank
    grows = [dense.growth(channel, tuple(state.dims[index] for index in on)) for on in chosen]
    rows = min(state.d, rows * math.prod(grows))
    if rows <= state.d // 4 or 1 in grows:
        return None
    is_complex = state.factor.is_complex()
    pass_s = _PASS_S[is_complex] * state.d**2
    announce(pass_s * (len(chosen) + 1) + _CHOLESKY_S[is_complex] * state.d**3)
    rho = state.rho()
    for on in chosen:
        announce(pass_s)
        rho = dense.through(rho, channel, state.dims, on)
    rho = (rho + rho.mH) / 2
    return State.of_positive(rho / rho.diagonal().sum().real, state.dims)


def _evolved(
    factors: Tensor, channel: Channel, dims: tuple[int, ...], on: tuple[int, ...]
) -> list[tuple[Tensor, float]]:
    grown = join(channel.rows(split(factors, dims, on), tuple(dims[index] for index in on)), dims, on)
    # channels keep the trace, so what folds on the way left out, and what is left out here, is what is missing
    given = factors.abs().square().sum((-2, -1))
    if grown.shape[-2] == 1:
        rows, ranks = grown, [1] * len(grown)
    else:
        rows, values = principal_rows(grown)
        ranks = (values > eigenvalue_cut(values)).sum(-1).tolist()
    made = []
    for one, rank, trace in zip(rows, ranks, given.tolist(), strict=True):
        norm = torch.linalg.vector_norm(one[:rank])
        made.append((one[:rank] / norm, max(0.0, trace - float(norm.square()))))
    return made


def _cut(state: State, lost: float, loss: float) -> tuple[State, float]:
    if not loss:
        return state, lost
    small, more = state.recompressed(loss)
    return small, lost + more
