"""The contract between sessions and the nodes, and its version inside one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qraf.actors.health import NodeHealth, Process
from qraf.actors.hosted import GenerateElsewhere, HostedRuntime
from qraf.actors.messages import HostReport, Kept, SnapshotStats, Spell
from qraf.clock import Clock
from qraf.errors import NodeDown
from qraf.frames import NodeView
from qraf.network.topology import Topology
from qraf.records import Advertisement, Figures, ForgetReceipt, Item, NodeAnswer, NodeStats, Visit
from qraf.settings import Settings
from qraf.state_orders import StateAnswer, StateOrder
from qraf.storage.journal import Journal
from qraf.text.generator import Endpoint

if TYPE_CHECKING:  # these import torch, which a gateway must not, unless it runs the nodes itself
    from qraf.actors.encoding import EncodeQueue
    from qraf.actors.host import Host
    from qraf.text.encoder import Encoder
    from qraf.text.engine import EmbeddedEngine

__all__ = ["HostedRuntime", "LocalRuntime", "NodeHealth", "Process", "Runtime"]


class Runtime(Protocol):
    """Where nodes run. Every coroutine raises `NodeDown` when the node does not answer, `LimitExceeded` when full.

    Cancelling a call gives up its answer; what the node has begun it ends. All calls may be repeated: absorb is
    idempotent by seq.
    """

    topology: Topology
    health: dict[str, NodeHealth]
    phase: str
    restarts: dict[str, int]

    async def start(self) -> None:
        """Start hosts, encoder and engine; returns when they answer. `phase` tells how far it is."""
        ...

    async def close(self) -> None:
        """Stop everything that `start` started. Twice does nothing."""
        ...

    async def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Amplitudes of prompts, (n, d) float32 unit rows."""
        ...

    async def absorb(self, node: str, memory: str, items: Sequence[Item]) -> Figures:
        """Encode and take in items that the journal already has; the memory's figures afterwards."""
        ...

    def recall(self, visits: Sequence[Visit]) -> AsyncGenerator[NodeAnswer]:
        """Ask all hosts at once; answers come as hosts answer. A host that fails gives answers with `error`."""
        ...

    async def states(self, order: StateOrder, *, is_job: bool = False) -> StateAnswer:
        """Carry out an order on stored states. After `NodeDown` a change may have been made: the version tells.

        `is_job`: it may take as long as an operation.
        """
        ...

    async def forget(self, node: str, memory: str, seqs: Sequence[int]) -> ForgetReceipt:
        """Forget items that the journal has tombstoned."""
        ...

    async def drop(self, node: str, memory: str) -> None:
        """Let a memory go from its node."""
        ...

    async def recode(self, node: str, memory: str, num_items: int) -> Figures:
        """Make a memory anew with the bits and the budget that its session has now; the old one answers meanwhile.

        `num_items`, about: texts may be encoded again, and the call waits that much longer.
        """
        ...

    async def due_snapshots(self) -> list[tuple[str, str]]:
        """Nodes and memories that have changed since their newest snapshot, but for small ones."""
        ...

    async def snapshot(self, node: str, memory: str) -> Kept:
        """Make a snapshot of a memory now, unless there is one that holds all of it."""
        ...

    async def figures(self, node: str, memory: str) -> Figures:
        """What a memory's state measures; an unknown memory is an empty one."""
        ...

    async def sketch(self, node: str, memory: str) -> bytes:
        """The sketch of one memory as a packet; empty when there is nothing in it."""
        ...

    async def advertisements(self, everything: bool = False) -> list[Advertisement]:
        """What changed since the last call, or all that is known. Hosts that are down are left out."""
        ...

    async def pooled_sketch(self) -> bytes | None:
        """The nodes' sketches merged into one, for the router's whitening; None while there is nothing."""
        ...

    async def stats(self) -> list[NodeStats]:
        """Counters of the memory nodes that answer."""
        ...

    def views(self) -> list[NodeView]:
        """Every node as last known."""
        ...

    def processes(self) -> list[Process]:
        """This process, and those of the network that are up, as last known."""
        ...

    def snapshots(self) -> dict[str, tuple[int, SnapshotStats]]:
        """The epoch of each host, and what it has made of snapshots in it, as last known."""
        ...

    def endpoint(self, node: str) -> Endpoint:
        """Where the model of a generator node listens now."""
        ...

    def leases(self, node: str) -> GenerateElsewhere | None:
        """The engines outside of the runtime for a generator node; None: `endpoint` tells."""
        ...


class LocalRuntime(HostedRuntime):
    """Every host in this process, its work in threads: for tests and small machines.

    Args:
        journal: shared with the caller, who closes it.
        encoder: makes the encoder; default: the one that the settings name.
        endpoint: serves every generator node that names no URL; default: the embedded engine.
    """

    def __init__(
        self,
        topology: Topology,
        settings: Settings,
        journal: Journal,
        *,
        clock: Clock | None = None,
        encoder: Callable[[], Encoder] | None = None,
        endpoint: Endpoint | None = None,
    ) -> None:
        super().__init__(topology, settings, clock=clock)
        self._journal, self._load, self._given_endpoint = journal, encoder, endpoint
        self._threads = {
            "absorb": ThreadPoolExecutor(8, thread_name_prefix="local-write"),
            "states": ThreadPoolExecutor(4, thread_name_prefix="local-states"),
            "snapshot": ThreadPoolExecutor(1, thread_name_prefix="local-snapshot"),  # its place may hang
            "": ThreadPoolExecutor(8, thread_name_prefix="local"),
        }
        self._hosts: dict[str, Host] = {}
        self._encoding: EncodeQueue | None = None
        self._engine: EmbeddedEngine | None = None
        self._engine_at: Endpoint | None = endpoint

    async def start(self) -> None:
        """Load the encoder and start the engine, both in threads; returns when both work."""
        self.phase = "starting hosts"
        starts = [asyncio.to_thread(self._start_hosts)]
        if self._needs_engine and self._given_endpoint is None:
            starts.append(asyncio.to_thread(self._start_engine))
        await asyncio.gather(*starts)
        for host in list(self._hosts):
            self._host_up(await self._ping(host))
        for spec in self.topology.generators():
            self.health[spec.name] = NodeHealth(up=True, epoch=1)
        self.phase = "ready"

    async def close(self) -> None:
        """Stop threads and engine; codes that wait are stored before. Twice does nothing."""
        if self.phase == "closed":
            return
        self.phase = "closed"
        for host in list(self._epochs):
            self._host_down(host)
        await self._close_batchers()
        await asyncio.to_thread(self._stop)

    def views(self) -> list[NodeView]:
        """Every node as it is now."""
        for name in self._epochs:
            self._note(self._hosts[name].ping())
        return super().views()

    def _start_hosts(self) -> None:
        from qraf.actors.encoding import EncodeQueue
        from qraf.actors.host import Host
        from qraf.text.encoder import load_encoder

        wanted, settings = self._encoder_settings(), self.settings
        self._encoding = EncodeQueue(self._load or (lambda: load_encoder(wanted)), wanted.max_batch)
        self._encoding.encoder()
        for name in self.topology.hosts:
            self._hosts[name] = Host(self._encoding, self._journal, clock=self._clock)
            spell = Spell(name, 1, self.topology, settings.states, settings.quotas, snapshots=settings.snapshots_here())
            self._hosts[name].adopt(spell)

    def _start_engine(self) -> None:
        from qraf.text.engine import EmbeddedEngine

        self._engine = EmbeddedEngine(self.settings.generator)
        self._engine_at = self._engine.start()

    def _stop(self) -> None:
        for pool in self._threads.values():
            pool.shutdown(wait=True, cancel_futures=True)
        for host in self._hosts.values():
            host.close()
        if self._encoding is not None:
            self._encoding.close()
        if self._engine is not None:
            self._engine.stop()

    async def _call(self, host: str, epoch: int, method: str, args: tuple[Any, ...], timeout_s: float) -> Any:
        pool = self._threads.get(method, self._threads[""])
        work = asyncio.get_running_loop().run_in_executor(pool, getattr(self._hosts[host], method), epoch, *args)
        async with asyncio.timeout(timeout_s):  # `wait_for` loses a cancel that comes together with the answer
            return await work

    async def _ping(self, host: str) -> HostReport:
        report = self._hosts[host].ping()
        self._note(report)
        return report

    def _engine_endpoint(self, node: str) -> Endpoint:
        if self._engine_at is None or self.phase == "closed":
            raise NodeDown(node, "the embedded engine does not run")
        return self._engine_at
