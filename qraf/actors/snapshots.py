"""Snapshots of a host's memories: written behind the work, read when a memory is rebuilt.

A snapshot only saves time. What fails, in making or in reading one, is told and counted, and the journal does without.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from qraf.actors.messages import SnapshotStats
from qraf.clock import Clock
from qraf.errors import InvalidState, KeysMissing, LimitExceeded, NodeDown, QrafError, StorageFailed
from qraf.memory.memory import Memory, Parts
from qraf.settings import SnapshotSettings
from qraf.storage.errands import Errands
from qraf.storage.fences import Fence
from qraf.storage.journal import Journal
from qraf.storage.seal import DataKey
from qraf.storage.snapshot_files import Abandoned, SnapshotStore, body_of, sealed
from qraf.storage.snapshots import Snapshot, read_parts

__all__ = ["Keeper", "Snapshots", "read_snapshot"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_LOOK_EVERY_S = 1.0
_SWEEP_EVERY_S = 60.0
_ABANDON_S = 10.0  # a place may hang; a piece is written, and a file deleted, in much less
_SLOW_S, _REST_S = 1.0, 30.0  # a place that takes so long to fail is not asked again for a while
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 300.0


class Snapshots:
    """The snapshots of one host. Safe for several threads; one file is written at a time.

    Args:
        journal: has the table of snapshots, and the keys.
        fence: the life of the host; what it writes is refused once a successor has come forward.

    Raises:
        NotAvailable: nothing here reads and writes at such a URL.
    """

    def __init__(self, journal: Journal, settings: SnapshotSettings, fence: Fence | None, clock: Clock) -> None:
        self.settings = settings
        self._journal, self._fence, self._clock = journal, fence, clock
        self._store, self._errands = SnapshotStore(settings.url), Errands()
        self._turn = threading.Lock()  # who writes a file
        self._sweeping = threading.Lock()  # who deletes files
        self._watch = threading.Condition()  # guards the fields below
        self._writing, self._is_abandoned = "", False
        self._ask_from = 0.0  # monotonic: memories do without a snapshot until then
        self._stats = SnapshotStats()

    @property
    def stats(self) -> SnapshotStats:
        """What was made, read and refused so far."""
        return self._stats

    # -------------------------------------------------------------------------------------------------------- making
    def heads(self, memory: str, after_seq: int) -> tuple[NDArray[np.int64], list[str], int]:
        """What the journal says before a memory is copied: see `SnapshotTable.heads`."""
        return self._journal.snapshots.heads(memory, after_seq)

    def write(
        self,
        node: str,
        memory: str,
        fit: str,
        through: int,
        parts: Parts,
        num_forgotten: int,
        until: float | None = None,
    ) -> Snapshot | None:
        """Write a snapshot of a memory's parts; None: something in it was forgotten meanwhile, or there was no time.

        `num_forgotten`: what `heads` told. `until`: monotonic seconds, when writing is given up.

        Raises:
            LimitExceeded: the memory is too large; nothing was written.
            StorageFailed: journal or place failed; nothing is left behind that a sweep does not find.
            NodeDown: a successor of this host has come forward.
        """
        facts, arrays = parts
        passed = facts["budget"]["passed"].values() if facts["budget"] else ()
        last_seq = max([through, *passed, *arrays["seq"][-1:].tolist()])
        buffers, size = body_of(({**facts, "memory": memory}, arrays))
        if size > self.settings.max_bytes:
            raise LimitExceeded("snapshots.max_bytes", self.settings.max_bytes, size)
        with self._turn:
            self._enter(memory)
            try:
                wanted = Snapshot(
                    memory=memory,
                    node=node,
                    store=self._store.make(),
                    fit=fit,
                    through=through,
                    last_seq=last_seq,
                    items=len(arrays["seq"]),
                )
                begun = self._journal.snapshots.begin(wanted, arrays["seq"], self._fence, num_forgotten)
                return None if begun is None else self._write(*begun, buffers, size, until)
            finally:
                self._leave()

    def _write(
        self, made: Snapshot, key: DataKey | None, buffers: list[memoryview], size: int, until: float | None
    ) -> Snapshot | None:
        is_kept = False
        try:
            digest, written = self._store.write(
                made.id, self._pieces(sealed(buffers, size, key, made.belongs()), until)
            )
            is_kept = self._journal.snapshots.finish(made, digest, written, self.settings.keep, self._fence)
        except Abandoned:
            return None
        finally:
            if not is_kept:
                self._give_up(made.id)
        if is_kept:
            self._count(made=1, bytes=written)
            self.sweep()
        return made if is_kept else None

    def _pieces(self, pieces: Iterable[bytes], until: float | None) -> Iterator[bytes]:
        for piece in pieces:
            if self._is_abandoned or (until is not None and time.monotonic() > until):
                raise Abandoned
            yield piece

    def _give_up(self, id: str) -> None:
        """Leave nothing of a snapshot that does not count; what cannot be done now a sweep does."""
        try:
            until = time.monotonic() + _ABANDON_S
            self._within("delete snapshot", partial(self._store.delete, id), until)
            self._journal.snapshots.refuse(id, self._fence)
        except QrafError as fault:
            _log.warning("snapshot '%s' is left for a sweep: %s", id, fault)

    # ----------------------------------------------------------------------------------------------------- forgetting
    def abandon(self, memory: str) -> None:
        """Write no snapshot of a memory to its end that holds what the journal has forgotten; and delete those."""
        until = time.monotonic() + _ABANDON_S
        with self._watch:
            self._is_abandoned |= self._writing == memory
            if not self._watch.wait_for(lambda: self._writing != memory, _ABANDON_S):
                _log.error("a snapshot of memory '%s' that was erased is still being written: its place hangs", memory)
        self.sweep(until)

    def sweep(self, until: float | None = None) -> None:
        """Delete the files of erased snapshots; what fails, or hangs, is told, and left for the next time.

        `until`: monotonic seconds, 10 s from now if not given.
        """
        until = time.monotonic() + _ABANDON_S if until is None else until
        if not self._sweeping.acquire(timeout=max(0.0, until - time.monotonic())):
            _log.warning("files of erased snapshots are still there: somebody else has been at it for %g s", _ABANDON_S)
            return
        try:
            store = self._within("find the place of snapshots", self._store.find, until)
            if not store or not self._journal.snapshots.num_erased(store):
                return
            erased = self._journal.snapshots.erased(store)
            for one in erased:
                self._within("delete snapshot", partial(self._store.delete, one), until)
            self._journal.snapshots.remove(erased)
        except QrafError as fault:
            _log.warning("files of erased snapshots are still there: %s", fault)
        finally:
            self._sweeping.release()

    # -------------------------------------------------------------------------------------------------------- reading
    def restore(self, memory: str, fit: str, make: Callable[[], Memory]) -> tuple[Memory, int] | None:
        """The memory of the newest snapshot that fits and is whole, and up to where it lacks nothing of the journal.

        None: there is none, or its place failed or did not answer within `restore_s`; the journal has everything. One
        that is not whole is refused, named in the log, and deleted.

        Raises:
            KeysMissing: the master key that its key needs is not there.
            StorageFailed: the journal failed.
        """
        begun = time.monotonic()
        until = begun + self.settings.restore_s
        try:
            if begun < self._ask_from:
                raise StorageFailed("find the place of snapshots", "it did not answer a moment ago")
            store = self._within("find the place of snapshots", self._store.find, until)
        except StorageFailed as fault:
            self._did_without(memory, fault, begun)
            return None
        table = self._journal.snapshots
        for one in table.newest(memory, store, fit) if store else ():
            try:
                data = self._within("read snapshot", partial(self._store.read, one.id), until)
                restored = read_snapshot(self._journal, one, data, make())
            except KeysMissing:
                raise
            except StorageFailed as fault:
                if time.monotonic() - begun > _SLOW_S or isinstance(fault.__cause__, TimeoutError):
                    self._did_without(memory, fault, begun)
                    return None
                _log.warning("%s cannot be read: %s", _named(one), fault)
            except QrafError as fault:
                if one not in table.newest(memory, store, fit):
                    continue  # it was erased meanwhile
                _log.error("%s is refused: %s", _named(one), fault)
                self._count(refused=1)
                self._give_up(one.id)
            else:
                if restored.is_behind:
                    return None  # something in it has expired, and its room can only be filled from the journal
                self._count(restored=1)
                return restored, one.through
        return None

    # ------------------------------------------------------------------------------------------------ how it is done
    def failed(self, reason: str) -> None:
        """Count a snapshot that could not be made."""
        self._count(failed=1, reason=reason)

    def _did_without(self, memory: str, fault: StorageFailed, begun: float) -> None:
        _log.warning("memory '%s' is rebuilt from the journal alone: %s", memory, fault)
        self._count(late=1)
        if time.monotonic() - begun > _SLOW_S:
            self._ask_from = time.monotonic() + _REST_S

    def _within(self, what: str, work: Callable[[], _T], until: float) -> _T:
        """What a call to the place gives that may hang; StorageFailed once it is late."""
        try:
            return self._errands.run(work, until)
        except TimeoutError as late:
            raise StorageFailed(what, str(late)) from late

    def _enter(self, memory: str) -> None:
        with self._watch:
            self._writing, self._is_abandoned = memory, False

    def _leave(self) -> None:
        with self._watch:
            self._writing = ""
            self._watch.notify_all()

    def _count(self, *, reason: str = "", **more: int) -> None:
        with self._watch:
            old = self._stats
            changes: dict[str, Any] = {name: getattr(old, name) + count for name, count in more.items()}
            if more.get("failed"):
                changes |= {"failing_since": old.failing_since or self._clock.now(), "reason": reason}
            elif more.get("made"):
                changes |= {"failing_since": 0.0, "reason": ""}
            self._stats = msgspec.structs.replace(old, **changes)


def read_snapshot(journal: Journal, one: Snapshot, data: bytes | None, memory: Memory) -> Memory:
    """Put a snapshot, of its file's bytes, into an empty memory; what has expired since is forgotten.

    Raises:
        InvalidState: its file is not there or torn, another's, or holds what was forgotten.
        SealBroken: its key does not open, so it is another memory's or an older one.
        StorageFailed: the journal failed.
    """
    facts, arrays = read_parts(journal.snapshots, one, data)
    try:
        memory.put((facts, arrays))
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        if isinstance(error, QrafError):
            raise
        raise InvalidState("snapshot", "hold a memory", f"does not: {type(error).__name__}") from error
    now = memory.now()
    if gone := [seq for seq, expires_at in memory.items.expires_at.items() if expires_at <= now]:
        memory.forget(gone)
    return memory


class Snapshotted(Protocol):
    """What has memories to be kept: a node."""

    def due(self, now: float, *, is_last: bool = False) -> Sequence[str]:
        """The memories of which there should be a new snapshot."""
        ...

    def snapshot(self, memory: str, until: float | None = None) -> bool:
        """Make a snapshot of a memory; whether there is a new one."""
        ...


class Keeper:
    """Makes snapshots when they are due, one after the other, in a thread of its own; after a failure it pauses.

    Args:
        nodes: whose memories are kept.
        snapshots: where they go.
    """

    def __init__(self, nodes: Sequence[Snapshotted], snapshots: Snapshots) -> None:
        self._nodes, self._snapshots = nodes, snapshots
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)
        self._thread.start()

    def close(self, drain_s: float) -> None:
        """Make those that changed for at most `drain_s`, then stop; 0: make none. Twice does nothing."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        until = time.monotonic() + drain_s
        self._thread.join(drain_s or _LOOK_EVERY_S)
        if drain_s and not self._thread.is_alive():
            self._round(until)

    def _run(self) -> None:
        failures, sweep_at = 0, time.monotonic()
        while not self._stopping.wait(_LOOK_EVERY_S if not failures else _pause_s(failures)):
            if time.monotonic() >= sweep_at:
                self._snapshots.sweep()
                sweep_at = time.monotonic() + _SWEEP_EVERY_S
            try:
                failures = 0 if self._round(None) else failures + 1
            except NodeDown as fault:
                _log.warning("no more snapshots from here: %s", fault)
                return

    def _round(self, until: float | None) -> bool:
        """Make what is due; False: journal or place failed, and what is left waits for the next round."""
        for node in self._nodes:
            for memory in node.due(time.monotonic(), is_last=until is not None):
                if (self._stopping.is_set() and until is None) or (until is not None and time.monotonic() > until):
                    return True
                try:
                    node.snapshot(memory, until)
                except NodeDown:
                    if until is None:
                        raise
                    return True
                except Exception as fault:  # it costs time at the next start, and nothing now
                    reason = str(fault) if isinstance(fault, QrafError) else type(fault).__name__
                    _log.warning(
                        "no snapshot of memory '%s': %s", memory, reason, exc_info=not isinstance(fault, QrafError)
                    )
                    self._snapshots.failed(reason)
                    if isinstance(fault, StorageFailed):
                        return False
        return True


def _pause_s(failures: int) -> float:
    return float(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (failures - 1)))


def _named(one: Snapshot) -> str:
    return f"snapshot '{one.id}' of memory '{one.memory}' ({one.items} items, up to {one.through})"
