"""Decoding in batches: packed detection events in, packed predictions of the observables out.

Minimum-weight perfect matching by pymatching (sparse blossom: Higgott & Gidney, Quantum 9, 1600 (2025)). What is ours:
detectors from which no observable can be reached are left out before matching (half of them in a memory experiment),
and the batch goes in pieces, because pymatching holds the interpreter for the whole of a call.
"""

from __future__ import annotations

import functools
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qraf.codes.experiment import Experiment, b8_bytes, dem
from qraf.codes.graph import BOUNDARY, MatchingGraph, matching_graph, matching_of
from qraf.codes.model import parse
from qraf.errors import InvalidState

__all__ = ["Decoded", "Decoder", "check_b8", "in_pieces"]

_PIECE_S = 0.01  # other threads wait this long at most, about
_FIRST_PIECE = 256


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """Predictions of a decoder.

    Attributes:
        observables: predicted flips as b8, (shots, ceil(num_observables / 8)) uint8.
        weights: of the matchings, -log of how likely the found errors are against none, up to a constant, (shots,).
        events: detection events that were matched, over all shots; those that no observable depends on not counted.
    """

    observables: NDArray[np.uint8]
    weights: NDArray[np.float64]
    events: int


class Decoder:
    """Decodes whole shots of one code or detector error model. Safe to share between threads, which take turns."""

    def __init__(self, graph: MatchingGraph) -> None:
        self.graph = graph
        edges = {
            (int(u), int(v), flips): float(p)
            for u, v, flips, p in zip(graph.u, graph.v, graph.flips, graph.probability, strict=True)
            if graph.relevant[u]
        }
        self._lock = threading.Lock()
        self._matching = matching_of(edges, graph.num_observables)
        width = b8_bytes(max((max(u, v) for u, v, _ in edges), default=BOUNDARY) + 1)
        self._mask = np.packbits(graph.relevant, bitorder="little")[:width]

    @classmethod
    @functools.lru_cache(maxsize=4)
    def of(cls, experiment: Experiment) -> Decoder:
        """Give the decoder of an experiment; the last few are kept."""
        return cls(matching_graph(dem(experiment)))

    @classmethod
    @functools.lru_cache(maxsize=2)
    def of_dem(cls, text: str) -> Decoder:
        """Give the decoder of a detector error model in stim's text; the last few are kept.

        Raises:
            InvalidState: `qraf.codes.model.parse` refuses the text.
        """
        return cls(matching_graph(parse(text)))

    @property
    def num_detectors(self) -> int:
        """Bits of a shot."""
        return self.graph.num_detectors

    @property
    def num_observables(self) -> int:
        """Bits of a prediction."""
        return self.graph.num_observables

    def decode(self, detectors: NDArray[np.uint8]) -> Decoded:
        """Predict which observables flipped in each shot.

        Args:
            detectors: detection events as b8, (shots, ceil(num_detectors / 8)) uint8.

        Raises:
            InvalidState: the width is another, a bit beyond the last detector is set, or the events of a shot cannot
                be matched (an odd number in a part of the graph without boundary).
        """
        check_b8(detectors, self.num_detectors)
        part = detectors[:, : len(self._mask)] & self._mask
        with self._lock:
            observables, weights = in_pieces(self._matching, part)
        return Decoded(observables, weights, int(np.bitwise_count(part).sum()))


def in_pieces(matching: Any, detectors: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Decode b8 rows with a `pymatching.Matching`: predictions as b8 and weights. The caller holds its lock.

    Raises:
        InvalidState: the events of a shot cannot be matched.
    """
    shots = len(detectors)
    observables = np.zeros((shots, b8_bytes(matching.num_fault_ids)), np.uint8)
    weights = np.zeros(shots)
    start, piece = 0, _FIRST_PIECE
    while start < shots:
        part = slice(start, start + piece)
        began = time.perf_counter()
        try:
            observables[part], weights[part] = matching.decode_batch(
                detectors[part], return_weights=True, bit_packed_shots=True, bit_packed_predictions=True
            )
        except ValueError as error:
            where = f"shots {start} to {min(start + piece, shots) - 1} hold one without"
            raise InvalidState("detectors", "have a perfect matching", where) from error
        start += piece
        if time.perf_counter() - began < _PIECE_S / 2:
            piece *= 2
    return observables, weights


def check_b8(bits: NDArray[np.uint8], n: int, name: str = "detectors") -> NDArray[np.uint8]:
    """Let b8 rows of n bits pass: (shots, ceil(n / 8)) uint8 with nothing behind the last bit.

    Raises:
        InvalidState: they are none.
    """
    width = b8_bytes(n)
    if bits.dtype != np.uint8 or bits.ndim != 2 or bits.shape[1] != width:
        got = f"have {bits.shape} of {bits.dtype}"
        raise InvalidState(name, f"have shape (shots, {width}) of uint8: {n} bits each", got)
    if n % 8 and bool((bits[:, -1] >> (n % 8)).any()):
        raise InvalidState(name, f"be 0 behind their {n} bits", "have a bit set there")
    return bits
