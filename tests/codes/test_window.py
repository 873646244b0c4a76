from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qraf.codes import window
from qraf.codes.decoder import Decoder
from qraf.codes.experiment import Experiment, Noise, Samples, b8_bytes, dem, sample
from qraf.codes.rates import error_rate
from qraf.codes.window import WindowDecoder, WindowPlan
from qraf.errors import InvalidState
from tests.examples import examples

pytestmark = pytest.mark.slow  # all of them together


def surface(distance: int, p: float, rounds: int | None = None) -> Experiment:
    return Experiment("rotated_surface", distance, rounds or 3 * distance, Noise.uniform(p))


def in_layers(plan: WindowPlan, detectors: NDArray[np.uint8], sizes: list[int]) -> list[tuple[NDArray[np.uint8], int]]:
    """Cut whole shots, whose detectors are in time order, into pushes of so many layers."""
    bits = np.unpackbits(detectors, axis=1, bitorder="little")
    pieces, layer, at = [], 0, 0
    for size in sizes:
        n = plan.bits(layer, size)
        pieces.append((np.packbits(bits[:, at : at + n], axis=1, bitorder="little"), size))
        layer, at = layer + size, at + n
    return pieces


def at_once(plan: WindowPlan, drawn: Samples) -> NDArray[np.uint8]:
    stream = WindowDecoder(plan, len(drawn.detectors))
    stream.push(drawn.detectors, plan.num_layers)
    return stream.finish().observables


@pytest.mark.slow
@pytest.mark.parametrize(("distance", "p"), [(3, 0.01), (5, 0.005), (5, 0.007), (7, 0.005)])
def test_window_equals_the_global_decoder_within_two_standard_errors(distance: int, p: float) -> None:
    experiment = surface(distance, p)
    drawn = sample(experiment, 20_000, 11)
    whole = Decoder.of(experiment).decode(drawn.detectors).observables
    sliding = at_once(WindowPlan.of(experiment), drawn)
    rates = [error_rate(found, drawn.observables) for found in (whole, sliding)]
    se = math.sqrt(sum(rate.rate * (1 - rate.rate) / rate.shots for rate in rates))
    assert abs(rates[0].rate - rates[1].rate) < 2 * se
    # on the same shots they differ far less than two samples would
    assert (whole != sliding).any(axis=1).mean() < 0.01


def test_short_windows_lose() -> None:
    experiment = surface(5, 0.008, rounds=30)
    drawn = sample(experiment, 5000, 1)
    rates = [
        error_rate(at_once(WindowPlan.of(experiment, window, commit), drawn), drawn.observables).rate
        for window, commit in ((10, 5), (3, 2))
    ]
    assert rates[1] > 1.1 * rates[0]


def test_a_window_over_everything_is_the_global_decoder() -> None:
    for experiment in (surface(3, 0.01), Experiment("repetition", 5, 9, Noise.uniform(0.02))):
        drawn = sample(experiment, 2000, 5)
        whole = Decoder.of(experiment).decode(drawn.detectors).observables
        assert np.array_equal(at_once(WindowPlan.of(experiment, window=99, commit=99), drawn), whole)


@settings(max_examples=examples(25))
@given(cuts=st.lists(st.integers(0, 14), max_size=6), basis=st.sampled_from("zx"))
def test_any_way_of_cutting_the_rounds_gives_the_same(cuts: list[int], basis: str) -> None:
    experiment = Experiment("rotated_surface", 3, 13, Noise.uniform(0.01), basis)
    plan = WindowPlan.of(experiment, 6, 3)
    drawn = sample(experiment, 200, 9)
    edges = [0, *sorted(cuts), plan.num_layers]
    sizes = [b - a for a, b in itertools.pairwise(edges)]
    stream = WindowDecoder(plan, 200)
    before = 0
    for piece, size in in_layers(plan, drawn.detectors, sizes):
        committed = stream.push(piece, size)
        assert before <= committed.layers <= stream.layers
        before = committed.layers
    assert stream.finish().layers == plan.num_layers
    assert np.array_equal(stream.finish().observables, at_once(plan, drawn))


def test_commits_come_as_soon_as_a_window_is_full() -> None:
    experiment = surface(3, 0.01, rounds=20)  # 21 layers, windows of 6, commit 3
    plan = WindowPlan.of(experiment)
    stream = WindowDecoder(plan, 50)
    drawn = sample(experiment, 50, 4)
    seen = [stream.push(piece, 1).layers for piece, _ in in_layers(plan, drawn.detectors, [1] * 21)]
    assert seen == [0] * 5 + [3] * 3 + [6] * 3 + [9] * 3 + [12] * 3 + [15] * 3 + [21]
    # nothing that was decided is kept
    assert stream._held.shape[1] == 0
    assert stream.events == int(np.bitwise_count(plan.packed(drawn.detectors, 0, 21)).sum())


def test_equal_windows_share_a_graph() -> None:
    experiment = surface(3, 0.01, rounds=60)
    plan = WindowPlan.of(experiment)
    at_once(plan, sample(experiment, 10, 0))
    # the first, those in the middle, the last
    assert len(plan._matchings) == 3


def test_corrections_are_the_edges_of_the_matching() -> None:
    experiment = surface(3, 0.004, rounds=12)
    drawn = sample(experiment, 500, 6)
    plan = WindowPlan.of(experiment, 99, 99)
    stream = WindowDecoder(plan, 500, count=True)
    counted = stream.push(drawn.detectors, plan.num_layers).corrections
    decoder = Decoder.of(experiment)
    bits = np.unpackbits(drawn.detectors, axis=1, bitorder="little", count=experiment.num_detectors)
    bits &= decoder.graph.relevant
    width = decoder._matching.num_detectors
    assert counted == sum(len(decoder._matching.decode_to_edges_array(row[:width])) for row in bits)
    sliding = WindowDecoder(WindowPlan.of(experiment), 500, count=True)
    total = sliding.push(drawn.detectors, plan.num_layers).corrections
    assert total == pytest.approx(counted, rel=0.02)
    assert WindowDecoder(plan, 1).committed.corrections is None


def test_many_seam_detectors_and_several_observables() -> None:
    # two chains of repetition codes side by side, each with its own observable, over 12 layers
    lines = []
    for layer in range(12):
        for chain in range(2):
            first = (layer * 2 + chain) * 4
            lines += [f"detector({chain},{k},{layer}) D{first + k}" for k in range(4)]
            lines += [f"error(0.05) D{first} L{chain * 40}", f"error(0.05) D{first + 3}"]
            lines += [f"error(0.05) D{first + k} D{first + k + 1}" for k in range(3)]
            if layer < 11:
                lines += [f"error(0.05) D{first + k} D{first + k + 8}" for k in range(4)]
    text = "\n".join(lines)
    plan, decoder = WindowPlan.of_dem(text, 8, 4), Decoder.of_dem(text)
    import stim

    drawn = stim.DetectorErrorModel(text).compile_sampler(seed=1).sample(3000, bit_packed=True)
    detectors, observables = np.asarray(drawn[0]), np.asarray(drawn[1])
    stream = WindowDecoder(plan, 3000)
    found = stream.push(detectors, 12).observables
    whole = decoder.decode(detectors).observables
    assert found.shape == (3000, b8_bytes(41))
    assert (found != whole).any(axis=1).mean() < 0.01
    rates = [error_rate(x, observables).rate for x in (found, whole)]
    assert rates[0] == pytest.approx(rates[1], rel=0.1)
    assert 0 < rates[1] < 0.5


def test_detectors_out_of_time_order_are_taken_layer_by_layer() -> None:
    # D0 is late, D1 early
    text = "error(0.1) D1 L0\nerror(0.1) D1 D0\nerror(0.1) D0\ndetector(0, 5) D0\ndetector(0, 1) D1"
    plan = WindowPlan.of_dem(text, 2, 1)
    stream = WindowDecoder(plan, 2)
    stream.push(np.array([[1], [0]], np.uint8), 1)
    stream.push(np.array([[0], [1]], np.uint8), 1)
    assert stream.finish().observables.tolist() == [[1], [0]]


def test_what_does_not_fit_is_named_and_changes_nothing() -> None:
    experiment = surface(3, 0.01)
    plan = WindowPlan.of(experiment)  # layers of 4, 8, ..., 8, 4
    stream = WindowDecoder(plan, 2)
    assert stream.push(np.zeros((2, 0), np.uint8), 0).layers == 0
    with pytest.raises(InvalidState, match="be all 10 before the end, but are 0"):
        stream.finish()
    with pytest.raises(InvalidState, match="`layers` must be 0 to 10: 0 of 10 came, but is 11"):
        stream.push(np.zeros((2, 9), np.uint8), 11)
    with pytest.raises(InvalidState, match="have 2 shots, but have 1"):
        stream.push(np.zeros((1, 1), np.uint8), 1)
    with pytest.raises(InvalidState, match=r"\(shots, 2\) of uint8: 12 bits"):
        stream.push(np.zeros((2, 1), np.uint8), 2)
    with pytest.raises(InvalidState, match="be 0 behind their 4 bits"):
        stream.push(np.full((2, 1), 16, np.uint8), 1)
    drawn = sample(experiment, 2, 0)
    assert stream.layers == 0
    stream.push(drawn.detectors, 10)
    with pytest.raises(InvalidState, match="be 0 to 0: 10 of 10 came"):
        stream.push(np.zeros((2, 1), np.uint8), 1)
    with pytest.raises(InvalidState, match="`shots`"):
        WindowDecoder(plan, 0)


def test_windows_that_do_not_fit_the_model_are_named() -> None:
    experiment = surface(3, 0.01)
    with pytest.raises(InvalidState, match="`commit` must be 1 to the window of 4 layers"):
        WindowPlan.of(experiment, 4, 5)
    with pytest.raises(InvalidState, match="`window` must be at least 5"):
        WindowPlan.of(experiment, 4, 4)
    with pytest.raises(InvalidState, match="`window` must be at least 1 layer, but is 0"):
        WindowPlan.of(experiment, 0)
    with pytest.raises(InvalidState, match="`commit`"):
        WindowPlan.of(experiment, 6, 0)
    with pytest.raises(InvalidState, match="give every detector its time"):
        WindowPlan.of_dem("error(0.1) D0 D1 L0\nerror(0.1) D0")
    by_text = WindowPlan.of_dem(str(dem(experiment)))
    assert (by_text.window, by_text.commit, by_text.num_layers) == (20, 10, 10)


def test_events_without_a_match_are_named() -> None:
    plan = WindowPlan.of_dem("error(0.1) D0 D1 L0\ndetector(0) D0\ndetector(1) D1")
    with pytest.raises(InvalidState, match="perfect matching"):
        WindowDecoder(plan, 1).push(np.array([[1]], np.uint8), 2)


def test_shots_are_repacked_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    rows = np.packbits(rng.integers(0, 2, (37, 19), np.uint8), axis=1, bitorder="little")
    source = rng.permutation(20)  # the last is the zero behind the bits
    at_once = window._picked(rows, 19, source)
    bits = np.pad(np.unpackbits(rows, axis=1, count=19, bitorder="little"), ((0, 0), (0, 1)))
    assert (np.unpackbits(at_once, axis=1, count=20, bitorder="little") == bits[:, source]).all()
    monkeypatch.setattr(window, "_UNPACKED", 100)  # five shots
    assert (window._picked(rows, 19, source) == at_once).all()
