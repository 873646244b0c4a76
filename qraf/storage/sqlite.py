"""What is special to a journal in SQLite: a file in WAL mode, one writer at a time."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, StaticPool, create_engine, event
from sqlalchemy.engine import URL

__all__ = ["BUSY_S", "checkpoint", "is_in_memory", "make_engine"]

BUSY_S = 10.0  # how long a write waits for another process's write


def is_in_memory(url: URL) -> bool:
    """Whether the database lives in this process alone."""
    return url.database in (None, "", ":memory:")


def make_engine(url: URL) -> Engine:
    """An engine whose transactions are `BEGIN`, or `BEGIN IMMEDIATE` under the execution option `write`.

    `write="full"` is on the disk when it returns. `write="relaxed"` is safe against the death of the process but may
    lose its tail when the power fails.
    """
    if is_in_memory(url):
        engine = create_engine(
            url, poolclass=StaticPool, connect_args={"check_same_thread": False}, hide_parameters=True
        )
    else:
        _make_file(url)
        engine = create_engine(url, pool_size=8, max_overflow=8, pool_timeout=BUSY_S, hide_parameters=True)
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    return engine


def checkpoint(engine: Engine) -> None:
    """Write what was overwritten through to the file, so that no log keeps the old bytes; as far as readers let it.

    A reader in the middle of a long scan delays it; the next one or an automatic checkpoint then catches up.
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
