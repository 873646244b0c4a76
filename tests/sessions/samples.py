"""A small network, and a runtime that holds each memory in this process, with faults on demand."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from qraf.errors import QrafError
from qraf.memory.memory import Memory
from qraf.network.topology import HostSpec, LinkSpec, NodeSpec, Topology
from qraf.records import Figures, ForgetReceipt, Item
from tests.encoders import HashEncoder


def topology(**desk: Any) -> Topology:
    """`desk` holds sessions; `shelf` and `attic` share the collection `notes`, `attic` holds `papers` too."""
    specs = {
        "desk": NodeSpec("desk", "memory", "front", sessions=True, **desk),
        "shelf": NodeSpec("shelf", "memory", "back", collections=("notes",)),
        "attic": NodeSpec("attic", "memory", "back", collections=("notes", "papers")),
    }
    links = tuple(LinkSpec("desk", name) for name in ("shelf", "attic"))
    return Topology("lab", {"front": HostSpec("front"), "back": HostSpec("back")}, specs, links, "desk")


class MemoryRuntime:
    """Real memories behind the part of a runtime that a write needs.

    `faults[node]` are raised by the next calls of `absorb`, one each; `gate` cleared holds calls back.
    """

    def __init__(self, dim: int = 384) -> None:
        self.encoder = HashEncoder(dim)
        self.memories: dict[tuple[str, str], Memory] = {}
        self.faults: dict[str, list[QrafError]] = defaultdict(list)
        self.calls: list[tuple[str, str, tuple[int, ...]]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    def memory(self, node: str, memory: str) -> Memory:
        return self.memories.setdefault((node, memory), Memory(memory, self.encoder.dim, rank=8))

    def held(self, memory: str) -> dict[str, set[int]]:
        """The seqs of a memory on each node."""
        return {node: set(held.seqs) for (node, name), held in self.memories.items() if name == memory}

    async def absorb(self, node: str, memory: str, items: Sequence[Item]) -> Figures:
        self.calls.append((node, memory, tuple(item.seq for item in items)))
        await self.gate.wait()
        if self.faults[node]:
            raise self.faults[node].pop(0)
        given = [None if item.amplitudes is None else np.frombuffer(item.amplitudes, np.float32) for item in items]
        encoded = self.encoder.encode([item.text for item in items])
        rows = [row if psi is None else psi for row, psi in zip(encoded, given, strict=True)]
        held = self.memory(node, memory)
        held.absorb(items, np.stack(rows).astype(np.float32))
        return held.figures()

    async def figures(self, node: str, memory: str) -> Figures:
        return self.memory(node, memory).figures()

    async def forget(self, node: str, memory: str, seqs: Sequence[int]) -> ForgetReceipt:
        return self.memory(node, memory).forget(seqs)
