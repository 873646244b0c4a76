from __future__ import annotations

import numpy as np
import pytest

from qraf.codes.experiment import (
    MAX_DETECTORS,
    Experiment,
    Noise,
    b8_bytes,
    circuit,
    dem,
    sample,
)
from qraf.errors import InvalidState


@pytest.mark.parametrize("code", ["rotated_surface", "repetition"])
@pytest.mark.parametrize("distance", [2, 3, 4, 5])
@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_sizes_are_those_of_the_circuit(code: str, distance: int, rounds: int) -> None:
    for basis in ("z", "x") if code == "rotated_surface" else ("z",):
        experiment = Experiment(code, distance, rounds, Noise.uniform(0.01), basis)
        assert experiment.num_detectors == circuit(experiment).num_detectors == dem(experiment).num_detectors
        used = {target.value for op in circuit(experiment).flattened() if op.name[0] in "RM" for target in
                op.targets_copy() if target.is_qubit_target}  # fmt: skip
        assert len(used) == experiment.num_qubits


def test_shots_are_packed_and_repeat_with_their_seed() -> None:
    experiment = Experiment("rotated_surface", 5, 15, Noise.uniform(0.01))
    first, again, other = (sample(experiment, 100, seed) for seed in (1, 1, 2))
    assert first.detectors.shape == (100, b8_bytes(360)) == (100, 45)
    assert first.observables.shape == (100, 1)
    assert np.array_equal(first.detectors, again.detectors)
    assert not np.array_equal(first.detectors, other.detectors)


def test_without_noise_nothing_happens() -> None:
    drawn = sample(Experiment("rotated_surface", 3, 3), 10, 0)
    assert not drawn.detectors.any()
    assert not drawn.observables.any()


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"code": "steane"}, "code"),
        ({"basis": "y"}, "basis"),
        ({"code": "repetition", "basis": "x"}, "basis"),
        ({"distance": 1}, "distance"),
        ({"distance": 26}, "distance"),
        ({"rounds": 0}, "rounds"),
        ({"rounds": 10_001}, "rounds"),
        ({"distance": 25, "rounds": 100}, "rounds"),
    ],
)
def test_limits_are_named(fields: dict[str, object], name: str) -> None:
    with pytest.raises(InvalidState) as caught:
        Experiment(**{"code": "rotated_surface", "distance": 3, "rounds": 3, **fields})  # type: ignore[arg-type]
    assert caught.value.name == name


def test_noise_and_shots_are_checked() -> None:
    with pytest.raises(InvalidState, match=r"`after_clifford_depolarization` must be in \[0, 0.75\], but is 0.8"):
        Noise(after_clifford_depolarization=0.8)
    with pytest.raises(InvalidState, match="before_measure_flip_probability"):
        Noise(before_measure_flip_probability=float("nan"))
    large = Experiment("repetition", 5, 10_000)
    assert large.num_detectors <= MAX_DETECTORS
    for shots in (0, 20_000):
        with pytest.raises(InvalidState, match="`shots` must be 1 to 13,419 for 40,004 detectors"):
            sample(large, shots, 0)
