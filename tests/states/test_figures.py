from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qraf.errors import InvalidState
from qraf.states.figures import StateFigures, completed_spectrum, exact_figures, memory_figures
from qraf.states.sketch import Sketch
from tests import closed_forms as exact
from tests.examples import examples
from tests.states.test_sketch import D, stream


def sketched(x: np.ndarray | torch.Tensor, rank: int = 8, block: int = 512, dtype: str = "float32") -> Sketch:
    sketch = Sketch(x.shape[1], rank, dtype=dtype)
    for start in range(0, len(x), block):
        sketch.update(x[start : start + block])
    return sketch


def test_an_empty_memory_measures_zero() -> None:
    assert memory_figures(Sketch(D)) == StateFigures()
    assert exact_figures(np.zeros((0, D))) == StateFigures()
    assert exact_figures(np.zeros((3, D))) == StateFigures()


@pytest.mark.parametrize("overlap", [0.0, 0.5, 1.0])
def test_two_items_share_what_their_overlap_says(overlap: float) -> None:
    x = exact.two_kets(overlap)
    entropy = exact.binary_entropy((1 + overlap) / 2)
    for figures in (exact_figures(x), memory_figures(sketched(x))):
        assert figures.entropy_bits == pytest.approx(entropy, abs=1e-6)
        assert figures.coherence_bits == pytest.approx(1 - entropy, abs=1e-6)
        assert figures.purity == pytest.approx((1 + overlap**2) / 2, abs=1e-6)
        assert figures.effective_rank == pytest.approx(2**entropy, abs=1e-6)
        assert figures.weight_entropy_bits == pytest.approx(1)
        assert figures.is_exact


def test_orthogonal_items_share_nothing_and_equal_items_everything() -> None:
    apart, same = exact_figures(exact.simplex(8)), exact_figures(np.ones((8, 3)))
    assert (apart.entropy_bits, apart.coherence_bits, apart.rank) == pytest.approx((3, 0, 8))
    assert (same.entropy_bits, same.coherence_bits, same.rank) == pytest.approx((0, 3, 1))


def test_weights_count() -> None:
    x, w = exact.simplex(2), np.array([3.0, 1.0])
    sketch = Sketch(2, 2)
    sketch.update(x, w)
    for figures in (exact_figures(x, w), memory_figures(sketch)):
        assert figures.entropy_bits == pytest.approx(exact.binary_entropy(0.25), abs=1e-6)
        assert figures.coherence_bits == pytest.approx(0, abs=1e-6)
    known = memory_figures(sketch, weight_entropy=2.0)
    assert known.coherence_bits == pytest.approx(2 - known.entropy_bits)


def test_complex_items_are_measured_exactly() -> None:
    psi = torch.stack((exact.bell(), exact.plus(2)))
    overlap = abs(complex(psi[0].conj() @ psi[1]))
    assert exact_figures(psi).entropy_bits == pytest.approx(exact.binary_entropy((1 + overlap) / 2))


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 200),
    block=st.integers(1, 200),
    rank=st.integers(1, 30),
    dtype=st.sampled_from(["float32", "float16"]),
)
@settings(max_examples=examples(40), deadline=None)
def test_every_interval_holds_the_exact_figure_and_the_estimate(
    seed: int, n: int, block: int, rank: int, dtype: str
) -> None:
    x = stream(n, seed)
    want, got = exact_figures(x), memory_figures(sketched(x, rank, max(block, n // 8), dtype))
    for figure, interval, truth in (
        (got.entropy_bits, got.entropy_interval, want.entropy_bits),
        (got.coherence_bits, got.coherence_interval, want.coherence_bits),
        (got.purity, got.purity_interval, want.purity),
    ):
        assert interval[0] - 1e-7 <= truth <= interval[1] + 1e-7
        assert interval[0] - 1e-12 <= figure <= interval[1] + 1e-12
    assert got.weight_entropy_bits == pytest.approx(want.weight_entropy_bits, abs=1e-6)
    assert 0 <= got.coherence_bits <= got.weight_entropy_bits + 1e-9
    spectrum = completed_spectrum(sketched(x, rank))
    assert spectrum.sum() == pytest.approx(1)
    assert len(spectrum) <= min(D, n)


def test_the_estimate_is_close_after_one_fold_and_the_factor_alone_is_not() -> None:
    x = stream(500, 11, 96)
    sketch, truth = sketched(x, 16), exact_figures(x).entropy_bits
    kept = torch.linalg.eigvalsh(sketch.state_factor() @ sketch.state_factor().T).numpy()
    alone = -(kept[kept > 0] * np.log2(kept[kept > 0])).sum()
    assert abs(memory_figures(sketch).entropy_bits - truth) < 0.25
    assert abs(alone - truth) > 0.8


def test_wrong_input_is_named() -> None:
    with pytest.raises(InvalidState, match="`weight_entropy` must be finite and at least 0"):
        memory_figures(Sketch(D), -1.0)
    with pytest.raises(InvalidState, match=r"`rows` must have shape \(n, d\)"):
        exact_figures(np.zeros(3))
    with pytest.raises(InvalidState, match="`weights` must have shape"):
        exact_figures(np.eye(3), np.ones(2))
    with pytest.raises(InvalidState, match="be finite"):
        exact_figures(np.array([[math.nan]]))
