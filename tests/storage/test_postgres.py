"""What is PostgreSQL's own: the order of numbers, lost connections, a server that is not there."""

import contextlib
import socket
import threading
import time

import psycopg
import pytest

from qraf.clock import FakeClock
from qraf.errors import StorageFailed
from qraf.storage import database, line
from qraf.storage import postgres as postgres_storage
from qraf.storage.journal import Draft, Journal, SessionRecord
from tests import postgres

pytestmark = pytest.mark.slow  # a server


@pytest.fixture
def url():
    with postgres.schema() as url:
        yield url


@pytest.fixture
def journal(url):
    journal = Journal.open(url, FakeClock())
    yield journal
    journal.close()


def backends(journal: Journal) -> list[int]:
    """The server's processes behind the journal's idle connections."""
    pool, held = journal._engine.pool, []
    with contextlib.ExitStack() as stack:
        for _ in range(max(1, pool.checkedin())):
            connection = stack.enter_context(contextlib.closing(pool.connect()))
            held.append(connection.driver_connection.info.backend_pid)
    return held


def terminate(pids: list[int]) -> None:
    with postgres.connect() as connection:
        for pid in pids:
            assert connection.execute("SELECT pg_terminate_backend(%s)", (pid,)).fetchone() == (True,)
        while connection.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s)", (pids,)).fetchone()[0]:
            time.sleep(0.01)


def test_connections_that_the_server_has_ended_are_replaced(journal):
    journal.commit("s/1", [Draft(item_id="a", text="one")])
    terminate(backends(journal))
    assert journal.find("s/1", "a").text == "one"
    terminate(backends(journal))
    journal.commit("s/1", [Draft(item_id="b")])
    assert journal.count("s/1") == 2


def test_a_commit_whose_connection_dies_in_the_middle_is_made_again_once(journal, monkeypatch):
    tries = []
    live_ids = journal._live_ids

    def dying(connection, rows):
        found = live_ids(connection, rows)
        tries.append(connection.connection.driver_connection.info.backend_pid)
        if len(tries) == 1:
            terminate(tries)
        return found

    monkeypatch.setattr(journal, "_live_ids", dying)
    [one] = journal.commit("s/1", [Draft(item_id="a", text="one")])
    assert len(set(tries)) == 2
    assert not one.is_duplicate
    assert [item.text for item in journal.items("s/1")] == ["one"]


def test_iterators_are_read_once_though_the_call_is_made_twice(journal):
    seqs = [one.seq for one in journal.commit("s/1", [Draft(item_id=f"{n}") for n in range(3)])]
    terminate(backends(journal))
    assert list(journal.fetch(iter(seqs))) == seqs


@pytest.fixture
def relay():
    relay = postgres.Relay()
    yield relay
    relay.close()


def test_while_the_server_is_away_writes_say_when_to_try_again_and_known_items_are_read(url, relay, monkeypatch):
    monkeypatch.setattr(line, "PATIENCE_S", 0.3)
    monkeypatch.setattr(line, "REST_S", 0.2)
    journal = Journal.open(postgres.through(url, relay.port), FakeClock())
    seqs = [one.seq for one in journal.commit("s/1", [Draft(item_id="a", text="one"), Draft(item_id="b", text="two")])]
    other = Journal.open(url)
    [unseen] = other.commit("s/1", [Draft(item_id="c", text="three")])
    relay.cut()
    started = time.monotonic()
    with pytest.raises(StorageFailed) as caught:
        journal.commit("s/1", [Draft(item_id="d")])
    assert (caught.value.retryable, caught.value.retry_after_ms) == (True, 1000)
    assert time.monotonic() - started > 0.1
    with pytest.raises(StorageFailed) as caught:  # others are refused at once
        journal.commit("s/1", [Draft(item_id="d")])
    assert (caught.value.retry_after_ms, caught.value.__cause__) == (1000, None)
    assert {seq: item.text for seq, item in journal.fetch([*seqs, unseen.seq]).items()} == dict(
        zip(seqs, ("one", "two"), strict=True)
    )
    with pytest.raises(StorageFailed):
        journal.fetch([unseen.seq])
    relay.is_open = True
    time.sleep(0.25)
    assert not journal.commit("s/1", [Draft(item_id="d")])[0].is_duplicate
    assert journal.fetch([unseen.seq])[unseen.seq].text == "three"
    journal.close()
    other.close()


def test_what_was_forgotten_is_not_read_from_what_is_remembered(url, relay, monkeypatch):
    monkeypatch.setattr(line, "PATIENCE_S", 0.2)
    journal = Journal.open(postgres.through(url, relay.port), clock := FakeClock())
    drafts = [Draft(item_id="a"), Draft(item_id="b"), Draft(item_id="c", expires_at=clock.now() + 5)]
    a, b, c = (one.seq for one in journal.commit("s/1", drafts))
    [d] = (one.seq for one in journal.commit("s/2", [Draft(item_id="d")]))
    journal.tombstone("s/1", [a])
    journal.drop_memory("s/2")
    relay.cut()
    assert set(journal.fetch([a, b, c, d])) == {b, c}
    clock.advance(5)
    assert set(journal.fetch([a, b, c, d])) == {b}
    journal.close()


def test_a_server_that_is_not_there_is_named_without_the_password(monkeypatch):
    monkeypatch.setattr(line, "PATIENCE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(StorageFailed, match=rf"refused.*postgresql://ann:\*\*\*@127.0.0.1:{port}/qraf") as caught:
        Journal.open(f"postgresql://ann:hunter2@127.0.0.1:{port}/qraf")
    assert caught.value.retry_after_ms == 1000
    assert "hunter2" not in str(caught.value)
    assert database.shown_url(f"postgresql://ann:hunter2@127.0.0.1:{port}/qraf").count("hunter2") == 0


@pytest.mark.parametrize(
    "said",
    [
        'connection to server at "db.internal" (10.0.0.5), port 6543 failed: Connection refused Is the server running?',
        'connection to server on socket "/run/db.internal/.s.PGSQL.6543" failed: No such file or directory',
        'FATAL: no pg_hba.conf entry for host "10.0.0.5", user "ann", database "db.internal", SSL off',
        "failed to resolve host 'db.internal': [Errno -2] Name or service not known",
        'connection is bad: connection to server at "fe80::1%eth0" (fe80::1), port 6543 failed: timeout expired',
    ],
)
def test_clients_learn_no_names_from_a_server_that_is_away(said):
    told = postgres_storage.reason(psycopg.OperationalError(said))
    assert "..." in told
    assert not any(name in told for name in ("db.internal", "10.0.0.5", "6543", "ann", "fe80"))


def test_a_reader_that_follows_the_numbers_misses_nothing(url):
    journals = [Journal.open(url) for _ in range(4)]
    reader = Journal.open(url)
    per_writer = 40

    def write(who: int) -> None:
        for n in range(per_writer):
            # commits of different lengths, so that later numbers could be there first
            journals[who].commit("s/all", [Draft(item_id=f"{who}-{n}-{i}") for i in range(1 + (who * 7 + n) % 40)])

    threads = [threading.Thread(target=write, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    seen: list[int] = []
    while any(thread.is_alive() for thread in threads):
        seen += [item.seq for item in reader.items("s/all", seen[-1] if seen else 0)]
    while page := reader.items("s/all", seen[-1]):
        seen += [item.seq for item in page]
    assert seen == sorted(seen)
    assert len(seen) == reader.count("s/all") == sum(1 + (w * 7 + n) % 40 for w in range(4) for n in range(per_writer))
    for journal in (*journals, reader):
        journal.close()


def test_without_the_lock_numbers_would_show_up_out_of_order(url):
    """What the lock is for: rows inserted first and committed last."""
    journal = Journal.open(url)
    journal.put_session(SessionRecord(id="x", created_at=0))
    with journal._engine.execution_options(write="full").begin() as first:
        first.exec_driver_sql("SELECT 1")
        waits = threading.Thread(target=journal_commit, args=(url,))
        waits.start()
        time.sleep(0.3)
        assert waits.is_alive()  # another writer queues behind the transaction
        assert journal.count("s/1") == 0  # readers do not
    waits.join(5)
    assert journal.count("s/1") == 1
    journal.close()


def journal_commit(url: str) -> None:
    journal = Journal.open(url)
    journal.commit("s/1", [Draft(item_id="late")])
    journal.close()


def test_a_write_that_never_gets_its_turn_says_when_to_try_again(url):
    journal, other = Journal.open(url), Journal.open(url)
    with journal._engine.connect() as connection:
        connection.exec_driver_sql("SET lock_timeout = '100ms'")
        connection.commit()
        with other._engine.execution_options(write="full").begin():
            with pytest.raises(StorageFailed, match="lock timeout") as caught, database.faults("commit items"):
                connection.execution_options(write="full").exec_driver_sql("SELECT 1")
            connection.rollback()
    assert caught.value.retry_after_ms == 1000
    journal.close()
    other.close()


def test_acknowledged_is_durable_even_where_the_server_is_set_to_hurry(url):
    hurried = Journal.open(url + "%20-csynchronous_commit%3Doff")
    with hurried._engine.execution_options(write="full").begin() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
    with hurried._engine.execution_options(write="relaxed").begin() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "off"
    with hurried._engine.execution_options(write="full").begin() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
    hurried.close()


def test_an_error_does_not_quote_the_values_of_a_row(journal):
    secret = "the-combination-is-7341"
    with pytest.raises(StorageFailed, match="SQLSTATE 22") as caught:
        journal.commit("s/1", [Draft(item_id="a", role=secret * 10)])
    assert secret not in str(caught.value)
    assert secret not in str(caught.value.__cause__)
