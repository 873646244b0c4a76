"""Orders for the nearest state, for fewer directions and for smaller sketches, answered; many orders at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qraf.errors import InvalidRequest, QrafError
from qraf.operations.arrays import at
from qraf.operations.batches import array_out, check_form, in_groups, matrices_of
from qraf.operations.given import densities_of, states_of
from qraf.service_orders import (
    Form,
    Nearest,
    NearestState,
    NearestStates,
    Recompress,
    Recompressed,
    Recompression,
    Truncate,
    Truncated,
    TruncatedState,
)
from qraf.states.checks import check_density, eigenvalue_cut
from qraf.states.measures import factor_of, trace_distance_factor
from qraf.states.physical import hermitian_part, nearest_spectrum
from qraf.states.sketch import Sketch
from qraf.states.spectral import eigh
from qraf.states.truncate import recompress_sketch, truncate

__all__ = ["nearest", "recompress", "truncated"]


def nearest(orders: Sequence[Nearest]) -> list[NearestStates | QrafError]:
    """The nearest states of many orders: matrices of one shape share one eigendecomposition call.

    An order that does not fit is answered by its fault and spoils no other.
    """
    gathered: list[list[Tensor] | QrafError] = []
    items: list[tuple[tuple[int | None, Form], Tensor]] = []
    for order in orders:
        try:
            found = densities_of(order.matrices, order.states, order.form)
            for matrix, pointer in found:
                check_rank(order.rank, matrix.shape[-1], pointer)
            gathered.append([matrix for matrix, _ in found])
            items += [((order.rank, order.form), matrix) for matrix, _ in found]
        except QrafError as fault:
            gathered.append(fault)
    results = iter(in_groups(items, lambda key, stack: _nearest(stack, *key)))
    return [
        one if isinstance(one, QrafError) else NearestStates(results=tuple(next(results) for _ in one))
        for one in gathered
    ]


def truncated(order: Truncate) -> Truncated:
    """States of fewer directions.

    Raises:
        InvalidRequest: with a pointer to what does not fit.
    """
    if (order.rank is None) == (order.loss is None):
        raise InvalidRequest("give one of `rank` and `loss`", "/rank")
    if order.loss is not None and not 0 <= order.loss < 1:
        raise InvalidRequest(f"must be at least 0 and below 1, but is {order.loss:g}", "/loss")
    if order.rank is not None and order.rank < 1:
        raise InvalidRequest(f"must be at least 1, but is {order.rank}", "/rank")
    factors = _factors(order)
    results = in_groups([(None, factor) for factor in factors], lambda _, stack: _truncated(stack, order))
    return Truncated(results=tuple(results))


def recompress(order: Recompress, nodes: Sequence[str] = ()) -> Recompressed:
    """Smaller sketches of the streams of `order.sketches`; `nodes` says where each is from.

    Raises:
        InvalidRequest: with a pointer to what does not fit.
    """
    if order.rank < 1:
        raise InvalidRequest(f"must be at least 1, but is {order.rank}", "/rank")
    if not order.sketches:
        raise InvalidRequest("must hold at least one sketch", "/sketches")
    if order.after is not None and len(order.after) != len(order.sketches):
        raise InvalidRequest(f"must be {len(order.sketches)}, one for each of `sketches`", "/after")
    results = []
    for index, packet in enumerate(order.sketches):
        with at(f"/sketches/{index}"):
            sketch = Sketch.from_bytes(packet)
        if order.after is None:
            smaller = recompress_sketch(sketch, min(order.rank, sketch.dim))
        else:
            with at(f"/after/{index}"):
                smaller = Sketch.from_bytes(order.after[index])
            if smaller.dim != sketch.dim:
                raise InvalidRequest(f"must have dimension {sketch.dim}, but has {smaller.dim}", f"/after/{index}")
        node = nodes[index] if index < len(nodes) else ""
        results.append(_recompressed(sketch, smaller, packet, order, node))
    return Recompressed(results=tuple(results))


def check_rank(rank: int | None, d: int, pointer: str) -> None:
    """Let a rank from 1 to d pass."""
    if rank is not None and not 1 <= rank <= d:
        raise InvalidRequest(f"must be from 1 to {d}, the dimension of {pointer}, but is {rank}", "/rank")


def _nearest(mu: Tensor, rank: int | None, form: Form) -> list[NearestState]:
    hermitian = hermitian_part(mu)
    values, vectors = eigh(hermitian)
    projected = nearest_spectrum(values, rank)
    rho = (vectors * projected[:, None, :]) @ vectors.mH if form != "none" else None
    moved = (projected - values).abs().sum(-1) / 2
    skew = torch.linalg.matrix_norm(mu - hermitian)
    frobenius = ((projected - values).square().sum(-1) + skew.square()).sqrt()
    made = []
    for index, (before, after) in enumerate(zip(values.flip(-1), projected.flip(-1), strict=True)):
        kept = after[after > 0]
        d = mu.shape[-1]
        made.append(
            NearestState(
                d=d,
                rank=len(kept),
                trace=float(before.sum()),
                negativity=float(before.clamp(max=0).abs().sum()),
                before=tuple(before.tolist()),
                after=tuple(kept.tolist()),
                moved=float(moved[index]),
                moved_frobenius=float(frobenius[index]),
                bytes_before=mu[index].nbytes,
                bytes_after=len(kept) * d * mu.element_size(),
                density=None if rho is None else array_out((rho[index] + rho[index].mH) / 2, form),
            )
        )
    return made


def _factors(order: Truncate) -> list[Tensor]:
    if (order.matrices is None) == (order.states is None):
        raise InvalidRequest("give one of `matrices` and `states`", "/matrices")
    if order.states is not None:
        return [state.factor for state in states_of(order.states, "/states")]
    assert order.matrices is not None
    factors = []
    for matrix, pointer in matrices_of(order.matrices, "/matrices"):
        with at(pointer):
            factors.append(factor_of(check_density(matrix, "matrix")))
    return factors


def _truncated(factors: Tensor, order: Truncate) -> list[TruncatedState]:
    with at("/rank" if order.rank is not None else "/loss"):
        made = truncate(factors, order.rank, order.loss)
    results = []
    for index, rank in enumerate(made.rank.tolist()):
        before, moved = made.before[index], float(made.moved[index])
        alive = before[before > eigenvalue_cut(before)]
        factor = made.factor[index, :rank]
        check_form(order.form, factor.numel())
        results.append(
            TruncatedState(
                d=factors.shape[-1],
                rank_before=len(alive),
                rank=rank,
                before=tuple(alive.tolist()),
                after=tuple(made.after[index, :rank].tolist()),
                moved=moved,
                fidelity=1 - moved,
                bytes_before=len(alive) * factors.shape[-1] * factors.element_size(),
                bytes_after=factor.numel() * factor.element_size(),
                factor=array_out(factor, order.form),
            )
        )
    return results


def _recompressed(sketch: Sketch, smaller: Sketch, packet: bytes, order: Recompress, node: str) -> Recompression:
    before, after = sketch.state_factor(), smaller.state_factor()
    moved = float(trace_distance_factor(before, after)) if len(before) and len(after) else 0.0
    packed = smaller.to_bytes()
    return Recompression(
        node=node,
        rows=sketch.rows,
        rank_before=len(before),
        rank=len(after),
        before=_spectrum(before),
        after=_spectrum(after),
        moved=moved,
        loss_before=sketch.trace_loss,
        loss_after=smaller.trace_loss,
        bytes_before=len(packet),
        bytes_after=len(packed),
        packet=packed if order.form == "bytes" else None,
        applied=order.apply,
    )


def _spectrum(factor: Tensor) -> tuple[float, ...]:
    values = np.sort(torch.linalg.eigvalsh(factor @ factor.mH).clamp(min=0).numpy())[::-1]
    return tuple(values.tolist())
