"""A memory node: a plain object, requests in, answers out. No Ray, no event loop.

A node holds memories and rebuilds each from the journal before its first use in this process, so that a fresh process
answers as the old one did. The journal is the truth: what it has and a memory lacks is absorbed at the next chance.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence, Set
from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from qraf import __version__
from qraf.actors.held import Encode, Held
from qraf.actors.snapshots import Snapshots
from qraf.actors.stored import Stored, given_amplitudes
from qraf.clock import Clock, SystemClock
from qraf.errors import InvalidRequest, LimitExceeded, NodeDown, NotFound, StorageFailed
from qraf.memory.memory import Memory, Recollection, code_bytes
from qraf.network.placement import item_node, session_node
from qraf.network.topology import NodeSpec, Topology
from qraf.records import (
    Advertisement,
    Evidence,
    Figures,
    ForgetReceipt,
    Item,
    NodeStats,
    RecallQuery,
    empty_advertisement,
)
from qraf.storage.journal import Journal
from qraf.storage.snapshot_files import FORMAT
from qraf.tenants import plain

__all__ = ["Node"]

_log = logging.getLogger(__name__)

_WAIT_S = 5.0  # until a snapshot is tried again for which the moment was not good
_PAGE = 512  # items read from the journal at a time
_MOST_EMPTIED = 4096  # memories of which it is known that nothing is left
_MOST_FORGOTTEN = 65_536  # items of which it is known that an absorb which is still on its way must not bring them
_MOST_EVICTED = 256  # items out of memory that one query with a filter reads back
_ITEM_OVERHEAD_BYTES = 128  # lexical register and bookkeeping of an item, estimated from above for the capacity check


class Node:
    """The memories of one node of the topology. Every method may be called from any thread.

    Args:
        spec: the node.
        topology: for placement: which items of a collection are this node's share.
        encode: the host's encoder.
        journal: read to rebuild; coded amplitudes are stored through `store_codes`.
        store_codes: takes codes by seq; default: `journal.put_codes` at once. Codes that are lost on the way are made
            again at the next rebuild, by encoding the text again: equal up to the encoder's own rounding (1e-6).
        snapshots: where memories are written to, and read from before the journal; None: nowhere.
    """

    def __init__(
        self,
        spec: NodeSpec,
        topology: Topology,
        encode: Encode,
        journal: Journal,
        *,
        clock: Clock | None = None,
        store_codes: Callable[[dict[int, bytes], str], None] | None = None,
        snapshots: Snapshots | None = None,
    ) -> None:
        self.spec, self._topology, self._encode = spec, topology, encode
        self._clock = clock or SystemClock()
        self._stored, self._store_codes = Stored(journal, encode), store_codes or journal.put_codes
        self._snapshots = snapshots
        self._held: OrderedDict[str, Held] = OrderedDict()  # least recently used first
        self._emptied: OrderedDict[str, int] = OrderedDict()  # what is held no more because nothing is left: revision
        self._forgotten: OrderedDict[int, None] = OrderedDict()  # seqs, the oldest first
        self._lock = threading.Lock()  # guards the above and the counters; never held while a memory works
        self._revision = 0
        self._written = self._recalled = self._corrected = 0
        self._busy_s = 0.0

    @property
    def code(self) -> str:
        """What stored codes of this node's precision are named."""
        return self._stored.code(self.spec.bits)

    @property
    def revision(self) -> int:
        """Rises with every change of a memory."""
        return self._revision

    # ------------------------------------------------------------------------------------------------ what is asked
    def absorb(self, memory: str, items: Sequence[Item]) -> Figures:
        """Encode, code and take in `items`, which the journal already has; the figures afterwards. Idempotent by seq.

        Text is encoded without its speaker's label; client amplitudes are used as they came, at unit norm. Items with
        role `recalled` are skipped: what was recalled is never absorbed again.

        Raises:
            NotFound: the node does not hold this collection.
            InvalidRequest: the node holds no sessions, or amplitudes have the wrong length.
            LimitExceeded: `capacity_bytes` is reached; the state is unchanged.
        """
        self._check_holds(memory)
        with _Busy(self):
            while True:
                self._make_room(memory, items)
                held = self._open(memory, create=True)
                assert held is not None
                known = held.memory.seqs
                fresh = [item for item in items if item.seq not in known and item.role != "recalled"]
                left = [item for item in fresh if held.memory.has_passed(item.seq, item.pin)]
                # what left with the journal read so far is known; what comes older than that is not counted yet
                is_late = any(item.seq > held.synced_seq for item in left)
                gone = {item.seq for item in left}
                fresh = [] if is_late else [item for item in fresh if item.seq not in gone]
                amplitudes = self._amplitudes(fresh)  # outside the lock: recalls go on meanwhile
                with held.lock:
                    if held.is_gone:
                        continue
                    self._take_in(held, fresh, amplitudes)
                    if is_late or held.memory.is_behind:
                        self._start_over(memory, held)
                        self._catch_up(memory, held)
                    return self._figures(held)

    def recall(self, memory: str, queries: Sequence[RecallQuery], *, refresh: bool = False) -> list[Recollection]:
        """Measure one memory for each query; evidence names this node. An unknown memory gives empty answers.

        Items that have left because of a byte budget are found by queries with a filter only: the newest 256 of them
        that pass it are read from the journal and measured beside the others.

        `refresh`: read the journal first, because an absorb did not arrive.
        """
        with _Busy(self):
            held = self._open(memory, create=False, refresh=refresh) if self._holds(memory) else None
            if held is None:
                return [Recollection(evidence=(), mass=0.0, items_scanned=0) for _ in queries]
            with held.lock:
                answers = held.memory.recall(queries)
                held.measure()  # what a recall keeps for the next one counts too
                measured = held.memory.seqs  # what leaves from here on has been measured
            if held.memory.evicted:
                answers = [self._with_evicted(held, measured, *pair) for pair in zip(queries, answers, strict=True)]
            with self._lock:
                self._recalled += len(queries)
            return [replace(answer, evidence=tuple(_named(answer, self.spec.name))) for answer in answers]

    def forget(self, memory: str, seqs: Sequence[int]) -> ForgetReceipt:
        """Forget items that the journal has tombstoned; of unknown ones it is noted, in case they are on their way."""
        with self._lock:
            self._forgotten.update(dict.fromkeys(seqs))
            while len(self._forgotten) > _MOST_FORGOTTEN:
                self._forgotten.popitem(last=False)
        held = self._open(memory, create=False) if self._holds(memory) else None
        if held is None:
            return ForgetReceipt(memory=memory, forgotten=0, before=Figures(), after=Figures())
        with held.lock:
            before = held.memory.figures()
            receipt = held.memory.forget(seqs)
            self._changed(held)
            if not held.memory.is_behind:
                return receipt
            self._start_over(memory, held)
            self._catch_up(memory, held)
            after = self._figures(held)
            forgotten = sum(before.tiers.values()) - sum(after.tiers.values())
            return ForgetReceipt(memory=memory, forgotten=max(0, forgotten), before=before, after=after)

    def recode(self, memory: str) -> Figures:
        """Make a memory anew from the journal with the bits, the budget and the rank that its session has now.

        The old one answers meanwhile. What is stored at the same precision or a higher one is read; going above it
        means to encode the texts again.
        """
        self._check_holds(memory)
        with _Busy(self):
            fresh = Held(self._new_memory(memory), is_shared=memory.startswith("c/"))
            with fresh.lock:
                fresh.is_new = False
                self._catch_up(memory, fresh)
                fresh.is_stale = True  # the old one may have taken something in since
                with self._lock:
                    old = self._held.pop(memory, None)
                    self._held[memory] = fresh
                if old is not None:
                    with old.lock:
                        old.is_gone = True
                        fresh.memory.version = max(fresh.memory.version, old.memory.version + 1)
                self._changed(fresh)
            return self.figures(memory)

    def drop(self, memory: str) -> None:
        """Let a memory go from this process; what the journal still has of it comes back at the next use."""
        with self._lock:
            held = self._held.pop(memory, None)
        if held is not None:
            with held.lock:
                held.is_gone = True
                self._note_emptied(memory, held)

    def figures(self, memory: str) -> Figures:
        """What the memory's state measures; an unknown memory is an empty one."""
        held = self._open(memory, create=False) if self._holds(memory) else None
        if held is None:
            bits, budget_bytes, _ = self._choices(memory) if self._holds(memory) else (self.spec.bits, None, 0)
            return Figures(bits=bits, budget_bytes=budget_bytes)
        with held.lock:
            return self._figures(held)

    def warm(self) -> None:
        """Rebuild the node's share of every collection now, so that the first prompt need not wait."""
        for collection in self.spec.collections:
            self._open(f"c/{collection}", create=False)

    def due(self, now: float, *, is_last: bool = False) -> list[str]:
        """Memories of which there should be a new snapshot, at a monotonic time; `is_last`: all that have changed."""
        if self._snapshots is None:
            return []
        settings = self._snapshots.settings
        with self._lock:
            held = list(self._held.items())
        return [name for name, one in held if one.is_due(settings, now, is_last) and self._is_home(name)]

    def snapshot(self, memory: str, until: float | None = None) -> bool:
        """Write a snapshot of a memory beside its work, for which it stands still while it is copied.

        False: there is none, because the memory waits for a rebuild or for items on their way, something in it was
        forgotten meanwhile, or the monotonic time `until` has come; the next one is due later.

        Raises:
            StorageFailed: journal or place failed.
            NodeDown: a successor of this host writes.
        """
        held, snapshots = self._held.get(memory), self._snapshots
        if held is None or snapshots is None:
            return False
        held.wait_until = time.monotonic() + _WAIT_S
        after = held.covered_from
        seqs, ids, num_forgotten = snapshots.heads(memory, after)
        name = memory[2:]
        mine = [item_node(self._topology, name, one) == self.spec.name for one in ids]
        is_mine = np.array(mine, bool) if ids else np.ones(len(seqs), bool)
        with held.lock:
            if held.is_gone or held.is_stale or held.memory.is_behind:
                return False
            through = held.covers(seqs, is_mine, after)
            if through is None:
                return False
            held.synced_seq = max(held.synced_seq, through)
            parts, version, fit = held.memory.parts(), held.memory.version, self._fit(held.memory)
        is_done = True
        try:
            made = snapshots.write(self.spec.name, memory, fit, through, parts, num_forgotten, until)
            is_done = made is not None
        except LimitExceeded as fault:
            _log.warning("no snapshot of memory '%s': %s", memory, fault)
        except (StorageFailed, NodeDown):
            is_done = False  # it passes, or concerns all
            raise
        finally:
            if is_done:  # or would fail again: the next one is due when something has changed
                held.saved_version, held.saved_at, held.wait_until = version, time.monotonic(), 0.0
        return is_done

    def advertisements(self, since: int = 0) -> tuple[list[Advertisement], int]:
        """What changed after revision `since`, and the revision now. Memories being worked on come next time."""
        with self._lock:
            revision = self._revision
            changed = [held for held in self._held.values() if held.revision > since]
            emptied = [name for name, at in self._emptied.items() if at > since and name not in self._held]
        # everything was forgotten, and that is news
        out = [empty_advertisement(self.spec.name, name, self._encode.dim) for name in emptied]
        for held in changed:
            with held.lock:
                if len(held.memory):
                    out.append(held.memory.advertisement(self.spec.name))
                else:
                    out.append(empty_advertisement(self.spec.name, held.memory.memory, self._encode.dim))
        return out, revision

    def sketches(self, max_sessions: int = 32) -> list[bytes]:
        """The sketches of the collections and of the sessions used last, for the router's pooled state."""
        with self._lock:
            shared = [held for held in self._held.values() if held.is_shared]
            sessions = [held for held in self._held.values() if not held.is_shared][-max_sessions:]
        out = []
        for held in shared + sessions:
            with held.lock:
                if len(held.memory):
                    out.append(held.memory.sketch.to_bytes())
        return out

    def sketch(self, memory: str) -> bytes:
        """The sketch of one memory as a packet; empty when there is nothing in it."""
        held = self._open(memory, create=False) if self._holds(memory) else None
        if held is None:
            return b""
        with held.lock:
            return held.memory.sketch.to_bytes() if len(held.memory) else b""

    def stats(self, host: str = "", epoch: int = 0) -> NodeStats:
        """Counters since the node was made. `figures` are those of the memory that changed last."""
        with self._lock:
            held = list(self._held.values())
            written, recalled, busy_s = self._written, self._recalled, self._busy_s
            corrected = self._corrected
        newest = max(held, key=lambda one: one.revision, default=None)
        figures = Figures(bits=self.spec.bits)
        if newest is not None and newest.figures is not None:
            figures = newest.figures
        elif newest is not None and newest.lock.acquire(blocking=False):  # never wait behind a rebuild for a counter
            try:
                figures = self._figures(newest)
            finally:
                newest.lock.release()
        return NodeStats(
            node=self.spec.name,
            host=host,
            epoch=epoch,
            memories=len(held),
            items=sum(one.items for one in held),
            bytes=sum(one.bytes for one in held),
            written=written,
            recalled=recalled,
            busy_s=busy_s,
            figures=figures,
            corrected=corrected,
            stopped=sum(map(self._holds, self._stored.stopped())),
        )

    # ------------------------------------------------------------------------------------------------ how it is done
    def _holds(self, memory: str) -> bool:
        kind, _, name = memory.partition("/")
        return self.spec.sessions if kind == "s" else kind == "c" and plain(name) in self.spec.collections

    def _check_holds(self, memory: str) -> None:
        kind, _, name = memory.partition("/")
        if self._holds(memory):
            return
        if kind == "s":
            raise InvalidRequest(f"node '{self.spec.name}' holds no sessions")
        raise NotFound(f"memory on node '{self.spec.name}'", name if kind == "c" else memory)

    def _is_home(self, memory: str) -> bool:
        """Whether every write of this memory passes here. A guest reads the journal before each use."""
        kind, _, name = memory.partition("/")
        return kind == "c" or session_node(self._topology, name) == self.spec.name

    def _open(self, memory: str, *, create: bool, refresh: bool = False) -> Held | None:
        """The memory, caught up with the journal; None when there is nothing and `create` is false."""
        while True:
            with self._lock:
                held = self._held.get(memory)
                if held is None:
                    held = Held(self._new_memory(memory), is_shared=memory.startswith("c/"))
                    self._held[memory] = held
                self._held.move_to_end(memory)
            with held.lock:
                if held.is_gone:
                    continue
                if held.is_stale or refresh or not self._is_home(memory):
                    self._restore(memory, held)
                    self._drop_forgotten(memory, held)
                    self._catch_up(memory, held)
                    if self.spec.capacity_bytes:  # what the journal has is taken in; others make room for it
                        self._evict(self.spec.capacity_bytes, keep=memory)
                if not create and not held.is_shared and not len(held.memory) and not held.memory.evicted:
                    self._let_go(memory, held)  # asking about an unknown session must not cost memory
                    return None
                return held

    def _choices(self, memory: str) -> tuple[int, int | None, int]:
        """The bits, the budget and the sketch's rank of a memory: the session's own, else the node's."""
        spec = self.spec
        bits, budget_bytes, rank = self._stored.choices(memory)
        return bits or spec.bits, budget_bytes or spec.budget_bytes, rank or spec.rank

    def _new_memory(self, memory: str, *, is_bounded: bool = True) -> Memory:
        spec = self.spec
        bits, max_bytes, rank = self._choices(memory)
        return Memory(
            memory,
            self._encode.dim,
            spec.recall,
            bits=bits,
            rank=rank,
            half_life_s=spec.half_life_s,
            clock=self._clock,
            max_bytes=max_bytes if is_bounded else None,
        )

    def _fit(self, memory: Memory) -> str:
        """A digest of all that a snapshot must have in common with a memory."""
        spec, kind = self.spec, memory.memory[:2]
        share = [spec.name, *self._topology.holders(plain(memory.memory[2:]))] if kind == "c/" else []
        whitens = memory.max_bytes is not None and memory.settings.whiten  # only a budget knows of it
        facts = (FORMAT, __version__, self._encode.name, memory.dim, memory.bits, memory.rank, memory.half_life_s)
        return hashlib.sha256(repr((*facts, memory.max_bytes, whitens, share)).encode()).hexdigest()

    def _restore(self, memory: str, held: Held) -> None:
        """Begin with the newest snapshot, if there is one, before anything else was read."""
        if self._snapshots is None or not held.is_new:
            return
        found = self._snapshots.restore(memory, self._fit(held.memory), lambda: self._new_memory(memory))
        held.is_new = False
        if found is not None:
            held.memory, held.synced_seq = found
            held.saved_version = held.memory.version
            self._changed(held)

    def _drop_forgotten(self, memory: str, held: Held) -> None:
        """Forget what the journal has forgotten and nobody told of; before `_catch_up`, which may fill the room."""
        if gone := self._stored.forgotten(memory, held.memory.items.seq):
            held.memory.forget(gone)
            self._changed(held)
            if held.memory.is_behind:
                self._start_over(memory, held)

    def _start_over(self, memory: str, held: Held) -> None:
        """Begin again with an empty memory, to be read from the journal."""
        version = held.memory.version
        held.memory, held.synced_seq, held.is_stale = self._new_memory(memory), 0, True
        held.memory.version = version + 1
        self._changed(held)

    def _catch_up(self, memory: str, held: Held) -> None:
        """Absorb what the journal has after `synced_seq`, from stored codes where there are any."""
        while True:
            page = self._stored.page(memory, held.synced_seq, _PAGE, held.memory.bits)
            known = held.memory.seqs
            mine = [item for item in page if item.seq not in known and self._is_mine(memory, item)]
            if any(held.memory.has_passed(item.seq, item.pin) for item in mine):
                self._start_over(memory, held)  # whether they are counted cannot be told
                continue
            self._take_in(held, *self._readable(memory, mine))
            if page:
                held.synced_seq = page[-1].seq
            if len(page) < _PAGE:
                break
        held.is_stale = False

    def _readable(self, memory: str, items: Sequence[Item]) -> tuple[list[Item], NDArray[np.float32]]:
        """Items from the journal that can be used, and the amplitudes of those without codes."""
        usable, damaged = self._stored.sound(memory, items)
        with self._lock:
            self._corrected += damaged
        return usable, self._amplitudes(usable)

    def _with_evicted(self, held: Held, measured: Set[int], query: RecallQuery, answer: Recollection) -> Recollection:
        """An answer, for which the items `measured` were there, with what had left and passes the query's filter."""
        memory = held.memory
        if query.filter is None:
            return answer
        last = max(memory.passed.values())
        found = self._stored.newest(memory.memory, last, query.filter, _MOST_EVICTED, memory.bits)
        gone = [
            item
            for item in found
            if item.seq not in measured and memory.has_passed(item.seq, item.pin) and self._is_mine(memory.memory, item)
        ]
        if not gone:
            return answer
        aside = self._new_memory(memory.memory, is_bounded=False)
        items, amplitudes = self._readable(memory.memory, gone)
        aside.absorb(items, amplitudes, self._stored.bits_of(items, aside.bits))
        return answer.joined(aside.recall([query])[0], query.k)

    def _is_mine(self, memory: str, item: Item) -> bool:
        if item.role == "recalled":
            return False
        kind, _, name = memory.partition("/")
        return kind == "s" or item_node(self._topology, name, item.item_id) == self.spec.name

    def _amplitudes(self, items: Sequence[Item]) -> NDArray[np.float32]:
        """Amplitudes of items without codes; rows of coded items stay zero (their codes are used)."""
        dim = self._encode.dim
        rows = np.zeros((len(items), dim), np.float32)
        texts = [row for row, item in enumerate(items) if not item.codes and item.amplitudes is None]
        if texts:
            rows[texts] = self._encode([items[row].text for row in texts])
        for row, item in enumerate(items):
            if not item.codes and item.amplitudes is not None:
                rows[row] = given_amplitudes(item, dim)
        return rows

    def _take_in(self, held: Held, items: Sequence[Item], amplitudes: NDArray[np.float32]) -> None:
        """Absorb under the memory's lock, in order of seq, and store the codes that are new."""
        known, gone = held.memory.seqs, self._forgotten
        new = [row for row, item in enumerate(items) if item.seq not in known and item.seq not in gone]
        keep = sorted(new, key=lambda row: items[row].seq)
        if not keep:
            return
        fresh = [items[row] for row in keep]
        bits = held.memory.bits
        codes = held.memory.absorb(fresh, amplitudes[keep], self._stored.bits_of(fresh, bits))
        self._changed(held)
        made = {item.seq: code for item, code in zip(fresh, codes, strict=True) if not item.codes}
        with self._lock:
            self._written += len(made)
        if made:
            self._store_codes(made, self._stored.code(bits))

    def _make_room(self, memory: str, items: Sequence[Item]) -> None:
        """Evict idle sessions until the new ones among `items` fit.

        Raises:
            LimitExceeded: they do not fit even then.
        """
        capacity = self.spec.capacity_bytes
        if not capacity:
            return
        held = self._held.get(memory)
        known = held.memory.seqs if held is not None else ()
        num_new = sum(item.seq not in known for item in items)
        if held is None:
            bits, budget_bytes, _ = self._choices(memory)
        else:
            bits, budget_bytes = held.memory.bits, held.memory.max_bytes
        need = num_new * (code_bytes(self._encode.dim, bits) + _ITEM_OVERHEAD_BYTES)
        if budget_bytes is not None:
            need = min(need, max(0, budget_bytes - (held.bytes if held is not None else 0)))
        total = self._evict(capacity - need, keep=memory)
        if num_new and total + need > capacity:
            raise LimitExceeded(f"capacity_bytes of node '{self.spec.name}'", capacity, total + need)

    def _evict(self, allowed: int, keep: str) -> int:
        """Let sessions go, the one used longest ago first, until at most `allowed` bytes are held; the bytes then."""
        with self._lock:
            total = sum(one.bytes for one in self._held.values())
            for name, one in list(self._held.items()):
                if total <= allowed:
                    break
                if name == keep or one.is_shared or not one.lock.acquire(blocking=False):
                    continue
                try:
                    total -= one.bytes
                    one.is_gone = True
                    del self._held[name]
                finally:
                    one.lock.release()
            return total

    def _let_go(self, memory: str, held: Held) -> None:
        held.is_gone = True
        with self._lock:
            if self._held.get(memory) is held:
                del self._held[memory]
        self._note_emptied(memory, held)

    def _note_emptied(self, memory: str, held: Held) -> None:
        """It may have been advertised; nobody is to go on with that."""
        if not held.revision:
            return
        with self._lock:
            self._revision += 1
            self._emptied[memory] = self._revision
            self._emptied.move_to_end(memory)
            if len(self._emptied) > _MOST_EMPTIED:
                self._emptied.popitem(last=False)

    def _changed(self, held: Held) -> None:
        held.figures = None
        held.measure()
        with self._lock:
            self._revision += 1
            held.revision = self._revision

    def _figures(self, held: Held) -> Figures:
        if held.figures is None:
            held.figures = held.memory.figures()
        return held.figures


class _Busy:
    """Adds the time spent to the node's counter."""

    __slots__ = ("node", "start")

    def __init__(self, node: Node) -> None:
        self.node = node

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        spent = time.perf_counter() - self.start
        with self.node._lock:
            self.node._busy_s += spent


def _named(answer: Recollection, node: str) -> list[Evidence]:
    return [one if one.node == node else msgspec.structs.replace(one, node=node) for one in answer.evidence]
