from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from benchmarks.line_chart import Curve, Panel, chart
from benchmarks.links import Asked, curve_channels, evaluate, picture
from benchmarks.locomo import Conversation, Question, Turn
from qraf.network.links import LinkChannel
from tests.encoders import HashEncoder

pytestmark = pytest.mark.slow  # all of them together

TEXTS = (
    "The parrot is called Pixel.",
    "Berlin is a city.",
    "Water boils.",
    "My sister plays the violin.",
    "A tyre is flat.",
)


def conversation() -> Conversation:
    filler = tuple(f"Number {n} is not what was asked for." for n in range(20))
    turns = tuple(Turn(f"D1:{n}", 1, "Ann", text, 10.0 * n) for n, text in enumerate(TEXTS + filler))
    asked = (
        Question("What is the parrot called?", "Pixel", 1, ("D1:0",)),
        Question("Who plays violin?", "", 1, ("D1:3",)),
    )
    return Conversation("c", ("Ann", "Bob"), turns, asked)


def test_an_exact_link_changes_nothing_and_a_hopeless_one_the_states() -> None:
    asked = Asked(conversation(), HashEncoder(384).encode)
    found, fidelity = asked.crossed(LinkChannel((1.0, 0.0, 0.0, 0.0)), "0")
    assert np.array_equal(found, asked.exact)
    assert fidelity.tolist() == pytest.approx([1, 1])
    assert asked.exact.tolist() == [[1, 1], [1, 1]]
    spoilt = [asked.crossed(LinkChannel((0.25, 0.25, 0.25, 0.25)), str(n)) for n in range(20)]
    assert np.mean([fidelity for _, fidelity in spoilt]) < 0.2
    assert np.mean([found[0] for found, _ in spoilt]) < 1
    again = asked.crossed(LinkChannel((0.25, 0.25, 0.25, 0.25)), "3")  # from what was kept
    assert np.array_equal(again[0], spoilt[3][0])


def test_below_the_threshold_distance_helps_and_three_rounds_of_noise_meet_the_bare_link(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qraf.network.links.SHOTS", 4000)
    channels = curve_channels(0.003)
    assert channels["d=3"].fidelity < channels["d=5"].fidelity < channels["d=7"].fidelity
    # Pauli errors with probability p in each of three rounds
    assert channels["bare"].fidelity == pytest.approx((1 + 3 * (1 - 4 * 0.003 / 3) ** 3) / 4)


@pytest.mark.slow
def test_the_picture_has_every_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.links.RATES", (0.001, 0.002))
    monkeypatch.setattr("benchmarks.links.DISTANCES", (3, 5))
    monkeypatch.setattr("qraf.network.links.SHOTS", 500)
    result = evaluate([conversation()], HashEncoder(384).encode, 2)
    assert len(result["points"]) == 2 * 3
    tree = ET.fromstring(picture(result))
    names = [one.text for one in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert names.count("surface code, d=5") == 2


def test_values_lie_where_the_axes_say() -> None:
    text = chart("t", "n", "x", "y", [Panel("p", (Curve("a", ((0.001, 0.0, 0.0), (0.01, 50.0, 1.0))),))])
    [path] = [
        one.attrib["d"]
        for one in ET.fromstring(text).iter("{http://www.w3.org/2000/svg}path")
        if one.attrib.get("fill") == "none"
    ]
    (x0, y0), (x1, y1) = (tuple(map(float, part[1:].split())) for part in path.replace(" L", "|L").split("|"))
    assert x0 < x1
    assert (y0, y1) == (pytest.approx(412), pytest.approx(412 - 320 * 50 / 60, abs=0.1))
