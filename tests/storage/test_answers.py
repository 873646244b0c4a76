"""Kept answers, on both databases: one attempt works, the others see what came of it."""

from __future__ import annotations

import contextlib
import shutil

from sqlalchemy import select, update

from qraf.errors import SealBroken
from qraf.storage import tables
from qraf.storage.answers import KeptAnswer
from qraf.storage.journal import Journal
from qraf.storage.records import SessionRecord

DONE = KeptAnswer(asked=b"a", status=201, headers={"etag": '"1"'}, body=b'{"text": "walnuts"}')


def test_one_attempt_takes_a_name_and_the_next_finds_its_answer(journal) -> None:
    table = journal.answers
    assert table.begin("acme", "k", b"a", "one", 60) is None
    assert table.begin("acme", "k", b"a", "one", 60) is None  # its own call, made again
    assert table.begin("acme", "k", b"a", "two", 60) == KeptAnswer(asked=b"a")
    table.finish("acme", "k", "two", DONE, 60)  # not its name: nothing
    table.finish("acme", "k", "one", DONE, 60)
    assert table.begin("acme", "k", b"b", "three", 60) == DONE
    assert table.begin("brook", "k", b"b", "four", 60) is None
    assert table.begin("acme", "k2", b"b", "five", 60) is None


def test_a_name_is_free_when_its_attempt_gives_up_or_is_lost(journal, clock) -> None:
    table = journal.answers
    assert table.begin("acme", "k", b"a", "one", 60) is None
    table.give_up("acme", "k", "two")
    assert table.begin("acme", "k", b"a", "two", 60) is not None
    table.give_up("acme", "k", "one")
    assert table.begin("acme", "k", b"a", "two", 60) is None
    clock.advance(61)
    assert table.begin("acme", "k", b"b", "three", 60) is None
    table.finish("acme", "k", "two", DONE, 60)  # too late
    table.finish("acme", "k", "three", DONE, 100)
    clock.advance(99)
    assert table.begin("acme", "k", b"b", "four", 60) == DONE
    clock.advance(2)
    assert table.begin("acme", "k", b"b", "four", 60) is None


def test_the_oldest_go_when_a_tenant_has_too_many(journal, clock) -> None:
    table = journal.answers
    for number in range(5):
        for tenant in ("acme", "brook"):
            table.begin(tenant, str(number), b"a", "one", 60)
            table.finish(tenant, str(number), "one", DONE, 60)
        clock.advance(1)
    assert table.trim("acme", 5) == 0
    assert table.trim("acme", 3) == 2
    free = [table.begin("acme", str(number), b"a", "two", 60) is None for number in range(5)]
    assert free == [True, True, False, False, False]
    assert table.begin("brook", "0", b"a", "two", 60) == DONE


def test_a_kept_answer_is_sealed_and_opens_under_its_own_name_only(tmp_path, clock, masters) -> None:
    journal = Journal.open(f"sqlite:///{tmp_path / 'journal.db'}", clock, masters)
    table, rows = journal.answers, tables.answers
    for name in ("k1", "k2"):
        table.begin("acme", name, b"asked for nuts", "one", 60)
        table.finish("acme", name, "one", DONE, 60)
    journal.close()
    with Journal.open(f"sqlite:///{tmp_path / 'journal.db'}", clock, masters)._write("look") as connection:
        first, second = connection.execute(select(rows.c["name", "body"])).all()
        assert not any(word in first.body for word in (b"nuts", b"k1", b"k2"))
        connection.execute(update(rows).where(rows.c.name == first.name).values(body=second.body))
    journal = Journal.open(f"sqlite:///{tmp_path / 'journal.db'}", clock, masters)
    opened = []
    for name in ("k1", "k2"):
        with contextlib.suppress(SealBroken):
            opened.append(journal.answers.begin("acme", name, b"asked for nuts", "two", 60))
    assert opened == [DONE]
    journal.close()


def test_an_answer_about_a_session_goes_with_it_and_old_copies_of_it_do_not_open(tmp_path, clock, masters) -> None:
    path = tmp_path / "journal.db"
    for keys in (masters, None):
        journal = Journal.open(f"sqlite:///{path}", clock, keys)
        table = journal.answers
        journal.create_session(SessionRecord(id="acme/ann", created_at=1.0))
        for name in ("k1", "k2"):
            assert table.begin("acme", name, b"a", "one", 60) is None
        table.finish("acme", "k1", "one", DONE, 60, "acme/ann")
        assert table.begin("acme", "k1", b"a", "two", 60) == DONE
        journal.close()
        old = tmp_path / "old.db"
        shutil.copy(path, old)
        journal = Journal.open(f"sqlite:///{path}", clock, keys)
        assert journal.delete_session("acme/ann")
        journal.answers.finish("acme", "k2", "one", DONE, 60, "acme/ann")  # it was erased meanwhile
        journal.drop_memory("s/acme/ann")
        for name in ("k1", "k2"):
            assert journal.answers.begin("acme", name, b"a", "three", 60) is None
        journal.close()
        assert b"walnuts" not in b"".join(file.read_bytes() for file in tmp_path.glob("journal.db*"))
        assert (b"walnuts" in old.read_bytes()) == (keys is None)
        if keys is not None:  # and the key that opens the old copy is not in the journal any more
            with Journal.open(f"sqlite:///{path}", clock, keys)._read("look") as connection:
                scopes = connection.execute(select(tables.data_keys.c.scope)).scalars().all()
            assert set(scopes) <= {"journal", "states/acme"}
        path.unlink()


def test_answers_of_before_the_journal_was_sealed_are_let_go(tmp_path, clock, masters) -> None:
    url = f"sqlite:///{tmp_path / 'journal.db'}"
    journal = Journal.open(url, clock)
    journal.create_session(SessionRecord(id="acme/ann", created_at=1.0))
    for name, session in (("k1", "acme/ann"), ("k2", None)):
        journal.answers.begin("acme", name, b"a", "one", 60)
        journal.answers.finish("acme", name, "one", DONE, 60, session)
    journal.close()
    journal = Journal.open(url, clock, masters)
    journal.seal_plain()
    assert journal.answers.begin("acme", "k1", b"a", "two", 60) is None
    assert journal.answers.begin("acme", "k3", b"a", "two", 60) is None  # makes the key of the tenant's states
    assert journal.answers.begin("acme", "k2", b"a", "two", 60) is None
    journal.close()
