"""What a node reads of the journal: items with codes that it can use, and what a session says of its memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from qraf.errors import InvalidRequest
from qraf.memory.coding import code_bytes
from qraf.memory.readback import find_damaged
from qraf.memory.tiers import ladder
from qraf.records import Filter, Item
from qraf.storage.journal import Journal

__all__ = ["Stored", "given_amplitudes"]

_log = logging.getLogger(__name__)

_NAMES = {32: "int32/64", 8: "int8/64", 4: "int4/64", 2: "lloyd2", 1: "sign1"}


class _Encoder(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...


class Stored:
    """The journal, for the codes of one encoder. Safe for several threads."""

    def __init__(self, journal: Journal, encode: _Encoder) -> None:
        self._journal, self._encode = journal, encode

    def code(self, bits: int) -> str:
        """What codes of so many bits are named: all that decides what their bytes mean."""
        return f"{self._encode.name}/{_NAMES[bits]}"

    def choices(self, memory: str) -> tuple[int | None, int | None, int | None]:
        """Bits, byte budget and rank of the sketch that a session has of its own; None where the node decides."""
        kind, _, name = memory.partition("/")
        record = self._journal.get_session(name) if kind == "s" else None
        return (None, None, None) if record is None else (record.bits, record.budget_bytes, record.rank)

    def stopped(self) -> tuple[str, ...]:
        """Memories that this process found not to open."""
        return tuple(self._journal.broken)

    def page(self, memory: str, after_seq: int, limit: int, bits: int) -> list[Item]:
        """Items after a number, ascending; codes of `bits` or more come along."""
        return self._journal.items(memory, after_seq, limit, self._codes(bits))

    def newest(self, memory: str, through_seq: int, filter: Filter, limit: int, bits: int) -> list[Item]:
        """Items up to a number that pass a filter, newest first, as many as `limit`, with codes as in `page`."""
        return self._journal.newest(memory, through_seq, filter, limit, self._codes(bits))

    def forgotten(self, memory: str, seqs: NDArray[np.int64]) -> list[int]:
        """Which of a memory's items, `seqs` ascending (n,), have been forgotten."""
        if not len(seqs):
            return []
        gone = self._journal.snapshots.forgotten(memory, int(seqs[-1]), int(seqs[0]))
        found: list[int] = gone[np.isin(gone, seqs)].tolist()
        return found

    def changes(self, memory: str) -> tuple[int, int]:
        """How many items of a memory have come and gone, each counted once, and the last one's number."""
        return self._journal.changes(memory)

    def sound(self, memory: str, items: Sequence[Item]) -> tuple[list[Item], int]:
        """The items that a memory can take, without codes that came back damaged; how many of those there were.

        Items without codes are coded anew; those with amplitudes that no absorb could take are left out.
        """
        dim, damaged = self._encode.dim, set()
        for bits, rows in self._by_bits(items).items():
            width = code_bytes(dim, bits)
            fitting = [row for row in rows if len(items[row].codes or b"") == width]
            bad = find_damaged([items[row].codes or b"" for row in fitting], dim, bits)
            damaged |= {row for row, is_bad in zip(fitting, bad, strict=True) if is_bad}
            damaged |= set(rows) - set(fitting)
        if damaged:
            seqs = ", ".join(str(items[row].seq) for row in sorted(damaged)[:10])
            _log.warning("memory '%s': codes of %d items are damaged, coded anew: %s", memory, len(damaged), seqs)
        usable = [_uncoded(item) if row in damaged else item for row, item in enumerate(items)]
        return [item for item in usable if item.codes or _is_usable(item, dim)], len(damaged)

    def bits_of(self, items: Sequence[Item], otherwise: int) -> list[int]:
        """The precision of each item's codes; `otherwise` for an item without."""
        bits = [otherwise] * len(items)
        for one, rows in self._by_bits(items).items():
            for row in rows:
                bits[row] = one
        return bits

    def _codes(self, bits: int) -> list[str]:
        return [self.code(one) for one in ladder(32) if one >= bits]

    def _by_bits(self, items: Sequence[Item]) -> dict[int, list[int]]:
        named = {self.code(bits): bits for bits in _NAMES}
        rows: dict[int, list[int]] = {}
        for row, item in enumerate(items):
            if item.codes and item.code in named:
                rows.setdefault(named[item.code], []).append(row)
        return rows


def given_amplitudes(item: Item, dim: int) -> NDArray[np.float32]:
    """The amplitudes that came with an item, at unit norm.

    Raises:
        InvalidRequest: they are not `dim` finite numbers, or all zero.
    """
    assert item.amplitudes is not None
    row = np.frombuffer(item.amplitudes, np.float32)
    norm = float(np.linalg.norm(row))
    if row.shape != (dim,) or not np.isfinite(norm) or norm == 0.0:
        raise InvalidRequest(f"item '{item.item_id}': amplitudes must be {dim} finite numbers, not all zero")
    return (row / norm).astype(np.float32)


def _uncoded(item: Item) -> Item:
    return msgspec.structs.replace(item, codes=None, code=None)


def _is_usable(item: Item, dim: int) -> bool:
    """Whether a rebuild can use the item; one that no absorb could take must not stop the others."""
    if item.amplitudes is None:
        return True
    try:
        given_amplitudes(item, dim)
    except InvalidRequest as error:
        _log.warning("left out of the rebuild: %s", error)
        return False
    return True
