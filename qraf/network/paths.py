"""Cheapest paths over the live network: a compiled snapshot of the links and the nodes' latency, load and health.

The price of going over a link u -> v, in the unit of relevance (one standard deviation over the nodes):

    latency    * (latency_ms + 16 kbit / bandwidth_mbps) / deadline_ms
  + load       * ln(1 + load of v)
  + infidelity * (-ln(fidelity of the link's bits) - ln w)

w is the Werner parameter of the link's channel, 1 where it has no noise (`links`, `werner`).

Measured latency and load come through an exponential average; the routes see a new value only when it has moved by more
than a seventh, so that they do not flap between two nodes of nearly the same price.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import rustworkx as rx

from qraf.network.links import LinkChannel, link_channels
from qraf.network.topology import LinkSpec, Topology

__all__ = ["LiveNode", "Network", "Snapshot"]

_MESSAGE_KBIT = 16.0  # a prompt's amplitudes and terms, or ten pieces of evidence
_SMOOTHING = 0.3
_HYSTERESIS = 0.15
_LEAST_LOAD, _LEAST_MS = 0.25, 0.5  # smaller moves are noise


@dataclass(slots=True)
class LiveNode:
    """What is known of one node now; `latency_ms`, `load` are what routes see, the averages what was measured."""

    up: bool = True
    latency_ms: float = 0.0
    load: float = 0.0
    mean_latency_ms: float | None = None
    mean_load: float | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Cheapest paths from the ingress over the nodes that are up.

    `parent` and `order` (ingress first) make their tree; `step` is the price of the link into a node, `price` and
    `delay_ms` sum over its path. `exit_ms`, `exit_price` lead from a node on to each generator.
    """

    order: tuple[str, ...]
    parent: dict[str, str]
    path: dict[str, tuple[str, ...]]
    step: dict[str, float]
    price: dict[str, float]
    delay_ms: dict[str, float]
    exit_price: dict[str, dict[str, float]] = field(default_factory=dict)
    exit_ms: dict[str, dict[str, float]] = field(default_factory=dict)


class Network:
    """The topology with live weights; `snapshot` is compiled again only after they moved."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._channels: Mapping[tuple[str, str], LinkChannel] | None = None
        self.live: dict[str, LiveNode] = {name: LiveNode() for name in topology.nodes}
        self._snapshot: Snapshot | None = None

    def observe(
        self, node: str, latency_ms: float | None = None, load: float | None = None, up: bool | None = None
    ) -> None:
        """Take in one observation of a node; what is not given stays. Unknown names and values below 0 do nothing."""
        live = self.live.get(node)
        if live is None:
            return
        if up is not None and up != live.up:
            live.up = up
            live.mean_latency_ms = live.mean_load = None  # what a host measured before it died says nothing now
            self._snapshot = None
        if latency_ms is not None and latency_ms >= 0 and math.isfinite(latency_ms):
            live.mean_latency_ms = _averaged(live.mean_latency_ms, latency_ms)
            if _has_moved(live.latency_ms, live.mean_latency_ms, _LEAST_MS):
                live.latency_ms = live.mean_latency_ms
        if load is not None and load >= 0 and math.isfinite(load):
            live.mean_load = _averaged(live.mean_load, load)
            if _has_moved(live.load, live.mean_load, _LEAST_LOAD):
                live.load = live.mean_load
                self._snapshot = None

    @property
    def channels(self) -> Mapping[tuple[str, str], LinkChannel]:
        """The channels of the noisy links; sampled at the first use where they were not set before."""
        if self._channels is None:
            self._channels = link_channels(self._topology)
        return self._channels

    @channels.setter
    def channels(self, channels: Mapping[tuple[str, str], LinkChannel]) -> None:
        self._channels, self._snapshot = dict(channels), None

    def snapshot(self) -> Snapshot:
        """The cheapest paths now."""
        if self._snapshot is None:
            self._snapshot = self._compiled()
        return self._snapshot

    def link_terms(self, link: LinkSpec) -> dict[str, float]:
        """The parts of a link's price, by name."""
        routing, channel = self._topology.routing, self.channels.get((link.source, link.target))
        lost = -math.log(link.fidelity) + (channel.price if channel is not None else 0.0)
        return {
            "latency": routing.weights.latency * link_ms(link) / routing.deadline_ms,
            "load": routing.weights.load * math.log1p(self.live[link.target].load),
            "infidelity": routing.weights.infidelity * lost,
        }

    def down(self) -> tuple[str, ...]:
        """Names of the nodes that are down."""
        return tuple(name for name, live in self.live.items() if not live.up)

    def _compiled(self) -> Snapshot:
        ingress = self._topology.ingress  # relays always: prompts reach it in the gateway, whatever became of its host
        up = [name for name, live in self.live.items() if live.up or name == ingress]
        index = {name: at for at, name in enumerate(up)}
        links = [link for link in self._topology.links if link.source in index and link.target in index]
        price = {(link.source, link.target): sum(self.link_terms(link).values()) for link in links}
        delay = {(link.source, link.target): link_ms(link) for link in links}
        graph: rx.PyDiGraph = rx.PyDiGraph(multigraph=False)
        graph.add_nodes_from(up)
        graph.add_edges_from([(index[source], index[target], cost) for (source, target), cost in price.items()])
        found = rx.digraph_dijkstra_shortest_paths(graph, index[ingress], None, weight_fn=float)
        path: dict[str, tuple[str, ...]] = {ingress: (ingress,)}
        path |= {up[at]: tuple(up[step] for step in steps) for at, steps in found.items() if at != index[ingress]}
        order = tuple(sorted(path, key=lambda name: (len(path[name]), index[name])))
        parent = {name: path[name][-2] for name in order[1:]}
        made = Snapshot(order, parent, path, {ingress: 0.0}, {ingress: 0.0}, {ingress: 0.0})
        for name in order[1:]:
            edge = (parent[name], name)
            made.step[name] = price[edge]
            made.price[name] = made.price[edge[0]] + price[edge]
            made.delay_ms[name] = made.delay_ms[edge[0]] + delay[edge]
        graph.reverse()
        for generator in self._topology.generators():
            if generator.name in path:
                self._exits(made, graph, up, index, generator.name, price, delay)
        return made

    def _exits(
        self,
        made: Snapshot,
        graph: rx.PyDiGraph,
        up: list[str],
        index: dict[str, int],
        generator: str,
        price: dict[tuple[str, str], float],
        delay: dict[tuple[str, str], float],
    ) -> None:
        """From each node on to a generator: over the links, or back the way it was reached and on from the ingress."""
        back = rx.digraph_dijkstra_shortest_paths(graph, index[generator], None, weight_fn=float)
        prices: dict[str, float] = {}
        delays: dict[str, float] = {}
        for name in made.order:
            home_price, home_ms = (
                made.price[name] + made.price[generator],
                made.delay_ms[name] + made.delay_ms[generator],
            )
            at = index[name]
            if name == generator:
                prices[name], delays[name] = 0.0, 0.0
            elif at in back:
                steps = [up[step] for step in back[at]][::-1]
                edges = list(pairwise(steps))
                onward = sum(price[edge] for edge in edges)
                if onward <= home_price:
                    prices[name], delays[name] = onward, sum(delay[edge] for edge in edges)
                else:
                    prices[name], delays[name] = home_price, home_ms
            else:
                prices[name], delays[name] = home_price, home_ms
        made.exit_price[generator], made.exit_ms[generator] = prices, delays


def link_ms(link: LinkSpec) -> float:
    """Time of one message over a link."""
    return link.latency_ms + _MESSAGE_KBIT / link.bandwidth_mbps


def _averaged(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _SMOOTHING * (value - mean)


def _has_moved(seen: float, mean: float, least: float) -> bool:
    return abs(mean - seen) > max(least, _HYSTERESIS * seen) or (mean == 0 and seen != 0)
