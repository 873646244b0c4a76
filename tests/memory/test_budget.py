"""A byte budget is a contract: what it makes of the items, and that nothing else shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qraf.errors import InvalidRequest, InvalidState
from qraf.memory.gradient import Scores, constants
from qraf.memory.memory import Memory, code_bytes
from qraf.memory.state import _FIRST_BLOCK
from qraf.memory.tiers import Tiers, capacities, composed, ladder, stepped_down
from qraf.records import Filter, Item, RecallSettings
from qraf.states import quantize
from tests.examples import examples
from tests.memory.conftest import DIM, MAY, Bench, many, talk
from tests.memory.test_change import queries_of, same

pytestmark = pytest.mark.slow  # all of them together

FULL = {"4": 0, "2": 0, "1": 0, "evicted": 0}


def levels(memory: Memory) -> dict[int, int]:
    """The bits of every item that is held, by seq."""
    coded = memory._items.coded
    return {int(seq): coded.ladder[level] for seq, level in zip(memory._items.seq, coded.level, strict=True)}


def rebuilt(bench: Bench, items: Sequence[Item], codes: dict[int, bytes], **choices: Any) -> Memory:
    memory = Memory("s/test", bench.memory.dim, clock=bench.clock, **choices)
    stored = [msgspec.structs.replace(item, codes=codes[item.seq]) for item in sorted(items, key=lambda i: i.seq)]
    for start in range(0, len(stored), 50):  # as a node reads pages
        page = stored[start : start + 50]
        memory.absorb(page, np.zeros((len(page), memory.dim), np.float32))
    return memory


@pytest.mark.parametrize("max_bytes", [4096, 6000, 10_000, 16_000, 24_000])
def test_oldest_step_down_first_and_all_of_them_before_any_goes_further(max_bytes: int) -> None:
    bench = Bench(dim=128, max_bytes=max_bytes)
    items = many(150)
    for start in range(0, 150, 10):
        bench.absorb(items[start : start + 10])
        assert bench.memory.nbytes <= max_bytes
    held = levels(bench.memory)
    ranked = [held[seq] for seq in sorted(held)]
    assert ranked == sorted(ranked)  # a younger item never has fewer bits
    assert len(set(ranked)) <= 2
    assert {2: {4, 2}, 1: {2, 1}, 4: {4}}[ranked[0]] >= set(ranked)
    if bench.memory.evicted:
        assert set(ranked) == {1}
        assert min(held) == items[bench.memory.evicted].seq  # the oldest left
    figures = bench.memory.figures()
    counts = {str(bits): ranked.count(bits) for bits in (4, 2, 1)}
    assert figures.tiers == {**counts, "evicted": 150 - len(held)}
    assert figures.budget_bytes == max_bytes
    assert figures.items == len(held)


def test_every_stage_is_reached() -> None:
    seen = set()
    for max_bytes in range(4096, 40_000, 1500):
        bench = Bench(dim=128, max_bytes=max_bytes)
        bench.absorb(many(150))
        tiers = bench.memory.figures().tiers
        seen.add(tuple(name for name in FULL if tiers[name]))
    assert seen >= {("4",), ("4", "2"), ("2", "1"), ("1", "evicted")}


texts = st.lists(st.sampled_from([f"word{n}" for n in range(40)]), max_size=12).map(" ".join)
an_item = st.tuples(
    texts,
    st.sampled_from([None, "Ann", "Bob", "a rather long name for a speaker"]),
    st.booleans() | st.just(False),
    st.sampled_from([{}, {}, {"k": "v" * 40}]),
    st.sampled_from([None, None, MAY + 1e9]),
)


@settings(
    max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(
    facts=st.lists(an_item, min_size=1, max_size=90),
    max_bytes=st.integers(4096, 20_000) | st.integers(4096, 9000),
    bits=st.sampled_from([1, 2, 4, 8, 32]),
    whiten=st.booleans(),
    cuts=st.integers(1, 20),
    order=st.randoms(use_true_random=False),
)
def test_the_budget_holds_after_every_absorb_and_only_the_items_decide(
    facts: list[tuple[str, str | None, bool, dict[str, Any], float | None]],
    max_bytes: int,
    bits: int,
    whiten: bool,
    cuts: int,
    order: Any,
) -> None:
    items = [
        Item(seq=7 * n + 1, item_id=str(n), text=text, speaker=who, pin=pin, metadata=note, expires_at=end, at=MAY + n)
        for n, (text, who, pin, note, end) in enumerate(facts)
    ]
    choices: dict[str, Any] = {"bits": bits, "rank": 4, "max_bytes": max_bytes}
    recipe = RecallSettings(whiten=whiten)
    bench = Bench(recipe, **choices)
    codes: dict[int, bytes] = {}
    mixed = items.copy()
    order.shuffle(mixed)
    for start in range(0, len(mixed), cuts):
        part = mixed[start : start + cuts]
        codes |= {item.seq: code for item, code in zip(part, bench.absorb(part), strict=True) if code}
        assert bench.memory.nbytes <= max_bytes
    query = bench.query("word1 word2 Ann", explain=True, k=5)
    bench.memory.recall([query])
    bench.memory.figures()
    assert bench.memory.nbytes <= max_bytes
    held = levels(bench.memory)
    kept = bench.memory.items
    assert kept.nbytes_beside(np.arange(len(kept))) == kept.nbytes - kept.coded.nbytes
    pinned = {item.seq for item in items if item.pin}
    if pinned & set(held) != pinned or any(held[seq] < bits for seq in pinned):
        assert set(held) <= pinned  # pinned items pay last
    exact = {item.seq: code for item, code in zip(items, Bench(recipe, bits=bits, rank=4).absorb(items), strict=True)}
    assert all(exact[seq] == code for seq, code in codes.items())
    again = rebuilt(bench, items, exact, settings=recipe, **choices)
    assert not again.is_behind
    assert len(again) + again.evicted == len(items)
    if not bench.memory.is_behind:  # nothing came that was older than what had left
        same(bench.memory, again, [query])
        assert bench.memory.nbytes == again.nbytes
        assert levels(again) == held


@pytest.mark.parametrize(("max_bytes", "size"), [(64_000, 64), (50_000, 3), (50_000, 500)])
def test_in_order_growth_equals_a_rebuild_bit_for_bit_beyond_the_fold(max_bytes: int, size: int) -> None:
    items = many(_FIRST_BLOCK + 300)
    choices: dict[str, Any] = {"rank": 8, "max_bytes": max_bytes}
    grown = Bench(**choices)
    for number, start in enumerate(range(0, len(items), size)):
        grown.absorb(items[start : start + size])
        if number % 60 == 0:
            grown.memory.figures()
        assert grown.memory.nbytes <= max_bytes
    if max_bytes < 60_000:
        assert grown.memory.evicted % (max_bytes // 8192) == 0 < grown.memory.evicted
    exact = dict(zip([item.seq for item in items], Bench(rank=8).absorb(items), strict=True))
    assert {1, 2} >= set(levels(grown.memory).values())
    same(grown.memory, rebuilt(grown, items, exact, **choices), queries_of(grown))


def test_without_pressure_a_budget_changes_nothing() -> None:
    plain, roomy = Bench(), Bench(max_bytes=1 << 20)
    for bench in (plain, roomy):
        bench.absorb(many(80))
    left, right = plain.memory.figures(), roomy.memory.figures()
    assert msgspec.structs.replace(right, budget_bytes=None) == left
    assert left.tiers == {"4": 80, "2": 0, "1": 0, "evicted": 0}
    assert roomy.memory.recall(queries_of(roomy)) == plain.memory.recall(queries_of(plain))


def test_what_came_after_something_older_left_asks_for_a_rebuild() -> None:
    bench = Bench(dim=128, max_bytes=4096)
    items = many(120)
    bench.absorb(items[1:])
    assert bench.memory.evicted
    assert not bench.memory.is_behind
    before = bench.memory.figures()
    assert bench.absorb(items[:1]) == [b""]
    assert bench.memory.is_behind
    assert bench.memory.figures() == before


def test_forgetting_makes_room_that_only_a_rebuild_can_fill() -> None:
    bench = Bench(max_bytes=4096)
    bench.absorb(many(5))
    bench.memory.forget([1])
    assert not bench.memory.is_behind  # nothing had stepped down
    bench.absorb(many(120)[5:])
    bench.memory.forget([many(120)[-1].seq])
    assert bench.memory.is_behind


def test_a_recall_finds_the_same_at_every_rung() -> None:
    for max_bytes in (60_000, 9_000, 6_500):
        bench = Bench(dim=256, max_bytes=max_bytes)
        bench.absorb(talk())
        bench.absorb(many(40)[5:])
        assert bench.ask("red kite", k=1)[0] == 1
        assert bench.ask("kites lamps", k=3, filter=Filter(field="speaker", eq="Bob"))[0] == 4


def exact_fidelity(bench: Bench, items: list[Item]) -> float:
    exact = bench.encoder.encode([item.text for item in items])
    by_seq = {item.seq: row for item, row in zip(items, exact, strict=True)}
    held = bench.memory._items
    decoded = held.coded.decoded().astype(np.float64)
    kept = np.stack([by_seq[int(seq)] for seq in held.seq]).astype(np.float64)
    return float(((kept * decoded).sum(1) ** 2 / (decoded**2).sum(1) / (kept**2).sum(1)).mean())


@pytest.mark.parametrize("max_bytes", [40_000, 28_000, 21_000, 16_000])
def test_the_shown_fidelity_is_near_the_true_one_and_the_bound_below_it(max_bytes: int) -> None:
    bench, items = Bench(dim=384, max_bytes=max_bytes), many(150)
    bench.absorb(items)
    figures, true = bench.memory.figures(), exact_fidelity(bench, items)
    assert figures.fidelity == pytest.approx(true, abs=0.02)
    assert figures.fidelity_bound <= true
    assert figures.fidelity_bound > 0.3


def test_no_step_breaks_its_guarantee() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000, 96)) * rng.lognormal(0, 1, (2000, 96))
    x = np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)
    rows = quantize.encode(x, 8)
    infidelity, guaranteed = 1 - quantize.loss(x, rows, 8)[0], quantize.bound(rows, 96, 8)
    for above, below in ((8, 4), (4, 2), (2, 1)):
        rows, fidelity = stepped_down(rows, 96, above, below)
        infidelity, guaranteed = composed(infidelity, guaranteed, fidelity)
        true = 1 - quantize.loss(x, rows, below)[0]
        assert (true <= guaranteed).all()
        assert infidelity.mean(dtype=np.float64) == pytest.approx(true.mean(), rel=0.08)


def test_a_step_is_the_same_alone_and_in_company() -> None:
    x = np.random.default_rng(1).standard_normal((300, 384)).astype(np.float32)
    for above, below in ((32, 8), (8, 4), (4, 2), (2, 1)):
        rows = quantize.encode(x, above)
        together, fidelity = stepped_down(rows, 384, above, below)
        for row in (0, 17, 299):
            alone, kept = stepped_down(rows[row : row + 1], 384, above, below)
            assert np.array_equal(alone[0], together[row])
            assert kept[0] == fidelity[row]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_codes_of_more_bits_step_down_on_the_way_in(bits: int) -> None:
    items, better = many(30), Bench(bits=32)
    codes = better.absorb(items)
    lower = Bench(bits=bits)
    stored = [msgspec.structs.replace(item, codes=code) for item, code in zip(items, codes, strict=True)]
    lower.memory.absorb(stored, np.zeros((30, DIM), np.float32), [32] * 30)
    figures = lower.memory.figures()
    assert figures.bits == bits
    assert figures.tiers[str(bits)] == 30
    assert figures.fidelity_bound <= exact_fidelity(lower, items)
    assert figures.fidelity == pytest.approx(exact_fidelity(lower, items), abs=0.05)
    with pytest.raises(InvalidState, match="bits or more"):
        Memory("s/x", DIM, bits=32).absorb(stored[:1], np.zeros((1, DIM), np.float32), [8])


def test_items_without_amplitudes_step_down_too() -> None:
    memory = Memory("s/x", 64, bits=4, max_bytes=4096)
    items = [Item(seq=n + 1, item_id=str(n), text=f"kite{n}") for n in range(90)]
    memory.absorb(items, np.zeros((90, 64), np.float32))
    assert memory.nbytes <= 4096
    figures = memory.figures()
    assert figures.items > 0
    assert figures.tiers["4"] == 0
    assert (figures.fidelity, figures.fidelity_bound) == (1.0, 1.0)


def test_one_item_larger_than_the_budget_leaves_at_once() -> None:
    bench = Bench(max_bytes=4096)
    long = Item(seq=1, item_id="1", text=" ".join(f"stem{n}" for n in range(4000)))
    [code] = bench.absorb([long])
    assert len(code) == code_bytes(DIM)  # the journal gets it
    assert (len(bench.memory), bench.memory.evicted) == (0, 1)
    assert bench.memory.nbytes <= 4096
    assert bench.memory.figures().tiers == {**FULL, "evicted": 1}
    bench.absorb(talk(first_seq=2))
    assert len(bench.memory) == 5


def test_a_budget_below_the_least_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="at least 4096 bytes, but is 100"):
        Memory("s/x", DIM, max_bytes=100)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 4)), min_size=1, max_size=30), st.integers(0, 2**16))
@settings(max_examples=examples(60), deadline=None)
def test_tiers_keep_every_row_in_its_place(moves: list[tuple[int, int]], seed: int) -> None:
    dim, bits = 24, 8
    rng = np.random.default_rng(seed)
    tiers, exact = Tiers(dim, bits), quantize.encode(rng.standard_normal((0, dim)).astype(np.float32), bits)
    want: list[tuple[int, bytes]] = []  # bits and codes of every row
    q = rng.standard_normal((2, dim)).astype(np.float32)
    for number, kind in moves:
        held = tiers.level.copy()
        if kind == 0 or not len(tiers):
            exact = quantize.encode(rng.standard_normal((number % 5 + 1, dim)).astype(np.float32), bits)
            tiers.append(exact)
            want += [(bits, row.tobytes()) for row in exact]
        elif kind == 1:
            order = rng.permutation(len(tiers))[: number + 1]
            tiers.take(order)
            want = [want[row] for row in order]
        else:
            level = kind - 1
            rows = np.flatnonzero(held == level - 1)[:number]
            if len(rows):
                tiers.lower(rows, level)
                for row in rows.tolist():
                    above, code = want[row]
                    below = ladder(bits)[level]
                    lower, _ = stepped_down(np.frombuffer(code, np.uint8)[None], dim, above, below)
                    want[row] = (below, lower[0].tobytes())
        assert len(tiers) == len(want)
        assert [ladder(bits)[level] for level in tiers.level] == [one for one, _ in want]
        decoded = [quantize.decode(np.frombuffer(code, np.uint8)[None], dim, one)[0] for one, code in want]
        expected = np.array(decoded, np.float32).reshape(len(want), dim)
        assert np.array_equal(tiers.decoded(), expected)
        some = rng.permutation(len(want))[:3]
        assert np.array_equal(tiers.decoded(some), expected[some])
        assert np.allclose(tiers.scan(q), q @ expected.T, atol=1e-4)
        assert np.allclose(tiers.scan(q, some), q @ expected[some].T, atol=1e-4)
        assert tiers.nbytes == int(tiers.size_of(np.array(tiers.counts())))


def test_capacities_are_those_of_a_column() -> None:
    from qraf.memory.columns import capacity

    n = np.array([[0, 1, 16], [17, 999, 5000]])
    assert capacities(n).tolist() == [[capacity(int(one)) for one in row] for row in n]


@pytest.mark.parametrize("max_bytes", [None, 110_000, 60_000, 50_000])
def test_overlaps_are_neither_larger_nor_smaller_on_a_lower_rung(max_bytes: int | None) -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((400, 384))
    x = np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)
    memory = Memory("s/x", 384, max_bytes=max_bytes)
    memory.absorb([Item(seq=n + 1, item_id=str(n)) for n in range(400)], x)
    items = memory.items
    kept = x[np.asarray(items.seq) - 1]
    asked = kept + 0.5 * rng.standard_normal(kept.shape).astype(np.float32) / np.sqrt(384)  # near each item in turn
    estimate = np.einsum("nn->n", items.overlaps(asked)).astype(np.float64)
    exact = np.einsum("nd,nd->n", asked, kept)
    for level in range(3):
        on_it = items.coded.level == level
        if on_it.sum() > 30:
            assert estimate[on_it].mean() == pytest.approx(exact[on_it].mean(), rel=0.02)
    assert np.allclose(items.amplitudes() @ asked[3], items.overlaps(asked)[3], atol=1e-5)


@pytest.mark.parametrize("whiten", [False, True])
def test_differentiable_scores_are_those_of_a_lowered_memory(whiten: bool) -> None:
    bench = Bench(RecallSettings(whiten=whiten), dim=128, max_bytes=12_000)
    bench.absorb(many(150))
    assert bench.memory.is_lowered
    queries = queries_of(bench)
    scores = Scores(bench.memory, queries, chunk=16)
    for rows, part in scores.chunks(constants(bench.memory.settings, requires_grad=False)):
        for number, answer in enumerate(bench.memory.recall([replace(query, k=999) for query in queries])):
            found = {one.seq: one.score for one in answer.evidence}
            for row, score in zip(rows.tolist(), part[number].tolist(), strict=True):
                assert score == pytest.approx(found.get(int(bench.memory.items.seq[row]), 0.0), rel=1e-4, abs=1e-7)
