"""A memory that comes back from a snapshot and the journal after it equals the one that was lost."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sqlalchemy import update

from qraf.actors.encoding import EncodeQueue
from qraf.actors.host import Host
from qraf.actors.messages import Spell
from qraf.actors.node import Node
from qraf.actors.snapshots import Keeper, Snapshots
from qraf.clock import Clock, FakeClock
from qraf.errors import LimitExceeded, NodeDown, NotAvailable, StorageFailed
from qraf.memory.memory import Recollection
from qraf.records import Figures, Item, RecallQuery
from qraf.settings import RuntimeSettings, SealSettings, Settings, SnapshotSettings
from qraf.storage.fences import Fence
from qraf.storage.journal import Journal
from qraf.storage.records import Draft, SessionRecord
from qraf.storage.seal import MasterKeys
from qraf.storage.snapshots import SnapshotTable
from qraf.storage.tables import data_keys
from tests.actors.samples import DIM, FACTS, encoder, query, topology
from tests.encoders import HashEncoder

WORDS = ("parrot", "capital", "water", "sister", "bicycle", "tomatoes", "violin", "hundred", "degrees", "sun", "flat")


class Encode:
    name, dim = "hash", DIM

    def __init__(self) -> None:
        self._encoder = HashEncoder(DIM)
        self.count = 0

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.count += len(texts)
        return self._encoder.encode(list(texts))


class Place:
    """A journal, a directory of snapshots, and nodes that come and go."""

    def __init__(self, folder: Path, url: str = "", **limits: Any) -> None:
        self.folder, self.clock = folder, FakeClock()
        url = url or f"sqlite:///{folder / 'journal.db'}"
        masters = MasterKeys(SealSettings(), folder / "master.key")
        self.journal = Journal.open(url, self.clock, masters)
        self.settings = SnapshotSettings(url=str(folder / "snapshots"), min_items=1, **limits)
        self.count = 0

    def snapshots(self, fence: Fence | None = None) -> Snapshots:
        return Snapshots(self.journal, self.settings, fence, self.clock)

    def node(self, name: str = "desk", *, snapshots: Snapshots | None = None, **changes: Any) -> Node:
        network = topology()
        spec = replace(network.nodes[name], **changes)
        network = replace(network, nodes={**network.nodes, name: spec})
        made = snapshots or self.snapshots()
        return Node(spec, network, Encode(), self.journal, clock=self.clock, snapshots=made)

    def plain(self, name: str = "desk", **changes: Any) -> Node:
        """One that knows the journal alone."""
        made = self.node(name, **changes)
        made._snapshots = None
        return made

    def commit(self, count: int, memory: str = "s/ann", **changes: Any) -> list[Item]:
        rng = np.random.default_rng(self.count)
        drafts = []
        for _ in range(count):
            self.count += 1
            words = " ".join(rng.choice(WORDS, 6))
            told: dict[str, Any] = {
                "text": f"{words} {self.count}",
                "speaker": f"speaker {self.count % 3}",
                "at": 1000.0 + self.count,
            }
            told |= {"metadata": {"n": self.count}} | changes
            drafts.append(Draft(item_id=f"i{self.count}", **told))
        found = self.journal.fetch([one.seq for one in self.journal.commit(memory, drafts)])
        return [found[seq] for seq in sorted(found)]

    def files(self) -> list[Path]:
        return sorted((self.folder / "snapshots").rglob("*.snapshot*"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.journal.close()


QUERIES: list[RecallQuery] = [query(text, k=50) for text in ("parrot water", "flat bicycle", "degrees 7")]


def state(node: Node, memory: str = "s/ann") -> tuple[list[Recollection], Figures]:
    """All that can be seen of a memory, but for how often it has changed."""
    return node.recall(memory, QUERIES), msgspec.structs.replace(node.figures(memory), version=0)


def until(true: Callable[[], bool], timeout_s: float = 10.0) -> None:
    give_up = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def restored(node: Node) -> int:
    assert node._snapshots is not None
    return node._snapshots.stats.restored


# ------------------------------------------------------------------------------------------------------------- exactly
@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"bits": 1, "half_life_s": 500.0}, {"budget_bytes": 60_000}])
def test_a_restored_memory_equals_the_lost_one_and_the_one_from_the_journal_bit_for_bit(
    place: Place, changes: dict[str, Any]
) -> None:
    lost = place.node(**changes)
    lost.absorb("s/ann", place.commit(1400))
    assert lost.snapshot("s/ann")
    lost.absorb("s/ann", place.commit(30))
    fresh = place.node(**changes)
    assert state(fresh) == state(lost) == state(place.plain(**changes))
    assert restored(fresh) == 1
    assert fresh.figures("s/ann") == lost.figures("s/ann")
    assert fresh.sketch("s/ann") == lost.sketch("s/ann")
    assert fresh._encode.count == 0  # type: ignore[attr-defined]
    fresh.absorb("s/ann", place.commit(300))
    lost._held["s/ann"].is_stale = True
    assert state(fresh) == state(lost)


def _batch() -> Any:
    return st.tuples(st.just("absorb"), st.integers(1, 30), st.booleans())


STEPS = st.lists(
    st.one_of(
        _batch(),
        _batch(),
        st.tuples(st.just("lag"), st.integers(1, 3), st.booleans()),  # committed; its absorb never comes
        st.tuples(st.just("mortal"), st.integers(1, 3), st.booleans()),
        st.tuples(st.just("forget"), st.integers(0, 60), st.booleans()),
        st.tuples(st.just("snapshot"), st.just(0), st.booleans()),
        st.tuples(st.just("snapshot"), st.just(0), st.booleans()),
        st.tuples(st.just("restart"), st.just(0), st.booleans()),
    ),
    min_size=3,
    max_size=14,
)


@pytest.mark.slow
@pytest.mark.parametrize("budget_bytes", [None, 4300])
@given(steps=STEPS)
@hypothesis_settings(max_examples=25)
def test_whatever_came_and_went_a_restart_gives_the_same_memory(
    budget_bytes: int | None, steps: list[tuple[str, int, bool]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), "sqlite:///:memory:")
        node = place.node(budget_bytes=budget_bytes, rank=2)
        live: list[int] = []
        told = node.figures("s/ann")
        for what, count, flag in [*steps, ("restart", 0, False)]:
            if what == "absorb":
                items = place.commit(count, pin=flag and count == 1)
                live += [item.seq for item in items]
                node.absorb("s/ann", items[::-1] if flag else items)
            elif what == "lag":
                live += [item.seq for item in place.commit(count)]
            elif what == "mortal":
                node.absorb("s/ann", place.commit(count, expires_at=place.clock.now() + 5))
                place.clock.advance(6 if flag else 1)
            elif what == "forget" and live:
                gone = [live.pop(count % len(live))]
                place.journal.tombstone("s/ann", gone)
                node.forget("s/ann", gone)
            elif what == "snapshot":
                node.snapshot("s/ann")
            elif what == "restart":
                for memory, seq in place.journal.expired():  # what the sweeper does every few seconds
                    place.journal.tombstone(memory, [seq])
                    node.forget(memory, [seq])
                plain = state(place.plain(budget_bytes=budget_bytes, rank=2))
                node = place.node(budget_bytes=budget_bytes, rank=2)
                assert state(node) == plain
            if what != "lag":
                last, told = told, node.figures("s/ann")
                assert told.version > last.version or told == last  # over every restart
        assert not (node._snapshots and node._snapshots.stats.refused)
        place.journal.close()


def test_a_version_goes_on_after_everything_was_forgotten_and_a_restart(place: Place) -> None:
    node = place.node()
    items = place.commit(6)
    node.absorb("s/ann", items)
    gone = [item.seq for item in items]
    for seqs in (gone[:2], gone[2:]):
        place.journal.tombstone("s/ann", seqs)
        receipt = node.forget("s/ann", seqs)
    assert receipt.after.version == node.figures("s/ann").version == place.node().figures("s/ann").version == 12
    fresh = place.node()
    assert fresh.absorb("s/ann", place.commit(1)).version == 13
    assert fresh.figures("s/ben").version == 0


def test_each_node_of_a_collection_has_its_own_share_back(place: Place) -> None:
    items = place.commit(60, "c/notes")
    for name in ("shelf", "attic"):
        lost = place.node(name)
        lost.absorb("c/notes", [item for item in items if lost._is_mine("c/notes", item)])
        assert lost.snapshot("c/notes")
    more = place.commit(10, "c/notes")
    for name in ("shelf", "attic"):
        fresh = place.node(name)
        fresh.warm()
        assert state(fresh, "c/notes") == state(place.plain(name), "c/notes")
        assert restored(fresh) == 1
    assert len(more) == 10


def test_a_snapshot_covers_what_was_written_and_no_item_on_its_way_is_passed_over(place: Place) -> None:
    node = place.node()
    node.absorb("s/ann", place.commit(5))
    late = place.commit(1)
    node.absorb("s/ann", place.commit(5))
    assert node.snapshot("s/ann")
    [one] = place.journal.snapshots.every()
    assert (one.through, one.items) == (late[0].seq - 1, 10)
    assert place.node().figures("s/ann").items == 11


def test_what_has_expired_since_is_not_there(place: Place) -> None:
    node = place.node()
    node.absorb("s/ann", [*place.commit(5), *place.commit(5, expires_at=place.clock.now() + 60)])
    assert node.snapshot("s/ann")
    place.clock.advance(61)
    fresh = place.node()
    assert state(fresh) == state(place.plain())
    assert (fresh.figures("s/ann").items, restored(fresh)) == (5, 1)


# ---------------------------------------------------------------------------------------------------------- forgetting
def test_what_is_forgotten_is_in_no_file_and_does_not_come_back(place: Place) -> None:
    node = place.node()
    items = place.commit(20)
    node.absorb("s/ann", items)
    assert node.snapshot("s/ann")
    copies = {path: path.read_bytes() for path in place.files()}
    place.journal.tombstone("s/ann", [items[3].seq])
    fresh = place.node()  # the host died before it heard of it
    assert restored(fresh) == 0
    assert items[3].seq not in {one.seq for one in fresh.recall("s/ann", QUERIES)[0].evidence}
    fresh.forget("s/ann", [items[3].seq])
    assert fresh._snapshots is not None
    fresh._snapshots.abandon("s/ann")
    assert place.files() == []
    for path, data in copies.items():
        path.write_bytes(data)  # put back from a backup
    assert state(place.node()) == state(fresh)
    assert restored(place.node()) == 0


def test_a_snapshot_that_is_being_written_is_given_up_when_something_of_it_is_forgotten(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = place.snapshots()
    node = place.node(snapshots=snapshots)
    items = place.commit(20)
    node.absorb("s/ann", items)
    is_writing, may_go_on = threading.Event(), threading.Event()

    def slow(pieces: Any, until: float | None) -> Iterator[bytes]:
        for piece in Snapshots._pieces(snapshots, pieces, until):
            is_writing.set()
            assert may_go_on.wait(10)
            yield piece

    monkeypatch.setattr(snapshots, "_pieces", slow)
    made: list[bool] = []
    writer = threading.Thread(target=lambda: made.append(node.snapshot("s/ann")))
    writer.start()
    assert is_writing.wait(10)
    place.journal.tombstone("s/ann", [items[0].seq])
    node.forget("s/ann", [items[0].seq])
    threading.Timer(0.05, may_go_on.set).start()
    snapshots.abandon("s/ann")
    assert place.files() == []
    writer.join(10)
    assert made == [False]
    assert place.journal.snapshots.every() == []
    assert node.snapshot("s/ann")


def test_a_memory_that_was_not_told_what_to_forget_learns_of_it_when_no_snapshot_can_be_made(place: Place) -> None:
    node = place.node()
    items = place.commit(20)
    node.absorb("s/ann", items)
    place.journal.tombstone("s/ann", [items[3].seq])
    assert not node.snapshot("s/ann")
    assert node.snapshot("s/ann")
    assert node.figures("s/ann").items == 19
    assert state(place.node()) == state(node)


def hang(store: Any, method: str, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Let a method of a place hang; what tells that it does, and what lets it go on."""
    hangs, goes_on = threading.Event(), threading.Event()
    usual = getattr(store, method)

    def slow(*args: Any) -> Any:
        hangs.set()
        assert goes_on.wait(30)
        return usual(*args)

    monkeypatch.setattr(store, method, slow)
    return hangs, goes_on


def test_a_place_that_hangs_holds_nobody_who_forgets(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    snapshots = place.snapshots()
    node = place.node(snapshots=snapshots)
    items = place.commit(20)
    node.absorb("s/ann", items)
    assert node.snapshot("s/ann")
    place.journal.tombstone("s/ann", [items[0].seq])
    hangs, goes_on = hang(snapshots._store, "delete", monkeypatch)
    monkeypatch.setattr("qraf.actors.snapshots._ABANDON_S", 0.5)
    snapshots.abandon("s/ann")
    assert hangs.is_set()
    snapshots.abandon("s/ann")
    assert "an earlier call still hangs" in caplog.text
    assert len([one for one in threading.enumerate() if one.name == "errand"]) == 1
    goes_on.set()
    until(lambda: not snapshots._errands.is_hanging)
    snapshots.sweep()
    assert (place.files(), place.journal.snapshots.num_erased(snapshots._store.find())) == ([], 0)


@pytest.mark.parametrize("method", ["find", "read"])
def test_a_memory_whose_place_hangs_is_read_from_the_journal_and_others_do_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    place = Place(tmp_path, restore_s=0.3)
    for memory in ("s/ann", "s/ben"):
        lost = place.node()
        lost.absorb(memory, place.commit(20, memory))
        assert lost.snapshot(memory)
    snapshots = place.snapshots()
    fresh = place.node(snapshots=snapshots)
    hangs, goes_on = hang(snapshots._store, method, monkeypatch)
    opening = threading.Thread(target=lambda: fresh.figures("s/ann"))
    opening.start()
    assert hangs.wait(10)
    assert fresh._held["s/ann"].lock.acquire(timeout=0.1)  # it is free while the place is asked
    fresh._held["s/ann"].lock.release()
    opening.join(10)
    assert state(fresh) == state(place.plain())
    assert "memory 's/ann' is rebuilt from the journal alone" in caplog.text
    assert "no answer in 0.3 s" in caplog.text
    assert state(fresh, "s/ben") == state(place.plain(), "s/ben")  # at once: the place still hangs
    assert "memory 's/ben' is rebuilt from the journal alone" in caplog.text
    assert (snapshots.stats.late, snapshots.stats.restored, snapshots.stats.refused) == (2, 0, 0)
    goes_on.set()
    until(lambda: not snapshots._errands.is_hanging)
    fresh.drop("s/ann")
    assert state(fresh) == state(place.plain())
    assert snapshots.stats.restored == 1
    place.journal.close()


def test_a_place_that_is_slow_to_fail_is_not_asked_for_every_memory(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for memory in ("s/ann", "s/ben"):
        lost = place.node()
        lost.absorb(memory, place.commit(20, memory))
        assert lost.snapshot(memory)
    snapshots = place.snapshots()
    fresh = place.node(snapshots=snapshots)
    asked: list[str] = []

    def fail(id: str) -> None:
        asked.append(id)
        raise StorageFailed("read snapshot", "no route to host")

    monkeypatch.setattr(snapshots._store, "read", fail)
    monkeypatch.setattr("qraf.actors.snapshots._SLOW_S", 0.0)
    for memory in ("s/ann", "s/ben"):
        assert state(fresh, memory) == state(place.plain(), memory)
    assert (len(asked), snapshots.stats.late) == (1, 2)


def test_what_is_forgotten_while_a_snapshot_is_read_does_not_come_back(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = place.node()
    items = place.commit(20)
    lost.absorb("s/ann", items)
    assert lost.snapshot("s/ann")
    snapshots = place.snapshots()
    fresh = place.node(snapshots=snapshots)
    hangs, goes_on = hang(snapshots._store, "read", monkeypatch)
    opening = threading.Thread(target=lambda: fresh.figures("s/ann"))
    opening.start()
    assert hangs.wait(10)
    place.journal.tombstone("s/ann", [items[3].seq])
    goes_on.set()
    opening.join(10)
    assert fresh.figures("s/ann").items == 19
    assert state(fresh) == state(place.plain())


def test_what_was_only_counted_and_is_forgotten_before_the_file_is_begun_makes_none(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = place.node(budget_bytes=20_000)
    items = place.commit(600)
    node.absorb("s/ann", items)
    assert items[0].seq not in node._held["s/ann"].memory.seqs  # it has left, and is counted
    begin = SnapshotTable.begin

    def late(table: SnapshotTable, *args: Any) -> Any:
        place.journal.tombstone("s/ann", [items[0].seq])
        return begin(table, *args)

    monkeypatch.setattr(SnapshotTable, "begin", late)
    assert not node.snapshot("s/ann")
    monkeypatch.undo()
    node.forget("s/ann", [items[0].seq])
    assert node.snapshot("s/ann")
    assert state(place.node(budget_bytes=20_000)) == state(place.plain(budget_bytes=20_000))


def test_other_bits_or_another_budget_begin_from_the_journal(place: Place) -> None:
    place.journal.put_session(SessionRecord(id="ann", created_at=0.0))
    node = place.node()
    node.absorb("s/ann", place.commit(20))
    assert node.snapshot("s/ann")
    place.journal.put_session(SessionRecord(id="ann", created_at=0.0, bits=2))
    node.recode("s/ann")
    fresh = place.node()
    assert state(fresh) == state(node)
    assert restored(fresh) == 0
    assert node.snapshot("s/ann")
    again = place.node()
    assert (state(again), restored(again)) == (state(node), 1)


# ----------------------------------------------------------------------------------------------- damaged and swapped
def _tear(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flip(data: bytes) -> bytes:
    return data[:500] + bytes([data[500] ^ 1]) + data[501:]


@pytest.mark.parametrize("damage", [_tear, _flip, lambda data: b"", lambda data: None])
def test_one_that_is_damaged_is_named_and_the_next_older_one_is_used(
    place: Place, damage: Callable[[bytes], bytes | None], caplog: pytest.LogCaptureFixture
) -> None:
    node = place.node()
    node.absorb("s/ann", place.commit(20))
    assert node.snapshot("s/ann")
    place.clock.advance(1)
    node.absorb("s/ann", place.commit(20))
    assert node.snapshot("s/ann")
    newest = place.journal.snapshots.every()[0]
    [path] = [path for path in place.files() if newest.id in path.name]
    changed = damage(path.read_bytes())
    if changed is None:
        path.unlink()
    else:
        path.write_bytes(changed)
    fresh = place.node()
    with caplog.at_level(logging.ERROR):
        assert state(fresh) == state(node)
    assert fresh._snapshots is not None
    assert (fresh._snapshots.stats.restored, fresh._snapshots.stats.refused) == (1, 1)
    assert f"snapshot '{newest.id}' of memory 's/ann' (40 items" in caplog.text
    assert [one.items for one in place.journal.snapshots.every()] == [20]


def test_files_that_were_exchanged_are_refused_and_the_journal_has_everything(place: Place) -> None:
    node = place.node()
    for memory in ("s/ann", "s/acme/ann"):
        node.absorb(memory, place.commit(20, memory))
        assert node.snapshot(memory)
    one, other = place.files()
    mine, theirs = one.read_bytes(), other.read_bytes()
    one.write_bytes(theirs)
    other.write_bytes(mine)
    for memory in ("s/ann", "s/acme/ann"):
        fresh = place.node()
        assert state(fresh, memory) == state(place.plain(), memory)
        assert fresh._snapshots is not None
        assert (fresh._snapshots.stats.restored, fresh._snapshots.stats.refused) == (0, 1)


def test_no_file_holds_a_word(place: Place) -> None:
    node = place.node()
    node.absorb("s/ann", place.commit(50, metadata={"Zanzibar": "Zanzibar"}, speaker="Zanzibar", text="Zanzibar"))
    assert node.snapshot("s/ann")
    data = b"".join(path.read_bytes() for path in (place.folder / "snapshots").rglob("*") if path.is_file())
    assert len(data) > 50 * (DIM // 2)
    for word in (b"Zanzibar", b"zanzibar", b"s/ann"):
        assert word not in data
    assert "Zanzibar" in str(node._held["s/ann"].memory.items.speakers)  # so it might have been


# ------------------------------------------------------------------------------------------------------------ when
def test_one_is_due_by_count_by_age_and_at_the_end(tmp_path: Path) -> None:
    place = Place(tmp_path, every_items=10, every_s=60)
    place.settings = place.settings.model_copy(update={"min_items": 3})
    node = place.node()
    now = time.monotonic()
    node.absorb("s/ann", place.commit(2))
    assert node.due(now + 100, is_last=True) == []  # too small
    node.absorb("s/ann", place.commit(5))
    assert (node.due(now), node.due(now + 61), node.due(now, is_last=True)) == ([], ["s/ann"], ["s/ann"])
    node.absorb("s/ann", place.commit(5))
    assert node.due(now) == ["s/ann"]
    assert node.snapshot("s/ann")
    assert node.due(now + 1000, is_last=True) == []
    assert place.node().figures("s/ann").items == 12
    place.journal.close()


def test_a_place_that_fails_stops_nothing_and_is_told_until_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("snapshots._LOOK_EVERY_S", "snapshots._FIRST_PAUSE_S", "node._WAIT_S"):
        monkeypatch.setattr(f"qraf.actors.{name}", 0.02)
    place = Place(tmp_path, every_items=1)
    (tmp_path / "snapshots").write_text("no directory")
    snapshots = place.snapshots()
    node = place.node(snapshots=snapshots)
    keeper = Keeper([node], snapshots)
    node.absorb("s/ann", place.commit(20))
    until(lambda: snapshots.stats.failed >= 1)
    assert snapshots.stats.failing_since == place.clock.now()
    assert "snapshots" in snapshots.stats.reason
    assert node.figures("s/ann").items == 20
    assert state(place.node()) == state(node)
    (tmp_path / "snapshots").unlink()
    node.absorb("s/ann", place.commit(20))
    until(lambda: snapshots.stats.made == 1)
    assert (snapshots.stats.failing_since, snapshots.stats.reason) == (0.0, "")
    keeper.close(0)
    place.journal.close()


def test_a_memory_of_which_none_can_be_made_does_not_keep_the_others_from_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("snapshots._LOOK_EVERY_S", "snapshots._FIRST_PAUSE_S", "node._WAIT_S"):
        monkeypatch.setattr(f"qraf.actors.{name}", 0.02)
    place = Place(tmp_path, every_items=1)
    snapshots = place.snapshots()
    node = place.node(snapshots=snapshots)
    for memory in ("s/ann", "s/ben"):
        node.absorb(memory, place.commit(20, memory))
    place.journal._keyring._open.clear()
    with place.journal._write("break a key") as connection:
        connection.execute(update(data_keys).where(data_keys.c.scope == "s/ann").values(wrapped=b"?" * 60))
    keeper = Keeper([node], snapshots)
    until(lambda: snapshots.stats.made == 1)
    keeper.close(0)
    assert [one.memory for one in place.journal.snapshots.every()] == ["s/ben"]
    assert snapshots.stats.failed == 1  # and is not tried again before something has changed
    place.journal.close()


def test_a_memory_that_is_too_large_is_passed_over(tmp_path: Path) -> None:
    place = Place(tmp_path, max_bytes=1024)
    node = place.node()
    node.absorb("s/ann", place.commit(50))
    node.snapshot("s/ann")
    assert place.files() == []
    assert node.due(time.monotonic() + 1e6, is_last=True) == []
    place.journal.close()


def test_one_that_somebody_wants_now_is_made_once(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.settings = place.settings.model_copy(update={"min_items": 512})
    node = place.node()
    assert node.keep("s/ann") == "unchanged"  # it is empty
    node.absorb("s/ann", place.commit(5))
    place.commit(1)  # its absorb never came
    assert (node.due(time.monotonic(), is_last=True), node.keep("s/ann")) == ([], "made")
    assert [one.items for one in place.journal.snapshots.every()] == [6]
    fresh = place.node()
    assert (node.keep("s/ann"), fresh.keep("s/ann"), restored(fresh)) == ("unchanged", "unchanged", 1)
    place.settings = place.settings.model_copy(update={"max_bytes": 1024})
    small = place.node()
    small.absorb("s/ann", place.commit(50))
    for _ in range(2):
        with pytest.raises(LimitExceeded, match="max_bytes"):
            small.keep("s/ann")
    plain = place.node()
    plain._snapshots = None
    with pytest.raises(NotAvailable):
        plain.keep("s/ann")
    place.journal.close()


def test_a_frozen_host_makes_none_after_its_successor_came(place: Place) -> None:
    frozen = place.node(snapshots=place.snapshots(Fence("front", "run", 1)))
    frozen.absorb("s/ann", place.commit(20))
    assert frozen.snapshot("s/ann")
    place.journal.fences.come_forward(Fence("front", "run", 2))
    frozen.absorb("s/ann", place.commit(5))
    before = [path.read_bytes() for path in place.files()]
    with pytest.raises(NodeDown, match="stale epoch 1"):
        frozen.snapshot("s/ann")
    assert [path.read_bytes() for path in place.files()] == before
    assert len(place.journal.snapshots.every()) == 1


def test_a_host_that_stops_leaves_snapshots_and_the_next_one_begins_from_them(tmp_path: Path) -> None:
    journal = Journal.open(f"sqlite:///{tmp_path / 'journal.db'}")
    settings = SnapshotSettings(url=str(tmp_path / "snapshots"), min_items=3)

    def host(epoch: int, clock: Clock | None = None) -> tuple[Host, EncodeQueue]:
        encoding = EncodeQueue(encoder)
        made = Host(encoding, journal, clock=clock)
        made.adopt(Spell("front", epoch, topology(), run="run", snapshots=settings))
        return made, encoding

    first, encoding = host(1)
    drafts = [Draft(item_id=str(n), text=text) for n, text in enumerate(FACTS)]
    items = tuple(journal.fetch([one.seq])[one.seq] for one in journal.commit("s/ann", drafts))
    first.nodes["desk"].absorb("s/ann", items)
    first.close()
    encoding.close()
    assert [one.items for one in journal.snapshots.every()] == [len(FACTS)]
    second, encoding = host(2)
    assert second.figures(2, "desk", "s/ann").items == len(FACTS)
    assert second.ping().snapshots.restored == 1
    journal.tombstone("s/ann", [items[0].seq])
    assert second.forget(2, "desk", "s/ann", [items[0].seq]).forgotten == 1
    assert list((tmp_path / "snapshots").rglob("*.snapshot*")) == []
    second.close()
    encoding.close()
    journal.close()


def test_a_place_in_one_process_is_refused_for_hosts_in_others() -> None:
    inside = SnapshotSettings(url="memory://here")
    with pytest.raises(ValueError, match="memory: is one process's own"):
        Settings(snapshots=inside)
    assert Settings(snapshots=inside, runtime=RuntimeSettings(kind="local")).snapshots_here() == inside
    assert Settings(snapshots=SnapshotSettings(mode="off")).snapshots_here() is None
