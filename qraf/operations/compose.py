"""States of several: mixtures, products and parts, with the certificates that follow from those of the parts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qraf.errors import InvalidRequest, InvalidState
from qraf.operations.arrays import at
from qraf.operations.state import Made, check_loss, rounding
from qraf.state_orders import StateMergeBody, StatePartialTraceBody
from qraf.states import compose

__all__ = ["merge", "partial_trace", "tensor"]


def merge(first: Made, others: Sequence[Made], order: StateMergeBody) -> Made:
    """The mixture of `first` and `others`; its error is the mean of theirs.

    Raises:
        InvalidRequest: weights that are no probabilities, or states of different subsystems.
    """
    check_loss(order.loss)
    parts = [first, *others]
    weights = order.weights or [1 / len(parts)] * len(parts)
    if len(weights) != len(parts):
        need = f"must be {len(parts)}, the state's own and one for each of `others`, but are {len(weights)}"
        raise InvalidRequest(need, "/weights")
    for place, other in enumerate(others):
        if other.state.dims != first.state.dims:
            detail = f"must have dims {first.state.dims}, but has {other.state.dims}"
            raise InvalidRequest(detail, f"/others/{place}")
    with at("/weights"):
        mixed = compose.merge([one.state for one in parts], weights)
    lost = 0.0
    if order.loss:
        mixed, lost = mixed.recompressed(order.loss)
    error = math.fsum(weight * one.error for weight, one in zip(weights, parts, strict=True))
    return Made(mixed, error + lost + rounding(mixed), first.moved, first.label)


def tensor(first: Made, others: Sequence[Made]) -> Made:
    """The product; its error is at most the sum of theirs.

    Raises:
        InvalidRequest: the product would be too large.
    """
    with at("/others"):
        state = compose.tensor(first.state, *(other.state for other in others))
    error = math.fsum(one.error for one in (first, *others))
    return Made(state, error + rounding(state), first.moved, first.label)


def partial_trace(one: Made, order: StatePartialTraceBody) -> Made:
    """The part that is kept; tracing out lets no error grow.

    Raises:
        InvalidRequest: subsystems that are not there, or none.
    """
    try:
        return one.then(compose.partial_trace(one.state, order.keep))
    except InvalidState as fault:
        raise InvalidRequest(str(fault), "/keep") from None
