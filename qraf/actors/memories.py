"""The memories that a node has in this process: rebuilt before their first use, let go when others need the room.

Each begins with its newest snapshot, if there is one, and takes in what the journal has beside it.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from qraf import __version__
from qraf.actors.held import Encode, Held
from qraf.actors.snapshots import Snapshots
from qraf.actors.stored import Stored, given_amplitudes
from qraf.clock import Clock, SystemClock
from qraf.errors import InvalidRequest, LimitExceeded, NotFound
from qraf.memory.memory import Memory, code_bytes
from qraf.network.placement import item_node, session_node
from qraf.network.topology import NodeSpec, Topology
from qraf.records import Figures, Item
from qraf.storage.journal import Journal
from qraf.storage.snapshot_files import FORMAT
from qraf.tenants import plain

__all__ = ["Memories"]

_PAGE = 512  # items read from the journal at a time
_MOST_EMPTIED = 4096  # memories of which it is known that nothing is left
_MOST_FORGOTTEN = 65_536  # items of which it is known that an absorb on its way must not bring them back
_ITEM_OVERHEAD_BYTES = 128  # lexical register and bookkeeping of an item, estimated from above for the capacity check


class Memories:
    """What a node holds, and its counters. Safe for several threads: each memory has a lock of its own.

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

    # ------------------------------------------------------------------------------------------------ helpers
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
            self._restore(memory, held)
            with held.lock:
                if held.is_gone:
                    continue
                if held.is_stale or refresh or not self._is_home(memory):
                    self._begin(held)
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
        """Look for the newest snapshot, before anything else is read; not under the lock, for its place may be slow."""
        if self._snapshots is None or not held.is_new:
            return
        with held.restoring:
            if held.is_new:
                fit = self._fit(held.memory)
                held.found = self._snapshots.restore(memory, fit, lambda: self._new_memory(memory))
                held.is_new = False

    def _begin(self, held: Held) -> None:
        """Become what a snapshot gave, under the lock."""
        if held.found is not None:
            (held.memory, held.synced_seq), held.found = held.found, None
            held.saved_version, held.is_saved = held.memory.version, True
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
        held.version = max(held.version, held.memory.version)
        held.memory, held.synced_seq, held.is_stale = self._new_memory(memory), 0, True
        held.is_counted = False
        self._changed(held)

    def _catch_up(self, memory: str, held: Held) -> None:
        """Absorb what the journal has after `synced_seq`, from stored codes where there are any.

        A memory that was begun anew goes on with a version that was told of no other state of it, whichever process
        held it: as many items as have come and gone in the journal, and not fewer than it had.
        """
        changes, last_seq = (0, 0) if held.is_counted else self._stored.changes(memory)
        num_late = 0  # items that came after these were counted
        while True:
            page = self._stored.page(memory, held.synced_seq, _PAGE, held.memory.bits)
            known = held.memory.seqs
            mine = [item for item in page if item.seq not in known and self._is_mine(memory, item)]
            if any(held.memory.has_passed(item.seq, item.pin) for item in mine):
                self._start_over(memory, held)  # whether they are counted cannot be told
                changes, last_seq = self._stored.changes(memory)
                num_late = 0
                continue
            num_late += sum(item.seq > last_seq for item in mine)
            self._take_in(held, *self._readable(memory, mine))
            if page:
                held.synced_seq = page[-1].seq
            if len(page) < _PAGE:
                break
        if not held.is_counted:
            before = held.memory.version
            held.memory.version = max(before, held.version, changes + num_late)
            held.saved_version += held.memory.version - before  # a snapshot holds no less for it
            held.is_counted = True
        held.is_stale = False

    def _readable(self, memory: str, items: Sequence[Item]) -> tuple[list[Item], NDArray[np.float32]]:
        """Items from the journal that can be used, and the amplitudes of those without codes."""
        usable, damaged = self._stored.sound(memory, items)
        with self._lock:
            self._corrected += damaged
        return usable, self._amplitudes(usable)

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

    def _note_forgotten(self, seqs: Sequence[int]) -> None:
        with self._lock:
            self._forgotten.update(dict.fromkeys(seqs))
            while len(self._forgotten) > _MOST_FORGOTTEN:
                self._forgotten.popitem(last=False)

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
