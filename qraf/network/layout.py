"""Where a topology's nodes go on paper: layers from left to right, few crossings.

Layers are the topological generations of the graph with cycles contracted; a link that spans several layers gets a bend
in each one between, which takes part in the ordering, so that it runs between boxes and not through them. Order inside
a layer: barycentres, swept forth and back (Sugiyama, Tagawa, Toda, IEEE SMC 11(2), 1981).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import networkx as nx

__all__ = ["Layout", "layered"]

_SWEEPS = 8

_Part = str | tuple[str, str, int]  # a node, or the bend of a link in the layer of that number
_Pairs = list[tuple[_Part, _Part]]


@dataclass(frozen=True, slots=True)
class Layout:
    """Centres of the boxes and the points that each link passes, in user units; the origin is at the top left."""

    width: float
    height: float
    place: dict[str, tuple[float, float]]
    bends: dict[tuple[str, str], tuple[tuple[float, float], ...]]
    layer: dict[str, int]


def layered(
    graph: nx.DiGraph, *, column: float, row: float, box: tuple[float, float], margin: float, bend: float = 0.45
) -> Layout:
    """Lay a directed graph out.

    Args:
        graph: any directed graph; cycles are allowed.
        column: distance of two layers' centres.
        row: height of a node's slot.
        box: width and height of a node's box.
        margin: free space around everything.
        bend: slot height of a passing link, as a share of `row`.
    """
    layer = _layers(graph)
    columns: list[list[_Part]] = [[] for _ in range(max(layer.values(), default=0) + 1)]
    for name in graph:
        columns[layer[name]].append(name)
    chains: dict[tuple[str, str], list[_Part]] = {}
    for source, target in graph.edges:
        between = range(layer[source] + 1, layer[target])
        chain: list[_Part] = [(source, target, at) for at in between]
        for at, point in zip(between, chain, strict=True):
            columns[at].append(point)
        if layer[target] > layer[source]:
            chains[source, target] = [source, *chain, target]
    _order(columns, [pair for chain in chains.values() for pair in pairwise(chain)])
    slot = {part: row if isinstance(part, str) else row * bend for each in columns for part in each}
    tallest = max((sum(slot[part] for part in each) for each in columns), default=row)
    spot: dict[_Part, tuple[float, float]] = {}
    for at, each in enumerate(columns):
        y = margin + (tallest - sum(slot[part] for part in each)) / 2
        for part in each:
            spot[part] = margin + box[0] / 2 + at * column, y + slot[part] / 2
            y += slot[part]
    return Layout(
        width=2 * margin + box[0] + (len(columns) - 1) * column,
        height=2 * margin + tallest,
        place={name: spot[name] for name in graph},
        bends={edge: tuple(spot[part] for part in chain[1:-1]) for edge, chain in chains.items()},
        layer=layer,
    )


def _layers(graph: nx.DiGraph) -> dict[str, int]:
    """The layer of each node: its place on the longest way from a source, cycles contracted."""
    contracted = nx.condensation(graph)
    layer = {}
    for at, generation in enumerate(nx.topological_generations(contracted)):
        for component in generation:
            for name in contracted.nodes[component]["members"]:
                layer[name] = at
    return layer


def _order(
    columns: list[list[_Part]],
    pairs: _Pairs,
) -> None:
    """Sort each column by the mean place of what it is joined to, forth and back; the fewest crossings win."""
    before: dict[_Part, list[_Part]] = {}
    after: dict[_Part, list[_Part]] = {}
    for source, target in pairs:
        before.setdefault(target, []).append(source)
        after.setdefault(source, []).append(target)
    best, fewest = [list(each) for each in columns], _crossings(columns, pairs)
    for sweep in range(_SWEEPS):
        forth = sweep % 2 == 0
        near = before if forth else after
        for at in range(1, len(columns)) if forth else range(len(columns) - 2, -1, -1):
            beside = columns[at - 1 if forth else at + 1]
            place = {part: (index + 0.5) / len(beside) for index, part in enumerate(beside)}
            own = {part: (index + 0.5) / len(columns[at]) for index, part in enumerate(columns[at])}
            weight = {}
            for part in columns[at]:
                joined = [place[other] for other in near.get(part, ()) if other in place]
                weight[part] = sum(joined) / len(joined) if joined else own[part]
            columns[at].sort(key=lambda part: weight[part])
        now = _crossings(columns, pairs)
        if now < fewest:
            best, fewest = [list(each) for each in columns], now
    columns[:] = best


def _crossings(
    columns: list[list[_Part]],
    pairs: _Pairs,
) -> int:
    at = {part: (layer, index) for layer, each in enumerate(columns) for index, part in enumerate(each)}
    joined = [(at[source], at[target]) for source, target in pairs]
    count = 0
    for first, (a, b) in enumerate(joined):
        for c, d in joined[:first]:
            if a[0] == c[0] and (a[1] - c[1]) * (b[1] - d[1]) < 0:
                count += 1
    return count
