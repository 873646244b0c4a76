"""What runtimes and hosts say to each other; no torch, so that a gateway can read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import msgspec

from qraf.network.topology import Topology
from qraf.records import Item, NodeStats
from qraf.settings import QuotaSettings, SnapshotSettings, StateSettings

__all__ = ["Absorb", "HostReport", "Kept", "SnapshotStats", "Spell"]

Kept = Literal["made", "unchanged"]
"""There is a new snapshot; or the newest one holds all that there is, and so does none of an empty memory."""


@dataclass(frozen=True, slots=True)
class Absorb:
    """Items for one memory of one node; the journal has them already."""

    node: str
    memory: str
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Spell:
    """What a host is told once: who it is, in which topology, under which epoch, and its bounds.

    `run` is the life of the cluster in which epochs rise: with it the journal refuses what earlier lives of this host
    still write; empty: it refuses nobody. `snapshots`: None: none are made or read.
    """

    name: str
    epoch: int
    topology: Topology
    states: StateSettings = field(default_factory=StateSettings)
    quotas: QuotaSettings = field(default_factory=QuotaSettings)
    run: str = ""
    snapshots: SnapshotSettings | None = None


class SnapshotStats(msgspec.Struct, frozen=True, kw_only=True):
    """Snapshots of a host since it was made; `failing_since` (seconds since 1970) while they cannot be made.

    `late`: memories that were rebuilt without one because their place failed or did not answer in time.
    """

    made: int = 0
    bytes: int = 0
    restored: int = 0
    refused: int = 0
    late: int = 0
    failed: int = 0
    failing_since: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class HostReport:
    """A host's answer to `ping`. `load`: calls running now; `revision` rises when an advertisement changes."""

    name: str
    epoch: int
    pid: int
    machine: str
    is_ready: bool
    load: int
    revision: int
    stats: tuple[NodeStats, ...]
    snapshots: SnapshotStats = field(default_factory=SnapshotStats)
