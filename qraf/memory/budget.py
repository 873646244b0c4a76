"""What a byte budget makes of a memory's items: which step down, and which leave.

While the items do not fit, those that were written first and are not pinned step down, all to the next rung of the
ladder before any goes further: 4 bits to 2, then 2 to 1, then out of memory. Only when every other item is out do
pinned ones follow, in the same way. So as many items as possible are kept, because recall falls little with the bits.

Each time the fewest steps are taken that make the bytes fit; but once many items are held, they leave by the block (1.5
percent), because every time items leave the state is summed up anew. Bytes never fall when an item is added, so an item
never has to step up again while items only come, and what is left is a function of the items and the budget: in
whatever order they came, and whether the memory grew or was rebuilt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qraf.errors import InvalidRequest
from qraf.memory.items import Items
from qraf.records import MIN_BUDGET_BYTES

__all__ = ["Budget"]

_BYTES_A_BLOCK = 8192  # a block is one item for so many bytes of the budget


@dataclass(slots=True)
class Budget:
    """The bytes that a memory may hold, and what has left it.

    Args:
        max_bytes: the most that the memory may allocate, 4096 or more.
        beside: bytes that so many items may need beside their own (sketch, whitening).
    """

    max_bytes: int
    beside: Callable[[int], int]
    gone: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})
    """of items that are not pinned, and of pinned ones: how many have left"""
    passed: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})
    """for items that are not pinned, and for pinned ones: the largest seq that has left"""

    def __post_init__(self) -> None:
        if self.max_bytes < MIN_BUDGET_BYTES:
            need = f"at least {MIN_BUDGET_BYTES} bytes"
            raise InvalidRequest(f"a memory's budget must be {need}, but is {self.max_bytes}")

    @property
    def evicted(self) -> int:
        """How many items have left."""
        return sum(self.gone.values())

    def has_passed(self, seq: int, is_pinned: bool) -> bool:
        """Whether an item of this seq has left, or would have, had it been here."""
        return seq <= self.passed[is_pinned]

    def settle(self, items: Items) -> int:
        """Let items step down and leave until the rest fits; the first row that changed, or the number of rows."""
        changed = len(items)
        for is_pinned in (False, True):
            group = np.flatnonzero(items.is_pinned == is_pinned)
            if not self.passed[is_pinned]:
                steps = self._steps(items, group)
                if steps is not None:
                    return min(changed, self._lower(items, group, *steps))
            changed = min(changed, self._lower(items, group, len(items.coded.ladder) - 1, 0))
            leaving = group[: self._by_the_block(self._leavers(items, group), is_pinned, len(group))]
            if len(leaving):
                self.passed[is_pinned] = int(items.seq[leaving[-1]])
                self.gone[is_pinned] += len(leaving)
                changed = min(changed, int(leaving[0]))
                items.remove(leaving)
            if len(leaving) < len(group):
                break
        return changed

    def _steps(self, items: Items, group: NDArray[np.int64]) -> tuple[int, int] | None:
        """The fewest steps that make it fit with nobody leaving: all of `group` on a rung, the first j one below."""
        free = self.max_bytes - self.beside(len(items)) - (items.nbytes - items.coded.nbytes)
        others = len(items) - len(group)  # pinned ones: on the first rung
        rungs, j = len(items.coded.ladder), np.arange(len(group) + 1)
        for rung in range(max(1, rungs - 1)):
            counts = np.zeros((len(j), rungs), np.int64)
            counts[:, 0] += others
            counts[:, rung] += len(group) - j
            if rung + 1 < rungs:
                counts[:, rung + 1] += j
            fits = np.flatnonzero(items.coded.size_of(counts) <= free)
            if len(fits) and (rung + 1 < rungs or fits[0] == 0):
                return rung, int(fits[0])
        return None

    def _lower(self, items: Items, group: NDArray[np.int64], rung: int, more: int) -> int:
        """Bring `group` to `rung` and its first `more` one below; the first row that changed."""
        target = np.full(len(group), rung)
        target[:more] += 1
        first = len(items)
        for level in range(1, len(items.coded.ladder)):
            moving = group[(items.coded.level[group] == level - 1) & (target >= level)]
            if len(moving):
                items.lower(moving, level)
                first = min(first, int(moving[0]))
        return first

    def _by_the_block(self, leaving: int, is_pinned: bool, held: int) -> int:
        """Round the number of all that have left up to whole blocks, if eight blocks or more stay.

        It never falls as items come: where it is no longer rounded, the fewest that must leave have passed the last
        whole block.
        """
        block = max(1, self.max_bytes // _BYTES_A_BLOCK)
        gone = self.gone[is_pinned]
        rounded = -(-(gone + leaving) // block) * block
        return rounded - gone if gone + held - rounded >= 8 * block else leaving

    def _leavers(self, items: Items, group: NDArray[np.int64]) -> int:
        """The fewest of `group`, all on the last rung, that must leave; bytes fall with every one of them."""
        others = np.setdiff1d(np.arange(len(items)), group, assume_unique=True)

        beside = items.nbytes - items.coded.nbytes  # of all; found again for each choice below

        def fits(leaving: int) -> bool:
            counts = np.zeros(len(items.coded.ladder), np.int64)
            counts[0] += len(others)
            counts[-1] += len(group) - leaving
            kept = np.sort(np.concatenate((others, group[leaving:])))
            apart = items.nbytes_beside(kept) if leaving else beside
            size = int(items.coded.size_of(counts)) + apart + self.beside(len(kept))
            return size <= self.max_bytes

        if fits(0):
            return 0
        low, step = 0, 1
        while low + step < len(group) and not fits(low + step):
            low, step = low + step, 2 * step
        high = min(low + step, len(group))  # it fits, or all must go
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(middle) else (middle, high)
        return high
