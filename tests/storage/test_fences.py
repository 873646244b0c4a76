"""Which life of a host may write, on both databases."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from qraf.errors import NodeDown
from qraf.storage.fences import Fence, FenceTable
from qraf.storage.journal import Draft, Journal
from qraf.storage.records import StateRecord


@pytest.fixture
def journals(any_url):
    """Two processes' views of one journal."""
    with contextlib.ExitStack() as stack:
        opened = [Journal.open(any_url) for _ in range(2)]
        for journal in opened:
            stack.callback(journal.close)
        yield opened


def test_what_an_earlier_life_writes_is_refused_and_changes_nothing(journals):
    old, new = journals
    [one] = old.commit("s/1", [Draft(item_id="a", text="x")])
    frozen, successor = Fence("front", "run", 1), Fence("front", "run", 2)
    old.fences.come_forward(frozen)
    old.put_codes({one.seq: b"first"}, "k", frozen)
    old.states.under(frozen).put([StateRecord("st_1", 1, b"v", b"p")])
    new.fences.come_forward(successor)
    for write in (
        lambda: old.put_codes({one.seq: b"late"}, "k", frozen),
        lambda: old.states.under(frozen).put([StateRecord("st_1", 2, b"v", b"late")]),
        lambda: old.states.under(frozen).put([StateRecord("st_2", 1, b"v", b"late")]),
        lambda: old.states.under(frozen).delete(["st_1"]),
        lambda: old.fences.come_forward(frozen),
    ):
        with pytest.raises(NodeDown, match="stale epoch 1: a successor writes in epoch 2"):
            write()
    assert [item.codes for item in new.items("s/1")] == [b"first"]
    assert new.states.fetch(["st_1", "st_2"])["st_1"].packet == b"p"
    assert new.states.versions(["st_1", "st_2"]) == {"st_1": 1}
    new.put_codes({one.seq: b"second"}, "k", successor)
    new.states.under(successor).put([StateRecord("st_1", 2, b"v", b"q")])
    assert [item.codes for item in old.items("s/1")] == [b"second"]


def test_epochs_begin_anew_with_each_run_and_an_old_run_stays_old(journals):
    old, new = journals
    old.fences.come_forward(Fence("front", "monday", 7))
    new.fences.come_forward(Fence("front", "tuesday", 1))
    for late in (7, 8, 100):
        with pytest.raises(NodeDown, match="stale epoch"):
            old.fences.come_forward(Fence("front", "monday", late))
    new.fences.come_forward(Fence("front", "tuesday", 1))  # twice is harmless
    new.fences.come_forward(Fence("front", "tuesday", 2))


def test_hosts_do_not_stand_in_each_other_s_way(journals):
    one, other = journals
    one.fences.come_forward(Fence("front", "run", 5))
    other.fences.come_forward(Fence("back", "run", 1))
    one.fences.come_forward(Fence("front", "run", 5))


def test_a_life_that_could_not_come_forward_does_so_with_its_first_write(journals):
    old, new = journals
    [one] = old.commit("s/1", [Draft(item_id="a", text="x")])
    old.fences.come_forward(Fence("front", "run", 1))
    new.put_codes({one.seq: b"second"}, "k", Fence("front", "run", 2))
    with pytest.raises(NodeDown):
        old.put_codes({one.seq: b"late"}, "k", Fence("front", "run", 1))
    assert [item.codes for item in new.items("s/1")] == [b"second"]


def test_no_epoch_is_given_out_twice_whoever_asks(any_url):
    """Two supervisors, each in threads, take charge from each other all the time."""
    tables = [FenceTable.open(any_url) for _ in range(2)]  # makes the journal, too
    given: list[int] = []

    def supervise(name: str, table: FenceTable) -> None:
        for _ in range(10):
            with contextlib.suppress(NodeDown):
                given.append(table.next_epoch("run", name))
            table.take_charge("run", name)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(supervise, "abcd", tables * 2))
    assert len(given) == len(set(given)) > 0


def test_a_supervisor_that_was_frozen_is_given_no_epoch_once_another_has_taken_charge(journals):
    old, new = (journal.fences for journal in journals)
    old.take_charge("run", "old")
    assert [old.next_epoch("run", "old") for _ in range(2)] == [1, 2]
    new.take_charge("run", "new")
    with pytest.raises(NodeDown, match="another one has taken charge"):
        old.next_epoch("run", "old")
    assert new.next_epoch("run", "new") == 3
    assert new.next_epoch("run", "new", above=7) == 8  # some were found in use
    assert new.next_epoch("run", "new", above=7) == 9
    new.take_charge("other", "new")
    assert new.next_epoch("other", "new") == 1
