"""The states of a host: versions, all or none, what is at hand, and what a lost race leaves."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from qraf.actors.states import StateRoom
from qraf.errors import InvalidRequest, LimitExceeded, NotFound, QrafError, VersionConflict
from qraf.network.placement import state_host
from qraf.settings import StateSettings
from qraf.state_orders import (
    ArrayData,
    Deleted,
    Exported,
    Measured,
    Preparation,
    StateAnswer,
    StateDelete,
    StateEvolve,
    StateExport,
    StateFork,
    StateMeasure,
    StateMerge,
    StateOrder,
    StatePartialTrace,
    StatePrepare,
    StateRead,
    StateTensor,
    StateView,
    StateViews,
    Step,
)
from qraf.storage.journal import Journal

DEPHASE = Step(channel="dephasing", p=0.5)


def encode(texts: Any) -> Any:
    return np.eye(4, dtype=np.float32)[[len(text) % 4 for text in texts]]


@pytest.fixture
def room(journal: Journal) -> StateRoom:
    return StateRoom(journal, encode)


def done(room: StateRoom, order: StateOrder) -> StateAnswer:
    answer = room.answer(order)
    assert not isinstance(answer, QrafError), answer
    return answer


def views(room: StateRoom, order: StateOrder) -> tuple[StateView, ...]:
    answer = done(room, order)
    assert isinstance(answer, StateViews)
    return answer.states


def bell(room: StateRoom) -> StateView:
    return views(room, StatePrepare(named="bell"))[0]


def zz(room: StateRoom, state: str) -> float:
    answer = done(room, StateMeasure(ids=(state,), paulis={"XX": 1.0}))
    assert isinstance(answer, Measured)
    assert answer.results[0].mean is not None
    return answer.results[0].mean


def test_a_change_is_seen_by_another_process_at_once(room: StateRoom, journal: Journal) -> None:
    other = StateRoom(journal, encode)
    one = bell(room)
    assert zz(other, one.id) == pytest.approx(1)
    [changed] = views(room, StateEvolve(ids=(one.id,), steps=(DEPHASE,)))
    assert (changed.id, changed.version) == (one.id, 2)
    assert zz(other, one.id) == pytest.approx(0.25)
    assert views(other, StateRead(ids=(one.id,))) == (changed,)


def test_a_stale_version_changes_nothing(room: StateRoom) -> None:
    one = bell(room)
    views(room, StateEvolve(ids=(one.id,), steps=(DEPHASE,), versions=(1,)))
    for order in (
        StateEvolve(ids=(one.id,), steps=(DEPHASE,), versions=(1,)),
        StateEvolve(ids=(one.id,), steps=(DEPHASE,), versions=(1,), into="new"),
        StateMerge(ids=(one.id,), others=("st_none", "st_none"), versions=(7,)),
        StateDelete(ids=(one.id,), versions=(1,)),
    ):
        assert isinstance(room.answer(order), VersionConflict | InvalidRequest)
    assert views(room, StateRead(ids=(one.id,)))[0].version == 2
    assert len(room._table.page()[0]) == 1


def test_changes_without_a_version_lose_no_update(room: StateRoom, journal: Journal) -> None:
    one, other = bell(room), StateRoom(journal, encode)
    flip = Step(channel="pauli", probabilities={"Z": 0.01}, subsystems=(0,))
    faults: list[Any] = []

    def change(where: StateRoom) -> None:
        for _ in range(10):
            answer = where.answer(StateEvolve(ids=(one.id,), steps=(flip,)))
            if isinstance(answer, QrafError):
                faults.append(answer)

    threads = [threading.Thread(target=change, args=(where,)) for where in (room, other, room)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert views(room, StateRead(ids=(one.id,)))[0].version == 31
    assert zz(room, one.id) == pytest.approx(0.98**30, abs=1e-12)


def test_many_states_change_together_or_not_at_all(room: StateRoom) -> None:
    made = views(room, StatePrepare(states=(Preparation(named="bell"), Preparation(named="plus:2"))))
    ids = tuple(one.id for one in made)
    answer = room.answer(StateEvolve(ids=(*ids, "st_none"), steps=(DEPHASE,)))
    assert isinstance(answer, NotFound)
    answer = room.answer(StateEvolve(ids=ids, steps=(DEPHASE,), versions=(1, 2)))
    assert isinstance(answer, VersionConflict)
    assert [one.version for one in views(room, StateRead(ids=ids))] == [1, 1]
    assert [one.version for one in views(room, StateEvolve(ids=ids, steps=(DEPHASE,), versions=(1, 1)))] == [2, 2]
    answer = room.answer(StateEvolve(ids=(ids[0], ids[0]), steps=(DEPHASE,)))
    assert isinstance(answer, InvalidRequest)
    assert answer.pointer == "/ids"


def test_what_makes_new_states_leaves_the_old_ones(room: StateRoom) -> None:
    one = bell(room)
    made = [
        *views(room, StateEvolve(ids=(one.id,), steps=(DEPHASE,), into="new")),
        *views(room, StateTensor(ids=(one.id,), others=(one.id, Preparation(named="plus:1")))),
        *views(room, StatePartialTrace(ids=(one.id,), keep=(0,))),
        *views(room, StateFork(ids=(one.id,), copies=2, label="twin")),
    ]
    assert len({view.id for view in made} | {one.id}) == 6
    assert [view.version for view in made] == [1] * 5
    assert [view.dims for view in made] == [(2, 2), (2, 2, 2, 2, 2), (2,), (2, 2), (2, 2)]
    assert [view.label for view in made] == ["", "", "", "twin", "twin"]
    assert views(room, StateRead(ids=(one.id,))) == (one,)


def test_a_fault_of_a_named_state_points_at_it(room: StateRoom) -> None:
    one = bell(room)
    for order, pointer in (
        (StateMerge(ids=(one.id,), others=(one.id, "st_none")), "/others/1/state"),
        (StatePrepare(state="st_none"), "/state"),
        (StateMerge(ids=(one.id,), others=()), "/others"),
        (StateMeasure(ids=(), basis="ZZ"), "/ids"),
        (StateFork(ids=(one.id,), copies=0), "/copies"),
        (StateEvolve(ids=(one.id,), steps=(DEPHASE,), versions=(1, 1)), "/versions"),
    ):
        answer = room.answer(order)
        assert isinstance(answer, InvalidRequest), answer
        assert answer.pointer == pointer


def test_what_is_at_hand_is_bounded_and_the_rest_comes_back(journal: Journal) -> None:
    room = StateRoom(journal, encode, StateSettings(cache_bytes=1000))
    made = views(room, StatePrepare(states=(Preparation(named="plus:5"),) * 8))  # 256 bytes each
    assert room.kept_bytes <= 1000
    found = done(room, StateMeasure(ids=tuple(one.id for one in made), basis="XXXXX"))
    assert isinstance(found, Measured)
    assert all(one.probabilities and one.probabilities[0] == pytest.approx(1) for one in found.results)
    assert room.kept_bytes <= 1000
    done(room, StateDelete(ids=tuple(one.id for one in made)))
    assert room.kept_bytes == 0


def test_limits_are_named_and_nothing_is_written(journal: Journal) -> None:
    room = StateRoom(journal, encode, StateSettings(max_states=2, max_bytes=1024, max_total_bytes=1200, max_batch=3))
    bell(room)
    for order, limit in (
        (StatePrepare(states=(Preparation(named="bell"),) * 2), "states.max_states"),
        (StatePrepare(named="mixed:3"), None),
        (StatePrepare(named="plus:8"), "states.max_bytes"),
        (StatePrepare(named="plus:1"), "states.max_states"),
    ):
        answer = room.answer(order)
        if limit is None:
            assert isinstance(answer, StateViews)
        else:
            assert isinstance(answer, LimitExceeded), answer
            assert answer.limit == limit
    assert len(room._table.page()[0]) == 2
    answer = room.answer(StatePrepare(states=(Preparation(named="bell"),) * 4))
    assert isinstance(answer, InvalidRequest)
    assert answer.pointer == "/states"


def test_certificate_label_and_numbers_survive_the_process(room: StateRoom, journal: Journal) -> None:
    [one] = views(room, StatePrepare(named="mixed:3", label="noise"))
    [cut] = views(room, StateEvolve(ids=(one.id,), steps=(DEPHASE,), loss=0.3))
    assert cut.certificate.trace_distance > 0.2
    again = StateRoom(journal, encode)
    [more] = views(again, StateEvolve(ids=(one.id,), steps=(DEPHASE,)))
    assert more.certificate.trace_distance == pytest.approx(cut.certificate.trace_distance)
    assert (more.label, more.version, more.rank) == ("noise", 3, cut.rank)
    first, second = (done(where, StateExport(id=one.id)) for where in (room, again))
    assert isinstance(first, Exported)
    assert first == second


def test_text_is_a_state_too_and_deletion_ends_it(room: StateRoom) -> None:
    [one] = views(room, StatePrepare(text="abc"))
    assert (one.d, one.rank) == (4, 1)
    assert done(room, StateDelete(ids=(one.id,), versions=(1,))) == Deleted(ids=(one.id,))
    assert isinstance(room.answer(StateMeasure(ids=(one.id,), basis="computational")), NotFound)


def test_a_fault_of_ours_is_an_answer_too(room: StateRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    one = bell(room)
    monkeypatch.setattr("qraf.actors.states.measure", lambda *_: 1 / 0)
    answer = room.answer(StateMeasure(ids=(one.id,), basis="ZZ"))
    assert type(answer) is QrafError
    assert "ZeroDivision" not in str(answer)
    assert views(room, StateRead(ids=(one.id,))) == (one,)


def test_new_states_belong_to_the_host_that_makes_them(journal: Journal) -> None:
    hosts = ("a", "b", "c")
    room = StateRoom(journal, encode, is_mine=lambda state: state_host(hosts, state) == "b")
    made = views(room, StatePrepare(states=(Preparation(named="bell"),) * 8))
    assert {state_host(hosts, one.id) for one in made} == {"b"}


def test_a_call_that_takes_too_long_or_too_much_changes_nothing(journal: Journal) -> None:
    room = StateRoom(journal, encode, StateSettings(max_call_bytes=5000, max_call_s=5))
    one = bell(room)
    late = time.monotonic() - 6
    for order in (StateEvolve(ids=(one.id,), steps=(DEPHASE,)), StatePrepare(named="bell"), StateDelete(ids=(one.id,))):
        answer = room.answer(order, late)
        assert isinstance(answer, LimitExceeded)
        assert answer.limit == "states.max_call_s"
    for order in (
        StatePrepare(states=(Preparation(named="plus:6"),) * 20),
        StateTensor(ids=(one.id,), others=(Preparation(named="plus:8"),)),
        StateEvolve(ids=(one.id,), steps=(DEPHASE,) * 30),
    ):
        answer = room.answer(order)
        if isinstance(order, StateEvolve):
            assert isinstance(answer, StateViews)  # what a step made is let go by the next
        else:
            assert isinstance(answer, LimitExceeded)
            assert answer.limit == "states.max_call_bytes"
    assert journal.states.versions([one.id]) == {one.id: 2}


def test_a_state_may_have_an_id_of_its_own_and_be_made_again(room: StateRoom) -> None:
    first = views(room, StatePrepare(named="bell", id="st_bell", label="one"))
    assert views(room, StatePrepare(named="bell", id="st_bell", label="two")) == first
    answer = room.answer(StatePrepare(named="bell:psi-", id="st_bell"))
    assert isinstance(answer, VersionConflict)
    assert "there already" in str(answer)
    views(room, StateEvolve(ids=("st_bell",), steps=(DEPHASE,)))
    assert isinstance(room.answer(StatePrepare(named="bell", id="st_bell")), VersionConflict)
    twice = (Preparation(named="bell", id="st_a"), Preparation(named="bell", id="st_a"))
    for order, pointer in (
        (StatePrepare(named="bell", id="bell"), "/id"),
        (StatePrepare(named="bell", id="st_" + "x" * 61), "/id"),
        (StatePrepare(states=twice), "/states/1/id"),
        (StatePrepare(states=twice[:1], id="st_b"), "/states"),
        (StateMerge(ids=("st_bell",), others=twice[:1]), "/others/0/id"),
    ):
        fault = room.answer(order)
        assert isinstance(fault, InvalidRequest), fault
        assert fault.pointer == pointer


@pytest.mark.slow
@pytest.mark.timeout(90)  # six seconds alone
def test_twelve_qubits_of_full_rank_are_stored_and_changed(journal: Journal) -> None:
    room = StateRoom(journal, encode, StateSettings(max_call_s=80, cache_bytes=0))  # read back from the journal
    [mixed] = views(room, StatePrepare(named="mixed:12"))
    assert (mixed.rank, mixed.figures.entropy_bits) == (4096, 12)
    assert mixed.bytes < 3 * 1024**2  # its packet holds the numbers that are not zero
    [less] = views(room, StateEvolve(ids=(mixed.id,), steps=(Step(channel="amplitude_damping", gamma=0.5),)))
    ground, excited = 0.75, 0.25  # of every qubit, which stay apart
    assert less.figures.purity == pytest.approx((ground**2 + excited**2) ** 12)
    bits = -ground * np.log2(ground) - excited * np.log2(excited)
    assert less.figures.entropy_bits == pytest.approx(12 * bits)
    assert less.certificate.trace_distance < 1e-9
    listed = room.answer(StateExport(id=less.id, format="json"))
    assert isinstance(listed, InvalidRequest)
    assert listed.pointer == "/format"
    packet = done(room, StateExport(id=less.id))
    assert isinstance(packet, Exported)
    assert len(packet.data) == less.bytes


@pytest.mark.slow
def test_a_call_that_would_take_too_long_is_refused_before_it_is_begun(journal: Journal) -> None:
    room = StateRoom(journal, encode, StateSettings(max_call_s=2))
    rows = np.random.default_rng(0).normal(size=(2, 800, 1536)) / np.sqrt(2 * 800 * 1536)
    factor = (rows[0] + 1j * rows[1]) / np.linalg.norm(rows)
    numbers = ArrayData(data=factor.astype("<c16").tobytes(), shape=factor.shape, dtype="complex128")
    [dense] = views(room, StatePrepare(factor=numbers, normalize=True))
    answer = room.answer(StateMerge(ids=(dense.id,), others=(Preparation(factor=numbers, normalize=True),), loss=0.1))
    assert isinstance(answer, LimitExceeded)
    assert answer.limit == "states.max_call_s"
    assert views(room, StateRead(ids=(dense.id,)))[0].version == 1


def test_a_job_may_take_longer_and_keeps_nobody_waiting(journal: Journal) -> None:
    room = StateRoom(journal, encode, StateSettings(max_call_s=1e-9, max_operation_s=60))
    order = StatePrepare(named="bell")
    assert isinstance(room.answer(order), LimitExceeded)
    made = room.answer(order, is_job=True)
    assert isinstance(made, StateViews)
    [bell] = made.states
    with room._alone([bell.id]):  # another change is under way
        changed = room.answer(StateEvolve(ids=(bell.id,), steps=(DEPHASE,)), is_job=True)
    assert isinstance(changed, StateViews)
    assert changed.states[0].version == 2
