"""Small topologies for the tests of this folder."""

from __future__ import annotations

from collections.abc import Mapping

from qraf.errors import InvalidTopology, TopologyFault
from qraf.network.loader import loads

GOOD = """\
version: 1
name: desk
defaults: {encoder: minilm, rank: 32, bits: 4}
hosts:
  front: {cpus: 1}
  vault: {cpus: 2}
nodes:
  inbox: {role: memory, host: front, holds: sessions, capacity: 512MiB}
  manuals: {role: memory, host: vault, holds: [manuals], recall: {k1: 1.2, b: 0.75, previous: [0.5]}}
  tickets: {role: memory, host: vault, holds: [tickets], decay: {half_life: 30d}, bits: 8, rank: 16}
  writer: {role: generator, model: smollm2-135m}
links:
  - {source: inbox, target: [manuals, tickets], latency_ms: 2, bandwidth_mbps: 100, bits: 8}
  - {source: manuals, target: writer}
  - {source: tickets, target: writer}
ingress: inbox
routing: {max_visits: 4, deadline_ms: 150, weights: {latency: 0.5}}
"""


def faults(text: str, *, env: Mapping[str, str] | None = None, gpus: int = 0) -> list[TopologyFault]:
    """Every fault of a text that must have some."""
    try:
        loads(text, file="t.yaml", env=env or {}, gpus=gpus)
    except InvalidTopology as invalid:
        return list(invalid.faults)
    raise AssertionError("the text has no fault")


def replaced(*pairs: tuple[str, str]) -> str:
    """GOOD with parts replaced; a part that is not there is a fault of the test."""
    text = GOOD
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new, 1)
    return text
