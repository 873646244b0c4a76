"""Opens the journal's database, brings its schema up to date, and says what its faults mean."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from qraf.errors import NotAvailable, QrafError, StorageFailed
from qraf.storage import sqlite
from qraf.storage.tables import REVISION

__all__ = ["faults", "is_in_memory", "is_lost", "migrate", "next_numbers", "open_engine", "scrub", "shown_url"]

RETRY_MS = 1000  # when to try again what a server that is away has refused

_migrating = threading.Lock()  # Alembic's context is one per process


@contextmanager
def faults(what: str) -> Iterator[None]:
    """Turn what the database and the file system raise into `StorageFailed`, without a value of any row."""
    try:
        yield
    except DBAPIError as fault:
        raise StorageFailed(what, _reason(fault), RETRY_MS if _will_pass(fault) else None) from fault
    except PoolTimeout as fault:
        raise StorageFailed(what, "all connections to the database are in use", RETRY_MS) from fault
    except (SQLAlchemyError, sqlite3.Error, OSError) as fault:
        if isinstance(fault, QrafError):  # some of ours are OSErrors too
            raise
        raise StorageFailed(what, str(fault) or type(fault).__name__) from fault


def is_lost(fault: StorageFailed) -> bool:
    """Whether a fault of `faults` was a lost connection: the same call may succeed on another one."""
    if not isinstance(fault.__cause__, DBAPIError) or isinstance(fault.__cause__.orig, sqlite3.Error):
        return False
    from qraf.storage import postgres

    return postgres.is_lost(fault.__cause__)


def is_in_memory(url: str) -> bool:
    """Whether the database lives in this process alone."""
    parsed = make_url(url)
    return parsed.get_backend_name() == "sqlite" and sqlite.is_in_memory(parsed)


def shown_url(url: str) -> str:
    """The URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "(no URL)"


def open_engine(url: str) -> Engine:
    """An engine for SQLite or PostgreSQL.

    Under the execution option `write` transactions queue, so that each sees all that was committed before it, and
    `seq` rises in the order of commits. `write="full"` is on the disk when it returns. `write="relaxed"` is safe
    against the death of this process but may lose its tail when the database's machine fails: for what can be made
    again.

    Raises:
        StorageFailed: no URL, or the file cannot be made.
        NotAvailable: another database, or another driver for PostgreSQL than psycopg.
    """
    with faults("open journal"):
        try:
            parsed = make_url(url)
        except ArgumentError:
            raise StorageFailed("open journal", "its URL cannot be parsed; try sqlite:///path/journal.db") from None
        if parsed.drivername in ("sqlite", "sqlite+pysqlite"):
            return sqlite.make_engine(parsed)
        return _postgres(parsed)


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


def next_numbers(connection: Connection, count: int) -> list[int]:
    """The next numbers of items, rising, in a transaction that writes; none is ever given twice."""
    if connection.dialect.name == "sqlite":
        last = connection.exec_driver_sql("SELECT seq FROM sqlite_sequence WHERE name = 'items'").scalar() or 0
        return list(range(last + 1, last + 1 + count))
    query = text("SELECT nextval(pg_get_serial_sequence('items', 'seq')) FROM generate_series(1, :count)")
    return sorted(connection.execute(query, {"count": count}).scalars())


def scrub(engine: Engine) -> None:
    """Write what was overwritten through to the file, where the database is one."""
    if engine.dialect.name == "sqlite":
        sqlite.checkpoint(engine)


def _postgres(url: URL) -> Engine:
    name = url.drivername
    try:
        from qraf.storage import postgres
    except ImportError as fault:
        raise StorageFailed("open journal", f"{name} needs psycopg, which does not load: {fault}") from None
    if name not in postgres.DRIVERS:
        raise NotAvailable(f"a journal on {name} (there are sqlite:/// and postgresql://)")
    return postgres.make_engine(url)


def _reason(fault: DBAPIError) -> str:
    orig = fault.orig
    if isinstance(orig, sqlite3.Error):
        return str(orig)
    from qraf.storage import postgres

    return postgres.reason(orig)


def _will_pass(fault: DBAPIError) -> bool:
    if isinstance(fault.orig, sqlite3.Error):
        return "locked" in str(fault.orig)
    from qraf.storage import postgres

    return postgres.is_lost(fault) or getattr(fault.orig, "sqlstate", None) == "55P03"


# ------------------------------------------------------------------------------------------------------- migrations
def _revision(connection: Connection) -> str | None:
    tables = inspect(connection).get_table_names()
    if "alembic_version" not in tables:
        if {"items", "codes", "sessions"} & set(tables):
            raise StorageFailed("open journal", "the database has tables of another program; name another one")
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
