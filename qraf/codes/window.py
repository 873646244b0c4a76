"""Sliding-window decoding: corrections are committed while the rounds still come in.

Overlapping recovery (Dennis, Kitaev, Landahl & Preskill, J. Math. Phys. 43, 4452 (2002); Skoric et al., Nat. Commun.
14, 7040 (2023); Tan et al., arXiv 2209.09219): a window of `window` layers of detectors is matched, but only its first
`commit` layers are believed, because what comes later can still change the others. An edge is committed when its
earlier end lies in the committed layers; if its later end lies beyond them, that detector is flipped for the next
window. Edges that leave the window towards the future are cut and lead to the boundary, so that an event near the end
may be explained by something not yet seen. The last window commits everything. With window = 2 d and commit = d the
result is that of decoding everything at once, within the noise.

How it is made fast. Windows whose graphs are equal up to a shift in time share one matching graph. On it the committed
edges carry fault ids: one for each observable, one for each detector behind the committed layers that they flip. So
one batched call to pymatching gives, for all shots, both the observables and the syndrome to pass on, as packed bits;
the rest is exclusive or. Each layer takes whole bytes, so that layers are byte ranges and nothing is repacked.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qraf.codes.decoder import Decoder, check_b8, in_pieces
from qraf.codes.experiment import Experiment, b8_bytes
from qraf.codes.graph import BOUNDARY, MatchingGraph, matching_of
from qraf.errors import InvalidState

__all__ = ["Committed", "WindowDecoder", "WindowPlan"]

_DEPTH_OF_DEM = 10  # layers of a window on a model of unknown distance; commit half of them
_UNPACKED = 2**22  # bits that are a byte each for a moment
_MATCHINGS = 32  # kept per plan: a regular code needs three


@dataclass(frozen=True, slots=True, eq=False)
class Committed:
    """What is decided so far.

    Attributes:
        layers: decided; later rounds cannot change them any more.
        observables: flips found in those layers as b8, (shots, ceil(num_observables / 8)) uint8.
        corrections: edges in the committed matchings, over all shots, where they are counted, else None.
    """

    layers: int
    observables: NDArray[np.uint8]
    corrections: int | None


class WindowPlan:
    """The windows of one code or model, prepared once and shared by any number of streams and threads.

    Attributes:
        window: layers that are matched together.
        commit: layers that are believed of them.
        layer_bits: detectors in each layer; the last layer comes with the final measurement of the data.
    """

    def __init__(self, graph: MatchingGraph, window: int, commit: int) -> None:
        """Prepare.

        Raises:
            InvalidState: the model gives its detectors no times, or `window` and `commit` do not fit it.
        """
        if graph.layer is None:
            raise InvalidState("dem", "give every detector its time as last coordinate, to be decoded in windows")
        self.graph, self.window, self.commit = graph, window, commit
        layer = graph.layer
        self.layer_bits: list[int] = np.bincount(layer).tolist()
        self._columns = [np.flatnonzero(layer == index) for index in range(self.num_layers)]
        most = max(int(graph.relevant[columns].sum()) for columns in self._columns)
        self.layer_bytes = max(1, b8_bytes(most))
        # where each relevant detector lies in its layer's bytes; equal stabilisers come in equal places
        self._place = np.zeros(graph.num_detectors, np.int64)
        for columns in self._columns:
            kept = columns[graph.relevant[columns]]
            self._place[kept] = np.arange(len(kept))
        self._edges = _sorted_edges(graph)
        self.span = int((self._edges.later - self._edges.earlier).max(initial=0))
        if window < 1:
            raise InvalidState("window", "be at least 1 layer", f"is {window}")
        if not 1 <= commit <= window:
            raise InvalidState("commit", f"be 1 to the window of {window} layers", f"is {commit}")
        if self.num_layers > window and window < commit + self.span:
            need = f"be at least {commit + self.span}: the committed layers and the {self.span} that edges reach over"
            raise InvalidState("window", need, f"is {window}")
        self._most_seam = most
        self._lock = threading.Lock()
        self._matchings: dict[bytes, Any] = {}

    @classmethod
    @functools.lru_cache(maxsize=4)
    def of(cls, experiment: Experiment, window: int | None = None, commit: int | None = None) -> WindowPlan:
        """Plan for an experiment; 2 d layers, of which half are committed, where nothing else is said."""
        return cls(Decoder.of(experiment).graph, *_sizes(window, commit, 2 * experiment.distance))

    @classmethod
    @functools.lru_cache(maxsize=2)
    def of_dem(cls, text: str, window: int | None = None, commit: int | None = None) -> WindowPlan:
        """Plan for a detector error model in stim's text; give a window of twice the distance, else it is 20 layers."""
        return cls(Decoder.of_dem(text).graph, *_sizes(window, commit, 2 * _DEPTH_OF_DEM))

    @property
    def num_layers(self) -> int:
        """Layers of a whole shot: one more than rounds in a memory experiment."""
        return len(self.layer_bits)

    def bits(self, start: int, layers: int) -> int:
        """Give how many detectors lie in `layers` layers from `start` on."""
        return sum(self.layer_bits[start : start + layers])

    def by_layer(self, detectors: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Put whole b8 shots into the order of the layers; stim's own circuits have it already.

        Raises:
            InvalidState: the width is not that of whole shots.
        """
        order = np.concatenate(self._columns)
        check_b8(detectors, len(order))
        if bool((np.diff(order) > 0).all()):
            return detectors
        return _picked(detectors, len(order), order)

    def packed(self, detectors: NDArray[np.uint8], start: int, layers: int) -> NDArray[np.uint8]:
        """Turn b8 rows of all detectors of some layers into whole bytes per layer of the relevant ones."""
        columns = np.concatenate(self._columns[start : start + layers])
        source = np.full(layers * self.layer_bytes * 8, len(columns), np.int64)
        relevant = np.flatnonzero(self.graph.relevant[columns])
        layer, place = self._layer[columns[relevant]] - start, self._place[columns[relevant]]
        source[layer * self.layer_bytes * 8 + place] = relevant
        return _picked(detectors, len(columns), source)

    def decode(
        self, part: NDArray[np.uint8], start: int, layers: int, commit: int, count: bool
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], int]:
        """Match one window for all shots: flips of the observables, flips to pass on, corrections counted."""
        shots, seam = len(part), self.span * self.layer_bytes
        with self._lock:
            matching = self._matching(start, layers, commit)
            width = b8_bytes(matching.num_detectors)
            if part[:, width:].any():
                raise InvalidState("detectors", "have a perfect matching", "one event has no edge in its window")
            found, _ = in_pieces(matching, np.ascontiguousarray(part[:, :width]))
            corrections = _count(matching, part[:, :width], commit * self.layer_bytes * 8) if count else 0
        first = self._first_observable(commit < layers)
        bits = np.unpackbits(found, axis=1, bitorder="little")[:, first : first + self.graph.num_observables]
        observables = np.packbits(bits, axis=1, bitorder="little")
        if commit == layers or not self.span:
            return observables, np.zeros((shots, 0), np.uint8), corrections
        passed = found[:, :seam].copy()
        if first < 8 * seam:  # the observables' bits lie in the padding of the last layer
            passed[:, first // 8] &= (1 << first % 8) - 1
            passed[:, first // 8 + 1 :] = 0
        return observables, passed, corrections

    @property
    def _layer(self) -> NDArray[np.int64]:
        assert self.graph.layer is not None
        return self.graph.layer

    def _first_observable(self, passes: bool) -> int:
        """Give the fault id of the first observable: right behind the seam's last detector."""
        # not behind its last byte: pymatching is fast up to 64 fault ids
        return (self.span - 1) * self.layer_bytes * 8 + self._most_seam if passes and self.span else 0

    def _matching(self, start: int, layers: int, commit: int) -> Any:
        """Give the matching graph of a window, built when its like was not seen before."""
        edges, first = self._edges, self._first_observable(commit < layers)
        chosen = slice(*np.searchsorted(edges.earlier, [start, start + layers]))
        wide, end = self.layer_bytes * 8, start + layers
        earlier, later = edges.earlier[chosen] - start, edges.later[chosen] - start
        u = earlier * wide + self._place[edges.u[chosen]]
        inside = (edges.v[chosen] != BOUNDARY) & (later < end - start)
        v = np.where(inside, later * wide + self._place[edges.v[chosen]], BOUNDARY)
        committed, p = earlier < commit, edges.probability[chosen]
        flips = edges.flips[chosen]
        # probabilities that differ in the 13th digit make no other graph
        key = np.concatenate([u, v, np.round(p, 12).view(np.int64), flips, [layers, commit]]).tobytes()
        if key in self._matchings:
            return self._matchings[key]
        merged: dict[tuple[int, int], tuple[float, frozenset[int]]] = {}
        for a, b, probability, flip, sure, reach in zip(u, v, p, flips, committed, later, strict=True):
            faults: frozenset[int] = frozenset()
            if sure:
                faults = frozenset(first + k for k in self._edges.sets[flip])
                if reach >= commit and b != BOUNDARY:
                    faults |= {int(b) - commit * wide}
            ends = (int(a), int(b))
            if ends in merged:  # a cut edge beside the boundary's own, neither committed: either one explains the event
                other = merged[ends][0]
                probability = probability * (1 - other) + other * (1 - probability)
            merged[ends] = (float(probability), faults)
        graph = {(a, b, faults): probability for (a, b), (probability, faults) in merged.items()}
        matching = matching_of(graph, first + self.graph.num_observables)
        if len(self._matchings) >= _MATCHINGS:
            self._matchings.pop(next(iter(self._matchings)))
        self._matchings[key] = matching
        return matching


class WindowDecoder:
    """Decodes a batch of shots whose rounds come in one after the other. Not for two threads at once."""

    def __init__(self, plan: WindowPlan, shots: int = 1, *, count: bool = False) -> None:
        """Start a stream.

        Args:
            plan: the windows.
            shots: decoded side by side.
            count: count the corrections too, which takes about twice the time.

        Raises:
            InvalidState: there is no shot.
        """
        if shots < 1:
            raise InvalidState("shots", "be at least 1", f"is {shots}")
        self.plan, self.shots, self.count = plan, shots, count
        self.layers = 0
        """Layers that came in."""
        self.events = 0
        """Detection events among them on which an observable depends."""
        self.corrections = 0
        self._committed = 0
        self._observables = np.zeros((shots, b8_bytes(plan.graph.num_observables)), np.uint8)
        self._held = np.zeros((shots, 0), np.uint8)

    @property
    def committed(self) -> Committed:
        """What is decided so far."""
        corrections = self.corrections if self.count else None
        return Committed(self._committed, self._observables.copy(), corrections)

    def push(self, detectors: NDArray[np.uint8], layers: int) -> Committed:
        """Take the next layers of every shot and decide what they allow.

        Args:
            detectors: detection events of these layers as b8, (shots, ceil(bits / 8)) uint8; the detectors of a layer
                in the order of their index, `plan.bits(decoder.layers, layers)` of them.
            layers: how many; 0 changes nothing.

        Returns:
            All that is decided so far.

        Raises:
            InvalidState: the shape does not fit, there are more layers than the code has, or they cannot be matched.
                What was refused for its shape changed nothing; a stream that could not be matched is at its end.
        """
        plan = self.plan
        left = plan.num_layers - self.layers
        if not 0 <= layers <= left:
            raise InvalidState("layers", f"be 0 to {left}: {self.layers} of {plan.num_layers} came", f"is {layers}")
        if len(detectors) != self.shots:
            raise InvalidState("detectors", f"have {self.shots} shots", f"have {len(detectors)}")
        check_b8(detectors, plan.bits(self.layers, layers))
        if not layers:
            return self.committed
        packed = plan.packed(detectors, self.layers, layers)
        self.events += int(np.bitwise_count(packed).sum())
        self._held = np.concatenate([self._held, packed], axis=1) if self._held.size else packed
        self.layers += layers
        self._decide()
        return self.committed

    def finish(self) -> Committed:
        """Give the final result; everything is committed when the last layer came.

        Raises:
            InvalidState: layers are missing, and with them what the observables are.
        """
        if self.layers < self.plan.num_layers:
            raise InvalidState("layers", f"be all {self.plan.num_layers} before the end", f"are {self.layers}")
        return self.committed

    def _decide(self) -> None:
        plan, wide, offset = self.plan, self.plan.layer_bytes, 0
        while self._committed < plan.num_layers:
            start = self._committed
            # a window for the one layer of the final measurement alone would be a waste
            is_last = plan.num_layers - start <= plan.window + 1
            layers = plan.num_layers - start if is_last else plan.window
            commit = layers if is_last else plan.commit
            if self.layers < start + layers:
                break
            part = self._held[:, offset : offset + layers * wide]
            observables, passed, corrections = plan.decode(part, start, layers, commit, self.count)
            self._observables ^= observables
            self.corrections += corrections
            offset += commit * wide
            if passed.shape[1]:
                self._held[:, offset : offset + passed.shape[1]] ^= passed
            self._committed += commit
        if offset:
            self._held = self._held[:, offset:].copy()


@dataclass(frozen=True, slots=True, eq=False)
class _Edges:
    """Edges of the relevant detectors by time: `u` is the earlier end; `flips` are indices into `sets`."""

    u: NDArray[np.int64]
    v: NDArray[np.int64]
    earlier: NDArray[np.int64]
    later: NDArray[np.int64]
    probability: NDArray[np.float64]
    flips: NDArray[np.int64]
    sets: Sequence[frozenset[int]]


def _picked(rows: NDArray[np.uint8], count: int, source: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The bits `source` of b8 rows of `count` bits, as b8; bit `count` is 0. A few shots are unpacked at a time."""
    out = np.empty((len(rows), b8_bytes(len(source))), np.uint8)
    step = max(1, _UNPACKED // max(1, count, len(source)))
    for start in range(0, len(rows), step):
        bits = np.unpackbits(rows[start : start + step], axis=1, count=count, bitorder="little")
        wider = np.pad(bits, ((0, 0), (0, 1)))
        out[start : start + step] = np.packbits(wider[:, source], axis=1, bitorder="little")
    return out


def _sorted_edges(graph: MatchingGraph) -> _Edges:
    assert graph.layer is not None
    kept = np.flatnonzero(graph.relevant[graph.u]) if len(graph.u) else np.zeros(0, np.int64)
    u, v, p = graph.u[kept], graph.v[kept], graph.probability[kept]
    sets = sorted(set(graph.flips), key=sorted)
    index = {flip: number for number, flip in enumerate(sets)}
    flips = np.array([index[graph.flips[k]] for k in kept], np.int64)
    later_u = graph.layer[u]
    later_v = np.where(v == BOUNDARY, later_u, graph.layer[v])
    swap = later_v < later_u
    u, v = np.where(swap, v, u), np.where(swap, u, v)
    earlier, later = np.minimum(later_u, later_v), np.maximum(later_u, later_v)
    order = np.lexsort((v, u, earlier))
    return _Edges(u[order], v[order], earlier[order], later[order], p[order], flips[order], sets)


def _count(matching: Any, part: NDArray[np.uint8], committed_bits: int) -> int:
    """Count the edges of the matchings whose earlier end is committed."""
    total = 0
    for row in part[part.any(axis=1)]:
        edges = matching.decode_to_edges_array(np.unpackbits(row, count=matching.num_detectors, bitorder="little"))
        first = np.where(edges == BOUNDARY, np.iinfo(edges.dtype).max, edges).min(axis=1)
        total += int((first < committed_bits).sum())
    return total


def _sizes(window: int | None, commit: int | None, default: int) -> tuple[int, int]:
    window = default if window is None else window
    return window, max(1, window // 2) if commit is None else commit
