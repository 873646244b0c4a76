from __future__ import annotations

import numpy as np
import pytest

from qraf.errors import InvalidState
from qraf.states.lloyd_max import gaussian
from qraf.states.projected import LLOYD2_EDGE, LLOYD2_LEVELS


def test_errors_are_those_of_max_1960() -> None:
    # table I of the paper, with its own last digits: its 4-bit value is 4e-4 below the fixed point
    for bits, error in ((1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)):
        assert gaussian(bits).error == pytest.approx(error, rel=5e-4)
    assert gaussian(2).levels[2:] == pytest.approx((0.4528, 1.510), abs=5e-4)
    assert gaussian(2).boundaries[2] == pytest.approx(0.9816, abs=5e-5)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5])
def test_levels_are_means_of_their_cells_and_symmetric(bits: int) -> None:
    quantiser = gaussian(bits)
    x = np.random.default_rng(0).standard_normal(400_000)
    code = np.searchsorted(quantiser.boundaries, x)
    means = np.array([x[code == level].mean() for level in range(1 << bits)])
    assert means == pytest.approx(quantiser.levels, abs=0.03)
    assert ((np.array(quantiser.levels)[code] - x) ** 2).mean() == pytest.approx(quantiser.error, rel=0.02)
    assert quantiser.levels == pytest.approx([-level for level in reversed(quantiser.levels)])


def test_stored_levels_are_the_two_bit_ones() -> None:
    assert pytest.approx(gaussian(2).levels, abs=1e-6) == LLOYD2_LEVELS.tolist()
    assert pytest.approx(gaussian(2).boundaries[2], abs=1e-8) == LLOYD2_EDGE


def test_bits_out_of_range_are_named() -> None:
    with pytest.raises(InvalidState, match="`bits` must be 1 to 8"):
        gaussian(0)
