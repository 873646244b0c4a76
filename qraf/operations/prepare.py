"""Preparations made into states: whatever a request may give, checked, each fault with the pointer of its field."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from qraf.errors import InvalidRequest, InvalidState
from qraf.operations.arrays import escaped, tensor_of
from qraf.operations.budget import Budget
from qraf.operations.export import imported
from qraf.operations.state import Made, check_label, rounding
from qraf.state_orders import Ensemble, Preparation, StatePrepareBody
from qraf.states.checks import check_dims
from qraf.states.circuit import run_circuit
from qraf.states.prepare import from_amplitudes, from_counts, from_density, from_ensemble, named
from qraf.states.state import State

__all__ = ["KINDS", "Encode", "Given", "Wanted", "prepare", "wanted"]

Encode = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts to amplitudes (n, d)."""

Given = Callable[[str, str], Made]
"""A stored state by its id; the pointer is for the fault when there is none."""

Wanted = tuple[Preparation, str]
"""A preparation and the pointer of where it stands in the request."""

KINDS = (
    "amplitudes",
    "density",
    "factor",
    "ensemble",
    "text",
    "counts",
    "circuit",
    "named",
    "packet",
    "state",
)


_WAY_OUT = {
    "have unit norm": "; `normalize` scales it",
    "have trace 1": "; `normalize` scales it",
    "be Hermitian": "; /v1/correct repairs it",
    "have no negative eigenvalue": "; /v1/correct repairs it",
}


def wanted(order: StatePrepareBody, max_batch: int) -> list[Wanted]:
    """The preparations of an order: its own fields, or those in `states`.

    Raises:
        InvalidRequest: both, or too many.
    """
    if order.states is None:
        names = Preparation.__struct_fields__
        return [(Preparation(**{name: getattr(order, name) for name in names}), "")]
    for name in KINDS:
        if getattr(order, name) is not None:
            raise InvalidRequest("stands beside `states`; put it into one of them", f"/{name}")
    if order.dims is not None or order.normalize or order.label or order.id is not None:
        detail = "stands beside `dims`, `normalize`, `label` or `id`; put these into each of them"
        raise InvalidRequest(detail, "/states")
    if not 1 <= len(order.states) <= max_batch:
        raise InvalidRequest(f"must be 1 to {max_batch} states, but are {len(order.states)}", "/states")
    return [(one, f"/states/{place}") for place, one in enumerate(order.states)]


def prepare(
    items: Sequence[Wanted],
    encode: Encode,
    given: Given,
    budget: Budget | None = None,
    max_text_bytes: int = 32 * 1024,
) -> list[Made]:
    """Make every state; the texts among them are encoded in one go.

    Raises:
        InvalidRequest: the first fault, by its pointer.
        LimitExceeded: they take more time or room than `budget` has.
    """
    kinds = [_kind(one, pointer) for one, pointer in items]
    places = [place for place, kind in enumerate(kinds) if kind == "text"]
    for place in places:
        text, pointer = items[place][0].text or "", items[place][1]
        if not text.strip() or any("\ud800" <= char <= "\udfff" for char in text):
            raise InvalidRequest("must be a text of valid Unicode, not empty", f"{pointer}/text")
        if (size := len(text.encode())) > max_text_bytes:
            raise InvalidRequest(f"may have {max_text_bytes} bytes, but has {size}", f"{pointer}/text")
    rows = encode([items[place][0].text or "" for place in places]) if places else np.zeros((0, 0), np.float32)
    encoded = dict(zip(places, rows, strict=True))
    made = []
    for place, ((one, pointer), kind) in enumerate(zip(items, kinds, strict=True)):
        check_label(one.label, f"{pointer}/label")
        with _field(pointer, kind):
            state = _made(one, kind, f"{pointer}/{kind}", encoded.get(place), given, budget)
            if one.dims is not None and one.dims != state.state.dims:
                state = replace(state, state=State(state.state.factor, check_dims(one.dims, state.state.d)))
        state = replace(state, label=one.label or (state.label if kind == "state" else ""))
        made.append(state if budget is None else budget.take(state))
    return made


def _kind(one: Preparation, pointer: str) -> str:
    kinds = [name for name in KINDS if getattr(one, name) is not None]
    if len(kinds) != 1:
        what = "none of them" if not kinds else " and ".join(kinds)
        raise InvalidRequest(f"must have exactly one of {', '.join(KINDS)}, but has {what}", pointer or f"/{KINDS[0]}")
    if one.normalize and kinds[0] not in ("amplitudes", "density", "factor", "ensemble"):
        raise InvalidRequest(f"has no effect on `{kinds[0]}`", f"{pointer}/normalize")
    return kinds[0]


def _made(
    one: Preparation, kind: str, pointer: str, row: NDArray[np.float32] | None, given: Given, budget: Budget | None
) -> Made:
    if one.amplitudes is not None:
        psi = tensor_of(one.amplitudes, pointer, 1, "(d,)")
        moved = abs(1 - float(psi.abs().square().sum())) / 2 if one.normalize else 0.0
        return _exact(from_amplitudes(psi, normalize=one.normalize), moved)
    if one.density is not None:
        rho = tensor_of(one.density, pointer, 2, "(d, d)")
        state = from_density(rho, normalize=one.normalize)
        return _exact(state, abs(1 - float(rho.diagonal().sum().real)) / 2 if one.normalize else 0.0)
    if one.factor is not None:
        factor = tensor_of(one.factor, pointer, 2, "(r, d)")
        trace = float(factor.abs().square().sum())
        if one.normalize and trace <= 0:
            raise InvalidState("factor", "have a trace above 0", "has trace 0")
        state = State.of_factor(factor / math.sqrt(trace) if one.normalize else factor)
        return _exact(state, abs(1 - trace) / 2 if one.normalize else 0.0)
    if one.ensemble is not None:
        return _ensemble(one.ensemble, pointer, one.normalize)
    if row is not None:
        return _exact(State.of_ket(torch.from_numpy(np.array(row))))
    if one.counts is not None:
        found = from_counts(one.counts)
        return _exact(found.state, found.moved)
    if one.named is not None:
        return _exact(named(one.named))
    if one.state is not None:
        return given(one.state, pointer)
    if one.circuit is not None:
        run = run_circuit(one.circuit, check=None if budget is None else budget.check)
        return Made(run.state, rounding(run.state, run.operations), bits=run.bits or None)
    assert one.packet is not None, kind
    return _exact(imported(one.packet))


def _ensemble(ensemble: Ensemble, pointer: str, normalize: bool) -> Made:
    kets = tensor_of(ensemble.kets, f"{pointer}/kets", 2, "(n, d)")
    with _field(pointer, "kets", weights="probabilities", probabilities="probabilities"):
        return _exact(from_ensemble(kets, ensemble.probabilities, normalize=normalize))


def _exact(state: State, moved: float = 0.0) -> Made:
    return Made(state, rounding(state), moved)


@contextlib.contextmanager
def _field(pointer: str, kind: str, **others: str) -> Iterator[None]:
    """Faults of a state point at the field of that name, else at `kind`."""
    try:
        yield
    except InvalidState as fault:
        name, *inner = fault.name.split(".")
        field = {"dims": "dims", **others}.get(name, kind)
        where = fault.name if name.startswith(f"{kind}:") else ".".join([field, *inner])  # a circuit's line and column
        told = str(InvalidState(where, fault.need, fault.got)) + _WAY_OUT.get(fault.need, "")
        raise InvalidRequest(told, "/".join([pointer, field, *map(escaped, inner)])) from None
