"""What coming and going leaves behind: order of absorption, rebuilding, forgetting, expiry, filters."""

from __future__ import annotations

import gc

import msgspec
import numpy as np
import pytest

from qraf.errors import InvalidRequest
from qraf.filters import item_view, matches
from qraf.memory.memory import Memory
from qraf.memory.state import _BLOCK, _FIRST_BLOCK
from qraf.records import Filter, Item, RecallQuery
from tests.memory.conftest import DIM, MAY, Bench, many, talk


def same(a: Memory, b: Memory, queries: list[RecallQuery], *, version: bool = True) -> None:
    """Equal bit for bit in all that can be seen."""
    left, right = a.figures(), b.figures()
    shown, other = a.advertisement("n"), b.advertisement("n")
    assert msgspec.structs.replace(left, version=0) == msgspec.structs.replace(right, version=0)
    assert (shown.bitmap, shown.centroid, shown.scale, shown.items) == (
        other.bitmap,
        other.centroid,
        other.scale,
        other.items,
    )
    assert a.recall(queries) == b.recall(queries)
    assert a.sketch.to_bytes() == b.sketch.to_bytes()
    assert list(a.seqs) == list(b.seqs)
    if version:
        assert (left.version, shown.version) == (right.version, other.version)


def queries_of(bench: Bench) -> list[RecallQuery]:
    return [bench.query(f"word{n} Bob word{n + 5} May 2023", k=20, explain=True) for n in range(4)]


def rebuilt(bench: Bench, items: list[Item], codes: dict[int, bytes], **choices: object) -> Memory:
    memory = Memory("s/test", DIM, clock=bench.clock, **choices)  # type: ignore[arg-type]
    stored = [msgspec.structs.replace(item, codes=codes[item.seq]) for item in sorted(items, key=lambda i: i.seq)]
    memory.absorb(stored, np.zeros((len(stored), DIM), np.float32))
    return memory


@pytest.mark.parametrize("half_life_s", [None, 86400.0])
@pytest.mark.slow
def test_order_of_absorption_leaves_no_trace(half_life_s: float | None) -> None:
    items = many(_FIRST_BLOCK + 2 * _BLOCK + 40)
    grown = Bench(half_life_s=half_life_s)
    codes: dict[int, bytes] = {}
    order = np.random.default_rng(1).permutation(len(items) - 200).tolist()
    chunks = [order[start : start + 300] for start in range(0, len(order), 300)]
    chunks += [[n] for n in range(len(items) - 200, len(items) - 190)] + [list(range(len(items) - 190, len(items)))]
    for chunk in chunks:
        part = [items[n] for n in chunk]
        codes |= dict(zip([item.seq for item in part], grown.absorb(part), strict=True))
        grown.memory.figures()
    same(grown.memory, rebuilt(grown, items, codes, half_life_s=half_life_s), queries_of(grown))


def test_forgetting_equals_never_having_known() -> None:
    items = many(_FIRST_BLOCK + 60)
    bench = Bench()
    codes = dict(zip([item.seq for item in items], bench.absorb(items), strict=True))
    gone = {item.seq for item in items[::7]}
    receipt = bench.memory.forget([*gone, 999_999, *gone])
    assert receipt.forgotten == len(gone)
    assert (receipt.before.items, receipt.after.items) == (len(items), len(items) - len(gone))
    kept = [item for item in items if item.seq not in gone]
    same(bench.memory, rebuilt(bench, kept, codes), queries_of(bench), version=False)


def test_nothing_of_a_forgotten_item_stays(bench: Bench) -> None:
    bench.absorb([*talk(), Item(seq=50, item_id="x", text="zeppelin", speaker="Zoe", at=MAY, metadata={"a": "secret"})])
    code = bench.memory._items.coded._rows[0].values[-1].copy()
    buffer = bench.memory._items.coded._rows[0]._data
    assert (buffer == code).all(axis=1).any()
    before = bench.memory.advertisement("n").bitmap
    receipt = bench.memory.forget([50])
    assert receipt.before.entropy_bits > receipt.after.entropy_bits > 0
    assert not buffer.any()
    fresh = Bench()
    fresh.absorb(talk())
    assert bench.memory.advertisement("n").bitmap == fresh.memory.advertisement("n").bitmap != before
    assert bench.memory.nbytes == fresh.memory.nbytes
    assert bench.memory._items.speakers == fresh.memory._items.speakers
    assert bench.memory._items.metadata == {}
    assert 50 not in bench.ask("zeppelin", k=99)
    assert bench.memory.forget([50]).forgotten == 0


def test_forgetting_everything_gives_an_empty_memory(bench: Bench) -> None:
    bench.absorb(talk())
    after = bench.memory.forget([1, 2, 3, 4, 5]).after
    assert (after.items, after.entropy_bits, after.coherence_bits, after.fidelity) == (0, 0.0, 0.0, 1.0)
    assert bench.ask("kite") == []
    bench.absorb(talk())
    assert bench.ask("red kite", k=1) == [1]


def test_version_rises_with_every_change(bench: Bench) -> None:
    versions = [bench.memory.version]
    for step in (lambda: bench.absorb(talk()[:2]), lambda: bench.absorb(talk()), lambda: bench.memory.forget([1])):
        step()
        versions.append(bench.memory.version)
    assert versions == [0, 2, 5, 6]
    assert bench.memory.figures().version == bench.memory.advertisement("n").version == 6


def test_expired_items_are_not_measured(bench: Bench) -> None:
    now = bench.clock.now()
    bench.absorb([*talk(), Item(seq=9, item_id="9", text="red kite", at=now, expires_at=now + 60)])
    assert bench.ask("red kite", k=1) == [9]
    bench.clock.advance(60)
    [answer] = bench.memory.recall([bench.query("red kite", k=99)])
    assert 9 not in [one.seq for one in answer.evidence]
    assert answer.items_scanned == 5


def test_as_of_hides_what_came_later(bench: Bench) -> None:
    bench.absorb(talk())
    [answer] = bench.memory.recall([bench.query("kite", k=99, as_of=MAY + 20)])
    assert {one.seq for one in answer.evidence} <= {1, 2}
    assert answer.items_scanned == 2


FILTERS = [
    Filter(field="speaker", eq="Ann"),
    Filter(field="speaker", eq=None),
    Filter(field="role", in_=("assistant", "tool")),
    Filter(field="pin", eq=True),
    Filter(field="at", gte=MAY + 20, lt=MAY + 100),
    Filter(field="at", eq="2023-05-07T12:00:20Z"),
    Filter(field="at", ne=None),
    Filter(field="at", in_=(MAY, MAY + 40)),
    Filter(field="at", gt=MAY + 20, lte=MAY + 60, ne=MAY + 40),
    Filter(field="metadata.kind", eq="note"),
    Filter(field="metadata.kind", ne="note"),
    Filter(field="metadata.size", gt=2),
    Filter(NOT=Filter(OR=(Filter(field="speaker", contains="an"), Filter(field="metadata.size", eq=3)))),
    Filter(AND=(Filter(field="speaker", ne="Ann"), Filter(field="role", ne="tool"))),
]


@pytest.mark.parametrize("filter", FILTERS)
def test_filters_choose_as_they_do_for_single_items(bench: Bench, filter: Filter) -> None:
    items = [
        *talk(),
        *talk([("Ann", "kite note"), (None, "kite two")], 20, MAY + 20, metadata={"kind": "note", "size": 3}),
        *talk([("Bob", "kite three")], 30, MAY + 50, role="assistant", pin=True, metadata={"size": 1}),
        *talk([("Dan", "kite tool")], 40, MAY + 90, role="tool"),
    ]
    bench.absorb(items)
    [everything] = bench.memory.recall([bench.query("red kite shop", k=99)])
    [answer] = bench.memory.recall([bench.query("red kite shop", k=99, filter=filter)])
    passed = {item.seq for item in items if matches(filter, item_view(item))}
    assert 0 < len(passed) <= len(items)
    scores = {one.seq: one.score for one in everything.evidence}
    # a filter says what may be returned; neighbours and word statistics stay those of the whole memory
    assert {one.seq: one.score for one in answer.evidence} == {
        seq: score for seq, score in scores.items() if seq in passed
    }
    assert answer.items_scanned == len(passed)
    assert answer.mass == pytest.approx(sum(scores.get(seq, 0.0) for seq in passed))


def test_filter_by_item_id_is_refused_clearly(bench: Bench) -> None:
    bench.absorb(talk())
    with pytest.raises(InvalidRequest, match="item_id"):
        bench.memory.recall([bench.query("kite", filter=Filter(field="item_id", eq="i1"))])


@pytest.mark.slow
def test_held_bytes_are_counted_and_few() -> None:
    dim, items = 384, many(590)
    bench = Bench(dim=dim)
    for start in range(0, 590, 16):
        bench.absorb(items[start : start + 16])
    bench.ask("word1")
    counted = bench.memory.nbytes
    assert counted / 590 < 290
    gc.collect()
    held = bench.memory._items
    arrays = [column._data.nbytes for column in (*held._columns, *held.coded.columns)]
    assert counted > sum(arrays) > 590 * (204 + 2 + 2 + 4 + 8 + 1 + 1 + 2)
    assert bench.memory.figures().compression_ratio == pytest.approx(4 * dim * 590 / bench.memory.figures().bytes)
