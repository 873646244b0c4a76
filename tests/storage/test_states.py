"""The table of states: versions, all or none, limits, pages."""

import pytest

from qraf.errors import InvalidRequest, LimitExceeded, NotFound, VersionConflict
from qraf.storage.records import StateRecord


def record(state="st_1", version=1, packet=b"packet", view=b"{}"):
    return StateRecord(state, version, view, packet)


def test_a_state_comes_back_as_it_was_written(journal, clock):
    [written] = journal.states.put([record(view=b'{"d":2}')])
    assert written.created_at == written.updated_at == clock.now()
    assert journal.states.fetch(["st_1", "st_2"]) == {"st_1": written}
    assert journal.states.fetch(["st_1"], packets=False)["st_1"].packet == b""
    assert journal.states.versions(["st_1", "st_2"]) == {"st_1": 1}


def test_a_change_needs_the_version_right_below_it(journal, clock):
    journal.states.put([record()])
    clock.advance(5)
    [changed] = journal.states.put([record(version=2, packet=b"new")])
    assert (changed.version, changed.updated_at - changed.created_at) == (2, 5)
    with pytest.raises(VersionConflict) as caught:
        journal.states.put([record(version=2, packet=b"late")])
    assert (caught.value.wanted, caught.value.now) == (1, 2)
    assert journal.states.fetch(["st_1"])["st_1"].packet == b"new"
    with pytest.raises(NotFound):
        journal.states.put([record("st_9", version=2)])


def test_making_a_state_may_be_repeated_but_not_with_another_packet(journal):
    first = journal.states.put([record()])
    assert journal.states.put([record()]) == first
    with pytest.raises(VersionConflict):
        journal.states.put([record(packet=b"other")])


def test_one_fault_among_many_changes_nothing(journal):
    journal.states.put([record()])
    with pytest.raises(VersionConflict):
        journal.states.put([record("st_2"), record("st_1", version=3)])
    assert journal.states.versions(["st_1", "st_2"]) == {"st_1": 1}
    journal.states.put([record("st_2")])
    with pytest.raises(VersionConflict):
        journal.states.delete(["st_1", "st_2"], [1, 7])
    with pytest.raises(NotFound):
        journal.states.delete(["st_1", "st_3"])
    assert set(journal.states.versions(["st_1", "st_2"])) == {"st_1", "st_2"}
    journal.states.delete(["st_1", "st_2"], [1, 1])
    assert journal.states.versions(["st_1", "st_2"]) == {}


def test_limits_count_states_and_their_bytes(journal):
    journal.states.put([record()], max_states=1, max_bytes=6)
    with pytest.raises(LimitExceeded, match="max_states"):
        journal.states.put([record("st_2")], max_states=1)
    with pytest.raises(LimitExceeded, match="max_total_bytes"):
        journal.states.put([record(version=2, packet=b"longer!")], max_bytes=6)
    journal.states.put([record(version=2, packet=b"short")], max_states=1, max_bytes=6)
    assert journal.states.versions(["st_1"]) == {"st_1": 2}


def test_pages_follow_each_other_and_end(journal):
    ids = [f"st_{number:03}" for number in range(7)]
    journal.states.put([record(state) for state in ids])
    seen, cursor = [], None
    while True:
        page, cursor = journal.states.page(cursor, 3)
        seen += [one.id for one in page]
        if cursor is None:
            break
    assert seen == ids
    with pytest.raises(InvalidRequest):
        journal.states.page("nonsense", 3)
    with pytest.raises(InvalidRequest):
        journal.states.page(None, 201)
