"""What is asked of stabiliser codes and what is answered: bodies of REST, parts of frames. No torch, no stim.

Bits travel as b8, base64 in JSON: shot by shot, ceil(n / 8) bytes each, the first bit lowest in its byte.
"""

from __future__ import annotations

from typing import Literal

from qraf.base_orders import AnswerPart, OrderPart, TaggedAnswer

__all__ = [
    "Basis",
    "BuildCode",
    "CodeAnswer",
    "CodeBuilt",
    "CodeExperiment",
    "CodeName",
    "CodeNoise",
    "CodeOrder",
    "CodeSampled",
    "DecodeShots",
    "ErrorFigures",
    "SampleCode",
    "ShotsDecoded",
]

CodeName = Literal["rotated_surface", "repetition"]
Basis = Literal["z", "x"]


class CodeNoise(OrderPart, frozen=True, kw_only=True):
    """Probabilities of circuit noise, under stim's names; depolarisation 0 to 0.75, flips 0 to 1."""

    before_round_data_depolarization: float = 0.0
    before_measure_flip_probability: float = 0.0
    after_reset_flip_probability: float = 0.0
    after_clifford_depolarization: float = 0.0


class CodeExperiment(OrderPart, frozen=True, kw_only=True):
    """A memory experiment: a logical qubit is kept for `rounds` rounds of syndrome measurement.

    `distance` 2 to 25; `rounds` 1 to 10,000, with at most 50,000 detectors in all. `noise`: one probability for all
    four places, or each by its name. `basis`: `z` keeps |0>, `x` keeps |+>; the repetition code has only `z`.
    """

    code: CodeName
    distance: int
    rounds: int
    noise: float | CodeNoise = 0.0
    basis: Basis = "z"


# ------------------------------------------------------------------------------------------------------------ orders
class BuildCode(OrderPart, frozen=True, kw_only=True, tag_field="op", tag="build"):
    """The sizes of an experiment; with `dem` its detector error model too, in stim's text."""

    experiment: CodeExperiment
    dem: bool = False


class SampleCode(OrderPart, frozen=True, kw_only=True, tag_field="op", tag="sample"):
    """Draw shots: detection events, and what the observable really did. Without `seed` one is drawn and told."""

    experiment: CodeExperiment
    shots: int = 1
    seed: int | None = None


class DecodeShots(OrderPart, frozen=True, kw_only=True, tag_field="op", tag="decode"):
    """Predict which observables flipped, from detection events (b8): of an `experiment`, or of a `dem` (stim's text).

    `observables` (b8): what really happened, for the error figures. `window` and `commit`, in rounds of detectors:
    decode in a sliding window instead of all at once.
    """

    experiment: CodeExperiment | None = None
    dem: str | None = None
    detectors: bytes
    observables: bytes | None = None
    window: int | None = None
    commit: int | None = None


# ------------------------------------------------------------------------------------------------------------ answers
class CodeBuilt(TaggedAnswer, frozen=True, kw_only=True, tag="built"):
    """Sizes. `layers`: detectors of each round; the last layer comes with the final measurement of the data.

    `num_errors`: mechanisms of the detector error model. `bytes_per_shot`: of the detectors as b8.
    """

    num_qubits: int
    num_detectors: int
    num_observables: int
    num_errors: int
    bytes_per_shot: int
    layers: tuple[int, ...]
    dem: str | None = None


class CodeSampled(TaggedAnswer, frozen=True, kw_only=True, tag="sampled"):
    """Shots as b8. `events`: detection events in all of them. The same seed gives the same shots on one machine."""

    shots: int
    seed: int
    num_detectors: int
    num_observables: int
    events: int
    detectors: bytes
    observables: bytes


class ErrorFigures(AnswerPart, frozen=True, kw_only=True):
    """How often the decoder was wrong, with the Wilson interval of 95 %; per round only for an experiment."""

    errors: int
    rate: float
    low: float
    high: float
    per_round: float | None = None
    per_round_low: float | None = None
    per_round_high: float | None = None


class ShotsDecoded(TaggedAnswer, frozen=True, kw_only=True, tag="decoded"):
    """Predicted flips of the observables as b8, one row for each shot.

    `events`: detection events on which an observable depends. `weight`: mean over the shots of the matching's weight,
    -ln of how likely the found errors are against none; null with a window. `errors`: only with `observables`.
    """

    shots: int
    num_detectors: int
    num_observables: int
    observables: bytes
    events: int
    weight: float | None = None
    errors: ErrorFigures | None = None


CodeOrder = BuildCode | SampleCode | DecodeShots
CodeAnswer = CodeBuilt | CodeSampled | ShotsDecoded
