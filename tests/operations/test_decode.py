"""Orders of stabiliser codes: what comes back, and every wrong order by its pointer."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
import stim

from qraf.code_orders import BuildCode, CodeExperiment, CodeNoise, CodeOrder, DecodeShots, SampleCode
from qraf.errors import InvalidRequest
from qraf.operations.decode import build, decode, sample

SMALL = CodeExperiment(code="rotated_surface", distance=3, rounds=3, noise=0.01)
REPEAT = {"code": "repetition", "distance": 3, "rounds": 3}
DEM = "error(0.1) D0 L0\nerror(0.1) D0 D1\nerror(0.1) D1\ndetector(0, 0) D0\ndetector(0, 1) D1\n"


def test_an_experiment_has_its_sizes_and_its_model() -> None:
    built = build(BuildCode(experiment=SMALL, dem=True))
    assert (built.num_qubits, built.num_detectors, built.num_observables, built.bytes_per_shot) == (17, 24, 1, 3)
    assert built.layers == (4, 8, 8, 4)
    model = stim.DetectorErrorModel(built.dem)
    assert (model.num_detectors, model.num_errors) == (24, built.num_errors)
    assert build(BuildCode(experiment=SMALL)).dem is None


def test_shots_go_out_and_come_back_decoded() -> None:
    drawn = sample(SampleCode(experiment=SMALL, shots=5000, seed=4))
    assert (len(drawn.detectors), len(drawn.observables)) == (15_000, 5000)
    assert drawn.events == int(np.bitwise_count(np.frombuffer(drawn.detectors, np.uint8)).sum())
    found = decode(DecodeShots(experiment=SMALL, detectors=drawn.detectors, observables=drawn.observables))
    assert (found.shots, found.num_detectors, found.num_observables) == (5000, 24, 1)
    assert found.errors is not None
    wrong = sum(a != b for a, b in zip(found.observables, drawn.observables, strict=True))
    assert found.errors.errors == wrong
    assert found.errors.rate == wrong / 5000
    assert 0 < found.errors.low < found.errors.rate < found.errors.high < 0.2
    assert found.errors.per_round is not None
    assert found.weight is not None
    again = sample(SampleCode(experiment=SMALL, shots=5000, seed=4))
    assert again == drawn


def test_a_seed_is_drawn_and_told() -> None:
    drawn = sample(SampleCode(experiment=SMALL, shots=50))
    assert sample(SampleCode(experiment=SMALL, shots=50, seed=drawn.seed)) == drawn
    assert sample(SampleCode(experiment=SMALL, shots=50)).seed != drawn.seed


def test_a_model_decodes_like_its_experiment_and_a_window_nearly_so() -> None:
    long = CodeExperiment(code="rotated_surface", distance=3, rounds=12, noise=0.01)
    drawn = sample(SampleCode(experiment=long, shots=2000, seed=1))
    text = build(BuildCode(experiment=long, dem=True)).dem
    whole = decode(DecodeShots(experiment=long, detectors=drawn.detectors, observables=drawn.observables))
    by_model = decode(DecodeShots(dem=text, detectors=drawn.detectors, observables=drawn.observables))
    assert by_model.observables == whole.observables
    assert by_model.errors is not None
    assert by_model.errors.per_round is None
    sliding = decode(DecodeShots(experiment=long, detectors=drawn.detectors, window=6, commit=3))
    differ = sum(a != b for a, b in zip(sliding.observables, whole.observables, strict=True))
    assert differ < 20
    assert sliding.events == whole.events
    assert sliding.weight is None


def test_a_model_in_another_order_than_time_is_decoded_in_windows_too() -> None:
    text = "error(0.1) D1 L0\nerror(0.1) D1 D0\nerror(0.1) D0\ndetector(0, 5) D0\ndetector(0, 1) D1"
    shots = bytes([0, 1, 2, 3])
    at_once = decode(DecodeShots(dem=text, detectors=shots)).observables
    assert (
        decode(DecodeShots(dem=text, detectors=shots, window=2, commit=1)).observables == at_once == bytes([0, 0, 1, 0])
    )


def test_noise_by_name_is_noise() -> None:
    quiet = msgspec.structs.replace(SMALL, noise=CodeNoise(before_measure_flip_probability=0.1))
    drawn = sample(SampleCode(experiment=quiet, shots=100, seed=0))
    assert drawn.events > 0
    assert sample(SampleCode(experiment=msgspec.structs.replace(SMALL, noise=0.0), shots=100, seed=0)).events == 0


@pytest.mark.parametrize(
    ("order", "pointer", "says"),
    [
        ({"op": "build", "experiment": {"code": "rotated_surface", "distance": 1, "rounds": 3}}, "/experiment/distance",
         "must be 2 to 25, but is 1"),
        ({"op": "build", "experiment": REPEAT | {"rounds": 0}}, "/experiment/rounds", "1 to"),
        ({"op": "build", "experiment": REPEAT | {"basis": "x"}},
         "/experiment/basis", "must be z for the repetition code"),
        ({"op": "build", "experiment": REPEAT | {"noise": 2}},
         "/experiment/noise", "must be in [0, 0.75], but is 2"),
        ({"op": "build", "experiment": REPEAT | {"noise": {"after_reset_flip_probability": -1}}},
         "/experiment/noise/after_reset_flip_probability", "[0, 1]"),
        ({"op": "sample", "experiment": REPEAT, "shots": 0}, "/shots", "1 to"),
        ({"op": "sample", "experiment": REPEAT, "seed": -1}, "/seed", "0 to"),
        ({"op": "decode", "detectors": "AA=="}, "/experiment", "give one of"),
        ({"op": "decode", "dem": DEM, "experiment": REPEAT,
         "detectors": "AA=="}, "/experiment", "give one of"),
        ({"op": "decode", "dem": DEM + "bad line", "detectors": "AA=="}, "/dem", "line 6 must be a line of a"),
        ({"op": "decode", "dem": DEM, "detectors": ""}, "/detectors", "at least one shot"),
        ({"op": "decode", "dem": DEM, "detectors": "/w=="}, "/detectors", "must be 0 behind their 2 bits"),
        ({"op": "decode", "dem": DEM, "detectors": "AAA=", "observables": "AA=="}, "/observables", "must have 2 bytes"),
        ({"op": "decode", "experiment": REPEAT | {"code": "rotated_surface"}, "detectors": "AAAAAA=="},
         "/detectors", "3 bytes for each shot: 24 bits, eight to a byte, but has 4"),
        ({"op": "decode", "dem": "error(0.1) D0 D1 L0", "detectors": "AQ=="}, "/detectors", "perfect matching"),
        ({"op": "decode", "dem": DEM, "detectors": "AA==", "window": 1, "commit": 2}, "/commit", "be 1 to the window"),
        ({"op": "decode", "dem": "error(0.1) D0 L0", "detectors": "AA==", "window": 2}, "/dem", "its time"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(order: dict[str, Any], pointer: str, says: str) -> None:
    parsed = msgspec.json.decode(json.dumps(order), type=CodeOrder)
    with pytest.raises(InvalidRequest) as caught:
        {BuildCode: build, SampleCode: sample, DecodeShots: decode}[type(parsed)](parsed)  # type: ignore[operator]
    assert caught.value.pointer == pointer
    assert says in caught.value.detail


def test_fields_that_are_not_known_are_refused() -> None:
    for text in ('{"op":"build","experiment":{"code":"steane","distance":3,"rounds":1}}', '{"op":"decode","x":1}'):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(text, type=CodeOrder)
