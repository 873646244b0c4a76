"""Who may write for a host: the newest life of it that has come forward.

A process that was frozen, and has a successor by the time it goes on, finds its writes refused, in the transaction that
would have made them. A life is a run (of a cluster) and an epoch within it. Runs are ordered by when the journal first
heard of them, because epochs begin anew with every cluster; within a run the higher epoch is the later one.

Epochs are given out here as well, one after the other, to the one supervisor that has taken charge of a run: one that
was frozen, and has a successor by the time it goes on, is given none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import msgspec
from sqlalchemy import Connection, case, func, insert, select, update

from qraf.errors import NodeDown
from qraf.storage import tables
from qraf.storage.database import faults, migrate, open_engine
from qraf.storage.line import Line, retried

__all__ = ["Fence", "FenceTable", "fenced", "hold"]

_runs, _fences = tables.runs, tables.fences

Begin = Callable[[str], AbstractContextManager[Connection]]


class Fence(msgspec.Struct, frozen=True):
    """One life of a host: what it writes under."""

    host: str
    run: str
    epoch: int


def hold(connection: Connection, fence: Fence | None) -> None:
    """Let a transaction go on only if no later life of the host has come forward; None: nobody is asked.

    The first transaction of a life brings it forward, so that every earlier one is refused from then on.

    Raises:
        NodeDown: there is a later one.
    """
    if fence is None:
        return
    mine = _term(connection, fence.run), fence.epoch
    found = connection.execute(select(_fences).where(_fences.c.host == fence.host)).first()
    if found is None:
        connection.execute(insert(_fences).values(host=fence.host, term=mine[0], epoch=mine[1]))
    elif mine > (last := (found.term, found.epoch)):
        change = update(_fences).where(_fences.c.host == fence.host)
        connection.execute(change.values(term=mine[0], epoch=mine[1]))
    elif mine < last:
        raise NodeDown(fence.host, f"stale epoch {fence.epoch}: a successor writes in epoch {found.epoch}")


def fenced(write: Begin, fence: Fence | None) -> Begin:
    """Transactions that go on only if no later life of the host has come forward."""

    @contextmanager
    def begin(what: str) -> Iterator[Connection]:
        with write(what) as connection:
            hold(connection, fence)
            yield connection

    return write if fence is None else begin


class FenceTable:
    """The fences of a journal, which makes it; or, by `open`, those of a journal of which nothing else is wanted."""

    def __init__(self, write: Begin, line: Line) -> None:
        self._write, self.line = write, line

    @classmethod
    def open(cls, url: str) -> FenceTable:
        """The fences of the journal at a URL, which is made or brought up to date at the first use.

        Raises:
            StorageFailed: it is no URL.
            NotAvailable: another database.
        """
        engine, is_migrated = open_engine(url), False

        @contextmanager
        def write(what: str) -> Iterator[Connection]:
            nonlocal is_migrated
            if not is_migrated:
                migrate(engine)
                is_migrated = True
            with faults(what), engine.execution_options(write="full").begin() as connection:
                yield connection

        return cls(write, Line())

    @retried
    def take_charge(self, run: str, holder: str) -> None:
        """From here on `holder` is given the epochs of a run, and whoever was before is not."""
        with self._write("take charge of a run") as connection:
            _term(connection, run)
            connection.execute(update(_runs).where(_runs.c.run == run).values(holder=holder))

    @retried
    def next_epoch(self, run: str, holder: str, above: int = 0) -> int:
        """An epoch that nobody else is ever given, higher than any before it in its run, and than `above`.

        Raises:
            NodeDown: another one has taken charge.
        """
        with self._write("take an epoch") as connection:
            mine = update(_runs).where(_runs.c.run == run, _runs.c.holder == holder)
            higher = case((_runs.c.epoch > above, _runs.c.epoch), else_=above) + 1
            if not connection.execute(mine.values(epoch=higher)).rowcount:
                raise NodeDown("supervisor", "another one has taken charge")
            query = select(_runs.c.epoch).where(_runs.c.run == run)
            return int(connection.execute(query).scalar_one())

    @retried
    def come_forward(self, fence: Fence) -> None:
        """From here on every earlier life of the host is refused, whether it knows or not.

        Raises:
            NodeDown: a later one has come forward.
        """
        with self._write("take over a host") as connection:
            hold(connection, fence)


def _term(connection: Connection, run: str) -> int:
    """Which one the run is of all that came forward."""
    known = connection.execute(select(_runs.c.term).where(_runs.c.run == run)).scalar()
    if known is not None:
        return int(known)
    term = int(connection.execute(select(func.coalesce(func.max(_runs.c.term), 0))).scalar_one()) + 1
    connection.execute(insert(_runs).values(run=run, term=term))
    return term
