from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qraf.errors import InvalidState
from qraf.states.rotation import blocks, matrix, rotate, unrotate
from tests.examples import examples


@given(d=st.integers(1, 300))
@settings(max_examples=examples(60), deadline=None)
def test_rotation_is_orthogonal_in_every_dimension(d: int) -> None:
    R = matrix(d)
    assert np.abs(R @ R.T - np.eye(d)).max() < 1e-13
    assert sum(blocks(d)) == d


@pytest.mark.parametrize(("d", "sizes"), [(384, (384,)), (768, (768,)), (12, (12,)), (13, (12, 1)), (7, (4, 2, 1))])
def test_blocks_are_the_largest_exact_ones(d: int, sizes: tuple[int, ...]) -> None:
    assert blocks(d) == sizes
    magnitude = np.abs(matrix(d)[: sizes[0], : sizes[0]])
    assert np.abs(magnitude - sizes[0] ** -0.5).max() < 1e-13  # a Hadamard matrix


def test_inverse_undoes_it_and_rows_do_not_touch_each_other() -> None:
    x = np.random.default_rng(0).standard_normal((1500, 384))
    assert np.abs(unrotate(rotate(x)) - x).max() < 1e-13
    assert np.array_equal(rotate(x[7:8]), rotate(x)[7:8])
    assert np.array_equal(unrotate(x[7:8]), unrotate(x)[7:8])
    assert np.abs(rotate(x[:3]) - x[:3] @ matrix(384).T).max() < 1e-12


def test_signs_never_change() -> None:
    # stored codes depend on them
    assert np.sign(matrix(384)[0, :12]).tolist() == [1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1]
    assert np.sign(matrix(16)[0]).tolist() == [1, -1, 1, -1, 1, 1, 1, 1, -1, 1, 1, -1, 1, 1, -1, -1]


def test_an_outlier_is_shared_by_the_whole_row() -> None:
    basis = np.eye(384)[:5]
    assert np.abs(rotate(basis)).max() == pytest.approx(384**-0.5)


def test_bad_shapes_are_named() -> None:
    with pytest.raises(InvalidState, match="`d` must be at least 1"):
        blocks(0)
    with pytest.raises(InvalidState, match=r"`x` must have shape \(n, d\)"):
        rotate(np.zeros(4))
