from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qraf.errors import InvalidState
from qraf.states.kernels import cpu, native, reference
from qraf.states.quantize import CODES, Code
from tests.examples import examples
from tests.states.kernels.test_native import unit_rows


@pytest.fixture(params=["compiled", "fallback"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "fallback":
        monkeypatch.setattr(native, "is_here", False)
    elif not native.is_here:
        pytest.skip("the C extension was not built")
    return str(request.param)


def same(got: reference.Best, want: reference.Best, scores: NDArray[np.float64]) -> None:
    """Equal but for float32: rows may change places where their scores are that close."""
    assert got.index.shape == want.index.shape
    assert np.allclose(got.score, want.score, atol=1e-5)
    assert np.allclose(np.take_along_axis(scores, got.index, 1), want.score, atol=1e-5)
    assert all(len(set(row)) == len(row) for row in got.index.tolist())
    assert (np.diff(got.score, axis=1) <= 0).all()


@pytest.mark.parametrize("name", CODES)
def test_the_exact_pass_gives_the_definition(name: str, way: str) -> None:
    code = Code(name, None, 32)  # type: ignore[arg-type]
    for n, d, m, k in ((1, 1, 1, 1), (0, 5, 2, 3), (7, 33, 0, 3), (9, 64, 3, 20), (60, 100, 12, 10)):
        rows, q = code.encode(unit_rows(n, d)), unit_rows(m, d, 1)
        want, got = reference.scan(rows, q, d, code, k), cpu.scan(rows, q, d, code, k)
        same(got, want, q.astype(np.float64) @ code.decode(rows, d).T)
        assert np.allclose(got.radius, want.radius, atol=1e-5)
        assert (got.rest >= want.rest - 1e-6).all()
        assert (np.isneginf(got.rest) == (n <= k)).all()


@pytest.mark.parametrize("name", CODES)
def test_a_shortlist_finds_what_the_definition_finds(name: str) -> None:
    code = Code(name)  # type: ignore[arg-type]
    rng = np.random.default_rng(2)
    x = unit_rows(3000, 96)
    q = x[rng.permutation(3000)[:40]] + 0.1 * rng.standard_normal((40, 96)).astype(np.float32)
    rows = code.encode(x)
    want, got = reference.scan(rows, q, 96, code), cpu.Index(rows, 96, code).scan(q)
    assert found(got, want) >= 0.99
    assert (got.index[:, 0] == want.index[:, 0]).mean() > 0.97
    same(cpu.Index(rows, 96, code).scan(q, 10, 3000), want, q.astype(np.float64) @ code.decode(rows, 96).T)


def test_a_crowd_of_near_equals_gets_a_longer_shortlist() -> None:
    if not native.is_here:
        pytest.skip("the C extension was not built")
    code, d = Code("float32"), 96
    crowds = np.repeat(unit_rows(6, d), 1000, 0)
    x = crowds + 0.2 * unit_rows(6000, d, 1)
    x = np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)
    q = x[::200] + 0.2 * unit_rows(30, d, 2)
    rows = code.encode(x)
    want, index = reference.scan(rows, q, d, code), cpu.Index(rows, d, code)
    short, long = index.scan(q, 10, 320), index.scan(q)
    assert found(short, want) < 0.97
    assert found(long, want) > 0.99


def found(got: reference.Best, want: reference.Best) -> float:
    pairs = zip(got.index.tolist(), want.index.tolist(), strict=True)
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in pairs]))


@given(
    name=st.sampled_from(CODES),
    rotated=st.booleans(),
    n=st.integers(1, 700),
    d=st.integers(1, 80),
    k=st.integers(1, 8),
    peaked=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=examples(60))
def test_no_certificate_is_ever_violated(
    name: str, rotated: bool, n: int, d: int, k: int, peaked: bool, seed: int
) -> None:
    code = Code(name, rotated and name != "float32", 16)  # type: ignore[arg-type]
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) ** (5 if peaked else 1)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    exact = x.astype(np.float32)
    q = (rng.standard_normal((4, d)) * 10.0 ** rng.integers(-3, 4)).astype(np.float32)
    best = cpu.Index(code.encode(exact), d, code).scan(q, k, candidates=max(k, 16))
    truth = q.astype(np.float64) @ exact.astype(np.float64).T / np.linalg.norm(exact.astype(np.float64), axis=1)
    away = np.abs(np.take_along_axis(truth, best.index, 1) - best.score)
    assert (away <= best.radius).all()
    for row in range(len(q)):
        others = np.setdiff1d(np.arange(n), best.index[row])
        if len(others):
            assert truth[row, others].max() <= best.rest[row]


@pytest.mark.slow
@pytest.mark.parametrize("name", CODES)
def test_no_interval_misses_in_a_hundred_thousand_pairs(name: str, way: str) -> None:
    code = Code(name)  # type: ignore[arg-type]
    x, q = unit_rows(400, 384), unit_rows(250, 384, 1)
    best = cpu.scan(code.encode(x), q, 384, code, 400)
    exact = np.take_along_axis(q.astype(np.float64) @ x.astype(np.float64).T, best.index, 1)
    length = np.linalg.norm(x.astype(np.float64), axis=1)[best.index]
    assert best.index.shape == (250, 400)
    assert (np.abs(exact / length - best.score) <= best.radius).all()


def test_an_exact_pass_holds_few_scores_at_a_time(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code = Code("int4")
    rows, q = code.encode(unit_rows(50, 64)), unit_rows(9, 64, 1)
    whole = cpu.scan(rows, q, 64, code, 3)
    monkeypatch.setattr(cpu, "_SCORES", 120)  # two queries
    parts = cpu.scan(rows, q, 64, code, 3)
    assert np.array_equal(whole.index, parts.index)
    assert np.allclose(whole.score, parts.score, atol=1e-6)
    assert np.allclose(whole.rest, parts.rest, atol=1e-6)


def test_equal_rows_come_in_order(way: str) -> None:
    rows = Code("int8").encode(np.repeat(unit_rows(1, 32), 5, 0))
    assert cpu.scan(rows, unit_rows(1, 32), 32, Code("int8"), 5).index.tolist() == [[0, 1, 2, 3, 4]]


def test_quantize_scans_the_same_with_and_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    if not native.is_here:
        pytest.skip("the C extension was not built")
    for name in CODES:
        code = Code(name)
        for m in (1, 12):
            rows, q = code.encode(unit_rows(70, 384)), unit_rows(m, 384, 1)
            fast = code.scan(rows, q, 384)
            with monkeypatch.context() as patch:
                patch.setattr(native, "is_here", False)
                assert np.abs(fast - code.scan(rows, q, 384)).max() < 1e-6


def test_an_index_counts_its_bytes() -> None:
    index = cpu.Index(Code("int8").encode(unit_rows(160, 384)), 384, Code("int8"))
    assert len(index) == 160
    assert index.nbytes == 160 * (96 + 4 + 4 if native.is_here else 4)


def test_what_cannot_be_asked_is_named() -> None:
    code = Code("int8")
    rows = code.encode(unit_rows(3, 8))
    for scan in (reference.scan, cpu.scan):
        with pytest.raises(InvalidState, match=r"`queries` must have shape \(m, 8\)"):
            scan(rows, unit_rows(1, 9), 8, code)
        with pytest.raises(InvalidState, match="`queries` must be finite"):
            scan(rows, np.full((1, 8), np.nan), 8, code)
        with pytest.raises(InvalidState, match="`queries` must be real"):
            scan(rows, np.ones((1, 8), complex), 8, code)
        with pytest.raises(InvalidState, match="`k` must be at least 1"):
            scan(rows, unit_rows(1, 8), 8, code, 0)
        with pytest.raises(InvalidState, match="`rows` must be uint8"):
            scan(rows[:, :-1], unit_rows(1, 8), 8, code)
    with pytest.raises(InvalidState, match="`candidates` must be at least k = 10"):
        cpu.Index(rows, 8, code).scan(unit_rows(1, 8), 10, 9)
    if native.is_here:
        for bad in (np.inf, np.nan):
            spoilt = Code("float32").encode(unit_rows(3, 8)).view("<f4")
            spoilt[1, 2] = bad
            with pytest.raises(InvalidState, match="`rows` must decode to finite amplitudes, but row 1 does not"):
                cpu.Index(spoilt.view(np.uint8), 8, Code("float32"))


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_where_there_is_a_compiler_the_extension_was_built() -> None:
    assert native.is_here, "tests of the C code would be skipped: `pip install -e .` builds it"
