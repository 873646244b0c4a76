"""Error rates of a decoder: counted, with their error bars, per shot and per round."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qraf.errors import InvalidState

__all__ = ["ErrorRate", "error_rate", "over_rounds", "per_round", "wilson"]


@dataclass(frozen=True, slots=True)
class ErrorRate:
    """How often a decoder was wrong.

    Attributes:
        shots: decoded.
        errors: shots in which some observable came out wrong.
        rate: errors / shots.
        low: lower end of the Wilson interval of `rate`, 95 %.
        high: its upper end.
        per_round: `rate` turned into that of one round.
        per_round_low: `low` turned into that of one round.
        per_round_high: `high` turned into that of one round.
    """

    shots: int
    errors: int
    rate: float
    low: float
    high: float
    per_round: float
    per_round_low: float
    per_round_high: float


def error_rate(predicted: NDArray[np.uint8], actual: NDArray[np.uint8], rounds: int = 1) -> ErrorRate:
    """Compare predictions with what the observables really did, both (shots, bytes) of b8.

    Raises:
        InvalidState: the shapes differ, or there is no shot.
    """
    if predicted.shape != actual.shape:
        raise InvalidState("observables", f"have shape {predicted.shape}", f"have {actual.shape}")
    shots = len(actual)
    errors = int((predicted != actual).any(axis=1).sum())
    low, high = wilson(errors, shots, 1.959964)
    rates = (errors / shots, low, high)
    return ErrorRate(shots, errors, *rates, *(per_round(rate, rounds) for rate in rates))


def wilson(errors: int, shots: int, z: float = 1.0) -> tuple[float, float]:
    """Give the interval of a rate that lies within z standard errors of what was counted (Wilson 1927).

    Unlike the square root of q (1 - q) / n it does not shrink to nothing when no error was seen.

    Raises:
        InvalidState: there is no shot, or more errors than shots.

    >>> low, high = wilson(0, 1000)
    >>> low, round(high, 6)
    (0.0, 0.000999)
    """
    if shots < 1 or not 0 <= errors <= shots:
        raise InvalidState("errors, shots", "be counts with 0 <= errors <= shots >= 1", f"are {errors}, {shots}")
    centre = (errors + z * z / 2) / (shots + z * z)
    half = z / (shots + z * z) * math.sqrt(errors * (shots - errors) / shots + z * z / 4)
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    # the ends are exact here, rounding would leave 1e-19
    return (0.0 if errors == 0 else low), (1.0 if errors == shots else high)


def per_round(rate: float, rounds: float) -> float:
    """Turn the error rate of `rounds` rounds into that of one: (1 - (1 - 2 P)^(1 / R)) / 2.

    A round flips the observable or not; an odd number of flips is an error. Beyond 1/2 nothing is left to tell.

    >>> round(per_round(0.18, 2), 3)
    0.1
    """
    return over_rounds(rate, 1 / rounds)


def over_rounds(rate: float, rounds: float) -> float:
    """Turn the error rate of one stretch into that of `rounds` such stretches: (1 - (1 - 2 q)^R) / 2."""
    return float(1 - max(0.0, 1 - 2 * rate) ** rounds) / 2
