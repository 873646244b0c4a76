"""A journal that is sealed, on both databases: what is in it, what fails, what a destroyed key leaves."""

import contextlib
import shutil
import sqlite3

import pytest
from sqlalchemy import text

from qraf.clock import FakeClock
from qraf.errors import KeysMissing, SealBroken
from qraf.settings import SealSettings
from qraf.storage import database
from qraf.storage.journal import Draft, Journal, SessionRecord
from qraf.storage.records import StateRecord
from qraf.storage.rotation import rotate
from qraf.storage.seal import MasterKeys

SECRET = "the-combination-is-7341"
WHOLE = Draft(
    item_id="a",
    text=f"{SECRET} and more",
    speaker=f"who-{SECRET}",
    role="tool",
    at=3.0,
    metadata={SECRET: [SECRET]},
    pin=True,
    amplitudes=SECRET.encode(),
)


def execute(url: str, statement: str, **values) -> None:
    engine = database.open_engine(url)
    with engine.execution_options(write="full").begin() as connection:
        connection.execute(text(statement), values)
    engine.dispose()


@pytest.fixture
def open_(any_url, masters):
    with contextlib.ExitStack() as stack:

        def opened(masters=masters, **options) -> Journal:
            journal = Journal.open(any_url, FakeClock(), masters, **options)
            stack.callback(journal.close)
            return journal

        yield opened


def fill(journal: Journal) -> int:
    journal.put_session(SessionRecord(id="1", created_at=1.0, metadata={"note": SECRET}))
    [one] = journal.commit("s/1", [WHOLE])
    journal.put_codes({one.seq: SECRET.encode()}, "k")
    journal.states.put([StateRecord("st_1", 1, SECRET.encode(), SECRET.encode())])
    return one.seq


def everything(url: str) -> bytes:
    """All rows of all tables."""
    engine = database.open_engine(url)
    held = b""
    with engine.connect() as connection:
        for table in ("items", "codes", "sessions", "states", "data_keys"):
            for row in connection.execute(text(f"SELECT * FROM {table}")):
                held += b"".join(bytes(v) if isinstance(v, bytes | memoryview) else str(v).encode() for v in row)
    engine.dispose()
    return held


def test_no_table_and_no_file_holds_a_text(any_url, open_, tmp_path):
    journal = open_()
    seq = fill(journal)
    assert SECRET.encode() not in everything(any_url)
    assert b"7341" not in b"".join(path.read_bytes() for path in tmp_path.rglob("any.db*"))
    [item] = journal.items("s/1")
    assert {name: getattr(item, name) for name in WHOLE.__struct_fields__} == {
        name: getattr(WHOLE, name) for name in WHOLE.__struct_fields__
    }
    assert (item.seq, item.codes, item.code) == (seq, SECRET.encode(), "k")
    other = open_(leads=False)  # as a host
    assert other.items("s/1") == [item]
    assert other.get_session("1").metadata == {"note": SECRET}
    assert other.states.fetch(["st_1"])["st_1"].packet == SECRET.encode()
    assert other.speakers("s/1") == (WHOLE.speaker,)


CHANGES = {
    "text of another row": "UPDATE items SET text = (SELECT text FROM items WHERE item_id = 'b') WHERE item_id = 'a'",
    "row in another session": "UPDATE items SET memory = 's/2' WHERE item_id = 'a'",
    "another id": "UPDATE items SET item_id = 'z' WHERE item_id = 'a'",
    "another number": "UPDATE items SET seq = 999 WHERE item_id = 'a'",
    "no key": "UPDATE items SET key = NULL WHERE item_id = 'a'",
    "another key": "UPDATE items SET key = 5 WHERE item_id = 'a'",
    "key of another": "UPDATE items SET key = (SELECT id FROM data_keys WHERE scope = 's/2') WHERE item_id = 'a'",
    "amplitudes cut": "UPDATE items SET amplitudes = substr(amplitudes, 1, 20) WHERE item_id = 'a'",
    "codes of another": "UPDATE codes SET rows = (SELECT rows FROM codes c WHERE c.seq != codes.seq)",
    "codes by another name": "UPDATE codes SET code = 'other'",
    "wrapped key of another": "UPDATE data_keys SET wrapped = (SELECT wrapped FROM data_keys k WHERE k.scope = 's/2')",
}


@pytest.mark.parametrize(
    "change",
    [
        each if each in ("text of another row", "codes of another") else pytest.param(each, marks=pytest.mark.slow)
        for each in CHANGES
    ],
)
def test_a_row_that_was_changed_or_moved_fails_by_name_and_others_do_not(any_url, open_, change):
    journal = open_()
    a, b = (one.seq for one in journal.commit("s/1", [WHOLE, Draft(item_id="b", text="other")]))
    journal.commit("s/2", [Draft(item_id="c", text="elsewhere")])
    journal.commit("s/3", [Draft(item_id="d", text="untouched")])
    journal.put_codes({a: b"1", b: b"2"}, "k")
    execute(any_url, CHANGES[change])
    reader = open_()
    memory = "s/2" if change == "row in another session" else "s/1"
    with pytest.raises(SealBroken) as caught:
        reader.items(memory)
    assert (caught.value.tenant, caught.value.memory) == ("default", memory)
    assert SECRET not in str(caught.value)
    if change != "wrapped key of another":
        assert caught.value.seq in (a, b, 999)
        assert reader.find("s/3", "d").text == "untouched"


def test_a_broken_memory_stops_alone_is_told_of_and_can_be_dropped(any_url, open_, caplog):
    journal = open_()
    [bad] = journal.commit("s/1", [WHOLE])
    [good] = journal.commit("s/2", [Draft(item_id="c", text="sound")])
    execute(any_url, "UPDATE items SET item_id = 'z' WHERE item_id = 'a'")
    reader = open_()
    assert {seq: item.text for seq, item in reader.fetch([bad.seq, good.seq]).items()} == {good.seq: "sound"}
    for _ in range(2):
        with pytest.raises(SealBroken):
            reader.fetch([bad.seq])
    assert list(reader.broken) == ["s/1"]
    [record] = caplog.records
    assert "tenant 'default', memory 's/1', 1: its text was changed" in record.getMessage()
    assert SECRET not in caplog.text
    assert reader.drop_memory("s/1") == 1
    assert reader.broken == {}
    assert reader.items("s/1") == []


def test_an_older_version_of_a_state_and_metadata_of_another_session_fail(any_url, open_):
    journal = open_()
    journal.states.put([StateRecord("st_1", 1, b"v1", b"p1"), StateRecord("st_2", 1, b"v", b"p")])
    journal.put_session(SessionRecord(id="1", created_at=1.0, metadata={"a": 1}))
    journal.put_session(SessionRecord(id="2", created_at=1.0, metadata={"b": 1}))
    execute(any_url, "CREATE TABLE kept AS SELECT * FROM states")
    journal.states.put([StateRecord("st_1", 2, b"v2", b"p2")])
    replay = "SELECT packet FROM kept WHERE kept.id = 'st_1'"
    execute(any_url, f"UPDATE states SET packet = ({replay}) WHERE id = 'st_1'")
    with pytest.raises(SealBroken, match="'st_1' version 2: its packet"):
        journal.states.fetch(["st_1"])
    assert journal.states.fetch(["st_1"], packets=False)["st_1"].view == b"v2"
    assert journal.states.fetch(["st_2"])["st_2"].packet == b"p"
    execute(any_url, "UPDATE sessions SET metadata = (SELECT metadata FROM sessions WHERE id = '1') WHERE id = '2'")
    with pytest.raises(SealBroken, match="s/2"):
        journal.get_session("2")
    assert journal.get_session("1").metadata == {"a": 1}
    assert [(one.id, one.metadata) for one in journal.list_sessions()[0]] == [("1", {"a": 1}), ("2", {})]
    assert list(journal.broken) == ["states/default", "s/2"]


def test_a_session_that_is_erased_takes_its_key_with_it_out_of_old_backups_too(masters, tmp_path):
    journal = Journal.open(f"sqlite:///{tmp_path / 'j.db'}", FakeClock(), masters)
    fill(journal)
    journal.commit("s/2", [Draft(item_id="b", text="stays")])
    with sqlite3.connect(tmp_path / "j.db") as source, sqlite3.connect(tmp_path / "backup.db") as target:
        source.backup(target)
    assert journal.delete_session("1")
    assert journal.drop_memory("s/1") == 1
    with sqlite3.connect(tmp_path / "j.db") as now:
        left = {scope for (scope,) in now.execute("SELECT scope FROM data_keys")}
    assert left == {"journal", "s/2", "states/default"}
    journal.close()
    # the keys of today beside the rows of then: what an erased session leaves to whoever has the backup and the masters
    with sqlite3.connect(tmp_path / "backup.db") as backup:
        backup.execute("ATTACH ? AS now", (str(tmp_path / "j.db"),))
        backup.execute("DELETE FROM data_keys WHERE id NOT IN (SELECT id FROM now.data_keys)")
    old = Journal.open(f"sqlite:///{tmp_path / 'backup.db'}", FakeClock(), masters)
    with pytest.raises(SealBroken, match="its data key is gone"):
        old.items("s/1")
    assert old.find("s/2", "b").text == "stays"
    old.close()


def test_a_session_made_again_has_another_key_in_every_process(open_):
    journal, other = open_(), open_()
    fill(journal)
    assert other.count("s/1") == len(other.items("s/1")) == 1  # it keeps the key unwrapped
    journal.delete_session("1")
    journal.drop_memory("s/1")
    journal.put_session(SessionRecord(id="1", created_at=2.0))
    [one] = other.commit("s/1", [Draft(item_id="n", text="new")])
    assert journal.fetch([one.seq])[one.seq].text == "new"
    assert [item.text for item in open_().items("s/1")] == ["new"]


def test_a_memory_that_is_dropped_leaves_its_session_readable(open_):
    journal = open_()
    fill(journal)
    journal.drop_memory("s/1")
    assert open_().get_session("1").metadata == {"note": SECRET}


def test_rows_of_before_are_sealed_a_memory_at_a_time(any_url, open_):
    plain = open_(None)
    seq = fill(plain)
    plain.commit("c/x", [Draft(item_id=f"i{n}", text=f"text {n}", speaker="Ada") for n in range(1100)])
    before = plain.items("c/x", limit=2000)
    assert SECRET.encode() in everything(any_url)
    journal = open_()
    assert journal.find("s/1", "a").text == WHOLE.text  # read as it is until then
    seen = []
    assert journal.seal_plain(lambda done, total: seen.append((done, total))) == 1103
    assert seen[-1] == (1103, 1103)
    assert SECRET.encode() not in everything(any_url)
    assert journal.items("c/x", limit=2000) == before
    assert (journal.items("s/1")[0].codes, journal.speakers("c/x")) == (SECRET.encode(), ("Ada",))
    assert journal.fetch([seq])[seq].metadata == WHOLE.metadata
    assert journal.states.fetch(["st_1"])["st_1"].view == SECRET.encode()
    assert journal.seal_plain() == 0


def test_the_first_write_to_a_memory_seals_what_it_had(any_url, open_):
    open_(None).commit("s/1", [WHOLE])
    journal = open_()
    journal.commit("s/1", [Draft(item_id="b", text="later")])
    assert SECRET.encode() not in everything(any_url)
    assert [item.item_id for item in journal.items("s/1")] == ["a", "b"]


def test_what_is_off_writes_plain_rows_and_reads_sealed_ones(any_url, open_, masters, tmp_path):
    fill(open_())
    off = open_(MasterKeys(SealSettings(mode="off"), masters.file))
    assert off.find("s/1", "a").text == WHOLE.text
    off.commit("s/1", [Draft(item_id="b", text="into a sealed memory")])
    off.commit("s/9", [Draft(item_id="c", text="plain-as-day")])
    held = everything(any_url)
    assert b"into a sealed" not in held
    assert b"plain-as-day" in held
    assert off.seal_plain() == 0


def test_a_lost_key_file_is_said_at_start_and_no_new_one_is_made(open_, masters):
    fill(open_())
    masters.file.rename(masters.file.with_suffix(".away"))
    for mode in ("on", "off"):
        with pytest.raises(KeysMissing, match=r"master\.key is not there; put it back"):
            open_(MasterKeys(SealSettings(mode=mode), masters.file))
    assert not masters.file.exists()
    other = MasterKeys(SealSettings(), masters.file)
    other.make()
    with pytest.raises(KeysMissing, match="sealed with master key"):
        open_(other)


def test_without_master_keys_sealed_rows_are_not_read_and_nothing_is_written_beside_them(open_):
    fill(open_())
    bare = open_(None)
    with pytest.raises(KeysMissing):
        bare.items("s/1")
    with pytest.raises(KeysMissing):
        bare.commit("s/1", [Draft(item_id="b")])
    assert bare.commit("s/other", [Draft(item_id="b")])


def test_a_host_seals_when_the_journal_is_sealed(any_url, open_):
    host = open_(leads=False)
    host.states.put([StateRecord("st_1", 1, b"v", b"plain-as-day")])
    assert b"plain-as-day" in everything(any_url)
    open_()
    host = open_(leads=False)
    host.states.put([StateRecord("st_2", 1, b"v", SECRET.encode())])
    held = everything(any_url)
    assert SECRET.encode() not in held
    assert b"plain-as-day" not in held  # the key of the tenant's states sealed it


def test_keys_are_rotated_while_the_journal_is_open(open_, masters, tmp_path):
    journal = open_()
    for n in range(3):
        journal.commit(f"s/{n}", [Draft(item_id="a", text=f"text {n}")])
    [old] = journal.masters_used()
    done = rotate(open_(MasterKeys(SealSettings(), masters.file)), MasterKeys(SealSettings(), masters.file))
    assert (done.is_new, done.wrapped, done.dropped) == (True, 4, 0)
    assert set(journal.masters_used()) == {done.first} != {old}
    assert journal.find("s/1", "a").text == "text 1"
    journal.commit("s/new", [Draft(item_id="a", text="made while it runs")])
    assert journal.masters_used() == {done.first: 5}
    # the old key is still in the file, for backups; the next rotation lets both go
    assert len([line for line in masters.file.read_text().splitlines() if not line.startswith("#")]) == 2
    again = rotate(
        open_(MasterKeys(SealSettings(), masters.file)), MasterKeys(SealSettings(), masters.file), drop_old=True
    )
    assert (again.wrapped, again.dropped) == (5, 2)
    assert journal.masters_used() == {again.first: 5}
    journal.commit("s/newer", [Draft(item_id="a")])
    fresh = open_(MasterKeys(SealSettings(), masters.file))
    assert fresh.find("s/new", "a").text == "made while it runs"
    assert (masters.file.stat().st_mode & 0o777, list(masters.file.parent.iterdir())) == (0o600, [masters.file])


def test_keys_of_the_environment_are_rotated_by_a_new_one_in_front(open_, tmp_path):
    from qraf.storage.seal import new_key_line

    first, second = new_key_line(), new_key_line()
    journal = open_(MasterKeys(SealSettings(key=first), tmp_path))
    fill(journal)
    both = MasterKeys(SealSettings(key=f"{second} {first}"), tmp_path)
    done = rotate(open_(both), both)
    assert (done.is_new, done.wrapped) == (False, 3)
    assert open_(MasterKeys(SealSettings(key=second), tmp_path)).find("s/1", "a").text == WHOLE.text
    with pytest.raises(KeysMissing, match="not QRAF's to change"):
        rotate(journal, both, drop_old=True)


def test_a_restored_dump_opens_with_the_same_keys(masters, tmp_path):
    url = f"sqlite:///{tmp_path / 'j.db'}"
    journal = Journal.open(url, FakeClock(), masters)
    fill(journal)
    journal.close()
    shutil.copy(tmp_path / "j.db", tmp_path / "restored.db")
    restored = Journal.open(f"sqlite:///{tmp_path / 'restored.db'}", FakeClock(), masters)
    assert restored.find("s/1", "a").text == WHOLE.text
    restored.close()


def test_two_tenants_have_keys_of_their_own_and_a_row_does_not_cross(any_url, open_):
    journal = open_()
    journal.commit("s/ann", [Draft(item_id="a", text="ours")])
    journal.commit("s/acme/ann", [Draft(item_id="a", text="theirs")])
    journal.states.put([StateRecord("st_1", 1, b"v", b"p"), StateRecord("acme/st_1", 1, b"v", b"p")])
    engine = database.open_engine(any_url)
    with engine.connect() as connection:
        found = dict(connection.execute(text("SELECT scope, tenant FROM data_keys")).all())
    engine.dispose()
    assert found == {
        "journal": "default",
        "s/ann": "default",
        "s/acme/ann": "acme",
        "states/default": "default",
        "states/acme": "acme",
    }
    execute(any_url, "DELETE FROM items WHERE memory = 's/ann'")
    execute(any_url, "UPDATE items SET memory = 's/ann' WHERE memory = 's/acme/ann'")
    with pytest.raises(SealBroken, match="tenant 'default'"):
        journal.items("s/ann")
