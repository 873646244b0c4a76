"""Memory experiments: keep one logical qubit for some rounds of syndrome measurement under circuit noise.

A *detector* is a parity of measurements that is 0 without noise; a detection *event* is a detector that is 1. An
*observable* is the logical operator that the experiment reads at its end. The detector error model (DEM) lists every
error mechanism with its probability and what it flips; it is all that a decoder needs. The circuits, the DEM and the
samples are stim's (Gidney, Quantum 5, 497 (2021)).

Bits travel packed as b8: shot by shot, ceil(n / 8) bytes each, the first bit lowest in its byte.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qraf.errors import InvalidState

__all__ = [
    "CODES",
    "MAX_DETECTORS",
    "MAX_DISTANCE",
    "MAX_ROUNDS",
    "MAX_SAMPLE_BYTES",
    "Experiment",
    "Noise",
    "Samples",
    "b8_bytes",
    "circuit",
    "dem",
    "sample",
]

CODES = ("rotated_surface", "repetition")
MAX_DISTANCE = 25
MAX_ROUNDS = 10_000
MAX_DETECTORS = 50_000
"""The model and its matching graph took 2.3 s and 160 MB at d = 25, 75 rounds, 46,800 detectors."""
MAX_SAMPLE_BYTES = 64 * 2**20
"""Packed detection events of one call."""


@dataclass(frozen=True, slots=True)
class Noise:
    """Probabilities of stim's four places of noise, each 0 to 1.

    Attributes:
        before_round_data_depolarization: DEPOLARIZE1 on every data qubit before each round.
        before_measure_flip_probability: a flip before each measurement.
        after_reset_flip_probability: a flip after each reset.
        after_clifford_depolarization: DEPOLARIZE1 or DEPOLARIZE2 after each gate.
    """

    before_round_data_depolarization: float = 0.0
    before_measure_flip_probability: float = 0.0
    after_reset_flip_probability: float = 0.0
    after_clifford_depolarization: float = 0.0

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            # a depolarising channel mixes wholly at 3/4; stim refuses more of a two-qubit one than 15/16
            most = 0.75 if name.endswith("depolarization") else 1.0
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise InvalidState(name, f"be in [0, {most:g}]", f"is {value}")

    @classmethod
    def uniform(cls, p: float) -> Noise:
        """Give all four the same probability: the usual one-parameter circuit noise."""
        return cls(p, p, p, p)


@dataclass(frozen=True, slots=True)
class Experiment:
    """Which code, how large, for how long, under which noise.

    Attributes:
        code: "rotated_surface" or "repetition".
        distance: 2 to 25; the rotated surface code has distance^2 data qubits, the repetition code `distance`.
        rounds: of syndrome measurement, at least 1.
        noise: of the circuit.
        basis: "z" keeps |0>_L and shows logical X errors, "x" keeps |+>_L and shows Z errors. The repetition code
            guards against X errors alone and has only "z".
    """

    code: str
    distance: int
    rounds: int
    noise: Noise = Noise()
    basis: str = "z"

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise InvalidState("code", f"be one of {', '.join(CODES)}", f"is '{self.code}'")
        if self.basis not in ("z", "x"):
            raise InvalidState("basis", "be z or x", f"is '{self.basis}'")
        if self.code == "repetition" and self.basis == "x":
            raise InvalidState("basis", "be z for the repetition code, which does not guard phases", "is 'x'")
        if not 2 <= self.distance <= MAX_DISTANCE:
            raise InvalidState("distance", f"be 2 to {MAX_DISTANCE}", f"is {self.distance}")
        if not 1 <= self.rounds <= MAX_ROUNDS:
            raise InvalidState("rounds", f"be 1 to {MAX_ROUNDS:,}", f"is {self.rounds:,}")
        if self.num_detectors > MAX_DETECTORS:
            need = f"give at most {MAX_DETECTORS:,} detectors at distance {self.distance}"
            raise InvalidState("rounds", need, f"gives {self.num_detectors:,}")

    @property
    def num_detectors(self) -> int:
        """Detectors of the whole experiment.

        >>> Experiment("rotated_surface", 5, 15).num_detectors, Experiment("repetition", 9, 100).num_detectors
        (360, 808)
        """
        if self.code == "repetition":
            return (self.distance - 1) * (self.rounds + 1)
        stabilisers = self.distance**2 - 1
        # those of the kept basis have a first and a last value; at an even distance X has one more than Z
        kept = (stabilisers + (self.basis == "x")) // 2
        return stabilisers * (self.rounds - 1) + 2 * kept

    @property
    def num_qubits(self) -> int:
        """Data qubits and the qubits that measure the stabilisers."""
        return 2 * self.distance - 1 if self.code == "repetition" else 2 * self.distance**2 - 1


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Shots of an experiment, packed as b8.

    Attributes:
        detectors: detection events, (shots, ceil(num_detectors / 8)) uint8.
        observables: what the logical measurements really did, (shots, ceil(num_observables / 8)) uint8.
    """

    detectors: NDArray[np.uint8]
    observables: NDArray[np.uint8]


def b8_bytes(bits: int) -> int:
    """Bytes of one shot of so many bits.

    >>> b8_bytes(360), b8_bytes(1)
    (45, 1)
    """
    return (bits + 7) // 8


@functools.lru_cache(maxsize=32)
def circuit(experiment: Experiment) -> Any:
    """Give the noisy `stim.Circuit` of an experiment."""
    import stim

    task = {
        "rotated_surface": f"surface_code:rotated_memory_{experiment.basis}",
        "repetition": "repetition_code:memory",
    }[experiment.code]
    noise = {name: getattr(experiment.noise, name) for name in experiment.noise.__dataclass_fields__}
    return stim.Circuit.generated(task, distance=experiment.distance, rounds=experiment.rounds, **noise)


@functools.lru_cache(maxsize=4)
def dem(experiment: Experiment) -> Any:
    """Give the `stim.DetectorErrorModel`, with errors that flip more than two detectors decomposed into edges."""
    return circuit(experiment).detector_error_model(decompose_errors=True)


def sample(experiment: Experiment, shots: int, seed: int | None = None) -> Samples:
    """Draw shots. The same seed gives the same shots on the same machine and version of stim, not on every one.

    Raises:
        InvalidState: `shots` is below 1, or the detection events would exceed `MAX_SAMPLE_BYTES`.
    """
    most = max(1, MAX_SAMPLE_BYTES // b8_bytes(experiment.num_detectors))
    if not 1 <= shots <= most:
        raise InvalidState("shots", f"be 1 to {most:,} for {experiment.num_detectors:,} detectors", f"is {shots:,}")
    sampler = circuit(experiment).compile_detector_sampler(seed=seed)
    detectors, observables = sampler.sample(shots, separate_observables=True, bit_packed=True)
    return Samples(detectors, observables)
