"""One memory: items that stream in as coded amplitudes, and what a prompt's measurement of them gives."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from qraf.clock import Clock, SystemClock
from qraf.errors import InvalidState
from qraf.memory.budget import Budget
from qraf.memory.coding import code_bytes, coded_exactly, read_codes, written_code
from qraf.memory.figures import figures_of
from qraf.memory.items import ROLES, Items, SeqView
from qraf.memory.scoring import Context, born, clock_factor, decay_factor, question_factor, speaker_factor
from qraf.memory.selection import mask
from qraf.memory.state import Fold
from qraf.memory.whitening import Whitening
from qraf.records import Advertisement, Evidence, Figures, ForgetReceipt, Item, RecallQuery, RecallSettings, Terms
from qraf.states.quantize import row_bytes
from qraf.states.sketch import Sketch

__all__ = ["Memory", "Parts", "Recollection", "code_bytes"]

Parts: TypeAlias = tuple[Mapping[str, Any], Mapping[str, NDArray[Any]]]
"""What a memory is made of: facts (numbers, texts, bytes, lists and maps of them) and arrays."""


@dataclass(frozen=True, slots=True)
class Recollection:
    """What one measurement gave: evidence, best first; the summed score and the number of all that was measured."""

    evidence: tuple[Evidence, ...]
    mass: float
    items_scanned: int

    def joined(self, other: Recollection, k: int) -> Recollection:
        """This measurement and another one of other items, as if they had been one: the best `k` of both."""
        mass = self.mass + other.mass
        ranked = sorted((*self.evidence, *other.evidence), key=lambda one: (-one.score, one.at, one.seq))[:k]
        shared = (msgspec.structs.replace(one, probability=one.score / mass) for one in ranked)
        return Recollection(tuple(shared), mass, self.items_scanned + other.items_scanned)


@dataclass(frozen=True, slots=True)
class _Scores:
    """The parts of every item's score, each (n,)."""

    dense: NDArray[np.float64]
    lexical: NDArray[np.float64]
    interference: NDArray[np.float64]
    neighbours: NDArray[np.float64]
    speaker: NDArray[np.float64]
    question: NDArray[np.float64]
    clock: NDArray[np.float64]
    decay: NDArray[np.float64]

    def total(self) -> NDArray[np.float64]:
        own = self.dense + self.lexical + self.interference + self.neighbours
        return own * self.speaker * self.question * self.clock * self.decay

    def terms(self, row: int) -> Terms:
        return Terms(**{name: float(getattr(self, name)[row]) for name in self.__slots__})


class Memory:
    """The items of one session or collection on one node, without their text.

    Everything here is a function of the items, the settings and the budget: the order in which items were absorbed
    leaves no trace, and a memory rebuilt from the journal with the stored codes equals the one that grew, bit for bit.
    Not safe for several threads at once.
    """

    def __init__(
        self,
        memory: str,
        dim: int,
        settings: RecallSettings | None = None,
        *,
        bits: int = 4,
        rank: int = 32,
        half_life_s: float | None = None,
        clock: Clock | None = None,
        max_bytes: int | None = None,
    ) -> None:
        self.memory, self.dim, self.bits, self.rank = memory, dim, bits, rank
        self.settings = settings or RecallSettings()
        self.half_life_s = half_life_s
        self._clock = clock or SystemClock()
        self._items = Items(dim, bits)
        self._fold = Fold(dim, rank, half_life_s)
        self._budget = None if max_bytes is None else Budget(max_bytes, self._bytes_beside)
        self._is_behind = False
        self._version = 0
        self._figures: Figures | None = None
        self._whitening: Whitening | None = None

    def __len__(self) -> int:
        return len(self._items)

    @property
    def version(self) -> int:
        """How many items came and went; rises with every change."""
        return self._version

    @version.setter
    def version(self, version: int) -> None:
        self._version, self._figures = version, None

    @property
    def max_bytes(self) -> int | None:
        """The budget: after every `absorb`, and whatever is asked in between, `nbytes` is no larger."""
        return None if self._budget is None else self._budget.max_bytes

    @property
    def evicted(self) -> int:
        """How many items have left because of the budget; the journal has them."""
        return 0 if self._budget is None else self._budget.evicted

    @property
    def is_lowered(self) -> bool:
        """Whether the budget has made items step down or leave."""
        return self._items.coded.is_lowered or self.evicted > 0

    @property
    def is_behind(self) -> bool:
        """Whether only a rebuild from the journal gives what items and budget call for.

        It is so once an item came that was older than those that have left, and after `forget`, which makes room that
        only codes of full precision can fill.
        """
        return self._is_behind

    @property
    def passed(self) -> dict[bool, int]:
        """The largest seq that has left because of the budget: of items that are not pinned, and of pinned ones."""
        return {False: 0, True: 0} if self._budget is None else dict(self._budget.passed)

    def has_passed(self, seq: int, is_pinned: bool) -> bool:
        """Whether an item of this seq has left because of the budget, or would have, had it been here."""
        return self._budget is not None and self._budget.has_passed(seq, is_pinned)

    @property
    def seqs(self) -> SeqView:
        """The seqs that are here, as a set; later changes do not show in it."""
        return self._items.seqs

    @property
    def sketch(self) -> Sketch:
        """The sketch of all items, a copy."""
        return self._fold.sketch(self._items)

    @property
    def nbytes(self) -> int:
        """Everything the memory holds, really allocated, kept results of earlier recalls included."""
        kept = 0 if self._whitening is None else self._whitening.nbytes
        return self._items.nbytes + self._fold.nbytes + kept

    # ------------------------------------------------------------------------------------------------------- writing
    def absorb(
        self, items: Sequence[Item], amplitudes: NDArray[np.float32], bits_of: Sequence[int] | None = None
    ) -> list[bytes]:
        """Take items in. Idempotent by seq: known ones change nothing. Seqs and times may come in any order.

        With a budget items step down and leave until everything fits (`budget`).

        Args:
            items: role `recalled` is skipped. Items with `codes` keep exactly those, or step down from them.
            amplitudes: (n, d), finite; rows are scaled to unit norm; zero rows are found by their words alone. Rows of
                items with codes are not read.
            bits_of: the precision of each item's codes, the memory's own or more; None: the memory's own.

        Returns:
            The codes of each item, aligned with `items`, `code_bytes` each, for the journal; b"" for what is skipped,
            and for what was here before and has stepped down.

        Raises:
            InvalidState: `amplitudes` do not fit, or codes are not of this precision; nothing was taken in.
        """
        fresh = self._fresh(items, amplitudes)
        codes: dict[int, bytes] = {}
        if fresh:
            chosen = [items[index] for index in fresh]
            bits = [self.bits if bits_of is None else bits_of[index] for index in fresh]
            coded = self._coded(chosen, np.asarray(amplitudes)[fresh], bits)
            first = self._items.add(chosen, *coded)
            codes = {item.seq: written_code(*parts) for item, *parts in zip(chosen, *coded[:2], strict=True)}
            if self._budget is not None:
                first = min(first, self._budget.settle(self._items))
            self._changed(first, len(fresh))
        places = np.searchsorted(self._items.seq, np.array([item.seq for item in items], np.int64))
        return [codes.get(item.seq) or self._held(item, int(row)) for item, row in zip(items, places, strict=True)]

    def forget(self, seqs: Sequence[int]) -> ForgetReceipt:
        """Let items go: their rows are zeroed, the state is rebuilt without them. Unknown seqs are passed over."""
        before = self.figures()
        rows = self._items.find(seqs)
        self._is_behind |= self.is_lowered and len(seqs) > 0
        if len(rows):
            self._items.remove(rows)
            self._changed(int(rows[0]), len(rows))
        return ForgetReceipt(memory=self.memory, forgotten=len(rows), before=before, after=self.figures())

    # ------------------------------------------------------------------------------------------------------- reading
    def recall(self, queries: Sequence[RecallQuery]) -> list[Recollection]:
        """Measure the memory for each query, with one scan for all of them.

        Raises:
            InvalidState: a prompt's amplitudes have another dimension.
            InvalidRequest: a filter asks for what a memory does not know.
        """
        if not queries:
            return []
        for query in queries:
            if query.prompt.amplitudes.shape != (self.dim,):
                raise InvalidState("amplitudes", f"have shape ({self.dim},)", f"has {query.prompt.amplitudes.shape}")
        if not len(self):
            return [Recollection((), 0.0, 0) for _ in queries]
        items, settings = self._items, self.settings
        q = np.stack([query.prompt.amplitudes for query in queries]).astype(np.float32, copy=False)
        whitening = self.whitening()
        if whitening is not None:
            q = whitening.query(q)
        dense = items.overlaps(q)
        context = Context(items.at, items.role == ROLES.index("document"), settings.episode_gap_s)
        question = question_factor(items.is_question, items.words, settings)
        now = self._clock.now()
        is_live = self.is_live(now)
        return [
            self._measure(query, dots.astype(np.float64), context, question, is_live, now)
            for query, dots in zip(queries, dense, strict=True)
        ]

    def figures(self) -> Figures:
        """What the memory's state measures; kept until the next change."""
        if self._figures is None:
            self._figures = figures_of(self._items, self._fold, self._version, self.max_bytes, self.evicted)
        return self._figures

    @property
    def items(self) -> Items:
        """The columns of the items, for readers in this folder."""
        return self._items

    def now(self) -> float:
        """What the memory's clock says, in seconds since 1970."""
        return self._clock.now()

    def is_live(self, now: float) -> NDArray[np.bool_]:
        """Which items have not expired, (n,)."""
        live = np.ones(len(self), bool)
        gone = [seq for seq, expires_at in self._items.expires_at.items() if expires_at <= now]
        live[self._items.find(gone)] = False
        return live

    def whitening(self) -> Whitening | None:
        """The whitening of the dense register as it is now; None where the settings have it off."""
        settings = self.settings
        if not settings.whiten:
            return None
        if self._whitening is None:
            self._whitening = Whitening(self.sketch, settings.whiten_eps, settings.whiten_power)
            self._whitening.measure(self._items.coded)
        return self._whitening

    def advertisement(self, node: str) -> Advertisement:
        """What the router learns: the lexical bitmap and the int8 mean state."""
        mean = self._fold.mean(self._items)
        scale = float(np.abs(mean).max(initial=0.0)) / 127
        centroid = np.rint(mean / scale).astype(np.int8) if scale > 0 else np.zeros(self.dim, np.int8)
        return Advertisement(
            node=node,
            memory=self.memory,
            bitmap=self._items.lexicon.bitmap(),
            centroid=centroid.tobytes(),
            scale=scale,
            items=len(self),
            version=self._version,
            first_at=float(self._items.at.min()) if len(self) else 0.0,
            last_at=float(self._items.at.max()) if len(self) else 0.0,
        )

    # ------------------------------------------------------------------------------------------------- snapshots
    def parts(self) -> Parts:
        """Everything that a memory of the same settings needs to equal this one bit for bit; copies."""
        facts, arrays = self._items.parts()
        fold, total = self._fold.parts()
        budget = None if self._budget is None else {"gone": self._budget.gone, "passed": self._budget.passed}
        return {**facts, **fold, "version": self._version, "budget": copy.deepcopy(budget)}, {**arrays, **total}

    def put(self, parts: Parts) -> None:
        """Become what `parts` gave, in place of what is here.

        Raises:
            InvalidState: the parts do not belong together, or are those of a memory of other settings. Then the memory
                must not be used any more.
        """
        facts, arrays = parts
        budget = facts["budget"]
        if (budget is None) != (self._budget is None):
            raise InvalidState("budget", "be that of this memory", "is not")
        self._items.put(facts, arrays)
        self._fold.put(facts, arrays)
        if self._fold.rows > len(self):
            raise InvalidState("rows", f"be at most {len(self)}", f"are {self._fold.rows}")
        if self._budget is not None:
            self._budget.gone, self._budget.passed = dict(budget["gone"]), dict(budget["passed"])
        self._version, self._is_behind = int(facts["version"]), False
        self._figures = self._whitening = None

    # ------------------------------------------------------------------------------------------------ how it is done
    def _fresh(self, items: Sequence[Item], amplitudes: NDArray[np.float32]) -> list[int]:
        """Which of `items` are new, in order of seq, each seq once."""
        if np.shape(amplitudes) != (len(items), self.dim):
            raise InvalidState("amplitudes", f"have shape ({len(items)}, {self.dim})", f"has {np.shape(amplitudes)}")
        known = self.seqs
        new: dict[int, int] = {}
        for index, item in enumerate(items):
            if item.role == "recalled" or item.seq in known:
                continue
            if self.has_passed(item.seq, item.pin):
                self._is_behind = True
            else:
                new.setdefault(item.seq, index)
        return [new[seq] for seq in sorted(new)]

    def _coded(
        self, items: Sequence[Item], amplitudes: NDArray[np.float32], bits: Sequence[int]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16]]:
        """Coded rows on the first rung, what coding lost, and at most."""
        rows = np.zeros((len(items), row_bytes(self.dim, self.bits)), np.uint8)
        infidelity, guaranteed = np.zeros((2, len(items)), np.float16)
        exact = [row for row, item in enumerate(items) if not item.codes]
        if exact:
            rows[exact], infidelity[exact], guaranteed[exact] = coded_exactly(amplitudes[exact], self.bits)
        for given in sorted({bits[row] for row, item in enumerate(items) if item.codes}):
            some = [row for row, item in enumerate(items) if item.codes and bits[row] == given]
            parts = read_codes([items[row].codes or b"" for row in some], self.dim, given, self.bits)
            rows[some], infidelity[some], guaranteed[some] = parts
        return rows, infidelity, guaranteed

    def _held(self, item: Item, row: int) -> bytes:
        """The codes of an item that was here before."""
        if item.role == "recalled" or row >= len(self) or int(self._items.seq[row]) != item.seq:
            return b""
        best = self._items.coded.best(row)
        return b"" if best is None else written_code(best, self._items.infidelity[row])

    def _bytes_beside(self, items: int) -> int:
        whitening = Whitening.most_bytes(self.dim, self.rank) if self.settings.whiten and items else 0
        return self._fold.most_bytes(items) + whitening

    def _changed(self, first_row: int, num_items: int) -> None:
        self._fold.changed_from(first_row)
        self._version += num_items
        self._figures = self._whitening = None

    def _measure(
        self,
        query: RecallQuery,
        dense: NDArray[np.float64],
        context: Context,
        question: NDArray[np.float64],
        is_live: NDArray[np.bool_],
        now: float,
    ) -> Recollection:
        items, settings, prompt = self._items, self.settings, query.prompt
        if query.as_of is not None:
            is_live, now = is_live & (items.at <= query.as_of), query.as_of
        lexical = items.lexicon.amplitudes(prompt.terms, prompt.counts, settings.k1, settings.b)
        parts = born(dense, lexical, settings.alpha)
        mine, shared, crossed = (np.where(is_live, part, 0.0) for part in parts)
        scores = _Scores(
            dense=mine,
            lexical=shared,
            interference=crossed,
            neighbours=context.neighbours(mine + shared + crossed, settings.previous, settings.following),
            speaker=speaker_factor(items.speaker, items.speakers, prompt.named, settings.speaker_gain),
            question=question,
            clock=clock_factor(prompt.dates, items.at, settings),
            decay=decay_factor(items.at, items.is_pinned, now, self.half_life_s),
        )
        is_candidate = is_live if query.filter is None else is_live & mask(query.filter, items)
        total = np.where(is_candidate, scores.total(), 0.0)
        mass = float(total.sum())
        evidence = tuple(
            self._evidence(row, total, mass, scores if query.explain else None)
            for row in _best(total, items.at, query.k)
        )
        return Recollection(evidence, mass, int(is_candidate.sum()))

    def _evidence(self, row: int, total: NDArray[np.float64], mass: float, scores: _Scores | None) -> Evidence:
        items = self._items
        return Evidence(
            seq=int(items.seq[row]),
            memory=self.memory,
            node="",
            score=float(total[row]),
            probability=float(total[row]) / mass,
            words=int(items.words[row]),
            terms=None if scores is None else scores.terms(row),
            speaker=items.speakers[int(items.speaker[row])],
            role=ROLES[int(items.role[row])],
            at=float(items.at[row]),
        )


def _best(total: NDArray[np.float64], at: NDArray[np.float64], k: int) -> list[int]:
    """The rows of the `k` largest scores above zero; equal scores in order of time, then of seq."""
    rows = np.flatnonzero(total > 0)
    if 0 < k < len(rows):
        least = np.partition(total[rows], len(rows) - k)[len(rows) - k]
        rows = rows[total[rows] >= least]
    order = np.lexsort((rows, at[rows], -total[rows]))
    best: list[int] = rows[order][: max(k, 0)].tolist()
    return best
