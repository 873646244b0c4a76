"""A schema of its own on a PostgreSQL server, for one test.

`QRAF_TEST_POSTGRES` says where, as a URL, and then the server must be there. By default it is one on this machine, with
the role and the database that `.ci/postgres` makes; without it the tests skip.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import socket
import threading
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy.engine import make_url

_NAMED = os.environ.get("QRAF_TEST_POSTGRES", "")
SERVER = _NAMED or "postgresql://qraf:qraf@127.0.0.1:5432/qraf_test"


@functools.cache
def _why_not() -> str:
    try:
        psycopg.connect(SERVER, connect_timeout=3).close()
    except psycopg.Error as fault:
        if _NAMED:
            raise
        return f"no PostgreSQL to test with (QRAF_TEST_POSTGRES): {' '.join(str(fault).split())[:200]}"
    return ""


def is_there() -> bool:
    """Whether there is a server to test with."""
    return not _why_not()


def connect() -> psycopg.Connection[tuple[object, ...]]:
    """A connection of the test's own, every statement a transaction."""
    return psycopg.connect(SERVER, autocommit=True)


def address() -> tuple[str, int]:
    """Host and port of the server."""
    url = make_url(SERVER)
    return url.host or "127.0.0.1", url.port or 5432


def through(url: str, port: int) -> str:
    """The URL, by way of a port of this machine."""
    return make_url(url).set(host="127.0.0.1", port=port).render_as_string(hide_password=False)


@contextlib.contextmanager
def schema() -> Iterator[str]:
    """The URL of an empty schema; it is dropped afterwards. Skips the test where there is no server."""
    if why := _why_not():
        pytest.skip(why)
    name = f"qraf_{secrets.token_hex(6)}"
    with connect() as connection:
        connection.execute(f"CREATE SCHEMA {name}")
    try:
        yield f"{SERVER}{'&' if '?' in SERVER else '?'}options=-csearch_path%3D{name}"
    finally:
        with connect() as connection:
            connection.execute("SET client_min_messages = warning")
            connection.execute(f"DROP SCHEMA {name} CASCADE")


class Relay:
    """A way to the server that can be cut and opened again."""

    def __init__(self) -> None:
        if why := _why_not():
            pytest.skip(why)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.is_open = True  # set it again after `cut`
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self.is_open = False
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._ends.clear()

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                end, _ = self._listener.accept()
                if not self.is_open:
                    end.close()
                    continue
                other = socket.create_connection(address())
                self._ends += [end, other]
                for pair in ((end, other), (other, end)):
                    threading.Thread(target=self._copy, args=pair, daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)
