"""Large orders in parts: joined, the parts' answers are the answer."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import numpy as np
import pytest

from qraf.code_orders import CodeExperiment, CodeSampled, DecodeShots, SampleCode, ShotsDecoded
from qraf.errors import InvalidRequest
from qraf.operations.parts import cost_s, joined, placed, service_of, split
from qraf.operations.work import work
from qraf.service_orders import Align, Nearest, Quantize, Repair, ServiceOrder, Truncate
from qraf.state_orders import ArrayData, Preparation

rng = np.random.default_rng(11)
KETS = rng.normal(size=(7, 4))
KETS /= np.linalg.norm(KETS, axis=1, keepdims=True)
STATES = np.einsum("ni,nj->nij", KETS, KETS)


def packed(x: np.ndarray) -> ArrayData:
    return ArrayData(data=x.tobytes(), shape=x.shape, dtype=str(x.dtype))  # type: ignore[arg-type]


def lists(x: np.ndarray) -> ArrayData:
    return ArrayData(real=x.real.tolist(), imag=x.imag.tolist())


def states() -> tuple[Preparation, ...]:
    return tuple(Preparation(amplitudes=[float(one) for one in ket]) for ket in KETS)


def close(a: Any, b: Any) -> bool:
    """Whether two answers are equal up to rounding."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(close, a, b))
    return bool(np.isclose(a, b, atol=1e-9)) if isinstance(a, float) else a == b


@pytest.mark.parametrize(
    "order",
    [
        Nearest(matrices=packed(STATES - 0.1)),
        Nearest(matrices=lists(STATES + 0.1j), form="bytes"),
        Nearest(matrices=tuple(one.tolist() for one in STATES)),
        Nearest(states=states(), rank=1),
        Repair(matrices=packed(STATES * 1.1), noise=0.2),
        Truncate(states=states(), rank=1),
        Quantize(rows=packed(KETS), code="int4", returned=True),
        Quantize(rows=KETS.tolist()),
        Quantize(rows=lists(KETS * 1j)),
        Quantize(states=states()),
    ],
    ids=lambda order: type(order).__name__,
)  # fmt: skip
def test_parts_have_the_answer_of_the_whole(order: ServiceOrder):
    parts = split(order, 0.4 * cost_s(order))
    assert 3 <= len(parts) <= 7
    assert len(split(order, 1e-12)) == 7
    assert len(split(order, 1e9)) == 1
    answers = work([part.order for part in parts])
    [whole] = work([order])
    assert not any(isinstance(one, Exception) for one in [whole, *answers])
    together = joined(order, answers)  # type: ignore[arg-type]
    assert close(msgspec.to_builtins(together), msgspec.to_builtins(whole))


@pytest.mark.parametrize(("window", "with_observables"), [(None, True), (None, False), (4, True)])
def test_shots_are_decoded_in_parts_too(window: int | None, with_observables: bool):
    experiment = CodeExperiment(code="rotated_surface", distance=3, rounds=9, noise=0.01)
    [sampled] = work([SampleCode(experiment=experiment, shots=300, seed=4)])
    assert isinstance(sampled, CodeSampled)
    observables = sampled.observables if with_observables else None
    order = DecodeShots(experiment=experiment, detectors=sampled.detectors, observables=observables, window=window)
    parts = split(order, cost_s(order) / 4.5)
    assert len(parts) == 5
    [whole] = work([order])
    together = joined(order, work([part.order for part in parts]))  # type: ignore[arg-type]
    assert isinstance(whole, ShotsDecoded)
    assert close(msgspec.to_builtins(together), msgspec.to_builtins(whole))


@pytest.mark.parametrize(
    "order",
    [
        Nearest(matrices=([1.0, 0.0], [0.0, 0.0])),
        Nearest(matrices=()),
        Nearest(),
        Nearest(matrices=ArrayData(data=b"123", shape=(2, 2, 2), dtype="float64")),
        Align(vectors=[1.0], reference=[1.0]),
        DecodeShots(experiment=CodeExperiment(code="repetition", distance=5, rounds=3), detectors=b"123"),
        DecodeShots(experiment=CodeExperiment(code="repetition", distance=-3, rounds=3), detectors=b"123"),
        SampleCode(experiment=CodeExperiment(code="repetition", distance=5, rounds=3), shots=10**12),
        SampleCode(experiment=CodeExperiment(code="repetition", distance=-3, rounds=3), shots=10**6),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_cut_is_one_part_and_costs_nothing_beforehand(order: ServiceOrder):
    [part] = split(order, 1e-9)
    assert part.order == order
    assert cost_s(order) == 0


def test_shots_of_a_model_are_one_part_that_costs_by_its_bytes():
    order = DecodeShots(dem="error(0.1) D0 L0\n" * 1000, detectors=b"\0" * 10**6)
    [part] = split(order, 1e-9)
    assert part.order == order
    assert 0.5 < cost_s(order) < 2
    assert cost_s(msgspec.structs.replace(order, window=4)) > 3


def test_millions_of_shots_are_parted_without_looking_at_each():
    experiment = CodeExperiment(code="repetition", distance=2, rounds=1, noise=0.01)
    order = DecodeShots(experiment=experiment, detectors=bytes(24_000_000))
    began = time.process_time()
    assert cost_s(order) == pytest.approx(4.8)
    parts = split(order, 0.25)
    assert time.process_time() - began < 0.5
    assert len(parts) == 20
    assert sum(len(part.order.detectors) for part in parts) == 24_000_000  # type: ignore[union-attr]


def test_a_fault_in_a_part_has_the_place_that_it_has_in_the_order():
    matrices = [one.tolist() for one in STATES]
    matrices[5] = [[1.0, 2.0]]
    parts = split(Nearest(matrices=tuple(matrices)), 1e-12)
    [fault] = [one for one in ((work([part.order])[0], part) for part in parts) if isinstance(one[0], Exception)]
    assert isinstance(fault[0], InvalidRequest)
    assert fault[0].pointer == "/matrices/0"
    moved = placed(*fault)  # type: ignore[arg-type]
    assert isinstance(moved, InvalidRequest)
    assert moved.pointer == "/matrices/5"
    rank = InvalidRequest("", "/rank")
    assert placed(rank, parts[5]) is rank


def test_each_order_has_its_service():
    assert service_of(Quantize()) == service_of(Nearest()) == "optimization"
    assert service_of(Repair()) == "correction"
    assert service_of(DecodeShots(detectors=b"")) == "correction"


@pytest.mark.parametrize(
    ("given", "dim"),
    [
        ({"named": "bell"}, 4),
        ({"named": "ghz:12"}, 4096),
        ({"named": "mixed:2x3x5"}, 30),
        ({"named": "basis:0101"}, 16),
        ({"named": "mixed:9999"}, 4096),
        ({"circuit": "qubit[10] q; qubit r;"}, 2048),
    ],
)
def test_the_cost_of_a_state_that_is_described_grows_with_its_dimension(given: dict[str, str], dim: int) -> None:
    assert cost_s(Nearest(states=(Preparation(**given),))) == pytest.approx(1e-4 + 2e-9 * dim**3)  # type: ignore[arg-type]
