"""Which nodes to visit: the prize-collecting subtree, exactly.

Given the tree of cheapest paths from the ingress, each candidate v has a gain g(v) (its prize less what visiting it
costs by itself) and each link of the tree a price that is paid once, however many visits share it. Wanted is the set S
of at most K candidates, the required ones among them, that maximises

    sum_{v in S} g(v)  -  sum of the prices of the links on the paths from the ingress to S

Dynamic programming over the tree: best(v, k) is the best value of exactly k visits in the subtree of v, children joined
one after the other (max-plus). Exact for every number of candidates and of visits: time O(n K) on a star, at most
O(n K min(n, K)) on any tree. Leaves of one node are separable, so they are sorted instead of joined one by one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["choose"]

_NEVER = -np.inf


@dataclass(frozen=True, slots=True)
class _Leaves:
    """Leaves of one node, the required ones first, then by falling worth; taking j means the first j."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Joined:
    """How the best of each count was made up: `taken[k]` visits came from `name` (None: the node itself)."""

    name: str | _Leaves | None
    taken: NDArray[np.int64]


def choose(
    order: Sequence[str],
    parent: Mapping[str, str],
    step: Mapping[str, float],
    gain: Mapping[str, float],
    max_visits: int,
    required: Collection[str] = (),
) -> frozenset[str]:
    """The best set of nodes to visit.

    Args:
        order: the tree's nodes, the root first, every node after its parent.
        parent: of every node but the root.
        step: price of the link from the parent into a node, at least 0.
        gain: the candidates, with prize less own price.
        max_visits: most visits; raised to the number of required ones.
        required: candidates that are in every choice; those without a gain are left out.
    """
    forced = frozenset(name for name in required if name in gain)
    limit = max(max_visits, len(forced))
    wanted = {name for name, value in gain.items() if value > 0} | forced
    used = _ancestors(order, parent, wanted)
    if not used:
        return frozenset()
    children: dict[str, list[str]] = {name: [] for name in used}
    for name in order[1:]:
        if name in used:
            children[parent[name]].append(name)
    best: dict[str, NDArray[np.float64]] = {}
    story: dict[str, list[_Joined]] = {}
    for name in reversed(order):  # leaves are joined at their parent
        if name in used and (children[name] or name == order[0]):
            best[name], story[name] = _at(name, children, best, step, gain, limit, wanted, forced)
    root = order[0]
    return frozenset(_told(root, int(np.argmax(best[root])), story))


def _ancestors(order: Sequence[str], parent: Mapping[str, str], wanted: Collection[str]) -> set[str]:
    """The wanted nodes that the tree has, and everything between them and the root."""
    reached, used = set(order), set()
    for name in wanted:
        if name in reached:
            while name not in used:
                used.add(name)
                if name == order[0]:
                    break
                name = parent[name]
    return used


def _at(
    name: str,
    children: Mapping[str, list[str]],
    best: Mapping[str, NDArray[np.float64]],
    step: Mapping[str, float],
    gain: Mapping[str, float],
    limit: int,
    wanted: Collection[str],
    forced: Collection[str],
) -> tuple[NDArray[np.float64], list[_Joined]]:
    """best(name, 0..) and how it came about."""
    value, story = np.zeros(1), []
    leaves = [child for child in children[name] if not children[child]]
    if leaves:
        worth = {leaf: gain[leaf] - step[leaf] for leaf in leaves}
        leaves.sort(key=lambda leaf: (leaf not in forced, -worth[leaf]))
        leaves = leaves[:limit]
        table = np.concatenate(([0.0], np.cumsum([worth[leaf] for leaf in leaves])))
        table[: sum(leaf in forced for leaf in leaves)] = _NEVER
        value, taken = _join(value, table, limit)
        story.append(_Joined(_Leaves(tuple(leaves)), taken))
    for child in children[name]:
        if children[child]:
            table = best[child] - step[child]
            table[0] = best[child][0]  # no visit below: the link is not used, 0; -inf where one is required below
            value, taken = _join(value, table, limit)
            story.append(_Joined(child, taken))
    if name in wanted:
        table = np.array([_NEVER if name in forced else 0.0, gain[name]])
        value, taken = _join(value, table, limit)
        story.append(_Joined(None, taken))
    return value, story


def _join(
    first: NDArray[np.float64], second: NDArray[np.float64], limit: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Max-plus: the best of each count from both, and how many of it came from `second`."""
    size = min(limit, len(first) + len(second) - 2) + 1
    value, taken = np.full(size, _NEVER), np.zeros(size, np.int64)
    for count, more in enumerate(second[:size]):
        if more == _NEVER:
            continue
        end = min(size, count + len(first))
        found = first[: end - count] + more
        better = found > value[count:end]
        value[count:end][better] = found[better]
        taken[count:end][better] = count
    return value, taken


def _told(root: str, count: int, story: Mapping[str, list[_Joined]]) -> list[str]:
    """The names behind the best value of `count` visits."""
    names: list[str] = []
    waiting = [(root, count)]
    while waiting:
        name, left = waiting.pop()
        for joined in reversed(story[name]):
            taken = int(joined.taken[left])
            left -= taken
            if joined.name is None:
                names.extend([name] * taken)
            elif isinstance(joined.name, _Leaves):
                names.extend(joined.name.names[:taken])
            elif taken:
                waiting.append((joined.name, taken))
    return names
