"""Snapshots as files and rows: what fits, what is erased with what was forgotten, what does not open."""

import contextlib
import stat

import msgspec
import numpy as np
import pytest
from sqlalchemy import text

from qraf.clock import FakeClock
from qraf.errors import InvalidState, NodeDown, NotAvailable, SealBroken, StorageFailed
from qraf.storage import database, snapshot_files
from qraf.storage.fences import Fence
from qraf.storage.journal import Draft, Journal
from qraf.storage.seal import DataKey, NotOpened, new_key
from qraf.storage.snapshot_files import Abandoned, SnapshotStore, body_of, opened, parts_of, sealed
from qraf.storage.snapshots import Snapshot

FACTS = {"name": "x", "metadata": {7: b"note"}, "nothing": None, "newest": float("-inf"), "budget": {False: 1, True: 0}}
ARRAYS = {
    "seq": np.arange(5, dtype=np.uint32),
    "rows": np.arange(12, dtype=np.uint8).reshape(3, 4),
    "half": np.array([1, 2], np.float16),
    "none": np.zeros((0, 7), np.uint8),
}


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def journal(any_url, masters, clock):
    journal = Journal.open(any_url, clock, masters)
    yield journal
    journal.close()


@pytest.fixture
def store(tmp_path):
    return SnapshotStore(str(tmp_path / "snapshots"))


def fill(journal: Journal, memory: str = "s/1", count: int = 4) -> list[int]:
    return [one.seq for one in journal.commit(memory, [Draft(item_id=f"{n}", text=f"text {n}") for n in range(count)])]


def made(journal: Journal, store: SnapshotStore, seqs: list[int], memory: str = "s/1", keep: int = 2, fence=None):
    """A whole snapshot of no memory at all."""
    wanted = Snapshot(
        memory=memory,
        node="n",
        store=store.make(),
        fit="f",
        through=seqs[-1],
        last_seq=seqs[-1],
        items=len(seqs),
    )
    begun = journal.snapshots.begin(wanted, np.array(seqs), fence)
    assert begun is not None
    one, key = begun
    buffers, size = body_of((FACTS, ARRAYS))
    digest, written = store.write(one.id, sealed(buffers, size, key, one.belongs()))
    assert journal.snapshots.finish(one, digest, written, keep, fence)
    return msgspec.structs.replace(one, digest=digest, size=written, status="ready")


def read(journal: Journal, store: SnapshotStore, one: Snapshot):
    return parts_of(opened(store.read(one.id), journal.snapshots.key(one), one.belongs()))


# ---------------------------------------------------------------------------------------------------------- the files
@pytest.mark.parametrize("size", [0, 1, 2**20 - 1, 2**20, 3 * 2**20 + 5])
@pytest.mark.parametrize("is_sealed", [True, False])
def test_a_body_of_any_size_comes_back(size, is_sealed):
    key = DataKey(1, new_key()) if is_sealed else None
    arrays = {**ARRAYS, "much": np.arange(size, dtype=np.uint8)}
    buffers, total = body_of((FACTS, arrays))
    data = b"".join(sealed(buffers, total, key, ("a", 1)))
    facts, found = parts_of(opened(data, key, ("a", 1)))
    assert facts == FACTS
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)


def test_pieces_that_are_changed_swapped_cut_or_another_s_do_not_open():
    key = DataKey(1, new_key())
    buffers, total = body_of(({}, {"much": np.zeros(3 * 2**20, np.uint8)}))
    data = b"".join(sealed(buffers, total, key, ("a", 1)))
    head, piece = 9, 2**20 + 28
    parts = [data[head + n * piece : head + (n + 1) * piece] for n in range(4)]
    bad = [
        data[:-1],
        data[: head + piece],  # whole pieces are missing
        data[:head],
        data[:head] + parts[1] + parts[0] + parts[2] + parts[3],
        data[:100] + bytes([data[100] ^ 1]) + data[101:],
    ]
    for one in bad:
        with pytest.raises(NotOpened):
            opened(one, key, ("a", 1))
    with pytest.raises(NotOpened):
        opened(data, key, ("a", 2))
    with pytest.raises(InvalidState, match="begin with QRAFSNAP"):
        opened(b"x" + data, key, ("a", 1))


@pytest.mark.parametrize("body", [b"", b"\xff" * 30, (5).to_bytes(8, "little") + b"\x80"])
def test_a_body_that_is_none_is_told(body):
    with pytest.raises(InvalidState):
        parts_of(bytearray(body))


@pytest.mark.parametrize("place", ["directory", "memory"])
def test_a_place_keeps_files_under_one_id(place, tmp_path):
    url = str(tmp_path / "a" / "b") if place == "directory" else f"memory://{tmp_path.name}"
    store = SnapshotStore(url)
    assert store.find() == ""
    name = store.make()
    assert len(name) == 32
    assert SnapshotStore(url).find() == SnapshotStore(url).make() == name
    digest, size = store.write("ab12", [b"one ", b"two"])
    assert (store.read("ab12"), size, len(digest)) == (b"one two", 7, 32)
    assert store.read("cd") is None
    store.delete("ab12")
    store.delete("ab12")
    assert store.read("ab12") is None
    if place == "directory":
        assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


def test_a_place_that_was_emptied_or_made_by_another_is_found_again(store, tmp_path):
    first = store.make()
    (tmp_path / "snapshots" / "store-id").unlink()
    second = store.make()
    assert second != first
    (tmp_path / "snapshots" / "store-id").write_text("0" * 32)
    assert store.make() == store.find() == "0" * 32


@pytest.mark.parametrize("left", ["", "0123"])
def test_a_place_whose_name_was_torn_by_a_full_disk_is_named_anew(store, tmp_path, monkeypatch, left):
    monkeypatch.setattr(snapshot_files, "_WAIT_S", 0.05)
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "store-id").write_text(left)
    assert store.make() == store.find() == (tmp_path / "snapshots" / "store-id").read_text()
    assert len(store.find()) == 32


def test_what_is_given_up_while_it_is_written_leaves_no_file(store, tmp_path):
    store.make()

    def pieces(fault):
        yield b"half"
        raise fault

    with pytest.raises(Abandoned):
        store.write("ab", pieces(Abandoned()))
    with pytest.raises(StorageFailed, match="disk is full"):
        store.write("ab", pieces(OSError(28, "disk is full")))
    assert [path.name for path in (tmp_path / "snapshots").rglob("*") if path.is_file()] == ["store-id"]


def test_a_place_of_an_unknown_kind_is_refused():
    with pytest.raises(NotAvailable, match="snapshots at nosuch"):
        SnapshotStore("nosuch://bucket/x")


# ----------------------------------------------------------------------------------------------------------- the rows
def test_the_newest_that_fits_comes_first_and_no_more_than_the_wanted_number_stay(journal, store, clock):
    seqs = fill(journal)
    first = made(journal, store, seqs[:2])
    clock.advance(1)
    second = made(journal, store, seqs[:3])
    clock.advance(1)
    third = made(journal, store, seqs)
    here = store.find()
    assert [one.id for one in journal.snapshots.newest("s/1", here, "f")] == [third.id, second.id]
    assert journal.snapshots.newest("s/1", here, "other") == journal.snapshots.newest("s/1", "elsewhere", "f") == []
    assert journal.snapshots.newest("s/2", here, "f") == []
    assert journal.snapshots.erased(here) == [first.id]
    assert journal.snapshots.erased("elsewhere") == []
    store.delete(first.id)
    journal.snapshots.remove([first.id, second.id])  # a snapshot that counts is not struck out
    assert [one.id for one in journal.snapshots.every()] == [third.id, second.id]
    facts, arrays = read(journal, store, third)
    assert (facts, arrays["seq"].tolist()) == (FACTS, [0, 1, 2, 3, 4])


def test_forgetting_erases_every_snapshot_that_holds_the_item_and_leaves_older_ones(journal, store):
    seqs = fill(journal)
    before = made(journal, store, seqs[:2])
    after = made(journal, store, seqs)
    kept = store.read(after.id)  # as a backup would
    assert journal.tombstone("s/1", [seqs[2]]) == 1
    assert [one.id for one in journal.snapshots.every()] == [before.id]
    with pytest.raises(SealBroken, match=r"tenant 'default', memory 's/1', snapshot .*erased"):
        journal.snapshots.key(after)
    assert read(journal, store, before)[0] == FACTS
    with journal._read("look") as connection:
        row = connection.execute(text("SELECT secret, key FROM snapshots WHERE status = 'erased'")).one()
    assert (bytes(row.secret), row.key) == (b"", None)  # what the backup holds cannot be opened any more
    assert kept is not None
    assert journal.snapshots.forgotten("s/1", seqs[-1]).tolist() == [seqs[2]]


def test_an_id_that_is_written_anew_after_it_expired_erases_too(journal, store, clock):
    [one] = journal.commit("s/1", [Draft(item_id="a", text="x", expires_at=clock.now() + 5)])
    made(journal, store, [one.seq])
    clock.advance(6)
    journal.commit("s/1", [Draft(item_id="a", text="y")])
    assert journal.snapshots.every() == []


def test_a_session_that_is_dropped_takes_its_snapshots_along(journal, store):
    made(journal, store, fill(journal))
    other = made(journal, store, fill(journal, "s/acme/1"), "s/acme/1")
    journal.drop_memory("s/1")
    assert [one.id for one in journal.snapshots.every()] == [other.id]


def test_nothing_is_begun_of_what_was_forgotten_and_what_was_begun_does_not_count(journal, store):
    seqs = fill(journal)
    wanted = Snapshot(memory="s/1", node="n", store=store.make(), fit="f", through=9, last_seq=seqs[-1], items=4)
    begun = journal.snapshots.begin(wanted, np.array(seqs), None)
    assert begun is not None
    journal.tombstone("s/1", [seqs[0]])
    assert journal.snapshots.begin(wanted, np.array(seqs), None) is None
    assert journal.snapshots.begin(wanted, np.array(seqs[1:]), None) is not None
    assert not journal.snapshots.finish(begun[0], b"d" * 32, 10, 2, None)
    assert journal.snapshots.every() == []


def test_what_died_while_it_was_written_is_found_and_stays_until_nobody_can_write_it(journal, store, clock):
    seqs = fill(journal)
    wanted = Snapshot(memory="s/1", node="n", store=store.make(), fit="f", through=9, last_seq=9, items=4)
    begun = journal.snapshots.begin(wanted, np.array(seqs), None)
    assert begun is not None
    here = store.find()
    assert journal.snapshots.num_erased(here) == 0
    journal.snapshots.refuse(begun[0].id)
    journal.snapshots.remove([begun[0].id])
    assert journal.snapshots.erased(here) == [begun[0].id]
    clock.advance(1000)
    journal.snapshots.remove([begun[0].id])
    assert journal.snapshots.erased(here) == []
    late = journal.snapshots.begin(wanted, np.array(seqs), None)
    assert late is not None
    clock.advance(1000)
    assert journal.snapshots.num_erased(here) == 1
    assert journal.snapshots.erased(here) == [late[0].id]


def test_a_row_or_a_file_of_another_memory_does_not_open(journal, store, any_url):
    seqs, others = fill(journal), fill(journal, "s/acme/1")
    mine, theirs = made(journal, store, seqs), made(journal, store, others, "s/acme/1")
    with pytest.raises(NotOpened):
        opened(store.read(theirs.id), journal.snapshots.key(mine), mine.belongs())
    engine = database.open_engine(any_url)
    with engine.execution_options(write="full").begin() as connection:  # their row, under my memory's name
        connection.execute(text("DELETE FROM snapshots WHERE id = :id"), {"id": mine.id})
        connection.execute(text("UPDATE snapshots SET memory = 's/1' WHERE id = :id"), {"id": theirs.id})
    engine.dispose()
    [moved] = journal.snapshots.newest("s/1", store.find(), "f")
    with pytest.raises(SealBroken, match=r"memory 's/1'.*its key was changed or is another's"):
        journal.snapshots.key(moved)


def test_a_plain_snapshot_is_refused_where_the_memory_is_sealed(journal, store, any_url):
    one = made(journal, store, fill(journal))
    engine = database.open_engine(any_url)
    with engine.execution_options(write="full").begin() as connection:
        connection.execute(text("UPDATE snapshots SET key = NULL"))
    engine.dispose()
    with pytest.raises(SealBroken, match="it is not sealed, and its memory is"):
        journal.snapshots.key(one)


def test_snapshots_of_before_sealing_go_when_their_memory_is_sealed(any_url, masters, store):
    with contextlib.closing(Journal.open(any_url)) as plain:
        one = made(plain, store, fill(plain))
        assert plain.snapshots.key(one) is None
        assert b"note" in store.read(one.id)
    with contextlib.closing(Journal.open(any_url, None, masters)) as journal:
        journal.seal_plain()
        assert journal.snapshots.every() == []
        assert journal.snapshots.erased(store.find()) == [one.id]
        assert b"note" not in store.read(made(journal, store, [1, 2, 3]).id)


def test_a_host_with_a_successor_neither_begins_nor_finishes_one(journal, store):
    seqs = fill(journal)
    frozen, successor = Fence("front", "run", 1), Fence("front", "run", 2)
    wanted = Snapshot(memory="s/1", node="n", store=store.make(), fit="f", through=9, last_seq=9, items=4)
    begun = journal.snapshots.begin(wanted, np.array(seqs), frozen)
    assert begun is not None
    journal.fences.come_forward(successor)
    with pytest.raises(NodeDown):
        journal.snapshots.finish(begun[0], b"d" * 32, 10, 2, frozen)
    with pytest.raises(NodeDown):
        journal.snapshots.begin(wanted, np.array(seqs), frozen)
    assert journal.snapshots.every() == []
    made(journal, store, seqs, fence=successor)


def test_numbers_of_live_items_come_with_ids_where_they_are_shared_out(journal, clock):
    seqs = fill(journal)
    journal.commit(
        "s/1", [Draft(item_id="r", text="x", role="recalled"), Draft(item_id="e", expires_at=clock.now() + 1)]
    )
    journal.tombstone("s/1", [seqs[1]])
    clock.advance(2)
    numbers, ids, _ = journal.snapshots.heads("s/1", seqs[0])
    assert (numbers.tolist(), ids) == ([seqs[2], seqs[3]], [])
    shared = fill(journal, "c/notes", 2)
    numbers, ids, _ = journal.snapshots.heads("c/notes", 0)
    assert (numbers.tolist(), ids) == (shared, ["0", "1"])
