"""The router: which nodes a prompt visits, by which paths, at what price, and why.

Relevance comes from what nodes advertise (`relevance`), prices from cheapest paths over live weights (`paths`), the
choice is exact (`choice`). A node's prize is `weights.relevance * ln(1 + e^r)`, r its relevance: close to r where a
node stands out, close to nothing where it is below the average, never negative. Visiting a node costs by itself

    latency * (its own latency_ms + the way on to the generator) / deadline_ms  +  the prices of the links of that way

and the links from the ingress, each paid once for all visits that share it. Nodes that are down are no candidates and
relay nothing; a node whose answer would come after the deadline is left out unless it is required, or all are late.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from qraf.clock import Clock
from qraf.errors import NoRoute
from qraf.frames import Hop, RouteOut
from qraf.network import werner
from qraf.network.choice import choose
from qraf.network.links import LinkChannel
from qraf.network.paths import Network, Snapshot
from qraf.network.relevance import Advertised
from qraf.network.topology import Topology
from qraf.records import Advertisement, Prompt

__all__ = ["Router"]

_NEAR = 0.5
_FEW = 3  # fewer candidates are all visited: there is nothing to compare them with


@dataclass(slots=True)
class _Candidate:
    """A node as this prompt sees it."""

    name: str
    order: int
    memory: str = ""
    total: float = 0.0
    lexical: float = math.nan
    dense: float = math.nan
    clock: float = math.nan
    items: int = -1
    prize: float = 0.0
    own: float = 0.0
    arrives_ms: float = 0.0
    is_late: bool = False
    refused: str = ""
    is_out_of_reach: bool = False
    is_required: bool = False


class Router:
    """Plans routes over one topology; not safe for several threads at once."""

    def __init__(self, topology: Topology, clock: Clock) -> None:
        self.topology = topology
        self._clock = clock
        self._network = Network(topology)
        self._advertised = Advertised(topology.dim)
        self.advertised_at: float | None = None

    # ------------------------------------------------------------------------------------------- what nodes tell
    def advertise(self, advertisements: Iterable[Advertisement]) -> None:
        """Take in what nodes advertise; the newest of a memory counts.

        Raises:
            InvalidState: an advertisement of another size or dimension.
        """
        self._advertised.update(advertisements)
        self.advertised_at = self._clock.monotonic()

    def pooled(self, sketch: bytes) -> None:
        """Whiten by the nodes' sketches merged into one, a packet of `Sketch.to_bytes`.

        Raises:
            InvalidState: the packet is damaged, or of another dimension.
        """
        self._advertised.pooled(sketch)

    def observe(
        self, node: str, latency_ms: float | None = None, load: float | None = None, up: bool | None = None
    ) -> None:
        """Take in one observation of a node: how long it took to answer, calls it runs now, whether it is up."""
        self._network.observe(node, latency_ms, load, up)

    @property
    def channels(self) -> Mapping[tuple[str, str], LinkChannel]:
        """The channels of the noisy links, by their ends; sampled at the first use where they were not set before."""
        return self._network.channels

    @channels.setter
    def channels(self, channels: Mapping[tuple[str, str], LinkChannel]) -> None:
        self._network.channels = channels

    # ------------------------------------------------------------------------------------------------- the route
    def route(
        self,
        prompt: Prompt,
        memories: Mapping[str, Sequence[str]],
        *,
        required: Collection[str] = (),
        max_visits: int | None = None,
        deadline_ms: float | None = None,
        explain: bool = False,
        model: str | None = None,
    ) -> RouteOut:
        """The best nodes to visit for a prompt.

        Args:
            prompt: prepared with the topology's encoder.
            memories: the memories that the prompt addresses, by the node that holds them; no others are considered.
            required: nodes that are visited whatever they cost (a session's home); they count towards `max_visits`.
            max_visits: most visits; the topology's own when not given.
            deadline_ms: when answers must be there; the topology's own when not given.
            explain: every term of every score in `Hop.terms`.
            model: generator wanted, by node or model name; the cheapest to reach when not given.

        Raises:
            NotFound: `memories` names a node that the topology does not have.
            NoRoute: none of the addressed nodes is up and can be reached.
            InvalidState: the prompt has another dimension than the advertisements.
        """
        routing = self.topology.routing
        limit = routing.max_visits if max_visits is None else max(1, max_visits)
        deadline = routing.deadline_ms if deadline_ms is None else deadline_ms
        snapshot = self._network.snapshot()
        generator = self._generator(snapshot, model)
        candidates = self._candidates(prompt, memories, required)
        for each in candidates:
            self._price(each, snapshot, generator, deadline)
        if all(each.refused for each in candidates):  # rather a late answer than none
            for each in candidates:
                if each.is_late:
                    each.refused, each.is_out_of_reach = "", False
        visited = self._visited(candidates, snapshot, limit)
        if not visited:
            away = tuple(each.name for each in candidates)
            if not away or all(each.is_out_of_reach for each in candidates):
                raise NoRoute(self.topology.ingress, ", ".join(away) or "any memory", self._network.down())
        hops, paid = [], {self.topology.ingress}
        candidates.sort(key=lambda each: (each.name not in visited, -each.prize, each.order))
        for each in candidates:
            is_measured = each.name in visited
            hops.append(self._hop(each, snapshot, generator, is_measured, paid, limit, explain))
        return RouteOut(
            hops=tuple(hops),
            predicted_ms=max((each.arrives_ms for each in candidates if each.name in visited), default=0.0),
            generator=generator,
            not_visited={each.name: each.refused for each in candidates if each.is_out_of_reach},
        )

    def _generator(self, snapshot: Snapshot, model: str | None) -> str:
        """The cheapest generator that can be reached and has the wanted name; empty when there is none."""
        fitting = [
            node.name
            for node in self.topology.generators()
            if node.name in snapshot.price and model in (None, "", node.name, node.model)
        ]
        return min(fitting, key=lambda name: snapshot.price[name], default="")

    def _candidates(
        self, prompt: Prompt, memories: Mapping[str, Sequence[str]], required: Collection[str]
    ) -> list[_Candidate]:
        """Every addressed node with the relevance of its best memory and its prize."""
        keys = [(node, memory) for node, held in memories.items() for memory in held]
        found = self._advertised.relevance(prompt, keys)
        prizes = self.topology.routing.weights.relevance * np.logaddexp(0.0, found.total)  # ln(1 + e^r)
        columns = (found.total, found.lexical, found.dense, found.clock, found.items, prizes)
        best: dict[str, _Candidate] = {}
        for (node, memory), *values in zip(keys, *(column.tolist() for column in columns), strict=True):
            known = best.get(node)
            if known is None or (known.items == 0, -known.total) > (values[4] == 0, -values[0]):
                best[node] = _Candidate(node, len(best) if known is None else known.order, memory, *values)
        for node in best:
            self.topology.node(node)
        for node in required:
            if node in best:
                best[node].is_required = True
        return list(best.values())

    def _price(self, each: _Candidate, snapshot: Snapshot, generator: str, deadline_ms: float) -> None:
        """Fill in what a node costs by itself, when its answer is there, and why it cannot be visited if so."""
        routing, live = self.topology.routing, self._network.live[each.name]
        if not live.up:
            each.refused, each.is_out_of_reach = "down", True
        elif each.name not in snapshot.path:
            down = ", ".join(self._network.down())
            each.refused = f"no path from the ingress '{self.topology.ingress}'" + (f" around {down}" if down else "")
            each.is_out_of_reach = True
        else:
            onward = snapshot.exit_ms[generator][each.name] if generator else 0.0
            each.arrives_ms = snapshot.delay_ms[each.name] + live.latency_ms + onward
            each.own = routing.weights.latency * live.latency_ms / routing.deadline_ms
            each.own += snapshot.exit_price[generator][each.name] if generator else 0.0
            if each.is_required:
                return
            if each.items == 0:
                each.refused = "holds nothing that was asked for"
            elif each.arrives_ms > deadline_ms:
                each.refused = f"late: its answer would take {each.arrives_ms:.0f} ms of {deadline_ms:.0f} ms"
                each.is_late = each.is_out_of_reach = True

    def _visited(self, candidates: Sequence[_Candidate], snapshot: Snapshot, limit: int) -> frozenset[str]:
        open_to = [each for each in candidates if not each.refused]
        required = [each.name for each in open_to if each.is_required]
        if len(candidates) < _FEW:
            others = sorted((each for each in open_to if not each.is_required), key=lambda each: -each.total)
            return frozenset(required + [each.name for each in others[: max(0, limit - len(required))]])
        gain = {each.name: each.prize - each.own for each in open_to}
        return choose(snapshot.order, snapshot.parent, snapshot.step, gain, limit, required)

    def _hop(
        self,
        each: _Candidate,
        snapshot: Snapshot,
        generator: str,
        is_measured: bool,
        paid: set[str],
        limit: int,
        explain: bool,
    ) -> Hop:
        """A candidate for the outside; its price has the links that no visit before it has paid."""
        path = snapshot.path.get(each.name, ())
        price = each.own
        for name in reversed(path):  # what is paid from here on is paid to the ingress
            if name in paid:
                break
            price += snapshot.step[name]
        if is_measured:
            paid.update(path)
        return Hop(
            node=each.name,
            host=self.topology.nodes[each.name].host,
            relevance=each.prize,
            price=price,
            measured=is_measured,
            path=path,
            why=_why(each, price, is_measured, limit),
            terms=self._terms(each, path, generator, snapshot) if explain else {},
        )

    def _terms(self, each: _Candidate, path: tuple[str, ...], generator: str, snapshot: Snapshot) -> dict[str, float]:
        """Every term: of the relevance as advertised, of the whole path's price by kind, of the node itself."""
        routing = self.topology.routing
        links = {(link.source, link.target): link for link in self.topology.links}
        terms = {"relevance_z": each.total}
        if not math.isnan(each.lexical):
            terms |= {"lexical": each.lexical, "dense": each.dense, "clock": each.clock}
        terms |= dict.fromkeys(("path_latency", "path_load", "path_infidelity"), 0.0)
        for edge in pairwise(path):
            for name, value in self._network.link_terms(links[edge]).items():
                terms[f"path_{name}"] += value
        noisy = [channel for edge in pairwise(path) if (channel := self.channels.get(edge)) is not None]
        if noisy:
            terms["path_fidelity"] = werner.path_fidelity(channel.fidelity for channel in noisy)
        live = self._network.live[each.name]
        terms["node_latency"] = routing.weights.latency * live.latency_ms / routing.deadline_ms
        if path and generator:
            terms["to_generator"] = snapshot.exit_price[generator][each.name]
        return terms | {"arrives_ms": each.arrives_ms}


def _why(each: _Candidate, price: float, is_measured: bool, limit: int) -> str:
    if each.refused:
        return each.refused
    stands = "has not advertised yet, taken as average" if each.items < 0 else _stands(each)
    if each.is_required and is_measured:
        return f"home of the session; {stands}"
    if is_measured:
        return f"{stands}; worth {each.prize:.2f} for a price of {price:.2f}"
    if each.prize <= price:
        return f"{stands}; its price of {price:.2f} is above its worth of {each.prize:.2f}"
    return f"{stands}; others are worth more than its {each.prize:.2f}, and {limit} may be visited"


def _stands(each: _Candidate) -> str:
    near = ", near the date" if each.clock > _NEAR else ""
    return f"has {each.lexical:.0%} of the prompt's terms by weight, overlap {each.dense:.2f}{near}"
