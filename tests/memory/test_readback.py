from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qraf.memory.memory import Memory
from qraf.memory.readback import find_damaged
from qraf.states import quantize
from tests.memory.conftest import talk

pytestmark = pytest.mark.slow  # all of them together

DIM = 96


def stored(rows: NDArray[np.float32], bits: int) -> list[bytes]:
    memory = Memory("s/x", rows.shape[1], bits=bits)
    return memory.absorb(talk([(None, f"text {n}") for n in range(len(rows))]), rows)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 32])
@given(st.integers(0, 2**31), st.floats(0, 4), st.sampled_from([1, 63, 64, 96, 384]))
def test_whatever_absorb_codes_is_sound(bits: int, seed: int, spread: float, dim: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((8, dim)) * np.exp(spread * rng.standard_normal(dim))
    rows[0] = 0  # a text without amplitudes
    rows[1] = np.eye(dim)[0]
    assert not find_damaged(stored(rows.astype(np.float32), bits), dim, bits).any()


def damaged(codes: bytes, at: int, value: float) -> bytes:
    return codes[:at] + np.float16(value).tobytes() + codes[at + 2 :]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, 1.0, 1e3])
def test_a_spoilt_scale_is_found(bits: int, value: float) -> None:
    rows = np.random.default_rng(1).standard_normal((3, DIM)).astype(np.float32)
    codes = stored(rows, bits)
    scales = quantize.row_bytes(DIM, bits) - 2 * 2
    codes[1] = damaged(codes[1], scales, value)
    assert find_damaged(codes, DIM, bits).tolist() == [False, True, False]


@pytest.mark.parametrize("value", [np.nan, -0.5, 1.5, np.inf])
def test_a_loss_that_cannot_be_is_found(value: float) -> None:
    codes = stored(np.eye(2, DIM, dtype=np.float32), 4)
    codes[0] = damaged(codes[0], len(codes[0]) - 2, value)
    assert find_damaged(codes, DIM, 4).tolist() == [True, False]


def test_float32_rows_of_another_length_are_found_and_no_rows_are_fine() -> None:
    codes = stored(np.eye(2, DIM, dtype=np.float32), 32)
    codes[0] = np.full(DIM, 2.0, "<f4").tobytes() + codes[0][-2:]
    assert find_damaged(codes, DIM, 32).tolist() == [True, False]
    assert find_damaged([], DIM, 32).tolist() == []
