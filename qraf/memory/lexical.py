"""The lexical register of a memory: BM25 as sub-normalised states over its own vocabulary.

    l_i[t] = sqrt(idf_t) tf (k1 + 1) / (tf + k1 (1 - b + b L_i / L_avg)),      l_q[t] = sqrt(idf_t) qtf
    idf_t = ln(1 + (n - df + 1/2) / (df + 1/2)),      A_l(i) = <l_q|l_i> / (||l_q|| mean_k ||l_k||)

An l_i keeps its length: what it lacks belongs to a dimension orthogonal to every query.

Items hold the positions of their stems in a sorted vocabulary, one entry for each occurrence, 2 bytes each while the
vocabulary has at most 65,536 stems. Stems that only a prompt has count in ||l_q|| with df = 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qraf.errors import InvalidState
from qraf.memory.columns import Column

__all__ = ["Lexicon", "Register", "idf"]

Register = tuple[NDArray[np.uint32], NDArray[np.uint16]]
"""Stem ids, ascending and each once, and how often each occurs."""

_BITMAP_BITS = 2048


@dataclass(frozen=True, slots=True)
class _Statistics:
    k1: float
    b: float
    mean_length: float
    mean_norm: float


class Lexicon:
    """The registers of all items, in the memory's row order."""

    def __init__(self) -> None:
        self._vocabulary: NDArray[np.uint32] = np.zeros(0, np.uint32)
        self._entries: Column[np.unsignedinteger] = Column(np.uint16, np.uint32)
        self._lengths: Column[np.unsignedinteger] = Column(np.uint16, np.uint32)
        self._statistics: _Statistics | None = None

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def nbytes(self) -> int:
        """Bytes allocated; two numbers more are kept from one recall to the next."""
        return self._vocabulary.nbytes + self._entries.nbytes + self._lengths.nbytes

    @property
    def vocabulary(self) -> NDArray[np.uint32]:
        """The stem ids of all items, ascending."""
        return self._vocabulary

    @property
    def lengths(self) -> NDArray[np.unsignedinteger]:
        """Occurrences in each item, (n,)."""
        return self._lengths.values

    def runs(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """What stands in some items: the place in `rows`, the stem's place in `vocabulary`, how often it occurs."""
        places, lengths = self._places(rows)
        item = np.repeat(np.arange(len(rows)), lengths)
        return _runs(item, self._entries.values[places].astype(np.int64))

    def append(self, registers: Sequence[Register]) -> None:
        """Add items behind the others."""
        self._statistics = None
        lengths = np.array([int(counts.sum()) for _, counts in registers], np.int64)
        occurrences = [np.repeat(ids, counts) for ids, counts in registers]
        added = np.concatenate(occurrences) if occurrences else np.zeros(0, np.uint32)
        self._admit(np.unique(added))
        self._entries.append(np.searchsorted(self._vocabulary, added))
        self._lengths.append(lengths)

    def take(self, rows: NDArray[np.int64]) -> None:
        """Keep `rows`, in that order; stems that no item has any more leave the vocabulary."""
        self._statistics = None
        places, kept = self._places(rows)
        entries = self._entries.values[places]
        used, entries = np.unique(entries, return_inverse=True)
        vocabulary = self._vocabulary[used]
        self._vocabulary.fill(0)
        self._vocabulary = vocabulary
        self._entries.replace(entries)
        self._lengths.replace(kept)

    def parts(self) -> dict[str, NDArray[Any]]:
        """Copies of what is held: the vocabulary, the entries of all items, how many each has."""
        values = {"entries": self._entries.values.copy(), "lengths": self._lengths.values.copy()}
        return {"vocabulary": self._vocabulary.copy(), **values}

    def put(self, parts: Mapping[str, NDArray[Any]]) -> None:
        """Hold what `parts` gave, in place of what is here.

        Raises:
            InvalidState: the parts do not belong together.
        """
        vocabulary, entries, lengths = parts["vocabulary"], parts["entries"], parts["lengths"]
        total = int(lengths.sum(dtype=np.int64))
        if len(entries) != total:
            raise InvalidState("entries", f"be {total}", f"are {len(entries)}")
        if len(entries) and int(entries.max()) >= len(vocabulary):
            raise InvalidState("entries", f"be below {len(vocabulary)}", f"go up to {int(entries.max())}")
        self._statistics = None
        self._vocabulary = vocabulary.astype(np.uint32)
        self._entries.replace(entries)
        self._lengths.replace(lengths)

    def size_of(self, rows: NDArray[np.int64]) -> int:
        """Bytes that `rows` would take without the others."""
        places, kept = self._places(rows)
        used, entries = np.unique(self._entries.values[places], return_inverse=True)
        return int(used.size * self._vocabulary.itemsize) + self._entries.size_of(entries) + self._lengths.size_of(kept)

    def amplitudes(
        self, terms: NDArray[np.uint32], counts: NDArray[np.float32], k1: float, b: float
    ) -> NDArray[np.float64]:
        """A_l of every item for a prompt's stems, (n,); zero where they share none."""
        n = len(self)
        if not n or not len(terms):
            return np.zeros(n)
        statistics = self._measured(k1, b)
        # one look-up per entry says which of the prompt's stems it is, if any
        which = np.zeros(len(self._vocabulary), np.int32)
        place = np.searchsorted(self._vocabulary, terms)
        for number, (at, term) in enumerate(zip(place.tolist(), terms.tolist(), strict=True), 1):
            if at < len(which) and self._vocabulary[at] == term:
                which[at] = number
        found = which[self._entries.values]
        hits = np.flatnonzero(found)
        lengths = self._lengths.values.astype(np.int64)
        item = np.searchsorted(np.cumsum(lengths), hits, side="right")
        item, stem, tf = _runs(item, found[hits].astype(np.int64) - 1)
        rarity = idf(n, np.bincount(stem, minlength=len(terms)))
        counts64 = counts.astype(np.float64)
        norm = float(np.sqrt(np.sum(rarity * counts64**2))) * statistics.mean_norm
        if norm <= 0 or not len(item):
            return np.zeros(n)
        weight = rarity[stem] * counts64[stem] * _saturated(tf, lengths[item], statistics.mean_length, k1, b)
        return np.bincount(item, weight, minlength=n) / norm

    def bitmap(self) -> bytes:
        """A bit for every stem: bit `id % 2048`, least significant first."""
        bits = np.zeros(_BITMAP_BITS, np.uint8)
        bits[self._vocabulary % _BITMAP_BITS] = 1
        return np.packbits(bits, bitorder="little").tobytes()

    def _places(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the entries of `rows` stand, in that order, and how many each has."""
        lengths = self._lengths.values
        kept = lengths[rows].astype(np.int64)
        if len(rows) and int(rows[-1]) - int(rows[0]) == len(rows) - 1 and (np.diff(rows) == 1).all():
            start = int(lengths[: int(rows[0])].sum(dtype=np.int64))
            return np.arange(start, start + int(kept.sum())), kept
        starts = np.cumsum(lengths, dtype=np.int64)[rows] - kept
        within = np.arange(int(kept.sum())) - np.repeat(np.cumsum(kept) - kept, kept)
        return np.repeat(starts, kept) + within, kept

    def _admit(self, ids: NDArray[np.uint32]) -> None:
        """Make room in the sorted vocabulary; positions held by the items move along."""
        grown = np.union1d(self._vocabulary, ids).astype(np.uint32)
        if len(grown) == len(self._vocabulary):
            return
        if len(self._entries):
            moved = np.searchsorted(grown, self._vocabulary)
            self._entries.replace(moved[self._entries.values])
        self._vocabulary = grown

    def _measured(self, k1: float, b: float) -> _Statistics:
        held = self._statistics
        if held is not None and (held.k1, held.b) == (k1, b):
            return held
        lengths = self._lengths.values.astype(np.int64)
        n = len(lengths)
        item, stem, tf = _runs(np.repeat(np.arange(n), lengths), self._entries.values.astype(np.int64))
        rarity = idf(n, np.bincount(stem, minlength=len(self._vocabulary)))
        mean_length = float(lengths.mean()) if n else 0.0
        weight = np.sqrt(rarity[stem]) * _saturated(tf, lengths[item], mean_length, k1, b)
        norms = np.sqrt(np.bincount(item, weight**2, minlength=n))
        self._statistics = _Statistics(k1, b, mean_length, float(norms.mean()) if n else 0.0)
        return self._statistics


def idf(n: int, df: NDArray[np.int64]) -> NDArray[np.float64]:
    """ln(1 + (n - df + 1/2) / (df + 1/2)) of stems that stand in `df` of `n` items."""
    return np.log1p((n - df + 0.5) / (df + 0.5))


def _runs(
    item: NDArray[np.int64], stem: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Fold equal neighbours, the occurrences of one stem in one item, into one with its count."""
    if not len(item):
        return item, stem, np.zeros(0, np.int64)
    is_first = np.ones(len(item), bool)
    is_first[1:] = (item[1:] != item[:-1]) | (stem[1:] != stem[:-1])
    first = np.flatnonzero(is_first)
    return item[first], stem[first], np.diff(first, append=len(item))


def _saturated(
    tf: NDArray[np.int64], length: NDArray[np.int64], mean_length: float, k1: float, b: float
) -> NDArray[np.float64]:
    relative = length / mean_length if mean_length > 0 else np.zeros(len(length))
    saturated: NDArray[np.float64] = tf * (k1 + 1) / (tf + k1 * (1 - b + b * relative))
    return saturated
