"""A memory node: a plain object, requests in, answers out. No Ray, no event loop.

A node holds memories and rebuilds each from the journal before its first use in this process, so that a fresh process
answers as the old one did. The journal is the truth: what it has and a memory lacks is absorbed at the next chance.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence, Set
from dataclasses import replace

import msgspec
import numpy as np

from qraf.actors.held import Held
from qraf.actors.memories import Memories
from qraf.actors.messages import Kept
from qraf.errors import LimitExceeded, NodeDown, NotAvailable, NotReady, StorageFailed
from qraf.memory.memory import Recollection
from qraf.network.placement import item_node
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

__all__ = ["Node"]

_log = logging.getLogger(__name__)

_MOST_TRIES = 3  # to make a snapshot that somebody waits for
_WAIT_S = 5.0  # until a snapshot is tried again for which the moment was not good
_MOST_EVICTED = 256  # items out of memory that one query with a filter reads back


class Node(Memories):
    """The memories of one node of the topology, and what is asked of them. Any method may be called from any thread."""

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
        self._note_forgotten(seqs)
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
            if not self._holds(memory):
                return Figures(bits=self.spec.bits)
            bits, budget_bytes, _ = self._choices(memory)
            return Figures(bits=bits, budget_bytes=budget_bytes, version=self._stored.changes(memory)[0])
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

        False: there is none, because the memory is too large, waits for a rebuild or for items on their way, something
        in it was forgotten meanwhile, or the monotonic time `until` has come; the next one is due later.

        Raises:
            StorageFailed: journal or place failed.
            NodeDown: a successor of this host writes.
        """
        try:
            return self._snapshot(memory, until)
        except LimitExceeded as fault:
            _log.warning("no snapshot of memory '%s': %s", memory, fault)
            return False

    def keep(self, memory: str) -> Kept:
        """Write a snapshot of a memory that holds all of it, unless there is one; of small ones too.

        Raises:
            NotAvailable: this host makes none.
            NotReady: not now: there is much on its way, or being forgotten.
            LimitExceeded: it is too large.
            StorageFailed, NodeDown: as `snapshot`.
        """
        self._check_holds(memory)
        if self._snapshots is None:
            raise NotAvailable("making snapshots where QRAF_SNAPSHOTS__MODE is off")
        for _ in range(_MOST_TRIES):
            held = self._open(memory, create=False, refresh=True)
            if held is None or not held.items or (held.is_saved and held.saved_version == held.memory.version):
                return "unchanged"
            if self._snapshot(memory, None):
                return "made"
        raise NotReady("items of the memory are on their way")

    def _snapshot(self, memory: str, until: float | None) -> bool:
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
        is_done, made = True, None
        try:
            made = snapshots.write(self.spec.name, memory, fit, through, parts, num_forgotten, until)
            is_done = made is not None
            if not is_done:  # it may hold what nobody told it to forget
                with held.lock:
                    self._drop_forgotten(memory, held)
        except (StorageFailed, NodeDown):
            is_done = False  # it passes, or concerns all
            raise
        finally:
            if is_done:  # or would fail again: the next one is due when something has changed
                held.saved_version, held.is_saved = version, made is not None
                held.saved_at, held.wait_until = time.monotonic(), 0.0
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

    # ------------------------------------------------------------------------------------------------ helpers
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
