import os
import signal
import sqlite3
import stat
import subprocess
import sys

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from qraf.errors import NotAvailable, StorageFailed
from qraf.storage import database, sqlite, tables
from qraf.storage.journal import Draft, Journal

pytestmark = pytest.mark.slow  # a whole service, or processes


def python(code: str, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *args], stdout=subprocess.PIPE, text=True)


COMMIT_FOREVER = """
import sys
from qraf.storage.journal import Draft, Journal
journal = Journal.open(sys.argv[1])
n = 0
while True:
    n += 1
    [one] = journal.commit("s/1", [Draft(item_id=f"i{n}", text=f"text {n}")])
    print(one.seq, n, flush=True)
"""


def test_what_was_acknowledged_survives_kill_9(any_url):
    process = python(COMMIT_FOREVER, any_url)
    lines = [process.stdout.readline() for _ in range(20)]
    os.kill(process.pid, signal.SIGKILL)
    lines += process.stdout.read().splitlines()
    process.wait()
    told = {int(seq): f"text {n}" for seq, n in (line.split() for line in lines if line.count(" ") == 1)}
    assert len(told) >= 20
    journal = Journal.open(any_url)
    assert {seq: item.text for seq, item in journal.fetch(told).items()} == told
    journal.close()


OPEN_AND_COMMIT = """
import sys
from qraf.storage.journal import Draft, Journal
sys.stdin.readline()
journal = Journal.open(sys.argv[1])
for n in range(20):
    journal.commit("s/1", [Draft(item_id=f"{sys.argv[2]}-{n}")])
"""


def test_processes_may_open_a_new_journal_at_once_and_write_together(any_url):
    processes = [
        subprocess.Popen([sys.executable, "-c", OPEN_AND_COMMIT, any_url, str(n)], stdin=subprocess.PIPE, text=True)
        for n in range(3)
    ]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.close()
    assert [process.wait() for process in processes] == [0, 0, 0]
    journal = Journal.open(any_url)
    assert journal.count("s/1") == 60
    journal.close()


def test_the_tables_are_what_the_migrations_make(any_url):
    engine = database.open_engine(any_url)
    database.migrate(engine)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []
        assert database._revision(connection) == tables.REVISION
    engine.dispose()


def test_the_newest_migration_is_the_one_the_tables_name():
    config = Config()
    config.set_main_option("script_location", "qraf.storage:migrations")
    assert ScriptDirectory.from_config(config).get_current_head() == tables.REVISION


def test_migrations_go_back_too(any_url):
    from alembic import command

    engine = database.open_engine(any_url)
    database.migrate(engine)
    config = Config()
    config.set_main_option("script_location", "qraf.storage:migrations")
    with engine.execution_options(write="full").begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    database.migrate(engine)
    engine.dispose()
    journal = Journal.open(any_url)
    journal.commit("s/1", [Draft(item_id="a")])
    journal.close()


def execute(url: str, statement: str) -> None:
    engine = database.open_engine(url)
    with engine.execution_options(write="full").begin() as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()


def test_a_journal_of_a_newer_version_is_refused(any_url):
    Journal.open(any_url).close()
    execute(any_url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StorageFailed, match=r"revision 9999.*upgrade QRAF"):
        Journal.open(any_url)


def test_a_database_of_another_program_is_left_alone(any_url):
    execute(any_url, "CREATE TABLE items (x INTEGER)")
    with pytest.raises(StorageFailed, match="another program"):
        Journal.open(any_url)


@pytest.mark.parametrize("url", ["mysql://localhost/qraf", "postgresql+asyncpg://localhost/qraf"])
def test_other_databases_and_drivers_are_not_there(url):
    with pytest.raises(NotAvailable, match=url.split(":")[0].replace("+", ".")):
        Journal.open(url)


def test_a_new_journal_is_its_owners_alone(tmp_path):
    journal = Journal.open(f"sqlite:///{tmp_path / 'new' / 'journal.db'}")
    journal.commit("s/1", [Draft(item_id="a")])
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").iterdir()} == {0o600}
    journal.close()


def test_a_write_is_on_the_disk_and_old_bytes_are_overwritten(url):
    engine = database.open_engine(url)
    for write, level in (("full", 2), ("relaxed", 1), ("full", 2)):
        with engine.execution_options(write=write).begin() as connection:
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == level
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            assert connection.exec_driver_sql("PRAGMA secure_delete").scalar() == 1
    engine.dispose()


def test_a_write_that_never_gets_its_turn_fails_with_a_name(url, tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite, "BUSY_S", 0.05)
    journal = Journal.open(url)
    other = sqlite3.connect(tmp_path / "journal.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageFailed, match="locked"):
        journal.commit("s/1", [Draft(item_id="a")])
    assert journal.count("s/1") == 0  # readers never wait
    other.execute("ROLLBACK")
    other.close()
    assert journal.commit("s/1", [Draft(item_id="a")])
    journal.close()


def test_a_percent_sign_in_the_path_is_harmless(tmp_path):
    journal = Journal.open(f"sqlite:///{tmp_path / '100%s' / 'journal.db'}")
    journal.commit("s/1", [Draft(item_id="a")])
    journal.close()


def test_sessions_of_an_older_schema_have_no_bits_and_no_budget(any_url):
    from alembic import command

    config = Config()
    config.set_main_option("script_location", "qraf.storage:migrations")
    engine = database.open_engine(any_url)
    with engine.execution_options(write="full").begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        old = {"id": "old", "created_at": 1.0, "metadata": b"{}", "state": "open", "node_hint": ""}
        known = [column for column in tables.sessions.c if column.name not in ("bits", "budget_bytes")]
        before = sa.Table("sessions", sa.MetaData(), *(sa.Column(column.name, column.type) for column in known))
        connection.execute(sa.insert(before).values(old))
    engine.dispose()
    journal = Journal.open(any_url)
    record = journal.get_session("old")
    assert (record.id, record.bits, record.budget_bytes) == ("old", None, None)
    journal.close()
