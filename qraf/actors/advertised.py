"""What hosts have told of their memories, as a gateway knows it. Plain: its caller asks the hosts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from qraf.records import Advertisement, empty_advertisement

__all__ = ["Advertised"]

_MOST = 8192  # memories; beyond it those that changed longest ago go
_POOL_GROWTH = 0.02  # the pooled state is made anew when this share of its items is new

Key = tuple[str, str]  # node and memory


class Advertised:
    """The newest advertisement of each memory, and the pooled state of them all.

    Args:
        dim: number of amplitudes.
    """

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._known: OrderedDict[Key, Advertisement] = OrderedDict()
        self._withdrawn: list[Key] = []  # what the router is still to be told
        self._seen: dict[str, tuple[int, dict[str, int]]] = {}  # host -> its epoch, and revisions of its nodes
        self._pooled: tuple[bytes, int] | None = None
        self._losses = 0

    @property
    def losses(self) -> int:
        """How often something was forgotten or withdrawn: what was pooled before tells of it still."""
        return self._losses

    @property
    def items(self) -> int:
        """Items of all memories."""
        return sum(one.items for one in self._known.values())

    @property
    def every(self) -> list[Advertisement]:
        """All that is known."""
        return list(self._known.values())

    def since(self, host: str, epoch: int) -> dict[str, int]:
        """After which revision of each node a host in this epoch is to be asked."""
        known = self._seen.get(host)
        return known[1] if known and known[0] == epoch else {}

    def heard(self, host: str, epoch: int, revisions: dict[str, int]) -> None:
        """A host has told everything up to these revisions."""
        self._seen[host] = epoch, revisions

    def withdraw(self, node: str, memory: str) -> None:
        """Tell of this memory no more, until its node does so anew."""
        if self._known.pop((node, memory), None) is not None:
            self._lose()
            self._withdrawn.append((node, memory))

    def take(self, told: Sequence[Advertisement]) -> list[Advertisement]:
        """Take in what hosts have told; with it, what was withdrawn meanwhile, as empty."""
        withdrawn, self._withdrawn = self._withdrawn, []
        keys = {(one.node, one.memory) for one in told}
        changed = [*told, *(empty_advertisement(*key, self._dim, -1) for key in withdrawn if key not in keys)]
        for one in changed:
            key = one.node, one.memory
            before = self._known.get(key)
            if before is not None and one.items < before.items:
                self._lose()
            if one.items <= 0:
                self._known.pop(key, None)
                continue
            self._known[key] = one
            self._known.move_to_end(key)
        while len(self._known) > _MOST:
            self._known.popitem(last=False)
        return changed

    def pooled(self) -> bytes | None:
        """The pooled state, until two per cent of the items are new, or one is forgotten; then None."""
        if self._pooled is None or abs(self.items - self._pooled[1]) > _POOL_GROWTH * self._pooled[1]:
            return None
        return self._pooled[0]

    def keep(self, pooled: bytes, items: int, losses: int) -> None:
        """Keep a pooled state of so many items, unless there were losses since it was begun."""
        if losses == self._losses:
            self._pooled = pooled, items

    def _lose(self) -> None:
        self._losses += 1
        self._pooled = None
