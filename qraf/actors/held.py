"""A memory in a node's hands, and the encoder as a node sees it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qraf.memory.memory import Memory
from qraf.records import Figures
from qraf.settings import SnapshotSettings

__all__ = ["Encode", "Held"]


class Encode(Protocol):
    """Texts to amplitudes (n, d); `dim` is d. Waits for its turn; any thread may call."""

    @property
    def name(self) -> str:
        """The encoder's name."""
        ...

    @property
    def dim(self) -> int:
        """Number of amplitudes."""
        ...

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Amplitudes, unit rows."""
        ...


@dataclass(eq=False, slots=True)
class Held:
    """A memory in this process, its lock, and how far it has read the journal."""

    memory: Memory
    is_shared: bool  # a collection: kept; a session may be evicted and rebuilt
    lock: threading.RLock = field(default_factory=threading.RLock)
    synced_seq: int = 0
    is_stale: bool = True
    version: int = 0  # of the memory that was here before this one was begun anew
    is_counted: bool = False  # its version is one that the journal vouches for
    is_gone: bool = False  # evicted or dropped while somebody waited for the lock
    revision: int = 0
    figures: Figures | None = None
    items: int = 0
    bytes: int = 0
    is_new: bool = True  # no snapshot was looked for yet
    restoring: threading.Lock = field(default_factory=threading.Lock)  # who looks for one; taken before `lock`
    found: tuple[Memory, int] | None = None  # the memory of a snapshot, and how far it goes, until somebody uses it
    saved_version: int = 0  # when one was made or tried last
    is_saved: bool = False  # the newest snapshot holds that version
    saved_at: float = field(default_factory=time.monotonic)
    wait_until: float = 0.0  # none could be made a moment ago

    def measure(self) -> None:
        """Note the size, under the lock, so that counters can be read without it."""
        self.items, self.bytes = len(self.memory), self.memory.nbytes

    def is_due(self, settings: SnapshotSettings, now: float, is_last: bool) -> bool:
        """Whether there should be a new snapshot. Read without the lock: a number that is late makes it late."""
        changed = self.memory.version - self.saved_version
        is_waiting = now < self.wait_until and not is_last
        if not changed or self.items < settings.min_items or self.is_stale or is_waiting:
            return False
        many = max(settings.every_items, self.items // 8)
        return is_last or abs(changed) >= many or now - self.saved_at >= settings.every_s

    @property
    def covered_from(self) -> int:
        """The number after which the journal is asked what a snapshot of this memory may lack.

        What has left because of a budget before the journal was read so far is counted, and need not be looked for.
        """
        return 0 if max(self.memory.passed.values()) > self.synced_seq else self.synced_seq

    def covers(self, seqs: NDArray[np.int64], is_mine: NDArray[np.bool_], after: int) -> int | None:
        """Up to which number this memory lacks nothing; None: that cannot be told now.

        Args:
            seqs: the journal's live items after `after`, ascending (n,).
            is_mine: which of them belong here (n,).
            after: what `covered_from` was.
        """
        memory = self.memory
        if after != self.covered_from:
            return None
        mine = seqs[is_mine]
        missing = mine[~np.isin(mine, memory.items.seq)]
        everything = int(seqs[-1]) if len(seqs) else after
        if not len(missing):
            return everything
        if max(memory.passed.values()) > self.synced_seq:  # some have left: are those that are missing just these?
            is_known = len(missing) == memory.evicted and int(missing[-1]) <= memory.passed[False]
            return everything if is_known else None
        return int(missing[0]) - 1  # its absorb is under way, or never came
