"""A memory in a node's hands, and the encoder as a node sees it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qraf.memory.memory import Memory
from qraf.records import Figures

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
    is_gone: bool = False  # evicted or dropped while somebody waited for the lock
    revision: int = 0
    figures: Figures | None = None
    items: int = 0
    bytes: int = 0

    def measure(self) -> None:
        """Note the size, under the lock, so that counters can be read without it."""
        self.items, self.bytes = len(self.memory), self.memory.nbytes
