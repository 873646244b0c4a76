"""Responses in the journal, on SQLite and on PostgreSQL: written at both ends, found, buried, sealed, erased."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import update

from qraf.clock import FakeClock
from qraf.errors import SealBroken
from qraf.frames import Usage
from qraf.storage.journal import Journal
from qraf.storage.records import SessionRecord
from qraf.storage.responses import ResponseBody, ResponseRecord
from qraf.storage.seal import MasterKeys
from qraf.storage.tables import data_keys

SECRET = "the nuts are behind the red door"


@pytest.fixture
def sealed(any_url: str, masters: MasterKeys, clock: FakeClock) -> Iterator[Journal]:
    journal = Journal.open(any_url, clock, masters)
    yield journal
    journal.close()


def record(name: str = "1", **change: object) -> ResponseRecord:
    given = {
        "id": f"rsp_{name}",
        "stream": f"str_{name}",
        "tenant": "acme",
        "epoch": "e1",
        "status": "running",
        "created_at": 1.0,
        "key": f"k{name}",
        "body": ResponseBody(command="c1", model="m", request=b"12"),
    }
    return ResponseRecord(**(given | change))  # type: ignore[arg-type]


def ended(name: str = "1", **change: object) -> ResponseRecord:
    body = ResponseBody(command="c1", text=SECRET, finish_reason="stop", usage=Usage(completion_tokens=7))
    return record(name, **({"status": "completed", "ended_at": 5.0, "seq": 9, "body": body} | change))


def test_a_response_is_found_by_id_stream_and_key_by_its_tenant_alone(journal: Journal) -> None:
    table = journal.responses
    table.put([record("1"), record("2")])
    table.put([ended("1")])
    for found in (table.find("acme", "rsp_1"), table.find("acme", "str_1"), table.find("acme", "", "k1")):
        assert found == ended("1", key=None)
    assert table.find("acme", "rsp_2").status == "running"  # type: ignore[union-attr]
    assert table.find("bolt", "rsp_1", "k1") is None
    assert table.find("acme", "k1") is None
    assert table.find("acme", "\0" * 3, "") is None


def test_what_has_ended_does_not_change_any_more(journal: Journal) -> None:
    table = journal.responses
    table.put([record()])
    table.beat("e1", "alpha:1")
    assert table.bury(["e1"]) == 1
    table.put([ended()])  # the gateway was taken for dead, and was not
    found = table.find("acme", "rsp_1")
    assert found is not None
    assert (found.status, found.seq, found.body.text) == ("failed", 0, "")
    assert table.gateways() == []
    assert table.bury(["e1"]) == 0


def test_a_gateway_says_that_it_lives_and_hears_what_others_want(journal: Journal, clock: FakeClock) -> None:
    table = journal.responses
    table.put([record("1"), record("2"), record("3", epoch="e2")])
    table.beat("e1", "alpha:1")
    clock.advance(3)
    table.beat("e1", "alpha:1")
    assert [(one.epoch, one.name, one.seen_at) for one in table.gateways()] == [("e1", "alpha:1", clock.now())]
    table.wish(["rsp_1"], "read")
    table.wish(["rsp_2"], "cancel")
    table.wish(["rsp_2"], "read")  # a cancel is not taken back
    table.wish(["rsp_3"], "cancel")
    assert {name: wish for name, (wish, _) in table.wishes("e1").items()} == {"rsp_1": "read", "rsp_2": "cancel"}
    table.put([ended("2")])
    assert set(table.wishes("e1")) == {"rsp_1"}


def test_old_ends_are_swept_and_running_ones_stay(journal: Journal) -> None:
    table = journal.responses
    table.put([ended("1"), ended("2", ended_at=50.0), record("3")])
    table.sweep(ended_before=20.0)
    assert [table.find("acme", f"rsp_{n}") is not None for n in "123"] == [False, True, True]


def test_the_text_is_sealed_and_an_erased_session_takes_it_along(sealed: Journal) -> None:
    journal, table = sealed, sealed.responses
    journal.create_session(SessionRecord(id="acme/ann", created_at=1.0))
    table.put([ended("1", session="acme/ann"), ended("2")])
    with journal._read("look") as connection:
        rows = connection.exec_driver_sql("SELECT body FROM responses").scalars().all()
    assert len(rows) == 2
    assert not any(SECRET.encode() in bytes(row) for row in rows)
    assert table.find("acme", "rsp_1").body.text == SECRET  # type: ignore[union-attr]
    journal.delete_session("acme/ann")
    journal.drop_memory("s/acme/ann")
    assert table.find("acme", "rsp_1") is None
    table.put([ended("3", session="acme/ann")])  # its gateway did not know yet
    assert table.find("acme", "rsp_3") is None
    assert table.find("acme", "rsp_2").body.text == SECRET  # type: ignore[union-attr]


def test_a_session_whose_key_is_damaged_does_not_stop_the_responses_of_others(sealed: Journal) -> None:
    for name in ("ann", "ben"):
        sealed.put_session(SessionRecord(id=name, created_at=1.0))
    with sealed._write("damage a key") as connection:
        connection.execute(update(data_keys).where(data_keys.c.scope == "s/ann").values(wrapped=b"?" * 60))
    sealed._keyring._open.clear()
    sealed.responses.put([record("1", session="ann"), record("2", session="ben")])
    sealed.responses.put([record("3", session="ann")])
    assert [sealed.responses.find("acme", f"rsp_{n}") is not None for n in (1, 2, 3)] == [False, True, False]
    assert set(sealed.broken) == {"s/ann"}


def test_a_row_of_another_tenant_fails_its_tag(sealed: Journal) -> None:
    table = sealed.responses
    table.put([ended("1"), ended("2", tenant="bolt")])
    with sealed._write("swap") as connection:
        connection.exec_driver_sql("UPDATE responses SET tenant = 'acme' WHERE id = 'rsp_2'")
    with pytest.raises(SealBroken):
        table.find("acme", "rsp_2")


def test_what_others_follow_is_read_when_it_is_new_and_sealed_all_the_while(sealed: Journal) -> None:
    journal, table = sealed, sealed.responses
    journal.create_session(SessionRecord(id="acme/ann", created_at=1.0))
    table.put([record("1", session="acme/ann"), record("2"), record("3")])
    assert table.news({"rsp_1": 0, "rsp_2": 0, "rsp_4": 0}) == {"rsp_4": None}
    so_far = ResponseBody(text=SECRET, frames=(SECRET.encode(), b"2"))
    table.put([record("1", session="acme/ann", seq=7, body=so_far)])
    with journal._read("look") as connection:
        rows = connection.exec_driver_sql("SELECT body FROM responses").scalars().all()
    assert not any(SECRET.encode() in bytes(row) for row in rows)
    [(name, news)] = table.news({"rsp_1": 6, "rsp_2": 0}).items()
    assert (name, news.status, news.seq, news.body) == ("rsp_1", "running", 7, so_far)  # type: ignore[union-attr]
    assert table.news({"rsp_1": 7}) == {}
    table.put([ended("2")])
    assert table.news({"rsp_2": 9})["rsp_2"].status == "completed"  # type: ignore[union-attr]
    journal.delete_session("acme/ann")
    journal.drop_memory("s/acme/ann")
    assert table.news({"rsp_1": 7}) == {"rsp_1": None}


def test_what_runs_is_known_by_life_and_can_be_given_up(journal: Journal) -> None:
    table = journal.responses
    table.put([record("1"), record("2"), record("3", epoch="e2", created_at=5.0), record("4", epoch="e2"), ended("5")])
    mine, others = table.running("e1")
    assert (sorted(mine), others) == (["rsp_1", "rsp_2"], {"e2": 1.0})
    table.lose(["rsp_1", "rsp_5"])
    assert table.running("e1")[0] == ["rsp_2"]
    lost, done = table.find("acme", "rsp_1"), table.find("acme", "rsp_5")
    assert lost is not None
    assert done is not None
    assert (lost.status, lost.is_lost, done.status, done.is_lost) == ("failed", True, "completed", False)


def test_of_two_responses_to_one_command_the_first_may_leave(journal: Journal) -> None:
    table = journal.responses
    table.put([record("1", key="k"), record("2", key=None), record("3", tenant="bolt", key="k"), record("4")])
    table.put([record("5", key="k", epoch="e2"), record("6", key=None, epoch="e2")])
    assert {name: wish for name, (wish, _) in table.wishes("e1").items()} == {"rsp_1": "leave"}
    assert table.wishes("e2") == {}
    table.wish(["rsp_1"], "read")  # somebody wants it all the same
    assert table.wishes("e1")["rsp_1"][0] == "read"
