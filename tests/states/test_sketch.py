from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qraf.errors import InvalidState
from qraf.states import measures
from qraf.states.sketch import Sketch
from tests import closed_forms as exact
from tests.examples import examples

D = 24
ROOM = 1e-10


def stream(n: int, seed: int, d: int = D) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) / np.arange(1, d + 1) ** rng.uniform(0, 1)
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)


def moment(x: NDArray[np.float32], w: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    weights = np.ones(len(x)) if w is None else w
    return np.asarray((x.T.astype(np.float64) * weights) @ x.astype(np.float64))


def assert_certified(sketch: Sketch, moment: NDArray[np.float64]) -> None:
    """Every promise of the sketch against the exact second moment."""
    mass = float(np.trace(moment))
    assert sketch.mass == pytest.approx(mass)
    left = np.linalg.eigvalsh(moment - (sketch.factor.T @ sketch.factor).numpy())
    assert -sketch.slack - ROOM * mass <= left[0]
    assert left[-1] <= sketch.delta + ROOM * mass
    rho, factor = torch.from_numpy(moment / mass), sketch.state_factor()
    hat = factor.T @ factor
    assert float(measures.purity(hat)) <= 1 + ROOM
    assert float(measures.trace_distance(rho, hat)) <= sketch.trace_loss + ROOM
    assert float(measures.fidelity(rho, hat)) >= 1 - sketch.trace_loss - ROOM
    low, high = sketch.entropy_interval()
    assert low - 1e-7 <= float(measures.entropy_bits(rho)) <= high + 1e-7
    pure, mixed = sketch.spectra()
    assert float(mixed @ mixed) - ROOM <= float(measures.purity(rho)) <= float(pure @ pure) + ROOM
    x = torch.from_numpy(stream(5, 99, len(moment))).double()
    low_p, high_p = sketch.born_interval(x)
    born = ((x @ rho) * x).sum(1)
    assert bool((low_p - ROOM <= born).all())
    assert bool((born <= high_p + ROOM).all())


def test_few_items_are_kept_exactly() -> None:
    x = stream(8, 1)
    sketch = Sketch(D, rank=8)
    for row in x:
        sketch.update(row[None])
    assert sketch.rows == 8
    assert sketch.delta == sketch.slack == 0
    assert sketch.trace_loss < 1e-12
    assert np.array_equal(sketch.factor.numpy(), x)
    low, high = sketch.entropy_interval()
    assert high - low < 1e-5
    assert_certified(sketch, moment(x))


def test_orthonormal_items_have_log_n_bits() -> None:
    sketch = Sketch(16, rank=16)
    sketch.update(exact.simplex(16))
    low, high = sketch.entropy_interval()
    assert low == pytest.approx(4, abs=1e-6)
    assert high == pytest.approx(4, abs=1e-6)
    assert sketch.weight_entropy() == pytest.approx(4)


def test_one_more_direction_than_rank_costs_exactly_the_cut() -> None:
    sketch = Sketch(3, rank=2, alpha=1.0, dtype="float64")
    sketch.update(np.diag([3.0, 2.0, 1.0]))
    # spectrum 9, 4, 1: the cut 1 comes off both kept directions
    assert sketch.delta == pytest.approx(1)
    assert torch.linalg.eigvalsh(sketch.factor.T @ sketch.factor).tolist() == pytest.approx([0, 3, 8])
    assert sketch.trace_loss == pytest.approx(3 / 14)
    half = Sketch(3, rank=2, alpha=0.5, dtype="float64")
    half.update(np.diag([3.0, 2.0, 1.0]))
    assert torch.linalg.eigvalsh(half.factor.T @ half.factor).tolist() == pytest.approx([0, 3, 9])
    assert half.delta == pytest.approx(1)


@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=5),
    rank=st.integers(1, 12),
    dtype=st.sampled_from(["float64", "float32", "float16"]),
    alpha=st.sampled_from([0.2, 0.5, 1.0]),
    gamma=st.sampled_from([1.0, 0.7, 0.01]),
)
@settings(max_examples=examples(40), deadline=None)
def test_certificates_are_never_violated(
    seed: int, sizes: list[int], rank: int, dtype: str, alpha: float, gamma: float
) -> None:
    sketch, total = Sketch(D, rank, alpha, dtype), np.zeros((D, D))
    for index, size in enumerate(sizes):
        x, w = stream(size, seed + index), np.random.default_rng(seed + index).uniform(0, 3, size)
        sketch.decay(gamma)
        sketch.update(x, w)
        total = gamma * total + moment(x, w)
    assert len(sketch.factor) <= rank
    if sum(sizes):
        assert_certified(sketch, total)


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 40),
    m=st.integers(0, 40),
    dtype=st.sampled_from(["float32", "float16"]),
)
@settings(max_examples=examples(25), deadline=None)
def test_merge_is_the_sum(seed: int, n: int, m: int, dtype: str) -> None:
    x, y = stream(n, seed), stream(m, seed + 1)
    a, b = Sketch(D, 6, dtype=dtype), Sketch(D, 9, dtype="float64")
    a.update(x)
    b.update(y)
    deltas = a.delta + b.delta
    a.merge(b)
    assert a.rows == n + m
    assert a.delta >= deltas
    assert a.weight_entropy() == pytest.approx(math.log2(n + m), abs=1e-6)
    assert_certified(a, moment(np.concatenate((x, y))))


def test_decay_scales_past_and_certificates() -> None:
    sketch = Sketch(D, 4)
    sketch.update(stream(50, 3))
    before = sketch.copy()
    sketch.decay(0.25)
    assert sketch.mass == pytest.approx(before.mass / 4)
    assert sketch.delta == pytest.approx(before.delta / 4)
    assert sketch.slack == pytest.approx(before.slack / 4)
    assert torch.allclose(sketch.factor, before.factor / 2)
    assert sketch.trace_loss == pytest.approx(before.trace_loss)  # the state itself is the same
    assert sketch.entropy_interval() == pytest.approx(before.entropy_interval())
    assert sketch.weight_entropy() == pytest.approx(before.weight_entropy())


def test_the_entropy_of_the_weights_survives_decay_and_merge() -> None:
    sketch, other, w = Sketch(4, 2), Sketch(4, 2), np.array([1.0, 2.0, 5.0])
    sketch.update(np.eye(4)[:3], w)
    sketch.decay(0.5)
    sketch.update(np.eye(4)[:1])
    other.update(np.eye(4)[3:], np.array([2.0]))
    sketch.merge(other)
    p = np.array([0.5, 1.0, 2.5, 1.0, 2.0]) / 7
    assert sketch.weight_entropy() == pytest.approx(-(p * np.log2(p)).sum())


def test_forgetting_everything_leaves_an_empty_state() -> None:
    sketch = Sketch(D, 4)
    assert sketch.entropy_interval() == (0, 0)
    assert len(sketch.state_factor()) == 0
    assert sketch.trace_loss == 0
    sketch.update(stream(9, 1))
    sketch.decay(0.0)
    assert (sketch.mass, sketch.delta, sketch.trace_loss, sketch.weight_entropy()) == (0, 0, 0, 0)
    assert len(sketch.state_factor()) == 0
    with pytest.raises(InvalidState, match="hold some weight, but is empty"):
        sketch.born_interval(torch.ones(D))
    x = stream(3, 2)
    sketch.update(x)
    assert_certified(sketch, moment(x))


def test_the_interval_is_inside_fannes_and_audenaert() -> None:
    x = stream(300, 7)
    sketch = Sketch(D, 12)
    sketch.update(x)
    low, high = sketch.entropy_interval()
    eps, hat = sketch.trace_loss, float(measures.entropy_bits_factor(sketch.state_factor()))
    width = eps * math.log2(D - 1) + exact.binary_entropy(eps)
    assert low >= hat - width
    assert high <= hat + width


def test_delta_obeys_the_theorem() -> None:
    # delta <= min_k |A - A_k|_F^2 / (alpha l - k): Ghashami et al. 2016, with alpha: Desai, Ghashami, Phillips 2015
    x, sketch = stream(600, 5), Sketch(D, 10, alpha=1.0, dtype="float64")
    for start in range(0, 600, 10):
        sketch.update(x[start : start + 10])
    spectrum = np.linalg.eigvalsh(moment(x))[::-1]
    assert sketch.delta <= min(spectrum[k:].sum() / (10 - k) for k in range(10))


def test_float16_counts_its_rounding_and_ignores_the_scale() -> None:
    x = stream(4, 2)
    small, large = Sketch(D, 4, dtype="float16"), Sketch(D, 4, dtype="float16")
    small.update(x, np.full(4, 1e-12))
    large.update(x, np.full(4, 1e12))
    for sketch, scale in ((small, 1e-12), (large, 1e12)):
        assert 0 < sketch.slack / sketch.mass < 1e-3
        assert_certified(sketch, scale * moment(x))
    assert Sketch(D, 4, dtype="float16").nbytes == 0
    assert small.nbytes == 4 * D * 2 + 4 * 8


def test_large_blocks_are_certified_too() -> None:
    x, w = stream(1000, 6), np.random.default_rng(6).uniform(0, 2, 1000)
    for weights in (None, w):
        wide, narrow = Sketch(D, 6, dtype="float64"), Sketch(D, 6)
        wide.update(x, weights)
        narrow.update(x, weights)
        assert_certified(narrow, moment(x, weights))
        assert wide.delta < narrow.delta < wide.delta + 2e-5 * wide.mass  # float32 products, counted
        assert torch.allclose(narrow.factor.T @ narrow.factor, wide.factor.T @ wide.factor, atol=1e-6 * wide.mass)


def test_bytes_bring_the_same_sketch_back() -> None:
    sketch = Sketch(D, 5, dtype="float16")
    sketch.update(stream(40, 4))
    again = Sketch.from_bytes(sketch.to_bytes())
    assert again.to_bytes() == sketch.to_bytes()
    for one in (sketch, again):
        one.update(stream(7, 5))
    assert torch.equal(again.factor, sketch.factor)
    assert again.delta == sketch.delta


def test_wrong_input_is_named_and_changes_nothing() -> None:
    sketch = Sketch(D, 4)
    sketch.update(stream(9, 1))
    before = sketch.to_bytes()
    for rows, weights, message in (
        (np.zeros((2, 3)), None, r"`rows` must have shape \(n, 24\), but has \(2, 3\)"),
        (np.full((1, D), np.inf), None, "be finite"),
        (stream(1, 1), np.array([-1.0]), "be at least 0"),
        (stream(1, 1), np.array([np.nan]), "be finite"),
        (stream(2, 1), np.array([1.0]), r"have shape \(2,\)"),
        (np.zeros((1, D), complex), None, "be real"),
    ):
        with pytest.raises(InvalidState, match=message):
            sketch.update(rows, weights)
    with pytest.raises(InvalidState, match="have dimension 24, but has 3"):
        sketch.merge(Sketch(3))
    with pytest.raises(InvalidState, match=r"`gamma` must be in \[0, 1\]"):
        sketch.decay(1.5)
    assert sketch.to_bytes() == before
    for bad in ({"dim": 0}, {"dim": 3, "alpha": 0.0}, {"dim": 3, "dtype": "int8"}):
        with pytest.raises(InvalidState):
            Sketch(**bad)  # type: ignore[arg-type]
