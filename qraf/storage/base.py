"""What every table of the journal needs: transactions, a line that is tried again, and the data keys."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from sqlalchemy import Connection, Engine

from qraf.clock import Clock
from qraf.storage.database import faults, scrub
from qraf.storage.keyring import Keyring
from qraf.storage.line import Away, Line
from qraf.storage.seal import MasterKeys
from qraf.storage.sealed import seal_old

__all__ = ["Begin", "Store"]

Begin = Callable[[str], AbstractContextManager[Connection]]


class Store:
    """A database with transactions that read and transactions that write. Safe for several threads.

    Args:
        is_shared: whether other processes may have it open; False for a database in memory.
        masters: unwrap the data keys; None: nothing can be sealed.
        makes: whether what has no data key gets one.
    """

    def __init__(self, engine: Engine, clock: Clock, is_shared: bool, masters: MasterKeys | None, makes: bool) -> None:
        self._engine, self._clock = engine, clock
        # within this process writers queue here, fairly, instead of polling the file's lock
        self._writing = threading.Lock()
        # one connection in memory serves all threads, so reads queue too
        self._reading = nullcontext() if is_shared else self._writing
        # on a server each statement that reads is a transaction of its own: one round trip instead of three
        own = {} if engine.dialect.name == "sqlite" else {"isolation_level": "AUTOCOMMIT"}
        self._reader = engine.execution_options(**own)
        self._keyring = Keyring(masters, clock, makes=makes, seal_old=seal_old)
        self.line = Line(clock)

    @property
    def away(self) -> Away | None:
        """Set while the database does not answer."""
        return self.line.away

    @property
    def broken(self) -> dict[str, float]:
        """Memories in which this process has found rows that do not open, and since when."""
        return self._keyring.broken

    def close(self) -> None:
        """Close every connection. Twice is harmless."""
        self._engine.dispose()

    @contextmanager
    def _write(self, what: str, how: str = "full") -> Iterator[Connection]:
        with faults(what), self._writing, self._engine.execution_options(write=how).begin() as connection:
            yield connection

    @contextmanager
    def _read(self, what: str) -> Iterator[Connection]:
        with faults(what), self._reading, self._reader.connect() as connection:
            yield connection

    def _scrub(self) -> None:
        with faults("overwrite forgotten items"), self._writing:
            scrub(self._engine)
