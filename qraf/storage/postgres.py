"""What is special to a journal in PostgreSQL (12 or newer): one lock for all writers, a connection that may be lost.

Numbers (`seq`) come from a sequence, which hands them out when a row is inserted, not when it is committed: of two
transactions at once the one with the lower numbers may commit last, and a reader that has followed the journal past
them would never see its rows. So every write begins with an advisory lock that is held until its commit, and numbers
become visible in rising order. The lock is one for the whole journal, not one per memory, because one commit carries
the writes of many memories, and because what SQLite's single writer promises (counts against limits, versions, "there
or not" before an insert) then holds here too. Gateways group their writes, so the lock is taken once per group.
"""

from __future__ import annotations

import re
from typing import Any

import psycopg
from psycopg import errors
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

__all__ = ["DRIVERS", "is_lost", "make_engine", "reason"]

DRIVERS = ("postgresql", "postgresql+psycopg", "postgres")
"""Names in a URL that lead here."""

_CONNECT_S = 3
_LOCK_S = 10.0  # how long a write waits for others
_IDLE_S = 30.0  # a process that stops in the middle of a write must not stop the others for longer
_NAMES = re.compile(r"""(?<=port )\d+|(?<!\w)(?:"[^"]*"|'[^']*'|\([\da-f.:]+\))""", re.IGNORECASE)
# what passes: shutdown and start of the server, too many connections, a standby that takes over, a lost race
_PASSING = ("57P01", "57P02", "57P03", "53300", "25006", "40001", "40P01")

_LOCK = "pg_advisory_xact_lock(hashtextextended('qraf.journal:' || current_schema(), 0))"


def make_engine(url: URL) -> Engine:
    """An engine whose transactions under the execution option `write` queue behind one lock, as in SQLite.

    `write="full"` waits for the server's disk, `write="relaxed"` does not. Other transactions are single statements,
    each with a view of its own.
    """
    defaults: dict[str, Any] = {
        "connect_timeout": _CONNECT_S,
        "client_encoding": "UTF8",
        "application_name": "qraf",
        # a server whose machine is gone is noticed within some 15 seconds
        "keepalives_idle": 5,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        "tcp_user_timeout": 15_000,
    }
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=8,
        max_overflow=8,
        pool_timeout=_LOCK_S,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={key: value for key, value in defaults.items() if key not in url.query},
    )
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    return engine


def is_lost(fault: BaseException | None) -> bool:
    """Whether the connection, not the statement, was at fault, so that the same call may succeed on another one."""
    if not isinstance(fault, DBAPIError):
        return False
    orig = fault.orig
    if not isinstance(orig, psycopg.Error):
        return False
    state = orig.sqlstate or ""
    refused = isinstance(orig, errors.OperationalError) and not state  # the library's own: no server, no answer
    return fault.connection_invalidated or refused or state in _PASSING or state.startswith("08")


def reason(fault: BaseException | None) -> str:
    """What went wrong, as clients may hear it.

    Without values, which the server quotes in the errors of classes 22 and 23, and without the hosts, users and
    databases that are named where there is no connection.
    """
    if not isinstance(fault, psycopg.Error):
        return type(fault).__name__
    if fault.sqlstate is None or fault.sqlstate[:2] in ("28", "3D"):
        return _NAMES.sub("...", " ".join(str(fault).split()))[:300] or type(fault).__name__
    if fault.sqlstate[:2] in ("22", "23"):
        return f"the server refused a value ({type(fault).__name__}, SQLSTATE {fault.sqlstate})"
    return f"{fault.diag.message_primary or type(fault).__name__} (SQLSTATE {fault.sqlstate})"


def _on_connect(connection: Any, record: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT set_config('lock_timeout', %s, false),"
            " set_config('idle_in_transaction_session_timeout', %s, false),"
            # acknowledged means durable, whatever the server's default is; stricter settings stay
            " CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', false)"
            " END",
            (str(int(_LOCK_S * 1000)), str(int(_IDLE_S * 1000))),
        )
    connection.commit()


def _on_begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("write")
    if write == "full":
        connection.exec_driver_sql(f"SELECT {_LOCK}")
    elif write == "relaxed":
        connection.exec_driver_sql(f"SELECT {_LOCK}, set_config('synchronous_commit', 'off', true)")
