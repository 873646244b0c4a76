"""Large orders cut into parts, and the parts' answers joined: what makes progress visible and a job cancellable.

No torch here: a gateway cuts, the services work. Costs are estimates for one core; `docs/operations.md` states them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from qraf.code_orders import BuildCode, DecodeShots, ErrorFigures, SampleCode, ShotsDecoded
from qraf.codes.experiment import MAX_SAMPLE_BYTES, Experiment, b8_bytes
from qraf.codes.rates import per_round, wilson
from qraf.errors import InvalidRequest, InvalidState, QrafError
from qraf.service_orders import (
    Align,
    Coding,
    Nearest,
    Quantize,
    Quantized,
    Repair,
    ServiceAnswer,
    ServiceOrder,
    Truncate,
)
from qraf.state_orders import ArrayData, Preparation

__all__ = ["Part", "cost_s", "joined", "placed", "service_of", "split"]

_MOST_QUBITS = 12
_DIM_MAX = 2**_MOST_QUBITS  # that of states; a larger one is a fault
_QUBITS = re.compile(r"\bqubit(?:\[(\d{1,4})\])?\s")  # a guess at a circuit's size; what it is, its run tells
_EACH_S = 1e-4  # a matrix or a state, whatever its size
_CUBE_S = 2e-9  # d^3 of an eigendecomposition with its products, complex128
_AMPLITUDE_S = 3e-8  # one amplitude in one code, coded, decoded and measured
_NUM_CODES = 9
_BIT_S = 1e-7  # one detector of one shot, decoded; at one per cent of noise, less below
_WINDOW = 4  # times as much in a sliding window
_DEM_S = 3e-7  # one character of an error model, read into a matching graph
_TWO_SIDED_95 = 1.959964  # standard errors, as where single answers are made
_SAMPLE_S = 1e-8  # one detector of one shot, drawn


@dataclass(frozen=True, slots=True)
class Part:
    """A share of an order: `order`, whose first element of `field` is element `offset` of the whole order's."""

    order: ServiceOrder
    field: str = ""
    offset: int = 0


def service_of(order: ServiceOrder) -> str:
    """The service that answers an order."""
    return "correction" if isinstance(order, Repair | Align | BuildCode | SampleCode | DecodeShots) else "optimization"


def cost_s(order: ServiceOrder) -> float:
    """About how many seconds of one core an order takes; 0 where its size cannot be told, as of a wrong one."""
    if isinstance(order, SampleCode):
        n = _num_detectors(order.experiment)
        can_be = n and 0 < order.shots * b8_bytes(n) <= MAX_SAMPLE_BYTES
        return order.shots * n * _SAMPLE_S if can_be else 0.0
    if isinstance(order, DecodeShots) and order.dem is not None and order.experiment is None:
        # how many detectors it has is not read here, but every bit that came is one's
        return len(order.dem) * _DEM_S + 8 * len(order.detectors) * _BIT_S * _windowed(order)
    found = _elements(order)
    if found is None:
        return 0.0
    costs = found[1]
    return sum(costs) if isinstance(costs, list) else costs.n * costs.each


def split(order: ServiceOrder, part_s: float) -> list[Part]:
    """The order in parts of about `part_s` seconds each, one element at least; what cannot be cut is one part."""
    found = _elements(order)
    if found is None:
        return [Part(order)]
    field, costs, cut = found
    if not isinstance(costs, list):
        step = max(1, int(part_s / costs.each))
        return [_part(order, field, cut, start, min(costs.n, start + step)) for start in range(0, costs.n, step)]
    parts: list[Part] = []
    start, spent = 0, 0.0
    for index, cost in enumerate(costs):
        if index > start and spent + cost > part_s:
            parts.append(_part(order, field, cut, start, index))
            start, spent = index, 0.0
        spent += cost
    if not parts:
        return [Part(order)]
    return [*parts, _part(order, field, cut, start, len(costs))]


def joined(order: ServiceOrder, answers: Sequence[ServiceAnswer]) -> ServiceAnswer:
    """The answer to an order from those to its parts, in order."""
    first = answers[0]
    if len(answers) == 1:
        return first
    if isinstance(first, Quantized):
        return _quantized([one for one in answers if isinstance(one, Quantized)])
    if isinstance(first, ShotsDecoded):
        return _decoded(order, [one for one in answers if isinstance(one, ShotsDecoded)])
    results = tuple(result for one in answers for result in one.results)  # type: ignore[union-attr]
    return msgspec.structs.replace(first, results=results)


def placed(fault: QrafError, part: Part) -> QrafError:
    """The fault of a part with the pointer that it has in the whole order."""
    if not isinstance(fault, InvalidRequest) or not part.offset:
        return fault
    head, *steps = fault.pointer.removeprefix("/").split("/")
    if head != part.field or not steps or not steps[0].isdigit():
        return fault
    return InvalidRequest(fault.detail, "/".join(["", head, str(int(steps[0]) + part.offset), *steps[1:]]))


_Cut = Callable[[int, int], Any]


@dataclass(frozen=True, slots=True)
class _Alike:
    """`n` elements of one cost: they may be many millions."""

    n: int
    each: float


_Costs = list[float] | _Alike


def _elements(order: ServiceOrder) -> tuple[str, _Costs, _Cut] | None:
    """The field whose elements can be parted, what each costs, and how to take some of them."""
    if isinstance(order, Quantize):
        codes = 1 if order.code is not None else _NUM_CODES
        if order.states is not None:
            costs = [_EACH_S * codes + _packet_size(one) * _AMPLITUDE_S * codes for one in order.states]
            return "states", costs, lambda i, j: (order.states or ())[i:j]
        found = None if order.rows is None else _axis(order.rows, 2)
        if found is None:
            return None
        n, d, cut = found
        return "rows", _Alike(n, (1e-6 + d * _AMPLITUDE_S) * codes), cut
    if isinstance(order, DecodeShots):
        return _shots(order)
    if not isinstance(order, Nearest | Truncate | Repair):
        return None
    if order.states is not None:
        costs = [_EACH_S + _CUBE_S * _dim(one) ** 3 for one in order.states]
        return "states", costs, lambda i, j: (order.states or ())[i:j]
    matrices = order.matrices
    if isinstance(matrices, ArrayData):
        found = _axis(matrices, 3)
        if found is None:
            return None
        n, d, cut = found
        return "matrices", _Alike(n, _EACH_S + _CUBE_S * d**3), cut
    if not matrices or any(isinstance(one, list) and not any(isinstance(row, list) for row in one) for one in matrices):
        return None  # one matrix, or a fault
    return "matrices", [_matrix_cost(one) for one in matrices], lambda i, j: matrices[i:j]


def _shots(order: DecodeShots) -> tuple[str, _Costs, _Cut] | None:
    """Shots can be parted where the number of detectors is known without reading a model."""
    n = _num_detectors(order.experiment)
    width = b8_bytes(n)
    shots, rest = divmod(len(order.detectors), width) if n else (0, 1)
    observables = order.observables
    if rest or not shots or (observables is not None and len(observables) != shots):
        return None

    def cut(i: int, j: int) -> DecodeShots:
        detectors, actual = order.detectors[i * width : j * width], None if observables is None else observables[i:j]
        return msgspec.structs.replace(order, detectors=detectors, observables=actual)

    return "", _Alike(shots, n * _BIT_S * _windowed(order)), cut


def _windowed(order: DecodeShots) -> int:
    return _WINDOW if order.window is not None or order.commit is not None else 1


def _num_detectors(experiment: Any) -> int:
    """Of an experiment; 0 where there is none, or none that can be."""
    if experiment is None:
        return 0
    try:
        return Experiment(experiment.code, experiment.distance, experiment.rounds).num_detectors
    except InvalidState:
        return 0


def _axis(numbers: Any, ndim: int) -> tuple[int, int, _Cut] | None:
    """Length of the first axis, of the last one, and how to cut along the first; None for other shapes."""
    if not isinstance(numbers, ArrayData):
        shape = _shape(numbers)
        return None if len(shape) != ndim else (shape[0], shape[-1], lambda i, j: numbers[i:j])
    if numbers.real is not None:
        shape = _shape(numbers.real)
        return None if len(shape) != ndim else (shape[0], shape[-1], lambda i, j: _lists(numbers, i, j))
    if numbers.shape is None or len(numbers.shape) != ndim or numbers.data is None or numbers.dtype is None:
        return None
    n = numbers.shape[0]
    each = len(numbers.data) // n if n else 0
    if n < 1 or each * n != len(numbers.data):
        return None
    return n, numbers.shape[-1], lambda i, j: _bytes(numbers, each, i, j)


def _lists(numbers: ArrayData, i: int, j: int) -> ArrayData:
    assert numbers.real is not None
    return ArrayData(real=numbers.real[i:j], imag=None if numbers.imag is None else numbers.imag[i:j])


def _bytes(numbers: ArrayData, each: int, i: int, j: int) -> ArrayData:
    assert numbers.data is not None
    assert numbers.shape is not None
    data = numbers.data[i * each : j * each]
    return ArrayData(data=data, shape=(j - i, *numbers.shape[1:]), dtype=numbers.dtype)


def _shape(numbers: Any) -> tuple[int, ...]:
    """The lengths along the first elements."""
    shape: list[int] = []
    while isinstance(numbers, list | tuple) and numbers and len(shape) < 4:
        shape.append(len(numbers))
        numbers = numbers[0]
    return tuple(shape)


def _matrix_cost(one: Any) -> float:
    shape = one.shape or _shape(one.real) if isinstance(one, ArrayData) else _shape(one)
    n = shape[0] if len(shape) == 3 else 1
    return n * (_EACH_S + _CUBE_S * (shape[-1] if shape else 0) ** 3)


def _packet_size(operand: Any) -> int:
    """About how many real amplitudes a state's factor has."""
    if isinstance(operand, Preparation) and operand.packet is not None:
        return len(operand.packet) // 8
    return 2 * _dim(operand) ** 2


def _dim(operand: Any) -> int:
    """About the dimension of a state that is made dense; a packet tells no more than that it is not above this."""
    if not isinstance(operand, Preparation):
        return 0
    if operand.packet is not None:
        return max(min(1024, len(operand.packet) // 8), math.isqrt(len(operand.packet) // 16))
    for numbers in (operand.amplitudes, operand.density, operand.factor):
        if numbers is not None:
            shape = (numbers.shape or _shape(numbers.real)) if isinstance(numbers, ArrayData) else _shape(numbers)
            return int(min(_DIM_MAX, shape[-1] if shape else 0))
    if operand.circuit is not None:
        qubits = sum(int(size or 1) for size in _QUBITS.findall(operand.circuit))
        return int(2 ** min(_MOST_QUBITS, qubits))
    return 16 if operand.named is None else _named_dim(operand.named)


def _named_dim(name: str) -> int:
    kind, _, rest = name.partition(":")
    if kind == "basis":
        return int(2 ** min(_MOST_QUBITS, len(rest)))
    sizes = rest.split("x")
    if not all(one.isdecimal() and len(one) < 5 for one in sizes):
        return 4
    return int(min(_DIM_MAX, math.prod(map(int, sizes)) if len(sizes) > 1 else 2 ** min(_MOST_QUBITS, int(rest))))


def _part(order: ServiceOrder, field: str, cut: _Cut, start: int, stop: int) -> Part:
    taken = cut(start, stop)
    return Part(msgspec.structs.replace(order, **{field: taken}) if field else taken, field, start)


def _quantized(answers: Sequence[Quantized]) -> Quantized:
    counts = [one.n if one.rows_of is None else len(one.rows_of) for one in answers]
    rows_of = None if answers[0].rows_of is None else tuple(n for one in answers for n in one.rows_of or ())
    codings = zip(*(one.codings for one in answers), strict=True)
    return Quantized(
        n=sum(one.n for one in answers),
        d=answers[0].d,
        codings=tuple(_coding(alike, counts) for alike in codings),
        rows_of=rows_of,
    )


def _coding(alike: Sequence[Coding], counts: Sequence[int]) -> Coding:
    """One code's figures over all parts: sums, means by the number of rows or states, and the largest."""
    total = sum(counts)
    changes: dict[str, Any] = {"bytes": sum(one.bytes for one in alike)}
    for name in ("infidelity", "trace_distance", "bound"):
        means = [getattr(one, f"{name}_mean") for one in alike]
        changes[f"{name}_mean"] = sum(mean * n for mean, n in zip(means, counts, strict=True)) / total
        changes[f"{name}_max"] = max(getattr(one, f"{name}_max") for one in alike)
    if alike[0].codes is not None:
        changes["codes"] = b"".join(one.codes or b"" for one in alike)
    return msgspec.structs.replace(alike[0], **changes)


def _decoded(order: ServiceOrder, answers: Sequence[ShotsDecoded]) -> ShotsDecoded:
    shots = sum(one.shots for one in answers)
    weights = [one.weight * one.shots for one in answers if one.weight is not None]
    counted = [one.errors.errors for one in answers if one.errors is not None]
    return msgspec.structs.replace(
        answers[0],
        shots=shots,
        observables=b"".join(one.observables for one in answers),
        events=sum(one.events for one in answers),
        weight=sum(weights) / shots if weights else None,
        errors=_errors(order, sum(counted), shots) if counted else None,
    )


def _errors(order: ServiceOrder, errors: int, shots: int) -> ErrorFigures:
    low, high = wilson(errors, shots, _TWO_SIDED_95)
    rounds = order.experiment.rounds if isinstance(order, DecodeShots) and order.experiment else None
    rates = errors / shots, low, high
    of_round = [None if rounds is None else per_round(rate, rounds) for rate in rates]
    return ErrorFigures(
        errors=errors,
        rate=rates[0],
        low=low,
        high=high,
        per_round=of_round[0],
        per_round_low=of_round[1],
        per_round_high=of_round[2],
    )
