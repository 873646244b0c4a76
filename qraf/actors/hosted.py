"""What runtimes share: batching, epochs, health, advertisements. A version adds how a host is reached."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import OrderedDict, defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from qraf.actors.advertised import Advertised
from qraf.actors.batcher import Batcher
from qraf.actors.health import NodeHealth, Process, view
from qraf.actors.messages import Absorb, HostReport, Kept, SnapshotStats
from qraf.actors.replies import raised
from qraf.clock import Clock, SystemClock
from qraf.errors import LimitExceeded, NodeDown, QrafError, StorageFailed
from qraf.frames import NodeView
from qraf.network.placement import state_host
from qraf.network.topology import Topology
from qraf.operations.parts import cost_s
from qraf.records import (
    Advertisement,
    Figures,
    ForgetReceipt,
    Item,
    NodeAnswer,
    NodeStats,
    Visit,
)
from qraf.service_orders import ServiceAnswer, ServiceOrder
from qraf.settings import EncoderSettings, Settings
from qraf.state_orders import StateAnswer, StateCompare, StateExport, StateMeasure, StateOrder, StatePrepare, StateRead
from qraf.text.generator import Endpoint, Lease

__all__ = ["GenerateElsewhere", "HostedRuntime"]

EncodeElsewhere = Callable[..., Awaitable[NDArray[np.float32]]]


@dataclass(frozen=True, slots=True)
class GenerateElsewhere:
    """Engines outside of the runtime: an endpoint for each answer, and how many answers may stream at once."""

    lease: Lease
    slots: int


Key = tuple[str, str]  # node and memory

_SMOOTHING = 0.2  # weight of the newest latency in the moving average
_SLOWER = 4  # times as long as estimated may work take, on slow cores that it shares
_MAX_REREAD = 65_536  # memories of which it is known that they have been read again; others are once more
_SNAPSHOT_S = 600.0  # of a large memory at a slow place
_ABSORB_S_PER_ITEM = 0.25  # a long write may take longer than any other call


class HostedRuntime:
    """What runtimes share: batching, epochs, health, advertisements. A version says how a host is reached.

    A version implements `_call`, `_ping`, `_engine_endpoint`, and tells with `_host_up` and `_host_down` what it knows.
    """

    _is_far = False  # whether a call leaves this process

    def __init__(
        self, topology: Topology, settings: Settings, *, clock: Clock | None = None, window_ms: float = 0.0
    ) -> None:
        self.topology, self.settings = topology, settings
        self.phase = "new"
        self.generator: GenerateElsewhere | None = None  # likewise for the embedded engine
        self.encoder: EncodeElsewhere | None = None  # where the topology gives the encoder replicas of its own
        self.restarts: dict[str, int] = dict.fromkeys(topology.hosts, 0)
        self.health: dict[str, NodeHealth] = {name: NodeHealth() for name in topology.nodes}
        self._clock = clock or SystemClock()
        self._epochs: dict[str, int] = {}  # of the hosts that are up
        self._reports: dict[str, HostReport] = {}
        self._stale: dict[Key, int] = {}  # memories that may differ from the journal; the number counts the misses
        self._reread_done: OrderedDict[Key, None] | None = None  # those read since `_reread`; None: nothing is suspect
        self._advertised = Advertised(topology.dim)
        self._calls: dict[str, int] = defaultdict(int)
        limits = settings.runtime
        batch = partial(Batcher, window_ms=window_ms, max_waiting=limits.max_waiting)
        size = limits.max_batch
        self._encodes: dict[str, Batcher[list[str], NDArray[np.float32]]] = {}
        self._recalls: dict[str, Batcher[list[Visit], list[NodeAnswer]]] = {}
        self._absorbs: dict[str, Batcher[Absorb, Figures]] = {}
        self._states: dict[str, Batcher[StateOrder, StateAnswer]] = {}
        for host in topology.hosts:
            self._encodes[host] = batch(
                f"the encoder of host '{host}'", partial(self._send_encode, host), max_weight=size, max_inflight=2
            )
            self._recalls[host] = batch(f"host '{host}'", partial(self._send_recall, host), max_weight=size)
            self._absorbs[host] = batch(
                f"writing on host '{host}'", partial(self._send_absorb, host), max_weight=size, max_inflight=8
            )
            self._states[host] = batch(f"states on host '{host}'", partial(self._send_states, host), max_weight=size)

    # ------------------------------------------------------------------------------------------------ calls
    async def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Amplitudes of prompts, by the least busy host; another one is tried when it dies."""
        if self.encoder is not None:
            with contextlib.suppress(NodeDown):  # then hosts, which have an encoder too, do it
                return await self.encoder(texts, urgent=True)
        tried: list[str] = []
        while True:
            up = [host for host in self._epochs if host not in tried]
            if not up:
                raise NodeDown(tried[-1] if tried else "encoder", "no host is up to encode")
            host = min(up, key=lambda name: self._calls[name] + self._encodes[name].waiting)
            try:
                return await self._encodes[host].call(list(texts), max(1, len(texts)))
            except NodeDown:
                tried.append(host)

    async def absorb(self, node: str, memory: str, items: Sequence[Item]) -> Figures:
        """Encode and take in items; after a failure the memory reads the journal at its next recall."""
        host = self._host_of(node)
        try:
            items = await self._encoded(items)
            return await self._absorbs[host].call(Absorb(node, memory, tuple(items)), max(1, len(items)))
        except (QrafError, asyncio.CancelledError) as error:
            self._missed(node, memory, error)
            raise

    async def _encoded(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items with the amplitudes of their texts, where these are encoded elsewhere."""
        places = [place for place, item in enumerate(items) if not item.codes and item.amplitudes is None]
        places = [place for place in places if items[place].role != "recalled"]
        if self.encoder is None or not places:
            return items
        try:
            rows = await self.encoder([items[place].text for place in places], urgent=False)
        except NodeDown:
            return items  # the host encodes them
        made = list(items)
        for place, row in zip(places, rows, strict=True):
            if row.any():  # a text without meaning is found by its words alone
                made[place] = msgspec.structs.replace(items[place], amplitudes=row.astype(np.float32).tobytes())
        return made

    async def recall(self, visits: Sequence[Visit]) -> AsyncGenerator[NodeAnswer]:
        """Ask all hosts at once; leaving the iterator gives up what has not come."""
        by_host: dict[str, list[Visit]] = defaultdict(list)
        for visit in visits:
            by_host[self._host_of(visit.node)].append(visit)
        tasks = [asyncio.create_task(self._recall_host(host, group)) for host, group in by_host.items()]
        try:
            for done in asyncio.as_completed(tasks):
                for answer in await done:
                    yield answer
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def states(self, order: StateOrder, *, is_job: bool = False) -> StateAnswer:
        """Carry out an order on the host that has the state at hand; what only reads is tried on another one."""
        tried: list[str] = []
        while True:
            up = [host for host in self._epochs if host not in tried]
            if not up:
                raise NodeDown(tried[-1] if tried else "states", "no host is up that could serve states")
            state = _first_state(order)
            host = min(up, key=lambda name: self._states[name].waiting) if state is None else state_host(up, state)
            try:
                return await (self._state_job(host, order) if is_job else self._states[host].call(order))
            except NodeDown:
                if not isinstance(order, StateRead | StateMeasure | StateCompare | StateExport):
                    raise  # it may have been done
                tried.append(host)

    async def work(self, orders: Sequence[ServiceOrder]) -> list[ServiceAnswer | QrafError]:
        """Answer orders to the stateless services on the least busy host; another one is tried when it dies."""
        tried: list[str] = []
        wait_s = self.settings.services.call_timeout_s + _SLOWER * sum(map(cost_s, orders))
        while True:
            up = [host for host in self._epochs if host not in tried]
            if not up:
                raise NodeDown(tried[-1] if tried else "services", "no host is up that could work")
            host = min(up, key=lambda name: self._calls[name])
            try:
                answers: list[ServiceAnswer | QrafError] = await self._ask(host, "work", list(orders), timeout_s=wait_s)
                return answers
            except NodeDown:
                tried.append(host)

    async def forget(self, node: str, memory: str, seqs: Sequence[int]) -> ForgetReceipt:
        """Forget items that the journal has tombstoned; after a failure the memory does so at its next recall."""
        try:
            receipt: ForgetReceipt = await self._ask(self._host_of(node), "forget", node, memory, list(seqs))
        except (QrafError, asyncio.CancelledError) as error:
            if isinstance(error, QrafError):
                self._advertised.withdraw(node, memory)
            self._missed(node, memory, error)
            raise
        return receipt

    async def drop(self, node: str, memory: str) -> None:
        """Let a memory go from its node."""
        self._advertised.withdraw(node, memory)
        await self._ask(self._host_of(node), "drop", node, memory)

    async def recode(self, node: str, memory: str, num_items: int) -> Figures:
        """Make a memory anew with the bits and the budget that its session has now."""
        timeout_s = self.settings.runtime.call_timeout_s + _ABSORB_S_PER_ITEM * num_items
        figures: Figures = await self._ask(self._host_of(node), "recode", node, memory, timeout_s=timeout_s)
        return figures

    async def due_snapshots(self) -> list[Key]:
        """Nodes and memories that have changed since their newest snapshot; raises NodeDown when a host is down."""
        hosts = {spec.host for spec in self.topology.nodes.values() if spec.role == "memory"}
        found = await asyncio.gather(*(self._ask(host, "due_snapshots") for host in sorted(hosts)))
        return [key for keys in found for key in keys]

    async def snapshot(self, node: str, memory: str) -> Kept:
        """Make a snapshot of a memory now, unless there is one that holds all of it."""
        kept: Kept = await self._ask(self._host_of(node), "snapshot", node, memory, timeout_s=_SNAPSHOT_S)
        return kept

    async def figures(self, node: str, memory: str) -> Figures:
        """What a memory's state measures."""
        figures: Figures = await self._ask(self._host_of(node), "figures", node, memory)
        return figures

    async def sketch(self, node: str, memory: str) -> bytes:
        """The sketch of one memory as a packet; empty when there is nothing in it."""
        packet: bytes = await self._ask(self._host_of(node), "sketch", node, memory)
        return packet

    async def advertisements(self, everything: bool = False) -> list[Advertisement]:
        """What changed since the last call, or all that is known."""
        told: list[Advertisement] = []

        async def pull(host: str, epoch: int) -> None:
            new, revisions = await self._ask(host, "advertisements", self._advertised.since(host, epoch))
            self._advertised.heard(host, epoch, revisions)
            told.extend(new)

        hosts = list(self._epochs.items())
        results = await asyncio.gather(*(pull(host, epoch) for host, epoch in hosts), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, QrafError):
                raise result
        changed = self._advertised.take(told)
        return self._advertised.every if everything else changed

    async def pooled_sketch(self) -> bytes | None:
        """The nodes' sketches merged; kept until two per cent of the advertised items are new, or one is forgotten.

        Empty: there is nothing in the nodes. None: no host answers.
        """
        if (kept := self._advertised.pooled()) is not None:
            return kept
        items, losses, hosts = self._advertised.items, self._advertised.losses, list(self._epochs)
        if not items:
            return b""
        if not hosts:
            return None
        first, *others = hosts
        parts = await asyncio.gather(*(self._ask(host, "sketches") for host in others), return_exceptions=True)
        sketches = [sketch for part in parts if not isinstance(part, BaseException) for sketch in part]
        pooled: bytes = await self._ask(first, "pool", sketches)
        self._advertised.keep(pooled, items, losses)
        return pooled

    def _reread(self) -> None:
        """Let every memory read the journal once more, at its next recall.

        Another gateway may have died between a write to the journal and the call to the node that belongs to it.
        """
        self._reread_done = OrderedDict()

    def _is_unread(self, key: Key) -> bool:
        return self._reread_done is not None and key not in self._reread_done

    def _missed(self, node: str, memory: str, error: BaseException) -> None:
        """The node may not have heard of a write; its memory reads the journal at its next recall."""
        if _may_lack(error):
            self._stale[node, memory] = self._stale.get((node, memory), 0) + 1

    async def stats(self) -> list[NodeStats]:
        """Counters of the memory nodes that answer."""
        reports = await asyncio.gather(*(self._ping(host) for host in list(self._epochs)), return_exceptions=True)
        return [one for report in reports if not isinstance(report, BaseException) for one in report.stats]

    def processes(self) -> list[Process]:
        """This process, and those of the network that are known."""
        return [Process("gateway", os.getpid(), socket.gethostname())]

    def views(self) -> list[NodeView]:
        """Every node as last known."""
        known = {one.node: one for report in self._reports.values() for one in report.stats}
        return [view(spec, self.health[spec.name], known.get(spec.name)) for spec in self.topology.nodes.values()]

    def snapshots(self) -> dict[str, tuple[int, SnapshotStats]]:
        """The epoch of each host, and what it has made of snapshots in it, as last known."""
        return {name: (report.epoch, report.snapshots) for name, report in self._reports.items()}

    def leases(self, node: str) -> GenerateElsewhere | None:
        """The engines elsewhere, for a generator node that names no URL; None: `endpoint` tells."""
        spec = self.topology.node(node)
        return None if spec.url or self.settings.generator.url else self.generator

    def endpoint(self, node: str) -> Endpoint:
        """Where the model of a generator node listens: its own URL, the settings' URL, or the embedded engine."""
        spec, settings = self.topology.node(node), self.settings.generator
        if spec.url or settings.url:
            key = settings.api_key.get_secret_value()
            return Endpoint(spec.url or settings.url, spec.model if spec.url else settings.model or spec.model, key)
        return self._engine_endpoint(node)

    # ------------------------------------------------------------------------------------------------ for versions
    async def _ask(self, host: str, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        """Call a method of a host with its epoch in front; an answer from an epoch that has passed is refused."""
        epoch, limits = self._epochs.get(host), self.settings.runtime
        if epoch is None:
            raise NodeDown(host, self._why_down(host))
        if self._calls[host] >= limits.max_waiting:
            raise LimitExceeded(f"calls to host '{host}'", limits.max_waiting, self._calls[host] + 1, 500)
        wait_s = timeout_s or limits.call_timeout_s
        self._calls[host] += 1
        try:
            answer = await self._call(host, epoch, method, args, wait_s)
        except TimeoutError:
            raise NodeDown(host, f"`{method}` did not answer in {wait_s:g} s") from None
        finally:
            self._calls[host] -= 1
        if self._epochs.get(host) != epoch:
            raise NodeDown(host, f"stale epoch {epoch}")
        return raised(answer)

    async def _call(self, host: str, epoch: int, method: str, args: tuple[Any, ...], timeout_s: float) -> Any:
        """The bare call. Raises `TimeoutError`, or `NodeDown` when the host is gone."""
        raise NotImplementedError

    def _why_down(self, host: str) -> str:
        return "not up"

    async def _ping(self, host: str) -> HostReport:
        raise NotImplementedError

    def _engine_endpoint(self, node: str) -> Endpoint:
        raise NotImplementedError

    @property
    def _needs_engine(self) -> bool:
        return not self.settings.generator.url and any(not spec.url for spec in self.topology.generators())

    def _encoder_settings(self) -> EncoderSettings:
        return self.settings.encoder.model_copy(update={"name": self.topology.encoder})

    def _host_up(self, report: HostReport) -> None:
        """A host works in this epoch from now on."""
        self._epochs[report.name] = report.epoch
        self._note(report)

    def _host_down(self, host: str) -> None:
        self._epochs.pop(host, None)
        for spec in self.topology.nodes_on(host):
            self.health[spec.name] = replace(self.health[spec.name], up=False)

    def _note(self, report: HostReport) -> None:
        self._reports[report.name] = report
        load = (report.load + self._recalls[report.name].waiting) / self.settings.runtime.max_batch
        for spec in self.topology.nodes_on(report.name):
            up = self._epochs.get(report.name) == report.epoch
            self.health[spec.name] = replace(self.health[spec.name], up=up, epoch=report.epoch, load=load)

    async def _close_batchers(self) -> None:
        batchers: list[Batcher[Any, Any]] = [
            *self._encodes.values(),
            *self._recalls.values(),
            *self._absorbs.values(),
            *self._states.values(),
        ]
        for batcher in batchers:
            await batcher.close()

    # ------------------------------------------------------------------------------------------------ how it is done
    def _host_of(self, node: str) -> str:
        return self.topology.node(node).host

    async def _send_encode(self, host: str, batch: list[list[str]]) -> list[NDArray[np.float32]]:
        rows: NDArray[np.float32] = await self._ask(host, "encode", [text for texts in batch for text in texts])
        ends = np.cumsum([len(texts) for texts in batch])
        return np.split(rows, ends[:-1])

    async def _send_recall(self, host: str, batch: list[list[Visit]]) -> list[list[NodeAnswer]]:
        visits = [visit for group in batch for visit in group]
        keys = {(visit.node, visit.memory) for visit in visits}
        stale = {key: self._stale.get(key, 0) for key in keys if key in self._stale or self._is_unread(key)}
        reread = self._reread_done
        start = self._clock.monotonic()
        answers: list[NodeAnswer] = await self._ask(host, "recall", visits, frozenset(stale))
        ms = (self._clock.monotonic() - start) * 1e3
        for key, misses in stale.items():
            if reread is not None:
                reread[key] = None
            if self._stale.get(key) == misses:  # none was added meanwhile
                del self._stale[key]
        while reread is not None and len(reread) > _MAX_REREAD:
            reread.popitem(last=False)
        for node in {visit.node for visit in visits}:
            health = self.health[node]
            mean = ms if not health.latency_ms else health.latency_ms + _SMOOTHING * (ms - health.latency_ms)
            self.health[node] = replace(health, latency_ms=mean, measured_at=self._clock.monotonic())
        parts = iter(answers)
        return [[next(parts) for _ in group] for group in batch]

    async def _send_absorb(self, host: str, batch: list[Absorb]) -> Sequence[Figures | QrafError]:
        items = sum(len(write.items) for write in batch)
        timeout_s = self.settings.runtime.call_timeout_s + _ABSORB_S_PER_ITEM * items
        out: Sequence[Figures | QrafError] = await self._ask(host, "absorb", batch, timeout_s=timeout_s)
        return out

    async def _send_states(
        self, host: str, batch: list[StateOrder], is_job: bool = False
    ) -> Sequence[StateAnswer | QrafError]:
        orders: list[StateOrder] | bytes = batch
        if self._is_far:  # numbers by the million are packed off the event loop
            orders = await asyncio.to_thread(msgspec.msgpack.encode, batch)
        # one decomposition beyond its bound is seen only when it is done
        wait_s = 2 * self.settings.states.max_operation_s if is_job else None
        out: Sequence[StateAnswer | QrafError] = await self._ask(host, "states", orders, is_job, timeout_s=wait_s)
        return out

    async def _state_job(self, host: str, order: StateOrder) -> StateAnswer:
        [answer] = await self._send_states(host, [order], is_job=True)
        if isinstance(answer, QrafError):
            raise answer
        return answer

    async def _recall_host(self, host: str, visits: list[Visit]) -> list[NodeAnswer]:
        try:
            return await self._recalls[host].call(visits, len(visits))
        except QrafError as error:
            return [
                NodeAnswer(visit.node, host, visit.memory, (), 0.0, 0, Figures(), 0.0, str(error)) for visit in visits
            ]


def _first_state(order: StateOrder) -> str | None:
    """The stored state that an order is about; None where any host will do."""
    if isinstance(order, StateExport):
        return order.id
    if isinstance(order, StatePrepare):
        return None
    if isinstance(order, StateCompare):
        return next((one for pair in order.pairs for one in pair if isinstance(one, str)), None)
    return order.ids[0] if order.ids else None


def _may_lack(error: BaseException) -> bool:
    """Whether a write that ended so leaves a memory behind its journal; a refusal for good does not."""
    if isinstance(error, LimitExceeded):
        return error.retry_after_ms is not None  # a full queue, not a full node
    return isinstance(error, NodeDown | StorageFailed | asyncio.CancelledError)
