"""Which memory lives on which node: rendezvous hashing, so that a node that comes or goes moves only its own share.

Thaler & Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM ToN 6(1), 1998.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable

from qraf.errors import NoRoute, NotFound
from qraf.network.topology import Topology
from qraf.tenants import plain

__all__ = ["item_node", "session_node", "state_host"]


def session_node(topology: Topology, session: str, up: Collection[str] | None = None) -> str:
    """The node that is home to a session; with `up`, the best among the nodes that are up.

    Raises:
        NotFound: no node of the topology holds sessions.
        NoRoute: every node that does is down.
    """
    holders = topology.session_nodes()
    if not holders:
        raise NotFound("node that holds", "sessions")
    alive = holders if up is None else tuple(name for name in holders if name in up)
    if not alive:
        raise NoRoute(topology.ingress, f"a node for session {plain(session)}", holders)
    return _highest(alive, f"s/{session}")


def item_node(topology: Topology, collection: str, item_id: str) -> str:
    """The node that holds an item of a collection: its only holder, or its share among several.

    Raises:
        NotFound: no node of the topology holds that collection.
    """
    holders = topology.holders(collection)
    if not holders:
        raise NotFound("collection", collection)
    return holders[0] if len(holders) == 1 else _highest(holders, f"c/{collection}\0{item_id}")


def state_host(hosts: Collection[str], state: str) -> str:
    """The host among `hosts`, at least one, that keeps a stored state at hand; any other can serve it too."""
    return _highest(hosts, f"q/{state}")


def _highest(nodes: Iterable[str], key: str) -> str:
    """The node whose hash with the key is highest; ties, which do not happen, go by name."""
    encoded = key.encode("utf-8", "surrogatepass")

    def rank(node: str) -> tuple[bytes, str]:
        digest = hashlib.blake2b(encoded, digest_size=8, key=hashlib.blake2b(node.encode(), digest_size=32).digest())
        return digest.digest(), node

    return max(nodes, key=rank)
