"""Measuring states and comparing them: orders to answers, many states at once."""

from __future__ import annotations

import contextlib
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from qraf.errors import InvalidRequest, InvalidState
from qraf.operations.arrays import escaped, tensor_of
from qraf.operations.budget import Budget
from qraf.operations.state import Made
from qraf.settings import StateSettings
from qraf.state_orders import Comparison, Measure, Measurement, StateMeasureBody
from qraf.states.checks import check_ket
from qraf.states.compose import compare as compared
from qraf.states.measurement import expectation, outcome_labels, probabilities
from qraf.states.state import State
from qraf.states.subsystems import apply_operator, check_on, split

__all__ = ["compare", "measure"]

_KINDS = ("vectors", "basis", "observable", "paulis")
_HALF = 0.5**0.5
_KETS = {  # one a row
    "X": torch.tensor([[_HALF, _HALF], [_HALF, -_HALF]], dtype=torch.complex128),
    "Y": torch.tensor([[_HALF, _HALF * 1j], [_HALF, -_HALF * 1j]], dtype=torch.complex128),
}


def measure(
    states: Sequence[Made], order: StateMeasureBody, settings: StateSettings, budget: Budget | None = None
) -> list[Measurement]:
    """Measure every state; `id` and `version` are left for who knows them.

    Raises:
        InvalidRequest: no one thing to measure, or one that does not fit the states, by its pointer.
    """
    budget = budget or Budget()
    named = [name for name in _KINDS if getattr(order, name) is not None]
    if len(named) != 1:
        raise InvalidRequest(f"must have exactly one of {', '.join(_KINDS)}, but has {len(named)}", f"/{_KINDS[0]}")
    _check_shots(order, settings)
    if order.paulis is not None and len(order.paulis) > settings.max_paulis:
        raise InvalidRequest(f"must be at most {settings.max_paulis}, but are {len(order.paulis)}", "/paulis")
    seed = order.seed if order.seed is not None or order.shots is None else secrets.randbits(53)
    vectors = None if order.vectors is None else tensor_of(order.vectors, "/vectors", (1, 2), "(k, d) or (d,)")
    if vectors is not None and vectors.ndim == 2 and len(vectors) > settings.max_vectors:
        raise InvalidRequest(f"must be at most {settings.max_vectors}, but are {len(vectors)}", "/vectors")
    table = None if order.observable is None else tensor_of(order.observable, "/observable", 2, "(d, d)")
    basis: str | Tensor | None
    if order.basis is None or isinstance(order.basis, str):
        basis = order.basis
    else:
        basis = tensor_of(order.basis, "/basis", 2, "(d, d)")
    results = []
    for one in states:
        budget.check()
        with _at_field(named[0]):
            if vectors is not None:
                results.append(_born(one, vectors if vectors.ndim == 2 else vectors[None], order.subsystems))
            elif basis is not None:
                results.append(_in_basis(one, basis, order, seed))
            elif table is not None:
                mean, variance = expectation(one.state, table, order.subsystems)
                spread = 2 * float(torch.linalg.matrix_norm(table))
                results.append(Measurement(id="", version=0, error=one.error * spread, mean=mean, variance=variance))
            else:
                results.append(_paulis(one, order.paulis or {}, order.subsystems, budget))
    return results


def compare(
    pairs: Sequence[tuple[Made, Made]], measures: Sequence[Measure], budget: Budget | None = None
) -> list[Comparison]:
    """Compare the two of every pair.

    Raises:
        InvalidRequest: nothing to measure, or states of different dimensions.
    """
    if not measures:
        raise InvalidRequest("must name at least one", "/measures")
    results = []
    for place, (a, b) in enumerate(pairs):
        if budget is not None:
            budget.check()
        try:
            found = compared(a.state, b.state)
        except InvalidState as fault:
            raise InvalidRequest(str(fault), f"/pairs/{place}") from None
        wants_fidelity = "fidelity" in measures
        results.append(
            Comparison(
                fidelity=found.fidelity if wants_fidelity else None,
                infidelity=found.infidelity if wants_fidelity else None,
                trace_distance=found.trace_distance if "trace_distance" in measures else None,
                bures=found.bures_distance if "bures" in measures else None,
                error=min(1.0, a.error + b.error),
            )
        )
    return results


def _check_shots(order: StateMeasureBody, settings: StateSettings) -> None:
    if order.basis is None:
        for name in ("shots", "seed"):
            if getattr(order, name) is not None:
                raise InvalidRequest("goes with a `basis`", f"/{name}")
    if order.shots is not None and not 1 <= order.shots <= settings.max_shots:
        raise InvalidRequest(f"must be 1 to {settings.max_shots}, but is {order.shots}", "/shots")
    if order.seed is not None and order.shots is None:
        raise InvalidRequest("goes with `shots`", "/seed")
    if order.seed is not None and not 0 <= order.seed < 2**63:
        raise InvalidRequest(f"must be 0 to 2^63 - 1, but is {order.seed}", "/seed")


def _born(one: Made, vectors: Tensor, on: Sequence[int] | None) -> Measurement:
    parts = split(one.state.factor, one.state.dims, _on(one.state, on))
    if vectors.shape[1] != parts.shape[1]:
        raise InvalidState("vectors", f"have shape (k, {parts.shape[1]})", f"has {tuple(vectors.shape)}")
    kets = check_ket(vectors, "vectors").to(torch.complex128)
    amplitudes = torch.einsum("kj,rje->rke", kets, parts.to(torch.complex128))  # L |x>
    p = amplitudes.abs().square().sum((0, 2)).clamp(max=1)
    return Measurement(id="", version=0, error=one.error, probabilities=tuple(p.tolist()))


def _in_basis(one: Made, basis: str | Tensor, order: StateMeasureBody, seed: int | None) -> Measurement:
    on = _on(one.state, order.subsystems)
    sizes = [one.state.dims[index] for index in on]
    if isinstance(basis, Tensor):
        p = probabilities(one.state, on, basis)
        outcomes = [str(place) for place in range(len(p))]
    else:
        turned = one.state if basis == "computational" else _turned(one.state, basis, on)
        p = probabilities(turned, on)
        outcomes = outcome_labels(sizes)
    counts = None
    if order.shots is not None:
        shares = p.numpy()
        drawn = np.random.Generator(np.random.PCG64(seed)).multinomial(order.shots, shares / shares.sum())
        counts = {outcomes[int(place)]: int(drawn[place]) for place in np.flatnonzero(drawn)}
    return Measurement(
        id="",
        version=0,
        error=one.error,
        probabilities=tuple(p.tolist()),
        outcomes=tuple(outcomes),
        counts=counts,
        shots=order.shots,
        seed=seed,
    )


def _turned(state: State, letters: str, on: Sequence[int]) -> State:
    """The state whose computational measurement is that of `state` in the bases of these letters."""
    _check_letters(letters, state, on, "XYZ", "basis")
    rows = state.factor
    for index, letter in zip(on, letters, strict=True):
        if letter in _KETS:
            rows = apply_operator(rows, _KETS[letter], state.dims, (index,))
    return State(rows, state.dims)


def _paulis(one: Made, paulis: Mapping[str, float], subsystems: Sequence[int] | None, budget: Budget) -> Measurement:
    """Mean and variance of sum_s c_s P_s: Re tr(L H L^H), and |L H - mean L|^2."""
    state = one.state
    on = _on(state, subsystems)
    if not paulis:
        raise InvalidState("paulis", "name at least one string")
    L = state.factor.to(torch.complex128) if any("Y" in name for name in paulis) else state.factor
    turned = torch.zeros_like(L)
    for name, coefficient in paulis.items():
        budget.check()
        _check_letters(name, state, on, "IXYZ", f"paulis.{name}")
        if not np.isfinite(coefficient):
            raise InvalidState(f"paulis.{name}", "be finite", f"is {coefficient}")
        source, phase = _pauli_string(name, on, state.dims)
        turned += L[:, source] * (coefficient * (phase if L.is_complex() else phase.real))
    mean = float(torch.vdot(L.reshape(-1), turned.reshape(-1)).real)
    variance = float(torch.linalg.vector_norm(turned - mean * L).square())
    spread = 2 * float(sum(abs(value) for value in paulis.values()))
    return Measurement(id="", version=0, error=one.error * spread, mean=mean, variance=variance)


def _pauli_string(name: str, on: Sequence[int], dims: Sequence[int]) -> tuple[Tensor, Tensor]:
    """A string as what it is: (L P)_i = phase_i L_source(i), both (d,)."""
    d = math.prod(dims)
    source, phase = torch.arange(d), torch.ones(d, dtype=torch.complex128)
    for index, letter in zip(on, name, strict=True):
        stride = math.prod(dims[index + 1 :])
        sign = 1 - 2 * (torch.arange(d) // stride % dims[index])  # 1 where the qubit is in |0>, -1 in |1>
        if letter in "XY":
            source = source + sign * stride
        if letter in "YZ":
            phase = phase * sign * (1j if letter == "Y" else 1)
    return source, phase


def _check_letters(letters: str, state: State, on: Sequence[int], alphabet: str, name: str) -> None:
    if len(letters) != len(on) or set(letters) - set(alphabet):
        what = f"a letter of {', '.join(alphabet)} for each of {len(on)} measured subsystems"
        if name == "basis":
            what += ", or `computational`"
        raise InvalidState(name, f"be {what}", f"is '{letters[:64]}'")
    for index, letter in zip(on, letters, strict=True):
        if letter not in "IZ" and state.dims[index] != 2:
            raise InvalidState(
                name, "name qubits where it has X or Y", f"subsystem {index} has {state.dims[index]} levels"
            )
        if letter == "Z" and alphabet == "IXYZ" and state.dims[index] != 2:
            raise InvalidState(name, "name qubits", f"subsystem {index} has {state.dims[index]} levels")


def _on(state: State, on: Sequence[int] | None) -> tuple[int, ...]:
    return check_on(range(len(state.dims)) if on is None else on, state.dims, "subsystems")


@contextlib.contextmanager
def _at_field(kind: str) -> Iterator[None]:
    """Faults point at the subsystems, a key of the observable, or what is measured."""
    try:
        yield
    except InvalidState as fault:
        name, _, inner = fault.name.partition(".")
        if name in ("on", "subsystems"):
            raise InvalidRequest(str(InvalidState("subsystems", fault.need, fault.got)), "/subsystems") from None
        raise InvalidRequest(str(fault), f"/{kind}" + (f"/{escaped(inner)}" if inner else "")) from None
