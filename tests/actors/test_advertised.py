from __future__ import annotations

from dataclasses import replace

import pytest

from qraf.actors.advertised import Advertised
from qraf.records import Advertisement, empty_advertisement


def ad(memory: str, items: int) -> Advertisement:
    return replace(empty_advertisement("desk", memory, 4), items=items)


def test_what_is_withdrawn_is_told_once_as_empty_and_not_where_its_node_tells_more() -> None:
    known = Advertised(4)
    known.take([ad("s/ann", 3), ad("s/ben", 5)])
    for memory in ("s/ann", "s/ben", "s/cy"):
        known.withdraw("desk", memory)
    assert {one.memory: one.items for one in known.take([ad("s/ben", 4)])} == {"s/ann": -1, "s/ben": 4}
    assert (known.take([]), known.items) == ([], 4)


def test_a_host_is_asked_for_what_changed_in_its_own_epoch_alone() -> None:
    known = Advertised(4)
    known.heard("front", 2, {"desk": 7})
    assert (known.since("front", 2), known.since("front", 3), known.since("back", 2)) == ({"desk": 7}, {}, {})


def test_the_pooled_state_is_kept_until_enough_is_new_or_anything_is_gone() -> None:
    known = Advertised(4)
    known.take([ad("s/ann", 100)])
    known.keep(b"pooled", known.items, known.losses)
    known.take([ad("s/ben", 2)])
    assert known.pooled() == b"pooled"
    known.take([ad("s/cy", 1)])
    assert known.pooled() is None
    known.keep(b"pooled", known.items, known.losses)
    known.take([ad("s/ann", 99)])
    assert known.pooled() is None


def test_a_pooled_state_that_was_begun_before_something_was_forgotten_is_not_kept() -> None:
    known = Advertised(4)
    known.take([ad("s/ann", 100)])
    items, losses = known.items, known.losses
    known.withdraw("desk", "s/ann")  # while hosts make it
    known.keep(b"pooled", items, losses)
    assert known.pooled() is None


def test_no_more_memories_are_known_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qraf.actors.advertised._MOST", 2)
    known = Advertised(4)
    known.take([ad("s/ann", 1), ad("s/ben", 1), ad("s/cy", 1)])
    assert [one.memory for one in known.every] == ["s/ben", "s/cy"]
