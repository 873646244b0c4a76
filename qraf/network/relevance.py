"""How well each memory responds to a prompt, judged from the 660 bytes that it advertises.

    relevance = z(lexical) + DENSE_SHARE z(dense) + CLOCK_GAIN clock,    z: standard score over the addressed memories

lexical   the share of the prompt's stems whose bit the memory's bitmap has, each stem weighted by
          idf = ln((1 + N) / (1 + df)), df the number of the N bitmaps that have it, and by NAME_WEIGHT where it
          belongs to the name of a participant
dense     the cosine of the prompt with the memory's mean state, both whitened by the pooled state:
          <q| M |c> / (|M^(1/2) q| |M^(1/2) c|),  M = rho_eps^(-2a),  rho_eps = (1 - eps) rho + eps I / d
clock     for prompts that name a date, how near the memory's time span is to it, 0 to 1 (`dates`)

rho is the nodes' sketches merged (`pooled`), its missing trace spread evenly; until one has come, it is the mixture of
the advertised mean states, which is what the sketches hold between memories. Fewer than three memories have no
meaningful z-scores; then the parts are added as they are. The constants were chosen on locomo-dev; all of them have
neighbours that do as well (benchmarks/README.md).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from qraf.errors import InvalidState
from qraf.network.dates import nearness
from qraf.records import Advertisement, Prompt
from qraf.states.envelope import unseal
from qraf.text.lexicon import term_ids

__all__ = ["BITMAP_BYTES", "Advertised", "Relevance"]

BITMAP_BYTES = 256
_BITS = 8 * BITMAP_BYTES
DENSE_SHARE, CLOCK_GAIN, NAME_WEIGHT = 0.4, 3.0, 2.0
EPS, POWER = 0.5, 0.5
_FEWEST = 3
_MIXED = 128  # mean states in the mixture, the newest: its Gram matrix must stay small
MAX_ADVERTISEMENTS = 65_536  # 0.7 KB each; the one not renewed for longest goes first

Key = tuple[str, str]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Relevance:
    """One number for each memory that was asked about, and its parts; a memory that has not advertised is average.

    `lexical`, `dense`, `clock` are the parts as they came, NaN where unknown; `total` joins them. `items` is how many
    items a memory said it holds, -1 where it has said nothing.
    """

    total: Floats
    lexical: Floats
    dense: Floats
    clock: Floats
    items: NDArray[np.int64]


class Advertised:
    """What nodes advertise, in arrays, one row a memory."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._row: OrderedDict[Key, int] = OrderedDict()
        self._free: list[int] = []
        self._bitmap = np.zeros((0, BITMAP_BYTES), np.uint8)
        self._centroid = np.zeros((0, dim), np.int8)
        self._scale = np.zeros(0, np.float32)
        self._items = np.zeros(0, np.int64)
        self._span = np.zeros((0, 2))  # times of the oldest and the newest item
        self._norm = np.zeros(0, np.float32)  # |M^(1/2) c| in units of the row's scale; 0: to be computed
        self._pooled: Floats | None = None  # factor L, (r, d), of the pooled state L^T L
        self._whitening: _Whitening | None = None
        self._changed = 0  # advertisements since the whitening was made

    def __len__(self) -> int:
        return len(self._row)

    def update(self, advertisements: Iterable[Advertisement]) -> None:
        """Take in what changed. Fewer than 0 items: what was known of the memory is not true any more.

        Raises:
            InvalidState: a bitmap or a centroid of another length, or a scale that is no number.
        """
        for ad in advertisements:
            if len(ad.bitmap) != BITMAP_BYTES:
                raise InvalidState("bitmap", f"have {BITMAP_BYTES} bytes", f"has {len(ad.bitmap)} ({ad.node})")
            if len(ad.centroid) != self.dim:
                raise InvalidState("centroid", f"have {self.dim} values", f"has {len(ad.centroid)} ({ad.node})")
            if not (np.isfinite(ad.scale) and ad.scale >= 0):
                raise InvalidState("scale", "be a finite number from 0", f"is {ad.scale} ({ad.node})")
            if ad.items < 0:
                self._remove((ad.node, ad.memory))
                continue
            row = self._take(ad.node, ad.memory)
            if ad.items < self._items[row]:  # something was forgotten: no trace of it in what was made of all
                self._whitening = None
            self._bitmap[row] = np.frombuffer(ad.bitmap, np.uint8)
            self._centroid[row] = np.frombuffer(ad.centroid, np.int8)
            self._scale[row], self._items[row], self._norm[row] = ad.scale, ad.items, 0.0
            self._span[row] = ad.first_at, ad.last_at
            self._changed += 1

    def pooled(self, sketch: bytes) -> None:
        """Whiten by this sketch's state (a packet of `Sketch.to_bytes`) from now on; empty: there is none any more.

        Raises:
            InvalidState: the packet is damaged, or of another dimension.
        """
        if not sketch:
            self._pooled = self._whitening = None
            return
        _, facts, arrays = unseal(sketch, "sketch")
        try:
            factor = arrays["stored"].astype(np.float64) * arrays["scale"].astype(np.float64)[:, None]
            mass = float(facts["mass"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise InvalidState("sketch", "hold a factor and its mass", f"lacks {error}") from error
        if factor.ndim != 2 or factor.shape[1] != self.dim:
            raise InvalidState("sketch", f"have dimension {self.dim}", f"has shape {factor.shape}")
        self._pooled = factor / np.sqrt(mass) if mass > 0 else None
        self._whitening = None

    def relevance(self, prompt: Prompt, keys: Sequence[Key]) -> Relevance:
        """How each memory responds; one that has not advertised counts as average.

        Raises:
            InvalidState: the prompt has another dimension.
        """
        if prompt.amplitudes.shape != (self.dim,):
            raise InvalidState("amplitudes", f"have shape ({self.dim},)", f"has {prompt.amplitudes.shape}")
        rows = np.fromiter((self._row.get(key, -1) for key in keys), np.int64, len(keys))
        known = rows >= 0
        rows = rows[known]
        total, items = np.zeros(len(keys)), np.full(len(keys), -1, np.int64)
        lexical, dense, clock = (np.full(len(keys), np.nan) for _ in range(3))
        if len(rows):
            items[known] = self._items[rows]
            lexical[known] = self._lexical(prompt, rows)
            dense[known] = self._dense(prompt, rows)
            clock[known] = nearness(prompt.dates, self._span[rows, 0], self._span[rows, 1])
            scores = _z if len(rows) >= _FEWEST else np.asarray
            total[known] = scores(lexical[known]) + DENSE_SHARE * scores(dense[known]) + CLOCK_GAIN * clock[known]
        return Relevance(total, lexical, dense, clock, items)

    def _lexical(self, prompt: Prompt, rows: NDArray[np.int64]) -> Floats:
        positions = np.unique(prompt.terms % _BITS).astype(np.int64)
        if not len(positions):
            return np.zeros(len(rows))
        has = self._bitmap[np.ix_(rows, positions >> 3)] >> (positions & 7).astype(np.uint8) & 1
        weight = np.log((1 + len(rows)) / (1 + has.sum(0, dtype=np.int64)))  # idf
        for name in prompt.named:
            weight[np.isin(positions, term_ids(name)[0] % _BITS)] *= NAME_WEIGHT
        whole = float(weight.sum())
        return has @ weight / whole if whole > 0 else np.zeros(len(rows))

    def _dense(self, prompt: Prompt, rows: NDArray[np.int64]) -> Floats:
        whitening = self._whiten()
        stale = rows[self._norm[rows] == 0]
        if len(stale):
            norms = np.linalg.norm(whitening(self._centroid[stale].astype(np.float32)), axis=1)
            self._norm[stale] = np.where(norms > 0, norms, np.inf)  # an all-zero mean state responds to nothing
        q = whitening(prompt.amplitudes.astype(np.float32))
        norm = float(np.linalg.norm(q))
        if norm == 0:
            return np.zeros(len(rows))
        dots = self._centroid[rows].astype(np.float32) @ whitening(q)
        return (dots / self._norm[rows] / norm).astype(np.float64)

    def _whiten(self) -> _Whitening:
        """M^(1/2) = rho_eps^(-a); the one from mean states is renewed when a tenth of them is new."""
        is_own = self._pooled is None
        if self._whitening is None or (is_own and self._changed > max(8, len(self) // 10)):
            self._whitening = _Whitening(self._mixture() if self._pooled is None else self._pooled)
            self._norm[:] = 0.0
            self._changed = 0
        return self._whitening

    def _mixture(self) -> Floats:
        """Factor of the mean states advertised last, mixed in proportion to their items."""
        rows = np.array(list(islice(reversed(self._row.values()), _MIXED)), np.int64)
        items = np.maximum(self._items[rows], 1).astype(np.float64)
        means = self._centroid[rows].astype(np.float64) * self._scale[rows].astype(np.float64)[:, None]
        return np.asarray(means * np.sqrt(items / items.sum())[:, None])

    def _take(self, node: str, memory: str) -> int:
        """The row of a memory: its own, a free one, or that of the memory not renewed for longest."""
        key = (node, memory)
        row = self._row.pop(key, None)
        if row is None:
            if len(self._row) >= MAX_ADVERTISEMENTS:
                self._free.append(self._row.popitem(last=False)[1])
            if not self._free:
                self._grow()
            row = self._free.pop()
        self._row[key] = row
        return row

    def _remove(self, key: Key) -> None:
        row = self._row.pop(key, None)
        if row is not None:
            for column in (self._bitmap, self._centroid, self._scale, self._items, self._span, self._norm):
                column[row] = 0
            self._free.append(row)
            self._whitening = None

    def _grow(self) -> None:
        old, new = len(self._scale), max(64, 2 * len(self._scale))
        for name in ("_bitmap", "_centroid", "_scale", "_items", "_span", "_norm"):
            before = getattr(self, name)
            after = np.zeros((new, *before.shape[1:]), before.dtype)
            after[:old] = before
            setattr(self, name, after)
        self._free.extend(range(new - 1, old - 1, -1))


class _Whitening:
    """rho_eps^(-a) of rho = L^T L + missing trace I / d, from the spectrum of the small Gram matrix L L^T.

    Outside the span of L's rows it is a number, so it is kept as that number and r directions: making it costs about a
    millisecond and applying it 2 d r a row, where the dense matrix costs 30 ms and d^2.
    """

    def __init__(self, factor: Floats) -> None:
        dim = factor.shape[1]
        values, vectors = np.linalg.eigh(factor @ factor.T)
        kept = values > 1e-9
        values = values[kept]
        floor = (EPS + (1 - EPS) * max(0.0, 1.0 - float(values.sum()))) / dim
        self._base = np.float32(floor**-POWER)
        self._more = ((floor + (1 - EPS) * values) ** -POWER - floor**-POWER).astype(np.float32)
        self._directions = (factor.T @ vectors[:, kept] / np.sqrt(values)).astype(np.float32)

    def __call__(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Apply it to rows, (..., d)."""
        within = (rows @ self._directions) * self._more
        return np.asarray(self._base * rows + within @ self._directions.T)


def _z(values: Floats) -> Floats:
    """Standard scores; all zero where nothing differs."""
    spread = float(values.std())
    return np.asarray((values - values.mean()) / spread) if spread > 1e-12 else np.zeros_like(values)
