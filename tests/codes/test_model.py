from __future__ import annotations

import numpy as np
import pytest

from qraf.codes.experiment import Experiment, Noise, dem
from qraf.codes.model import detector_layers, parse
from qraf.errors import InvalidState

GOOD = "error(0.1) D0 L0\nerror(0.1) D0 D1\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            GOOD + "\n# a comment\nfoo D2",
            "`dem line 5` must be a line .* stim says: Unrecognized instruction name: foo",
        ),
        (GOOD + "error(2) D0", "`dem line 3` .* probability"),
        (GOOD + "repeat 3 {\n  errr(0.1) D0\n}", "`dem line 4`"),
        (GOOD + "}", "`dem line 3` must close a block"),
        (GOOD + "repeat 2 {", "Unterminated block"),
        (GOOD + "error(0.1) D0 D1 D2", "`dem line 3` must flip at most two .* flips 3"),
        ("error(0.1) D0 D1 ^ D2 D3 D4 L0", "`dem line 1` must flip at most two"),
        ("error(0.1) D0 L64", "at most 64 observables, but has 65"),
        ("error(0.1) D99999999 L0", "at most 50,000 detectors"),
        (GOOD + "repeat 1000000000 {\n repeat 1000000000 {\n error(0.1) D0\n }\n}", "at most 1,000,000 errors"),
        # 2^64 errors, which stim counts as none
        (GOOD + "repeat 4294967296 {\n repeat 4294967296 {\n error(0.1) D0\n }\n}", "at most 4,000,000 lines"),
        (GOOD + "repeat 1000000000000 {\n shift_detectors 0\n}", "at most 4,000,000 lines .* has 1e\\+12"),
        (GOOD + "repeat 2 {\n" * 60_000 + "error(0.1) D0\n" + "}\n" * 60_000, "`dem line 67` must nest at most 64"),
        (GOOD + "repeat[#] 2 { # }\x0b}\n" * 60_000 + "}\n" * 60_000, "must nest at most 64"),
        (GOOD + "error[\ud800](0.1) D0", "valid Unicode"),
        ("error(0.1) D0", "have observables, but has none"),
        ("", "have detectors, but has none"),
    ],
)
def test_what_is_no_model_is_named_with_its_line(text: str, says: str) -> None:
    with pytest.raises(InvalidState, match=says):
        parse(text)


def test_models_are_read_with_comments_tags_and_blocks() -> None:
    model = parse(
        "# D0 D1 D2 D3\nerror[D0 D1 D2](0.1) D0 L0 # D1 D2 D3\nrepeat 3 {\n error(0.1) D0 D1\n shift_detectors 1\n}"
    )
    assert (model.num_detectors, model.num_observables) == (4, 1)
    nested = parse(GOOD + "repeat 1 { # {\n" * 64 + "error(0.1) D0\n" + "}\n" * 64)
    assert nested.num_errors == 3
    text = str(dem(Experiment("rotated_surface", 3, 3, Noise.uniform(0.01))))
    assert str(parse(text)) == text


def test_layers_are_the_times() -> None:
    layers = detector_layers(dem(Experiment("rotated_surface", 3, 3, Noise.uniform(0.01))))
    assert layers is not None
    assert np.bincount(layers).tolist() == [4, 8, 8, 4]
    assert detector_layers(parse(GOOD)) is None
    late = detector_layers(parse(GOOD + "detector(0, 7.5) D0\ndetector(2) D1"))
    assert late is not None
    assert late.tolist() == [1, 0]
