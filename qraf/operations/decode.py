"""Stabiliser codes: build, sample, decode; and the start of a decoder for rounds that stream in.

Faults are `InvalidRequest` with a pointer into the order.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from qraf.code_orders import (
    BuildCode,
    CodeBuilt,
    CodeExperiment,
    CodeNoise,
    CodeSampled,
    DecodeShots,
    ErrorFigures,
    SampleCode,
    ShotsDecoded,
)
from qraf.codes.decoder import Decoder, check_b8
from qraf.codes.experiment import MAX_SAMPLE_BYTES, Experiment, Noise, b8_bytes, dem
from qraf.codes.experiment import sample as draw
from qraf.codes.model import detector_layers
from qraf.codes.rates import error_rate
from qraf.codes.window import WindowDecoder, WindowPlan
from qraf.errors import InvalidRequest, InvalidState

__all__ = ["at_order", "build", "decode", "experiment_of", "plan_of", "rows_of", "sample"]

_MAX_SEED = 2**63 - 1
_UNDER_EXPERIMENT = ("code", "distance", "rounds", "basis")


def build(order: BuildCode) -> CodeBuilt:
    """Give the sizes of an experiment, and its detector error model where asked for."""
    with at_order():
        experiment = experiment_of(order.experiment)
        model = dem(experiment)
        layer = detector_layers(model)
    assert layer is not None
    return CodeBuilt(
        num_qubits=experiment.num_qubits,
        num_detectors=model.num_detectors,
        num_observables=model.num_observables,
        num_errors=model.num_errors,
        bytes_per_shot=b8_bytes(model.num_detectors),
        layers=tuple(np.bincount(layer).tolist()),
        dem=str(model) if order.dem else None,
    )


def sample(order: SampleCode) -> CodeSampled:
    """Draw shots of an experiment."""
    seed = secrets.randbits(32) if order.seed is None else order.seed
    if not 0 <= seed <= _MAX_SEED:
        raise InvalidRequest(f"must be 0 to {_MAX_SEED}, but is {seed}", "/seed")
    with at_order():
        experiment = experiment_of(order.experiment)
        drawn = draw(experiment, order.shots, seed)
    return CodeSampled(
        shots=order.shots,
        seed=seed,
        num_detectors=experiment.num_detectors,
        num_observables=1,
        events=int(np.bitwise_count(drawn.detectors).sum()),
        detectors=drawn.detectors.tobytes(),
        observables=drawn.observables.tobytes(),
    )


def decode(order: DecodeShots) -> ShotsDecoded:
    """Predict the flips of the observables, at once or in a sliding window."""
    if len(order.detectors) > MAX_SAMPLE_BYTES:
        need = f"may have {MAX_SAMPLE_BYTES:,} bytes, but has {len(order.detectors):,}"
        raise InvalidRequest(need, "/detectors")
    weight = None
    with at_order():
        if order.window is None and order.commit is None:
            decoder = decoder_of(order.experiment, order.dem)
            detectors = rows_of(order.detectors, decoder.num_detectors, "/detectors")
            decoded = decoder.decode(detectors)
            found, events, weight = decoded.observables, decoded.events, float(decoded.weights.mean())
            graph = decoder.graph
        else:
            plan = plan_of(order.experiment, order.dem, order.window, order.commit)
            graph = plan.graph
            detectors = rows_of(order.detectors, graph.num_detectors, "/detectors")
            stream = WindowDecoder(plan, len(detectors))
            stream.push(plan.by_layer(detectors), plan.num_layers)
            found, events = stream.finish().observables, stream.events
    return ShotsDecoded(
        shots=len(found),
        num_detectors=graph.num_detectors,
        num_observables=graph.num_observables,
        observables=found.tobytes(),
        events=events,
        weight=weight,
        errors=None if order.observables is None else _errors(order, found, graph.num_observables),
    )


def experiment_of(order: CodeExperiment) -> Experiment:
    """Give the experiment of an order; call it under `at_order`."""
    if isinstance(order.noise, CodeNoise):
        noise = Noise(**{name: getattr(order.noise, name) for name in CodeNoise.__struct_fields__})
    else:
        try:
            noise = Noise.uniform(order.noise)
        except InvalidState as fault:
            raise InvalidRequest(_detail(fault), "/experiment/noise") from None
    return Experiment(order.code, order.distance, order.rounds, noise, order.basis)


def decoder_of(experiment: CodeExperiment | None, text: str | None) -> Decoder:
    """Give the decoder of an experiment or of a model's text."""
    _one_of(experiment, text)
    return Decoder.of_dem(text or "") if experiment is None else Decoder.of(experiment_of(experiment))


def plan_of(
    experiment: CodeExperiment | None, text: str | None, window: int | None = None, commit: int | None = None
) -> WindowPlan:
    """Give the windows of an experiment or of a model's text.

    Raises:
        InvalidRequest, InvalidState: what is wrong with them; call it under `at_order`.
    """
    _one_of(experiment, text)
    if experiment is None:
        return WindowPlan.of_dem(text or "", window, commit)
    return WindowPlan.of(experiment_of(experiment), window, commit)


def rows_of(data: bytes, bits: int, pointer: str, shots: int | None = None) -> NDArray[np.uint8]:
    """Read b8 rows of `bits` bits, `shots` of them or as many as there are.

    Raises:
        InvalidRequest: the length does not fit, or a bit behind the last one is set.
    """
    width = b8_bytes(bits)
    each = f"{width:,} byte{'' if width == 1 else 's'} for each shot: {bits:,} bits, eight to a byte"
    if shots is not None and len(data) != shots * width:
        raise InvalidRequest(f"must have {shots * width:,} bytes, {each}, but has {len(data):,}", pointer)
    if not data and shots is None:
        raise InvalidRequest("must hold at least one shot", pointer)
    if width and len(data) % width:
        raise InvalidRequest(f"must have {each}, but has {len(data):,}", pointer)
    rows = np.frombuffer(data, np.uint8).reshape(-1 if shots is None else shots, width)
    try:
        return check_b8(rows, bits)
    except InvalidState as fault:
        raise InvalidRequest(_detail(fault), pointer) from None


@contextlib.contextmanager
def at_order() -> Iterator[None]:
    """Turn a fault of the codes into one of the order, with its pointer."""
    try:
        yield
    except InvalidState as fault:
        name, _, line = fault.name.partition(" ")
        if name in CodeNoise.__struct_fields__:
            pointer = f"/experiment/noise/{name}"
        elif name in _UNDER_EXPERIMENT:
            pointer = f"/experiment/{name}"
        else:
            pointer = f"/{name}"
        detail = f"{line} {_detail(fault)}" if line else _detail(fault)
        raise InvalidRequest(detail, pointer) from None


def _one_of(experiment: CodeExperiment | None, text: str | None) -> None:
    if (experiment is None) == (text is None):
        raise InvalidRequest("give one of `experiment` and `dem`", "/experiment")


def _errors(order: DecodeShots, found: NDArray[np.uint8], bits: int) -> ErrorFigures:
    assert order.observables is not None
    actual = rows_of(order.observables, bits, "/observables", len(found))
    rounds = order.experiment.rounds if order.experiment else None
    rate = error_rate(found, actual, rounds or 1)
    return ErrorFigures(
        errors=rate.errors,
        rate=rate.rate,
        low=rate.low,
        high=rate.high,
        per_round=rate.per_round if rounds else None,
        per_round_low=rate.per_round_low if rounds else None,
        per_round_high=rate.per_round_high if rounds else None,
    )


def _detail(fault: InvalidState) -> str:
    return f"must {fault.need}" + (f", but {fault.got}" if fault.got else "")
