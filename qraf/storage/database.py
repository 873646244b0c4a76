"""Opens the journal's database and brings its schema up to date. What is special to SQLite is here alone."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, StaticPool, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from qraf.errors import NotAvailable, StorageFailed
from qraf.storage.tables import REVISION

__all__ = ["BUSY_S", "faults", "is_in_memory", "migrate", "open_engine", "scrub"]

BUSY_S = 10.0  # how long a write waits for another process's write

_migrating = threading.Lock()  # Alembic's context is one per process


@contextmanager
def faults(what: str) -> Iterator[None]:
    """Turn what the database and the file system raise into `StorageFailed`."""
    try:
        yield
    except DBAPIError as fault:
        raise StorageFailed(what, str(fault.orig)) from fault
    except (SQLAlchemyError, sqlite3.Error, OSError) as fault:
        if isinstance(fault, StorageFailed):
            raise
        raise StorageFailed(what, str(fault) or type(fault).__name__) from fault


def is_in_memory(url: str) -> bool:
    """Whether the database lives in this process alone."""
    return make_url(url).database in (None, "", ":memory:")


def open_engine(url: str) -> Engine:
    """An engine whose transactions are `BEGIN`, or `BEGIN IMMEDIATE` under the execution option `write`.

    `write="full"` is on the disk when it returns. `write="relaxed"` is safe against the death of the process but may
    lose its tail when the power fails: for what can be made again.
    """
    with faults("open journal"):
        try:
            parsed = make_url(url)
        except ArgumentError:
            raise StorageFailed("open journal", "its URL cannot be parsed; try sqlite:///path/journal.db") from None
        if parsed.get_backend_name() != "sqlite":
            raise NotAvailable(f"a journal on {parsed.get_backend_name()}")
        if is_in_memory(url):
            engine = create_engine(parsed, poolclass=StaticPool, connect_args={"check_same_thread": False})
        else:
            _make_file(parsed)
            engine = create_engine(parsed, pool_size=8, max_overflow=8, pool_timeout=BUSY_S)
        event.listen(engine, "connect", _on_connect)
        event.listen(engine, "begin", _on_begin)
    return engine


def migrate(engine: Engine) -> None:
    """Bring the schema to `REVISION`. Safe when several processes open at once: the first migrates, the rest wait.

    Raises:
        StorageFailed: the database was written by a newer version, or by something else.
    """
    with faults("open journal"):
        with engine.connect() as connection:
            if _revision(connection) == REVISION:
                return
        with _migrating, engine.execution_options(write="full").begin() as connection:
            if _revision(connection) == REVISION:  # another process was first
                return
            _upgrade(connection)


def scrub(engine: Engine) -> None:
    """Write what was overwritten through to the file, so that no log keeps the old bytes; as far as readers let it.

    A reader in the middle of a long scan delays it; the next scrub or automatic checkpoint then catches up.
    """
    with engine.connect() as connection:
        cursor = connection.connection.cursor()
        try:
            cursor.execute("PRAGMA busy_timeout = 1000")
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            cursor.fetchall()
        finally:
            cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_S * 1000)}")
            cursor.close()


# ----------------------------------------------------------------------------------------------------------- SQLite
def _make_file(url: URL) -> None:
    path = Path(url.database or "")
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, mode=0o700)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # the log and the index beside it take the same mode


def _on_connect(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_S * 1000)}")
    cursor.execute("PRAGMA secure_delete = ON")
    cursor.execute("PRAGMA synchronous = FULL")
    if cursor.execute("PRAGMA journal_mode").fetchone()[0] not in ("wal", "memory"):
        _switch_to_wal(cursor)
    cursor.close()


def _switch_to_wal(cursor: sqlite3.Cursor) -> None:
    """SQLite answers "locked" at once, without its busy wait, when two processes switch at the same time."""
    give_up = time.monotonic() + BUSY_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL").fetchone()
            return
        except sqlite3.OperationalError as fault:
            if "locked" not in str(fault) or time.monotonic() > give_up:
                raise
            time.sleep(0.01)


def _on_begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("write")
    if write is None:
        connection.exec_driver_sql("BEGIN")
        return
    connection.exec_driver_sql(f"PRAGMA synchronous = {'NORMAL' if write == 'relaxed' else 'FULL'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE")


# ------------------------------------------------------------------------------------------------------- migrations
def _revision(connection: Connection) -> str | None:
    tables = inspect(connection).get_table_names()
    if "alembic_version" not in tables:
        if {"items", "codes", "sessions"} & set(tables):
            raise StorageFailed("open journal", "the database has tables of another program; name another file")
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    here = Path(__file__).parent / "migrations"
    config.set_main_option("script_location", str(here).replace("%", "%%"))
    config.attributes["connection"] = connection
    found = _revision(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise StorageFailed(
            "open journal",
            f"its schema is revision {found}, and this version of QRAF knows up to {REVISION}; upgrade QRAF",
        )
    command.upgrade(config, "head")
