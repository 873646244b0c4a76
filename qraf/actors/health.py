"""How nodes and processes are, as a gateway knows it."""

from __future__ import annotations

from dataclasses import dataclass

from qraf.frames import NodeView
from qraf.network.topology import NodeSpec
from qraf.records import Figures, NodeStats

__all__ = ["NodeHealth", "Process", "view"]


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """What is known of a node. `load`: calls under way or waiting at its host, as a share of one full batch.

    `latency_ms` is a moving average, last touched at `measured_at` (monotonic seconds).
    """

    up: bool = False
    epoch: int = 0
    latency_ms: float = 0.0
    load: float = 0.0
    measured_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Process:
    """A process of the network, for operators. `epoch` 0: it has none."""

    what: str
    pid: int
    machine: str
    epoch: int = 0


def view(spec: NodeSpec, health: NodeHealth, stats: NodeStats | None) -> NodeView:
    """A node as it is shown; `stats` as last heard."""
    return NodeView(
        node=spec.name,
        role=spec.role,
        host=spec.host,
        up=health.up,
        epoch=health.epoch,
        memories=stats.memories if stats else 0,
        items=stats.items if stats else 0,
        bytes=stats.bytes if stats else 0,
        load=health.load,
        latency_ms=health.latency_ms,
        state=stats.figures if stats else Figures(),
        corrected=stats.corrected if stats and stats.epoch == health.epoch else 0,
        stopped=stats.stopped if stats else 0,
    )
