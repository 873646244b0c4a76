"""Advertisements and prompts from words, with a small deterministic encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qraf.network.topology import HostSpec, LinkSpec, NodeSpec, RouteWeights, RoutingSpec, Topology
from qraf.records import Advertisement, Prompt
from qraf.text.lexicon import term_ids
from qraf.text.prepare import prepare, prompt_text
from tests.encoders import HashEncoder

ENCODER = HashEncoder(384)


def advertisement(
    node: str, texts: Sequence[str], *, memory: str = "", first_at: float = 0.0, last_at: float = 0.0
) -> Advertisement:
    """What a memory of these texts advertises."""
    bits = np.zeros(2048, np.uint8)
    for text in texts:
        bits[term_ids(text)[0] % 2048] = 1
    mean = ENCODER.encode(list(texts)).mean(0) if texts else np.zeros(384, np.float32)
    scale = float(np.abs(mean).max()) / 127
    codes = np.rint(mean / scale).astype(np.int8) if scale else np.zeros(384, np.int8)
    return Advertisement(
        node=node,
        memory=memory or f"c/{node}",
        bitmap=np.packbits(bits, bitorder="little").tobytes(),
        centroid=codes.tobytes(),
        scale=scale,
        items=len(texts),
        first_at=first_at,
        last_at=last_at,
    )


def prompt(text: str, speakers: Sequence[str] = ()) -> Prompt:
    """A prepared prompt."""
    return prepare(text, speakers, ENCODER.encode([prompt_text(text, speakers)])[0])


def network(
    links: Sequence[LinkSpec],
    *,
    generators: Sequence[str] = ("writer",),
    max_visits: int = 8,
    weights: RouteWeights | None = None,
) -> Topology:
    """A topology of these links; the first source is the ingress, every other node holds a collection of its name."""
    names = list(dict.fromkeys(name for link in links for name in (link.source, link.target)))
    nodes = {
        name: NodeSpec(name, "generator", model=f"model-{name}")
        if name in generators
        else NodeSpec(name, "memory", host="main", collections=(name,), sessions=name == names[0])
        for name in names
    }
    routing = RoutingSpec(max_visits, 100.0, weights or RouteWeights())
    return Topology("test", {"main": HostSpec("main")}, nodes, tuple(links), names[0], routing=routing)


def memories(topology: Topology, *, but: Sequence[str] = ()) -> Mapping[str, tuple[str, ...]]:
    """Every collection, by node."""
    return {node.name: (f"c/{node.name}",) for node in topology.memory_nodes() if node.name not in but}
