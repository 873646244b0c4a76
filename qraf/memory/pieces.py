"""What differentiable scores are computed from, chunk by chunk of items; read by `gradient`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qraf.memory.items import ROLES
from qraf.memory.lexical import idf
from qraf.memory.memory import Memory
from qraf.memory.scoring import Context, decay_factor, moments, question_factor, speaker_factor
from qraf.memory.selection import mask
from qraf.records import RecallQuery

__all__ = ["Chunk", "Pieces"]

_ROWS = 4096  # read at a time for what needs all items


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a chunk's scores are computed from: h items, of which `inner` are its own and the rest stand around them."""

    around: NDArray[np.int64]
    inner: slice
    stretch: Tensor
    dense: Tensor
    hit: Tensor  # query * h + item of each stem that a query and an item share
    weight: Tensor
    tf: Tensor
    relative: Tensor
    live: Tensor
    candidate: Tensor
    named: Tensor
    asking: Tensor
    at: Tensor
    decay: Tensor

    @property
    def rows(self) -> NDArray[np.int64]:
        """The rows of its own items, (c,)."""
        return self.around[self.inner]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        held = (getattr(self, each.name) for each in fields(self))
        return sum(each.nbytes for each in held if isinstance(each, Tensor | np.ndarray))


class Pieces:
    """A memory and some queries, cut into chunks of items in time order; documents come last, each for itself.

    Args:
        memory: the memory; it must not change while this is in use.
        queries: at least one.
        left_out: for each query, rows that are treated as if they were not there.
        size: items in a chunk.
        keep_bytes: so much of the chunks is kept from one reading to the next.
    """

    def __init__(
        self,
        memory: Memory,
        queries: Sequence[RecallQuery],
        left_out: Sequence[Sequence[int]] | None,
        size: int,
        keep_bytes: int,
    ) -> None:
        self._memory, self._queries, self._left_out = memory, tuple(queries), left_out
        self._size, self._room = size, keep_bytes
        self._kept: dict[int, Chunk] = {}
        items, settings = memory.items, memory.settings
        context = Context(items.at, items.role == ROLES.index("document"), settings.episode_gap_s)
        alone = np.setdiff1d(np.arange(len(memory)), context.turns)
        last = int(context.stretch[-1]) if len(context.stretch) else 0
        self._order = np.concatenate((context.turns, alone)).astype(np.int64)
        self._stretch = np.concatenate((context.stretch, last + 1 + np.arange(len(alone)))).astype(np.int64)
        self._reach = max(len(settings.previous), len(settings.following))
        self._now = [memory.now() if query.as_of is None else query.as_of for query in queries]
        self.moments = [moments(query.prompt.dates, items.at) for query in queries]
        """for each query, what its dates may mean"""
        self._read_lexicon()

    def __len__(self) -> int:
        """The number of chunks."""
        return -(-len(self._order) // self._size)

    def chunk(self, number: int) -> Chunk:
        """One chunk, kept if there is room."""
        kept = self._kept.get(number)
        if kept is None:
            kept = self._made(number)
            if kept.nbytes <= self._room:
                self._room -= kept.nbytes
                self._kept[number] = kept
        return kept

    @property
    def num_blocks(self) -> int:
        """How many blocks of `block` there are; 0 where no item has a stem."""
        return len(self) if self._mean_length else 0

    def block(self, number: int) -> tuple[int, Tensor, Tensor, Tensor, Tensor]:
        """All stems of a block of items: how many items, then for each stem the item, idf, count, relative length."""
        lexicon = self._memory.items.lexicon
        rows = np.arange(number * self._size, min(len(self._memory), (number + 1) * self._size))
        item, stem, tf = lexicon.runs(rows)
        relative = self._relative(lexicon.lengths[rows])[item]
        return len(rows), torch.from_numpy(item), torch.from_numpy(self._idf[stem]), torch.from_numpy(tf), relative

    def _read_lexicon(self) -> None:
        """Document frequencies, and from them what every stem is worth and how long each prompt's register is."""
        lexicon, n = self._memory.items.lexicon, len(self._memory)
        frequency = np.zeros(len(lexicon.vocabulary), np.int64)
        for start in range(0, n, _ROWS):
            _, stem, _ = lexicon.runs(np.arange(start, min(n, start + _ROWS)))
            frequency += np.bincount(stem, minlength=len(frequency))
        self._idf = idf(n, frequency)
        unknown = float(idf(n, np.zeros(1, np.int64))[0])
        self._mean_length = float(lexicon.lengths.mean()) if n else 0.0
        asking, stems, weights = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
        for number, prompt in enumerate(query.prompt for query in self._queries):
            counts = prompt.counts.astype(np.float64)
            place = np.searchsorted(lexicon.vocabulary, prompt.terms)
            is_known = np.zeros(len(place), bool)
            inside = place < len(frequency)
            is_known[inside] = lexicon.vocabulary[place[inside]] == prompt.terms[inside]
            worth = np.full(len(place), unknown)
            worth[is_known] = self._idf[place[is_known]]
            norm = float(np.sqrt(np.sum(worth * counts**2)))
            if norm > 0:
                asking.append(np.full(int(is_known.sum()), number))
                stems.append(place[is_known])
                weights.append(worth[is_known] * counts[is_known] / norm)
        order = np.argsort(np.concatenate(stems), kind="stable")
        self._asked_query = np.concatenate(asking)[order]
        self._asked_stem = np.concatenate(stems)[order]
        self._asked_weight = np.concatenate(weights)[order]

    def _relative(self, lengths: NDArray[Any]) -> Tensor:
        return torch.from_numpy(lengths.astype(np.float64) / (self._mean_length or 1.0))

    def _made(self, number: int) -> Chunk:
        memory, items, settings = self._memory, self._memory.items, self._memory.settings
        start, stop = number * self._size, min(len(self._order), (number + 1) * self._size)
        lo, hi = max(0, start - self._reach), min(len(self._order), stop + self._reach)
        around, inner = self._order[lo:hi], slice(start - lo, stop - lo)
        rows = around[inner]
        q = np.stack([query.prompt.amplitudes for query in self._queries]).astype(np.float32, copy=False)
        whitening = memory.whitening()
        dense = items.overlaps(q if whitening is None else whitening.query(q), around)
        hit, weight, tf, length = self._hits(around)
        live, candidate = self._present(around, inner)
        prompts = [query.prompt for query in self._queries]
        named = [speaker_factor(items.speaker[rows], items.speakers, prompt.named, 1.0) - 1 for prompt in prompts]
        asking = question_factor(items.is_question[rows], items.words[rows], replace(settings, question_loss=1.0))
        decay = [decay_factor(items.at[rows], items.is_pinned[rows], now, memory.half_life_s) for now in self._now]
        return Chunk(
            around=around,
            inner=inner,
            stretch=torch.from_numpy(self._stretch[lo:hi]),
            dense=torch.from_numpy(dense.astype(np.float64)),
            hit=torch.from_numpy(hit),
            weight=torch.from_numpy(weight),
            tf=torch.from_numpy(tf),
            relative=self._relative(length),
            live=torch.from_numpy(live),
            candidate=torch.from_numpy(candidate),
            named=torch.from_numpy(np.stack(named)),
            asking=torch.from_numpy(1 - asking),
            at=torch.from_numpy(items.at[rows]),
            decay=torch.from_numpy(np.stack(decay)),
        )

    def _hits(
        self, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], NDArray[Any]]:
        """Every stem that a query shares with one of `rows`: where, the query's weight, the item's count and length."""
        lexicon = self._memory.items.lexicon
        item, stem, tf = lexicon.runs(rows)
        first = np.searchsorted(self._asked_stem, stem, side="left")
        times = np.searchsorted(self._asked_stem, stem, side="right") - first
        which = np.repeat(first - np.cumsum(times) + times, times) + np.arange(int(times.sum()))
        item, tf = np.repeat(item, times), np.repeat(tf, times)
        return (
            self._asked_query[which] * len(rows) + item,
            self._asked_weight[which],
            tf,
            lexicon.lengths[rows][item],
        )

    def _present(self, around: NDArray[np.int64], inner: slice) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Which items are there (m, h), and which of a chunk's own may be found (m, c); 1 or 0."""
        memory, items = self._memory, self._memory.items
        live, candidate = [], []
        alive = memory.is_live(memory.now())[around]
        for number, (query, now) in enumerate(zip(self._queries, self._now, strict=True)):
            there = alive.copy()
            if query.as_of is not None:
                there &= items.at[around] <= now
            if self._left_out is not None:
                there &= ~np.isin(around, np.asarray(self._left_out[number], np.int64))
            passed = there[inner]
            if query.filter is not None:
                passed = passed & mask(query.filter, items)[around[inner]]
            live.append(there.astype(np.float64))
            candidate.append(passed.astype(np.float64))
        return np.stack(live), np.stack(candidate)
