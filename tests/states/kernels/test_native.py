from __future__ import annotations

import ctypes
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qraf.states.kernels import native
from qraf.states.kernels.coarse import pack
from qraf.states.quantize import CODES, Code
from qraf.states.rotation import rotate
from tests.examples import examples

pytestmark = pytest.mark.skipif(not native.is_here, reason="the C extension was not built")
LEVELS = range(native.best_level() + 1) if native.is_here else range(0)


def unit_rows(n: int, d: int, seed: int = 0) -> NDArray[np.float32]:
    x = np.random.default_rng(seed).standard_normal((n, d))
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)


def guarded(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same rows so that the byte after the last one is on a page that may not be read: a read beyond ends all."""
    libc = ctypes.CDLL(None, use_errno=True)
    page = 4096
    size = -(-max(data.nbytes, 1) // page) * page
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, *(ctypes.c_size_t, *(3 * (ctypes.c_int,))), ctypes.c_long)
    start = libc.mmap(None, size + page, 3, 0x22, -1, 0)
    assert start not in (None, ctypes.c_void_p(-1).value)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    assert libc.mprotect(start + size, page, 0) == 0
    buffer = (ctypes.c_uint8 * data.nbytes).from_address(start + size - data.nbytes)
    out = np.frombuffer(buffer, np.uint8).reshape(data.shape)
    out[...] = data
    return out


@given(
    name=st.sampled_from(CODES),
    d=st.integers(1, 200),
    group=st.sampled_from([2, 6, 30, 32, 64, 100]),
    n=st.integers(0, 20),
    m=st.integers(0, 11),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=examples(150))
def test_overlaps_are_decode_and_multiply_at_every_level(
    name: str, d: int, group: int, n: int, m: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    code = Code(name, False, group)  # type: ignore[arg-type]
    rows = code.encode(rng.standard_normal((n, d)).astype(np.float32))
    q = rng.standard_normal((m, d)).astype(np.float32)
    want = q.astype(np.float64) @ code.decode(rows, d).T
    for level in LEVELS:
        got = native.overlaps(native.Layout(name, d, group), rows, q, level)
        assert got.shape == (m, n)
        assert np.allclose(got, want, atol=1e-6 * (d + 10), rtol=0)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs mmap as Linux numbers it")
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", CODES)
def test_nothing_is_read_past_the_last_row(name: str, level: int) -> None:
    for d in (1, 7, 15, 16, 17, 63, 64, 65, 100, 127, 384):
        for group in (2, 32, 64, 96):
            code = Code(name, False, group)  # type: ignore[arg-type]
            rows, q = code.encode(unit_rows(3, d)), unit_rows(11, d, 1)
            layout, tight = native.Layout(name, d, group), guarded(rows)
            for m in (1, 5, 11):
                assert np.array_equal(
                    native.overlaps(layout, tight, q[:m], level), native.overlaps(layout, rows, q[:m], level)
                )
        coarse = pack(rows, d, code)
        codes = guarded(coarse.codes.reshape(len(coarse.codes), -1)).reshape(coarse.codes.shape)
        for m in (1, 2, 5):
            short = native.shortlist(codes, coarse.rise, native.ask(native.rotate(q[:m])), 2, level)
            assert (short.count == 2).all()
            assert short.index[:, :2].max() < 3


def test_rows_may_lie_apart_or_backwards_and_may_be_read_only() -> None:
    rows, q = Code("int4").encode(unit_rows(6, 64)), unit_rows(3, 64, 1)
    layout = native.Layout("int4", 64, 64)
    want = native.overlaps(layout, rows, q)
    frozen = rows.copy()
    frozen.flags.writeable = False
    assert np.array_equal(native.overlaps(layout, frozen, q), want)
    assert np.array_equal(native.overlaps(layout, np.concatenate((rows, rows), 1)[:, : rows.shape[1]], q), want)
    assert np.array_equal(native.overlaps(layout, rows[::-1], q), want[:, ::-1])
    assert np.array_equal(native.overlaps(layout, rows[::2], q), want[:, ::2])
    assert np.array_equal(native.overlaps(layout, np.asfortranarray(rows), q), want)


def test_a_row_scores_the_same_whatever_lies_beside_it() -> None:
    rows, q = Code("int4").encode(unit_rows(50, 384)), unit_rows(1, 384, 1)
    layout = native.Layout("int4", 384, 64)
    whole = native.overlaps(layout, rows, q)
    assert all(native.overlaps(layout, rows[i : i + 1], q)[0, 0] == whole[0, i] for i in range(50))


@given(
    n=st.integers(0, 120),
    d=st.integers(1, 70),
    m=st.integers(0, 9),
    keep=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=examples(100))
def test_a_shortlist_holds_the_largest_estimates_and_bounds_the_others(
    n: int, d: int, m: int, keep: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    code = Code("float32")
    x, q = (rng.standard_normal((size, d)).astype(np.float32) for size in (n, m))
    coarse, asked = pack(code.encode(x), d, code), native.ask(native.rotate(q))
    estimate = estimates(coarse.codes, coarse.rise, asked.codes)
    exact = q.astype(np.float64) @ x.T
    for level in LEVELS:
        short = native.shortlist(coarse.codes, coarse.rise, asked, keep, level)
        floor = short.floor
        assert (short.count == min(keep, n)).all()
        for row in range(m):
            inside = short.index[row, : short.count[row]]
            assert len(set(inside.tolist())) == len(inside)
            outside = np.setdiff1d(np.arange(n), inside)
            if not len(outside):
                assert floor[row] == -np.inf
                continue
            assert estimate[row, outside].max() <= floor[row] * (1 + 1e-6) + 1e-3
            assert estimate[row, inside].min() >= floor[row] - abs(floor[row]) * 1e-6 - 1e-3
            most = floor[row] * asked.unit[row] + np.linalg.norm(q[row]) * coarse.away
            assert exact[row, outside].max() <= most + asked.away[row] * coarse.length


def estimates(codes: NDArray[np.uint8], rise: NDArray[np.float32], q: NDArray[np.int8]) -> NDArray[np.float64]:
    """What the coarse scan computes, by the layout in its docstring."""
    blocks, steps = codes.shape[:2]
    places = np.stack([codes >> shift & 3 for shift in (0, 2, 4, 6)], axis=3)  # block, step, row, place, byte
    plain = places.transpose(0, 2, 1, 3, 4).reshape(blocks * native.BLOCK, steps * native.STEP)[: len(rise)]
    out: NDArray[np.float64] = q.astype(np.float64) @ (plain - 1.5).T * rise.astype(np.float64)
    return out


def test_coarse_codes_keep_the_published_share_of_a_gaussian_row() -> None:
    code = Code("float32")
    x = unit_rows(512, 384)
    coarse = pack(code.encode(x), 384, code)
    levels = estimates(coarse.codes, np.ones(512, np.float32), np.eye(384, dtype=np.int8)).T
    along = (levels * rotate(x)).sum(1) ** 2 / (levels**2).sum(1)
    assert 1 - along.mean() == pytest.approx(0.1188, abs=0.002)  # Max 1960, table II: uniform, 4 levels
    assert (coarse.rise * (levels * rotate(x)).sum(1)) == pytest.approx(np.ones(512), abs=1e-5)


@given(m=st.integers(0, 4), d=st.integers(1, 400), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=examples(80))
def test_asking_rotates_and_rounds(m: int, d: int, seed: int) -> None:
    q = np.random.default_rng(seed).standard_normal((m, d)).astype(np.float32) * np.float32(10.0 ** (seed % 7 - 3))
    q[:1] *= seed % 3 > 0
    want = rotate(q)
    rotated = native.rotate(q)
    assert np.allclose(rotated, want, rtol=2**-23, atol=1e-14 * np.abs(q).max(initial=0) * d)
    asked = native.ask(rotated)
    assert asked.codes.shape == (m, -(-d // 16) * 16)
    assert not asked.codes[:, d:].any()
    assert (asked.lift == asked.codes.sum(1, dtype=np.int64)).all()
    assert np.allclose(asked.unit, np.abs(want).max(1, initial=0) / 127, rtol=1e-5)
    off = np.linalg.norm(want - asked.codes[:, :d] * asked.unit[:, None].astype(np.float64), axis=1)
    assert np.allclose(off, asked.away, rtol=1e-4, atol=2e-6 * np.linalg.norm(want, axis=1).max(initial=0))
    assert (off <= asked.unit * (0.501 * d**0.5)).all()


@given(scores=st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0]), max_size=40), k=st.integers(0, 12))
@settings(max_examples=examples(100))
def test_rank_orders_like_a_stable_sort(scores: list[float], k: int) -> None:
    n = len(scores)
    k = min(k, n)
    rows = Code("float32").encode(np.array(scores, np.float32).reshape(-1, 1))
    signs = np.array([[1.0], [-1.0]], np.float32)
    candidates = np.stack([np.random.default_rng(i).permutation(n) for i in (0, 1)]).astype(np.int32)
    index, score, rest = native.rank(native.Layout("float32", 1, 64), rows, signs, candidates, np.full(2, n), k)
    for row, sign in enumerate((1, -1)):
        order = sorted(range(n), key=lambda i: (-sign * scores[i], i))
        assert index[row].tolist() == order[:k]
        assert score[row].tolist() == [sign * scores[i] for i in order[:k]]
        assert rest[row] == max((sign * scores[i] for i in order[k:]), default=-np.inf)


def test_threads_may_scan_at_once() -> None:
    rows, q = Code("int4").encode(unit_rows(2000, 384)), unit_rows(4, 384, 1)
    layout = native.Layout("int4", 384, 64)
    want = native.overlaps(layout, rows, q)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: native.overlaps(layout, rows, q), range(16)):
            assert np.array_equal(got, want)


def test_lengths_that_do_not_fit_are_refused() -> None:
    code = Code("float32")
    rows = code.encode(unit_rows(20, 32))
    coarse, asked = pack(rows, 32, code), native.ask(unit_rows(1, 32))
    with pytest.raises(ValueError, match="do not hold"):
        native.shortlist(coarse.codes[:1], coarse.rise, asked, 3)
    with pytest.raises(ValueError, match="queries"):
        native.shortlist(coarse.codes, coarse.rise, native.ask(unit_rows(1, 16)), 3)
    with pytest.raises(ValueError, match="queries"):
        native.shortlist(coarse.codes, coarse.rise, asked, 0)
    short = native.shortlist(coarse.codes, coarse.rise, asked, 3)
    layout = native.Layout("float32", 32, 64)
    for queries, k, shift in ((2, 3, 0), (1, 4, 0), (1, 3, 20), (1, 3, -20)):
        with pytest.raises(ValueError, match="candidates"):
            native.rank(layout, rows, unit_rows(queries, 32), short.index + np.int32(shift), short.count, k)
    with pytest.raises(ValueError, match="candidates"):
        native.rank(layout, rows, unit_rows(1, 32), short.index[:, :2], short.count, 3)


def test_a_library_of_other_sources_or_none_is_told_and_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert native._load() is not None
    monkeypatch.setattr(native, "_INTERFACE", -1)
    assert native._load() is None
    assert "install again" in caplog.text
    monkeypatch.setattr(native, "EXTENSION_SUFFIXES", [])
    caplog.set_level("INFO")
    assert native._load() is None
    assert "not there" in caplog.text
