"""A host: the nodes of one process, their encoder and their epoch. Plain and thread-safe; what runs it is elsewhere.

A fresh host has no epoch and refuses work until `adopt` gives it a name and one. Every call carries the caller's epoch;
any other is refused, so that a process that was believed dead cannot answer for its successor.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
from numpy.typing import NDArray

from qraf.actors.encoding import EncodeQueue
from qraf.actors.messages import Absorb, HostReport, Kept, SnapshotStats, Spell
from qraf.actors.node import Node
from qraf.actors.snapshots import Keeper, Snapshots
from qraf.actors.states import StateRoom
from qraf.clock import Clock, SystemClock
from qraf.errors import NodeDown, QrafError, StorageFailed
from qraf.network.placement import state_host
from qraf.operations.work import work
from qraf.records import Advertisement, Figures, ForgetReceipt, Item, NodeAnswer, Visit
from qraf.service_orders import ServiceAnswer, ServiceOrder
from qraf.state_orders import StateAnswer, StateOrder
from qraf.states.sketch import Sketch
from qraf.storage.fences import Fence
from qraf.storage.journal import Journal

__all__ = ["CodeWriter", "Host"]

Key = tuple[str, str]  # node and memory

_WARM_S = 10.0  # how long a close waits for a memory that is being read

_log = logging.getLogger(__name__)
_orders = msgspec.msgpack.Decoder(list[StateOrder])


class _HostEncode:
    """The host's encoder as its nodes see it: writing, so not urgent."""

    def __init__(self, encoding: EncodeQueue) -> None:
        self._encoding = encoding

    @property
    def name(self) -> str:
        return self._encoding.encoder().name

    @property
    def dim(self) -> int:
        return self._encoding.encoder().dim

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._encoding.encode(texts)


class CodeWriter:
    """Stores coded amplitudes in the journal behind the answers, many in one transaction.

    Bounded; when full the host waits. A failure is logged and counted, and costs an encoding at the next rebuild.
    """

    def __init__(self, journal: Journal, max_waiting: int = 256) -> None:
        self._journal = journal
        self.fence: Fence | None = None
        self._queue: queue.Queue[tuple[dict[int, bytes], str] | None] = queue.Queue(max_waiting)
        self.failed = 0
        self._thread = threading.Thread(target=self._run, name="codes", daemon=True)
        self._thread.start()

    def __call__(self, codes: dict[int, bytes], code: str) -> None:
        """Take codes by seq; waits while the queue is full."""
        self._queue.put((codes, code))

    def close(self) -> None:
        """Write what waits, then stop."""
        self._queue.put(None)
        self._thread.join(30)

    def _run(self) -> None:
        is_open = True
        while is_open:
            taken = [self._queue.get()]
            while len(taken) < 64:
                try:
                    taken.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            merged: dict[str, dict[int, bytes]] = defaultdict(dict)
            for entry in taken:
                if entry is None:
                    is_open = False
                else:
                    merged[entry[1]].update(entry[0])
            for code, codes in merged.items():
                try:
                    self._journal.put_codes(codes, code, self.fence)
                except QrafError as error:
                    self.failed += len(codes)
                    _log.warning("codes of %d items not stored, a rebuild encodes them again: %s", len(codes), error)


class Host:
    """k nodes and one encoder in this process.

    Args:
        encoding: the encoder's queue; several hosts of one process may share one. The host does not close it.
        journal: the journal, opened in this process. The host does not close it.
    """

    def __init__(self, encoding: EncodeQueue, journal: Journal, *, clock: Clock | None = None) -> None:
        self._encoding, self._journal = encoding, journal
        self._clock = clock or SystemClock()
        self._codes = CodeWriter(journal)
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="recall")
        self._writers = ThreadPoolExecutor(8, thread_name_prefix="absorb")  # they wait for the encoder, which merges
        self._keepers = ThreadPoolExecutor(2, thread_name_prefix="states")
        self._states = StateRoom(journal, encoding.encode)
        self._lock = threading.Lock()
        self._running = 0
        self._closed = False
        self.name, self.epoch = "", 0
        self.nodes: dict[str, Node] = {}
        self._snapshots: Snapshots | None = None
        self._keeper: Keeper | None = None
        self._warming: threading.Thread | None = None

    def adopt(self, spell: Spell) -> HostReport:
        """Become host `spell.name` under a new epoch; its collections are rebuilt in the background.

        The same spell again changes nothing; a higher epoch starts over with empty nodes, which rebuild. From here on
        the journal refuses what an earlier life of this host still wants to write.

        Raises:
            NodeDown: the epoch is lower than the host's own, the host is another one already, or has a later life.
            NotAvailable: there is no way to the place of the snapshots.
        """
        with self._lock:
            if spell.epoch < self.epoch or (self.name and self.name != spell.name):
                raise NodeDown(spell.name, f"stale epoch {spell.epoch}: this is '{self.name}' in epoch {self.epoch}")
            if spell.epoch > self.epoch:
                fence = self._come_forward(spell)
                if self._keeper is not None:
                    self._keeper.close(0)
                wanted = spell.snapshots
                self._snapshots = None if wanted is None else Snapshots(self._journal, wanted, fence, self._clock)
                encode = _HostEncode(self._encoding)
                self._codes.fence = fence
                self.name, self.epoch = spell.name, spell.epoch
                hosts = tuple(spell.topology.hosts)
                self._states = StateRoom(
                    self._journal,
                    self._encoding.encode,
                    spell.states,
                    lambda state: state_host(hosts, state) == spell.name,
                    spell.quotas,
                    fence=fence,
                )
                self.nodes = {
                    spec.name: Node(
                        spec,
                        spell.topology,
                        encode,
                        self._journal,
                        clock=self._clock,
                        store_codes=self._codes,
                        snapshots=self._snapshots,
                    )
                    for spec in spell.topology.nodes.values()
                    if spec.role == "memory" and spec.host == spell.name
                }
                if self._snapshots is not None:
                    self._keeper = Keeper(list(self.nodes.values()), self._snapshots)
                self._warming = threading.Thread(target=self._warm, args=(list(self.nodes.values()),), daemon=True)
                self._warming.start()
        return self.ping()

    def ping(self) -> HostReport:
        """Who this is and how it does; never waits for work."""
        nodes = list(self.nodes.values())
        return HostReport(
            name=self.name,
            epoch=self.epoch,
            pid=os.getpid(),
            machine=socket.gethostname(),
            is_ready=self._encoding.is_ready,
            load=self._running + self._encoding.waiting,
            revision=sum(node.revision for node in nodes),
            stats=tuple(node.stats(self.name, self.epoch) for node in nodes),
            snapshots=SnapshotStats() if self._snapshots is None else self._snapshots.stats,
        )

    def encode(self, epoch: int, texts: Sequence[str]) -> NDArray[np.float32]:
        """Amplitudes of prompts, (n, d) float32 unit rows: they go before what is written."""
        with self._call(epoch):
            return self._encoding.encode(texts, urgent=True)

    def absorb(self, epoch: int, writes: Sequence[Absorb]) -> list[Figures | QrafError]:
        """Absorb each write; its memory's figures afterwards, or what hindered it.

        Writes to one memory are absorbed together, in order; when that fails, one by one, each with its own fault.
        """
        with self._call(epoch):
            groups: dict[Key, list[int]] = defaultdict(list)
            for place, write in enumerate(writes):
                groups[write.node, write.memory].append(place)
            answers: dict[int, Figures | QrafError] = {}

            def absorb(key: Key) -> None:
                places = groups[key]
                together = self._absorb(*key, [item for place in places for item in writes[place].items])
                for place in places:
                    alone = isinstance(together, QrafError) and len(places) > 1
                    answers[place] = self._absorb(*key, writes[place].items) if alone else together

            self._each(self._writers, absorb, groups)
            return [answers[place] for place in range(len(writes))]

    def recall(self, epoch: int, visits: Sequence[Visit], stale: frozenset[Key]) -> list[NodeAnswer]:
        """Answer each visit, in order; visits of one memory are measured together. A fault becomes the answer's error.

        `stale`: (node, memory) whose last absorb may not have arrived; they read the journal first.
        """
        with self._call(epoch):
            groups: dict[Key, list[int]] = defaultdict(list)
            for place, visit in enumerate(visits):
                groups[visit.node, visit.memory].append(place)
            answers: dict[int, NodeAnswer] = {}

            def measure(key: Key) -> None:
                places = groups[key]
                found = self._measure(key[0], key[1], [visits[place] for place in places], key in stale)
                answers.update(zip(places, found, strict=True))

            self._each(self._readers, measure, groups)
            return [answers[place] for place in range(len(visits))]

    def states(
        self, epoch: int, orders: Sequence[StateOrder] | bytes, is_job: bool = False
    ) -> list[StateAnswer | QrafError]:
        """Carry out orders on stored states; each answer, or what hindered it. `orders` may be packed as msgpack.

        `is_job`: they may take as long as an operation.
        """
        with self._call(epoch):
            if isinstance(orders, bytes):
                orders = _orders.decode(orders)
            came = time.monotonic()
            if is_job:  # in this thread, so that it keeps nobody waiting
                return [self._states.answer(order, came, is_job=True) for order in orders]
            return list(self._keepers.map(lambda order: self._states.answer(order, came), orders))

    def work(self, epoch: int, orders: Sequence[ServiceOrder]) -> list[ServiceAnswer | QrafError]:
        """Answer orders to the stateless services; each answer, or what hindered it."""
        with self._call(epoch):
            return work(orders)

    def forget(self, epoch: int, node: str, memory: str, seqs: Sequence[int]) -> ForgetReceipt:
        """Forget items that the journal has tombstoned; no file holds them any more."""
        with self._call(epoch):
            receipt = self._node(node).forget(memory, seqs)
            self._abandon(memory)
            return receipt

    def drop(self, epoch: int, node: str, memory: str) -> None:
        """Let a memory go from this process, and delete the snapshots that the journal has erased."""
        with self._call(epoch):
            self._node(node).drop(memory)
            self._abandon(memory)

    def recode(self, epoch: int, node: str, memory: str) -> Figures:
        """Make a memory anew with the bits and the budget that its session has now."""
        with self._call(epoch):
            return self._node(node).recode(memory)

    def due_snapshots(self, epoch: int) -> list[Key]:
        """The memories, with their nodes, that have changed since their newest snapshot, but for small ones."""
        with self._call(epoch):
            now = time.monotonic()
            return [(name, memory) for name, node in self.nodes.items() for memory in node.due(now, is_last=True)]

    def snapshot(self, epoch: int, node: str, memory: str) -> Kept:
        """Make a snapshot of a memory now, unless there is one that holds all of it."""
        with self._call(epoch):
            return self._node(node).keep(memory)

    def figures(self, epoch: int, node: str, memory: str) -> Figures:
        """What a memory's state measures."""
        with self._call(epoch):
            return self._node(node).figures(memory)

    def advertisements(self, epoch: int, since: dict[str, int]) -> tuple[list[Advertisement], dict[str, int]]:
        """What changed after the revision of each node in `since`, and the revisions now."""
        with self._call(epoch):
            changed: list[Advertisement] = []
            revisions: dict[str, int] = {}
            for name, node in self.nodes.items():
                new, revisions[name] = node.advertisements(since.get(name, 0))
                changed.extend(new)
            return changed, revisions

    def sketch(self, epoch: int, node: str, memory: str) -> bytes:
        """The sketch of one memory as a packet; empty when there is nothing in it."""
        with self._call(epoch):
            return self._node(node).sketch(memory)

    def sketches(self, epoch: int) -> list[bytes]:
        """The sketches of this host's memories."""
        with self._call(epoch):
            return [sketch for node in self.nodes.values() for sketch in node.sketches()]

    def pool(self, epoch: int, sketches: Sequence[bytes]) -> bytes:
        """This host's sketches and the given ones merged into one; empty when there are none."""
        with self._call(epoch):
            parts = [sketch for node in self.nodes.values() for sketch in node.sketches()]
            merged: Sketch | None = None
            for part in [*parts, *sketches]:
                sketch = Sketch.from_bytes(part)
                if merged is None:
                    merged = sketch
                else:
                    merged.merge(sketch)
            return b"" if merged is None else merged.to_bytes()

    def close(self) -> None:
        """Refuse work, store the codes that wait and what changed, stop the threads. Twice does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._readers.shutdown(wait=True)
        self._writers.shutdown(wait=True)
        self._keepers.shutdown(wait=True)
        if self._warming is not None:  # it reads the journal, which whoever closes this host may close next
            self._warming.join(_WARM_S)
        self._codes.close()
        if self._keeper is not None and self._snapshots is not None:
            self._keeper.close(self._snapshots.settings.drain_s)

    # ------------------------------------------------------------------------------------------------ how it is done
    def _come_forward(self, spell: Spell) -> Fence | None:
        """What this host writes under from now on."""
        if not spell.run:
            return None
        fence = Fence(spell.name, spell.run, spell.epoch)
        try:
            self._journal.fences.come_forward(fence)
        except StorageFailed as fault:  # nobody can write now; whatever it writes first brings it forward
            _log.warning("host '%s' starts while the journal is away: %s", spell.name, fault)
        return fence

    def _abandon(self, memory: str) -> None:
        if self._snapshots is not None:
            self._snapshots.abandon(memory)

    def _call(self, epoch: int) -> _Call:
        if self._closed:
            raise NodeDown(self.name or "host", "closed")
        if epoch != self.epoch or not epoch:
            raise NodeDown(self.name or "host", f"stale epoch {epoch}, now {self.epoch}")
        return _Call(self)

    def _node(self, name: str) -> Node:
        node = self.nodes.get(name)
        if node is None:
            raise NodeDown(name, f"not on host '{self.name}'")
        return node

    @staticmethod
    def _each(pool: ThreadPoolExecutor, work: Callable[[Key], None], keys: Iterable[Key]) -> None:
        """Run `work` for every key, in the pool when there are several."""
        first, *more = keys
        waiting = [pool.submit(work, key) for key in more]
        work(first)
        for one in waiting:
            one.result()

    def _absorb(self, node: str, memory: str, items: Sequence[Item]) -> Figures | QrafError:
        try:
            return self._node(node).absorb(memory, items)
        except QrafError as error:
            return error

    def _measure(self, node: str, memory: str, visits: list[Visit], refresh: bool) -> list[NodeAnswer]:
        start = time.perf_counter()
        try:
            found = self._node(node).recall(memory, [visit.query for visit in visits], refresh=refresh)
            figures, fault = self._node(node).figures(memory), None
        except QrafError as error:
            found, figures, fault = [], Figures(), error
        ms = (time.perf_counter() - start) * 1e3
        if fault is not None:
            final = None if fault.retryable else fault
            failed = NodeAnswer(node, self.name, memory, (), 0.0, 0, figures, ms, str(fault), final)
            return [failed for _ in visits]
        return [
            NodeAnswer(node, self.name, memory, one.evidence, one.mass, one.items_scanned, figures, ms) for one in found
        ]

    def _warm(self, nodes: list[Node]) -> None:
        for node in nodes:
            if self._closed:
                return
            try:
                node.warm()
            except QrafError as error:
                _log.warning("node '%s' will be rebuilt at its first use: %s", node.spec.name, error)


class _Call:
    """Counts the calls that run."""

    __slots__ = ("_host",)

    def __init__(self, host: Host) -> None:
        self._host = host

    def __enter__(self) -> None:
        with self._host._lock:
            self._host._running += 1

    def __exit__(self, *exc: object) -> None:
        with self._host._lock:
            self._host._running -= 1
