"""Items read or written lately, for when the database does not answer."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable

from qraf.records import Item

__all__ = ["Recent"]

_ITEM_BYTES = 512  # what an item weighs beside its text


class Recent:
    """The items used last, by seq, bounded by their bytes. Safe for several threads."""

    def __init__(self, max_bytes: int = 32 * 1024 * 1024) -> None:
        self._max_bytes = max_bytes
        self._items: OrderedDict[int, tuple[int, str, Item]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def keep(self, items: Iterable[tuple[str, Item]]) -> None:
        """Remember items with their memories; the ones used longest ago make room."""
        with self._lock:
            for memory, item in items:
                self._drop(item.seq)
                size = _ITEM_BYTES + len(item.text)
                self._items[item.seq] = size, memory, item
                self._bytes += size
            while self._bytes > self._max_bytes:
                self._drop(next(iter(self._items)))

    def forget(self, chosen: Callable[[int, str], bool]) -> None:
        """Drop the items whose seq and memory are chosen."""
        with self._lock:
            for seq in [seq for seq, (_, memory, _) in self._items.items() if chosen(seq, memory)]:
                self._drop(seq)

    def find(self, seqs: Iterable[int], now: float) -> dict[int, Item]:
        """Those of the items that are remembered and have not expired."""
        with self._lock:
            kept = [self._items[seq][2] for seq in seqs if seq in self._items]
        return {item.seq: item for item in kept if item.expires_at is None or item.expires_at > now}

    def _drop(self, seq: int) -> None:
        if (old := self._items.pop(seq, None)) is not None:
            self._bytes -= old[0]
