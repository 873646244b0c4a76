"""One memory: items that stream in as coded amplitudes, and what a prompt's measurement of them gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qraf.clock import Clock, SystemClock
from qraf.errors import InvalidState
from qraf.memory.figures import figures_of
from qraf.memory.items import ROLES, Items, SeqView
from qraf.memory.scoring import Context, born, clock_factor, decay_factor, question_factor, speaker_factor
from qraf.memory.selection import mask
from qraf.memory.state import Fold
from qraf.memory.whitening import Whitening
from qraf.records import Advertisement, Evidence, Figures, ForgetReceipt, Item, RecallQuery, RecallSettings, Terms
from qraf.states import quantize
from qraf.states.sketch import Sketch

__all__ = ["Memory", "Recollection", "code_bytes"]

_LOSS_BYTES = 2  # float16 behind the coded amplitudes


def code_bytes(dim: int, bits: int = 4) -> int:
    """Bytes of an item's codes as `absorb` gives and takes them: the coded row, then its measured infidelity.

    >>> code_bytes(384)
    206
    """
    return quantize.row_bytes(dim, bits) + _LOSS_BYTES


@dataclass(frozen=True, slots=True)
class Recollection:
    """What one measurement gave: evidence, best first; the summed score and the number of all that was measured."""

    evidence: tuple[Evidence, ...]
    mass: float
    items_scanned: int


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

    Everything here is a function of the items and the settings: the order in which items were absorbed leaves no
    trace, and a memory rebuilt from the journal with the stored codes equals the one that grew, bit for bit.
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
    ) -> None:
        self.memory, self.dim, self.bits, self.rank = memory, dim, bits, rank
        self.settings = settings or RecallSettings()
        self.half_life_s = half_life_s
        self._clock = clock or SystemClock()
        self._width = quantize.row_bytes(dim, bits)
        self._items = Items(self._width)
        self._fold = Fold(dim, bits, rank, half_life_s)
        self._version = 0
        self._figures: Figures | None = None
        self._whitening: Whitening | None = None

    def __len__(self) -> int:
        return len(self._items)

    @property
    def version(self) -> int:
        """How many items came and went; rises with every change."""
        return self._version

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
    def absorb(self, items: Sequence[Item], amplitudes: NDArray[np.float32]) -> list[bytes]:
        """Take items in. Idempotent by seq: known ones change nothing. Seqs and times may come in any order.

        Args:
            items: role `recalled` is skipped. Items with `codes` keep exactly those.
            amplitudes: (n, d), finite; rows are scaled to unit norm; zero rows are found by their words alone. Rows of
                items with codes are not read.

        Returns:
            The codes of each item, aligned with `items`, `code_bytes` each (b"" where skipped), for the journal.

        Raises:
            InvalidState: `amplitudes` do not fit, or codes are not of this precision; nothing was taken in.
        """
        fresh = self._fresh(items, amplitudes)
        if fresh:
            chosen = [items[index] for index in fresh]
            rows, infidelity = self._coded(chosen, np.asarray(amplitudes)[fresh])
            first = self._items.add(chosen, rows, infidelity)
            self._changed(first, len(fresh))
        places = np.searchsorted(self._items.seq, np.array([item.seq for item in items], np.int64))
        return [
            b"" if item.role == "recalled" else self._code(int(row)) for item, row in zip(items, places, strict=True)
        ]

    def forget(self, seqs: Sequence[int]) -> ForgetReceipt:
        """Let items go: their rows are zeroed, the state is rebuilt without them. Unknown seqs are passed over."""
        before = self.figures()
        rows = self._items.find(seqs)
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
        if settings.whiten:
            q = self._whitened(q)
        dense = quantize.scan(items.rows, q, self.dim, self.bits)
        context = Context(items.at, items.role == ROLES.index("document"), settings.episode_gap_s)
        question = question_factor(items.is_question, items.words, settings)
        now = self._clock.now()
        is_live = self._is_live(now)
        return [
            self._measure(query, dots.astype(np.float64), context, question, is_live, now)
            for query, dots in zip(queries, dense, strict=True)
        ]

    def figures(self) -> Figures:
        """What the memory's state measures; kept until the next change."""
        if self._figures is None:
            self._figures = figures_of(self._items, self._fold, self.dim, self.bits, self._version)
        return self._figures

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

    # ------------------------------------------------------------------------------------------------ how it is done
    def _fresh(self, items: Sequence[Item], amplitudes: NDArray[np.float32]) -> list[int]:
        """Which of `items` are new, in order of seq, each seq once."""
        if np.shape(amplitudes) != (len(items), self.dim):
            raise InvalidState("amplitudes", f"have shape ({len(items)}, {self.dim})", f"has {np.shape(amplitudes)}")
        known = self.seqs
        new: dict[int, int] = {}
        for index, item in enumerate(items):
            if item.role != "recalled" and item.seq not in known:
                new.setdefault(item.seq, index)
        return [new[seq] for seq in sorted(new)]

    def _coded(
        self, items: Sequence[Item], amplitudes: NDArray[np.float32]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        rows = np.zeros((len(items), self._width), np.uint8)
        infidelity = np.zeros(len(items), np.float16)
        exact = [row for row, item in enumerate(items) if not item.codes]
        if exact:
            rows[exact], infidelity[exact] = _encoded(amplitudes[exact], self.bits)
        for row, item in enumerate(items):
            if item.codes:
                if len(item.codes) != self._width + _LOSS_BYTES:
                    raise InvalidState("codes", f"have {self._width + _LOSS_BYTES} bytes", f"has {len(item.codes)}")
                rows[row] = np.frombuffer(item.codes, np.uint8, self._width)
                infidelity[row] = np.frombuffer(item.codes, "<f2", 1, self._width)[0]
        return rows, infidelity

    def _code(self, row: int) -> bytes:
        lost = self._items.infidelity[row : row + 1].astype("<f2")
        code: bytes = self._items.rows[row].tobytes() + lost.tobytes()
        return code

    def _changed(self, first_row: int, num_items: int) -> None:
        self._fold.changed_from(first_row)
        self._version += num_items
        self._figures = self._whitening = None

    def _whitened(self, q: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._whitening is None:
            settings = self.settings
            self._whitening = Whitening(self.sketch, settings.whiten_eps, settings.whiten_power)
            self._whitening.measure(self._items.rows, self.bits)
        return self._whitening.query(q)

    def _is_live(self, now: float) -> NDArray[np.bool_]:
        live = np.ones(len(self), bool)
        gone = [seq for seq, expires_at in self._items.expires_at.items() if expires_at <= now]
        live[self._items.find(gone)] = False
        return live

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


def _encoded(amplitudes: NDArray[np.float32], bits: int) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Code rows at unit norm; what each lost, measured."""
    if not np.isfinite(amplitudes).all():
        raise InvalidState("amplitudes", "be finite", "hold NaN or infinity")
    norm = np.linalg.norm(amplitudes.astype(np.float64), axis=1, keepdims=True)
    unit = np.divide(amplitudes, norm, out=np.zeros(amplitudes.shape), where=norm > 0).astype(np.float32)
    rows = quantize.encode(unit, bits)
    infidelity = np.zeros(len(unit), np.float16)
    some = norm[:, 0] > 0
    if some.any():
        infidelity[some] = 1 - quantize.loss(unit[some], rows[some], bits)[0]
    return rows, infidelity


def _best(total: NDArray[np.float64], at: NDArray[np.float64], k: int) -> list[int]:
    """The rows of the `k` largest scores above zero; equal scores in order of time, then of seq."""
    rows = np.flatnonzero(total > 0)
    if 0 < k < len(rows):
        least = np.partition(total[rows], len(rows) - k)[len(rows) - k]
        rows = rows[total[rows] >= least]
    order = np.lexsort((rows, at[rows], -total[rows]))
    best: list[int] = rows[order][: max(k, 0)].tolist()
    return best
