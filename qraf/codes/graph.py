"""The matching graph of a detector error model as arrays: what the decoders build their graphs from.

A node is a detector, an edge an error mechanism that flips its two ends (or one: the other end is the boundary).
Mechanisms that flip the same ends are merged by pymatching as independent ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qraf.codes.model import detector_layers

__all__ = ["BOUNDARY", "MatchingGraph", "matching_graph", "matching_of"]

BOUNDARY = -1


@dataclass(frozen=True, slots=True, eq=False)
class MatchingGraph:
    """Edges of a detector error model.

    Attributes:
        num_detectors: nodes.
        num_observables: logical operators that edges may flip.
        u: one end of each edge, (edges,) int64.
        v: the other end, or `BOUNDARY`, (edges,) int64.
        probability: that the edge flips, (edges,).
        flips: observables that each edge flips.
        layer: time layer of each detector, (num_detectors,), or None where the model gives no times.
        relevant: detectors from which an edge that flips an observable can be reached, (num_detectors,) bool. The
            others fall apart from them: whatever is matched there changes no prediction. In a memory experiment of a
            CSS code that is half of all detectors.
    """

    num_detectors: int
    num_observables: int
    u: NDArray[np.int64]
    v: NDArray[np.int64]
    probability: NDArray[np.float64]
    flips: tuple[frozenset[int], ...]
    layer: NDArray[np.int64] | None
    relevant: NDArray[np.bool_]


def matching_graph(model: Any) -> MatchingGraph:
    """Read the matching graph of a `stim.DetectorErrorModel`."""
    import pymatching
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = pymatching.Matching.from_detector_error_model(model).edges()
    n = model.num_detectors
    u = np.array([first for first, _, _ in edges], np.int64)
    v = np.array([BOUNDARY if second is None else second for _, second, _ in edges], np.int64)
    probability = np.array([data["error_probability"] for _, _, data in edges], np.float64)
    flips = tuple(frozenset(data["fault_ids"]) for _, _, data in edges)
    inner = v != BOUNDARY
    links = coo_array((np.ones(int(inner.sum()), bool), (u[inner], v[inner])), shape=(n, n))
    _, component = connected_components(links, directed=False)
    logical = np.array([bool(flip) for flip in flips], bool)
    relevant = np.isin(component, component[u[logical]])
    return MatchingGraph(n, model.num_observables, u, v, probability, flips, detector_layers(model), relevant)


def matching_of(edges: Mapping[tuple[int, int, frozenset[int]], float], num_fault_ids: int) -> Any:
    """Build a `pymatching.Matching` from edges (u, v or BOUNDARY, fault ids) -> probability, no two with the same ends.

    A bit of a prediction is the parity of the matched edges that carry that fault id: an observable for a decoder, a
    detector of the next window for a sliding one.
    """
    import pymatching

    matching = pymatching.Matching()
    matching.ensure_num_fault_ids(num_fault_ids)
    for (u, v, faults), probability in edges.items():
        # a weight of log((1-p)/p) must stay finite; 1e-14 is far below any probability that matters
        p = min(max(probability, 1e-14), 1 - 1e-14)
        weight = math.log1p(-p) - math.log(p)
        if v == BOUNDARY:
            matching.add_boundary_edge(u, fault_ids=set(faults), weight=weight)
        else:
            matching.add_edge(u, v, fault_ids=set(faults), weight=weight)
    return matching
