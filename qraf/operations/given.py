"""The states and matrices that an order of a service names. Stored states and texts have been filled in before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qraf.errors import InvalidRequest, LimitExceeded, NotFound
from qraf.operations.batches import check_form, matrices_of
from qraf.operations.budget import Budget
from qraf.operations.prepare import prepare
from qraf.operations.state import Made
from qraf.service_orders import Form, Matrices
from qraf.state_orders import Operand, Preparation
from qraf.states.state import State

__all__ = ["BYTES_MAX", "densities_of", "states_of"]

BYTES_MAX = 512 * 1024**2
"""Of the factors of an order's states, or of those of a part where it is cut into parts."""


def states_of(operands: Sequence[Operand], pointer: str) -> list[State]:
    """The states of an order, in order.

    Raises:
        InvalidRequest: none, or one that cannot be made, by its pointer.
        LimitExceeded: they have more than `BYTES_MAX` bytes.
    """
    if not operands:
        raise InvalidRequest("must hold at least one state", pointer)
    budget = Budget(max_bytes=BYTES_MAX, room="bytes of the states of one order")
    made = []
    for index, operand in enumerate(operands):
        wanted = Preparation(state=operand) if isinstance(operand, str) else operand
        made += prepare([(wanted, f"{pointer}/{index}")], _no_encoder, _no_store, budget)
    return [one.state for one in made]


def densities_of(matrices: Matrices | None, operands: Sequence[Operand] | None, form: Form) -> list[tuple[Tensor, str]]:
    """Matrices (d, d) with their pointers: those of `matrices`, or the density matrices of `states`.

    Raises:
        InvalidRequest: none, or one that does not fit, by its pointer, or that `form` does not hold.
        LimitExceeded: they have too many bytes.
    """
    if (matrices is None) == (operands is None):
        raise InvalidRequest("give one of `matrices` and `states`", "/matrices")
    if matrices is not None:
        found = matrices_of(matrices, "/matrices")
        for matrix, _ in found:
            check_form(form, matrix.numel())
        return found
    states = states_of(operands or (), "/states")
    total = sum(one.d**2 * one.factor.element_size() for one in states)
    if total > BYTES_MAX:  # this and the form: before they are made
        raise LimitExceeded("bytes of the density matrices of one order", BYTES_MAX, total)
    for one in states:
        check_form(form, one.d**2)
    return [(state.rho(), f"/states/{index}") for index, state in enumerate(states)]


def _no_encoder(texts: Sequence[str]) -> NDArray[np.float32]:
    raise InvalidRequest("a text needs a server's encoder; give amplitudes", "/states")


def _no_store(state: str, pointer: str) -> Made:
    raise NotFound("state", state)
