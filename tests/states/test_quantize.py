from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from qraf.errors import InvalidState
from qraf.states.quantize import bound, decode, encode, loss, row_bytes, scan
from tests.examples import examples

LAYOUTS = [(1, 2), (5, 4), (7, 64), (65, 64), (130, 32), (384, 64), (384, 384)]


def unit_rows(n: int, d: int, seed: int = 0) -> NDArray[np.float32]:
    x = np.random.default_rng(seed).standard_normal((n, d))
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)


def test_rows_have_the_promised_size() -> None:
    assert [row_bytes(384, bits) for bits in (4, 8, 32)] == [204, 396, 1536]
    assert row_bytes(5, 4, 4) == 3 + 4
    assert encode(unit_rows(3, 384)).shape == (3, 204)
    assert encode(np.zeros((0, 384), np.float32)).shape == (0, 204)


def test_raw_rows_come_back_bit_for_bit() -> None:
    x = unit_rows(4, 7)
    rows = encode(x, bits=32)
    assert np.array_equal(decode(rows, 7, 32), x)
    assert rows.tobytes() == x.astype("<f4").tobytes()
    assert loss(x, rows, 32)[0] == pytest.approx(np.ones(4), abs=1e-14)
    assert not bound(rows, 7, 32).any()


def test_codes_then_scales_in_little_endian() -> None:
    row = encode(np.array([[8.0, -8.0, 0.5, 1.5]], np.float32), 4, group=4)[0]
    # scale 1: cells [c - 8, c - 7), so 8 is in the highest, 15, and -8 in the lowest, 0; the first is the low nibble
    assert row.tolist() == [15 + 16 * 0, 8 + 16 * 9, *np.float16(1).tobytes()]
    assert decode(row[None], 4, 4, 4).tolist() == [[7.5, -7.5, 0.5, 1.5]]


def test_sparse_states_are_exact_rays() -> None:
    for bits in (4, 8):
        basis = np.eye(130, dtype=np.float32)
        fidelity, _ = loss(basis, encode(basis, bits), bits)
        assert fidelity == pytest.approx(np.ones(130), abs=1e-14)
        assert not decode(encode(np.zeros((1, 70)), bits), 70, bits).any()


def test_infidelities_reach_the_published_ones() -> None:
    x = unit_rows(400, 384)
    for bits, group, most in ((4, 64, 0.0095), (4, 32, 0.0093), (8, 64, 3.7e-5)):
        fidelity, guaranteed = loss(x, encode(x, bits, group), bits, group)
        assert (1 - fidelity).mean() < most
        assert (1 - fidelity <= guaranteed).all()


rows_of_floats = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 70)),
    elements=st.one_of(st.floats(-1, 1, width=32), st.sampled_from([0.0, 1.0, -1.0, 2.0**-30, 0.125])),
)


@given(x=rows_of_floats, bits=st.sampled_from([4, 8]), group=st.sampled_from([2, 6, 32, 64]))
@settings(max_examples=examples(150), deadline=None)
def test_loss_never_exceeds_the_bound(x: NDArray[np.float32], bits: int, group: int) -> None:
    norm = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    x = np.where(norm > 1e-6, x / np.maximum(norm, 1e-6), np.eye(1, x.shape[1])).astype(np.float32)
    rows = encode(x, bits, group)
    fidelity, guaranteed = loss(x, rows, bits, group)
    assert ((fidelity >= 0) & (fidelity <= 1)).all()
    assert (1 - fidelity <= guaranteed + 1e-12).all()
    away = ((x.astype(np.float64) - decode(rows, x.shape[1], bits, group)) ** 2).sum(1)
    assert (away <= bound(rows, x.shape[1], bits, group) + 1e-14).all()


@pytest.mark.parametrize(("d", "group"), LAYOUTS)
@pytest.mark.parametrize("bits", [4, 8, 32])
def test_scan_is_decode_and_multiply(d: int, group: int, bits: int) -> None:
    rng = np.random.default_rng(d)
    for n, m in ((0, 2), (1, 1), (7, 0), (9, 3), (5, 40)):
        x, q = (rng.standard_normal((size, d)).astype(np.float32) for size in (n, m))
        rows = encode(x, bits, group)
        want = q.astype(np.float64) @ decode(rows, d, bits, group).T
        for chunk in (4, 1024):
            got = scan(rows, q, d, bits, group, chunk)
            assert got.shape == (m, n)
            assert got.dtype == np.float32
            assert np.allclose(got, want, atol=2e-6 * d)


def test_scores_are_within_the_bound_of_the_exact_ones() -> None:
    x, q = unit_rows(200, 384), unit_rows(5, 384, 1)
    for bits in (4, 8):
        rows = encode(x, bits)
        off = np.abs(scan(rows, q, 384, bits) - q.astype(np.float64) @ x.T)
        assert (off <= np.sqrt(bound(rows, 384, bits)) + 1e-6).all()


def test_tensors_and_read_only_or_strided_memory_are_taken() -> None:
    x, q = unit_rows(6, 64), unit_rows(2, 64, 1)
    rows = encode(x)
    want = scan(rows, q, 64)
    frozen, frozen_q = rows.copy(), q.copy()
    frozen.flags.writeable = frozen_q.flags.writeable = False
    wide = np.concatenate((rows, rows), 1)[:, : rows.shape[1]]
    assert np.array_equal(scan(frozen, frozen_q, 64), want)
    assert np.array_equal(scan(wide, torch.from_numpy(q), 64), want)
    assert np.array_equal(encode(torch.from_numpy(x)), rows)
    assert np.array_equal(decode(frozen, 64), decode(wide, 64))


def test_what_cannot_be_coded_is_named() -> None:
    x = unit_rows(2, 8)
    with pytest.raises(InvalidState, match="`x` must be finite"):
        encode(np.full((1, 4), np.nan, np.float32))
    with pytest.raises(InvalidState, match="`x` must stay below"):
        encode(np.full((1, 4), 1e6, np.float32))
    with pytest.raises(InvalidState, match=r"`x` must have shape \(n, d\)"):
        encode(np.zeros(4, np.float32))
    with pytest.raises(InvalidState, match="`x` must be real"):
        encode(np.zeros((1, 4), np.complex64))
    with pytest.raises(InvalidState, match="`bits` must be one of"):
        encode(x, bits=3)
    with pytest.raises(InvalidState, match="`group` must be positive, and even"):
        encode(x, 4, group=3)
    with pytest.raises(InvalidState, match=r"`rows` must be uint8 of shape \(n, 204\)"):
        decode(np.zeros((1, 203), np.uint8), 384)
    with pytest.raises(InvalidState, match=r"`queries` must have shape \(m, 8\)"):
        scan(encode(x), unit_rows(1, 9), 8)
    with pytest.raises(InvalidState, match="have no zero row, but row 1 is zero"):
        loss(np.array([[1.0, 0.0], [0.0, 0.0]]), encode(np.eye(2)))
    with pytest.raises(InvalidState, match="`rows` must have 2 rows"):
        loss(x, encode(x[:1]))
