"""Detector error models that come from outside: read, checked against the limits, its faults named by their line."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qraf.codes.experiment import MAX_DETECTORS
from qraf.errors import InvalidState

__all__ = [
    "MAX_DEM_CHARACTERS",
    "MAX_ERRORS",
    "MAX_INSTRUCTIONS",
    "MAX_NESTING",
    "MAX_OBSERVABLES",
    "detector_layers",
    "parse",
]

MAX_DEM_CHARACTERS = 8 * 2**20
MAX_ERRORS = 1_000_000
"""Error mechanisms after `repeat` blocks are unrolled."""
MAX_INSTRUCTIONS = 4_000_000
"""Lines of any kind after `repeat` blocks are unrolled: whoever reads the model walks through all of them."""
MAX_NESTING = 64
"""`repeat` blocks inside each other; stim reads them by recursion, and ten thousands of them end the process."""
MAX_OBSERVABLES = 64

_ERROR = re.compile(r"\s*error\s*(?:\[[^\]]*\])?\s*\([^)]*\)(?P<targets>[^#]*)", re.IGNORECASE)


def parse(text: str, name: str = "dem") -> Any:
    """Read the text of a detector error model into a `stim.DetectorErrorModel`.

    Raises:
        InvalidState: the text does not parse (the line is named), is larger than the limits, or has an error that
            flips more than two detectors and is not decomposed: matching would silently leave it out.
    """
    import stim

    if len(text) > MAX_DEM_CHARACTERS:
        raise InvalidState(name, f"have at most {MAX_DEM_CHARACTERS:,} characters", f"has {len(text):,}")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise InvalidState(name, "be valid Unicode", "holds half a surrogate pair")
    _check_nesting(text, name)
    try:
        model = stim.DetectorErrorModel(text)
    except (ValueError, IndexError) as error:
        raise _fault(text, name, str(error)) from error
    for what, most, got in (
        ("detectors", MAX_DETECTORS, model.num_detectors),
        ("observables", MAX_OBSERVABLES, model.num_observables),
        ("errors", MAX_ERRORS, model.num_errors),
    ):
        if got > most:
            raise InvalidState(name, f"have at most {most:,} {what}", f"has {got:,}")
    # stim counts modulo 2^64, and counts no line that is not an error
    if "{" in text and (unrolled := _unrolled(model)) > MAX_INSTRUCTIONS:
        need = f"have at most {MAX_INSTRUCTIONS:,} lines when `repeat` blocks are unrolled"
        raise InvalidState(name, need, f"has {float(unrolled):.3g}")
    for what, got in (("detectors", model.num_detectors), ("observables", model.num_observables)):
        if not got:
            raise InvalidState(name, f"have {what}", "has none")
    for number, line in enumerate(text.splitlines(), 1):
        if match := _ERROR.match(line):
            worst = max(part.upper().count("D") for part in match["targets"].split("^"))
            if worst > 2:
                need = "flip at most two detectors per error (decompose_errors=True gives such a model)"
                raise InvalidState(f"{name} line {number}", need, f"flips {worst}")
    return model


def detector_layers(model: Any) -> NDArray[np.int64] | None:
    """Give the time layer of each detector, (num_detectors,), counted from 0; None where a detector has no time.

    The last coordinate of a detector is its time, as in stim's own circuits. Times are taken in order; how far apart
    they lie does not matter.
    """
    coordinates = model.get_detector_coordinates()
    if any(not place for place in coordinates.values()) or len(coordinates) < model.num_detectors:
        return None
    times = np.array([coordinates[index][-1] for index in range(model.num_detectors)])
    return np.unique(times, return_inverse=True)[1].astype(np.int64)


def _check_nesting(text: str, name: str) -> None:
    """Count open blocks, from above: what is in a comment or a tag behind a line's beginning counts as opened."""
    depth = 0
    for number, line in enumerate(text.split("\n"), 1):
        bare = line.strip(" \t\r")
        if bare.startswith("}"):
            depth -= 1
        elif "{" in bare and not bare.startswith("#"):
            depth += 1
            if depth > MAX_NESTING:
                raise InvalidState(f"{name} line {number}", f"nest at most {MAX_NESTING} blocks", "nests more")


def _unrolled(model: Any) -> int:
    """How many lines a model has when its blocks are written out."""
    import stim

    return sum(
        line.repeat_count * _unrolled(line.body_copy()) if isinstance(line, stim.DemRepeatBlock) else 1
        for line in model
    )


def _fault(text: str, name: str, reason: str) -> InvalidState:
    """Find the line that stim refused: its messages name none."""
    import stim

    depth = 0
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.partition("#")[0].strip()
        try:
            if bare.endswith("{"):
                depth += 1
                stim.DetectorErrorModel(f"{bare}\nerror(0.1) D0\n}}")
            elif bare == "}":
                depth -= 1
                if depth < 0:
                    return InvalidState(f"{name} line {number}", "close a block that was opened", "has '}' alone")
            else:
                stim.DetectorErrorModel(bare)
        except (ValueError, IndexError) as error:
            return InvalidState(f"{name} line {number}", "be a line of a detector error model", f"stim says: {error}")
    return InvalidState(name, "be a detector error model", f"stim says: {reason}")
