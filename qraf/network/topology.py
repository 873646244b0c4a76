"""The network as operators describe it: hosts, nodes, links, frozen. `loader` makes and checks one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import networkx as nx

from qraf.errors import NotFound
from qraf.records import RecallSettings
from qraf.state_orders import Preparation
from qraf.tenants import plain

__all__ = [
    "CODE_FIDELITY",
    "EMBEDDED_MODEL",
    "ENCODER_DIMS",
    "Expectation",
    "HostSpec",
    "LinkSpec",
    "NodeSpec",
    "NoiseSpec",
    "ProtectSpec",
    "RouteWeights",
    "RoutingSpec",
    "ServiceSpec",
    "Topology",
    "TopologyTest",
]

Role = Literal["memory", "generator"]

EMBEDDED_MODEL = "smollm2-135m"
ENCODER_DIMS: dict[str, int] = {"minilm": 384, "wordllama": 256}
CODE_FIDELITY: dict[int, float] = {1: 0.636, 2: 0.881, 4: 0.989, 8: 0.999965, 32: 1.0}
"""Mean squared fidelity of amplitudes coded with so many bits, measured at d = 384."""


@dataclass(frozen=True, slots=True)
class HostSpec:
    """A process that runs nodes: what it asks of the machine."""

    name: str
    cpus: float = 1.0
    gpus: float = 0.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    replicas: int = 1


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """A logical place. A memory node holds sessions and collections on a host; a generator node names a model.

    `capacity_bytes` is for all its memories together, `budget_bytes` for each of them.
    `host` is empty for a generator node, whose engine has a worker of its own. `url` empty: the embedded engine.
    """

    name: str
    role: Role
    host: str = ""
    sessions: bool = False
    collections: tuple[str, ...] = ()
    capacity_bytes: int | None = None
    recall: RecallSettings = field(default_factory=RecallSettings)
    half_life_s: float | None = None
    rank: int = 32
    bits: int = 4
    encoder: str = "minilm"
    model: str = ""
    url: str = ""
    budget_bytes: int | None = None

    @property
    def dim(self) -> int:
        """Dimension of the states that this node holds."""
        return ENCODER_DIMS[self.encoder]


@dataclass(frozen=True, slots=True)
class NoiseSpec:
    """What every qubit of a state meets on a noisy link, each time the noise acts; several kinds act one after another.

    `depolarizing` p: (1-p) rho + p I/2. `dephasing` l: coherences times 1 - l. `pauli`: probabilities of X, Y, Z.
    `rounds`: how often it acts while an unprotected state crosses.
    """

    depolarizing: float = 0.0
    dephasing: float = 0.0
    pauli: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rounds: int = 1


@dataclass(frozen=True, slots=True)
class ProtectSpec:
    """The code that each qubit is held in while it crosses, and how many rounds of correction that takes."""

    code: str
    distance: int
    rounds: int


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """A directed link; it moves states coded with `bits` bits, exactly or, for laboratories, through noise."""

    source: str
    target: str
    latency_ms: float = 1.0
    bandwidth_mbps: float = 1000.0
    bits: int = 32
    noise: NoiseSpec | None = None
    protect: ProtectSpec | None = None

    @property
    def fidelity(self) -> float:
        """Measured fidelity of a state coded to this link's bits; what noise does is apart, see `links`."""
        return CODE_FIDELITY[self.bits]


@dataclass(frozen=True, slots=True)
class RouteWeights:
    """What relevance is worth and what a path costs; see docs/topology.md for the units."""

    relevance: float = 1.0
    latency: float = 0.2
    load: float = 0.2
    infidelity: float = 1.0


@dataclass(frozen=True, slots=True)
class RoutingSpec:
    """How many nodes a prompt may visit, how long their answers may take, and the weights of the price."""

    max_visits: int = 8
    deadline_ms: float = 200.0
    weights: RouteWeights = RouteWeights()


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """A stateless service on Ray Serve and the bounds of its replicas."""

    name: str
    min_replicas: int = 1
    max_replicas: int = 1


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a topology's own test wants: words in the evidence, nodes among the visited."""

    evidence_contains: tuple[str, ...] = ()
    visits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TopologyTest:
    """A test that travels with the topology: write these texts to a session, ask, compare."""

    prompt: str
    write: tuple[str, ...] = ()
    collections: tuple[str, ...] = ()
    expect: Expectation = Expectation()


@dataclass(frozen=True, slots=True)
class Topology:
    """A checked network."""

    name: str
    hosts: dict[str, HostSpec]
    nodes: dict[str, NodeSpec]
    links: tuple[LinkSpec, ...]
    ingress: str
    version: int = 1
    description: str = ""
    encoder: str = "minilm"
    routing: RoutingSpec = RoutingSpec()
    tests: tuple[TopologyTest, ...] = ()
    services: tuple[ServiceSpec, ...] = ()
    states: tuple[Preparation, ...] = ()
    file: str = field(default="", compare=False)

    @property
    def dim(self) -> int:
        """Dimension of a prompt's amplitudes: that of the default encoder."""
        return ENCODER_DIMS[self.encoder]

    def node(self, name: str) -> NodeSpec:
        """The node of that name.

        Raises:
            NotFound: there is none.
        """
        try:
            return self.nodes[name]
        except KeyError:
            raise NotFound("node", name) from None

    def memory_nodes(self) -> tuple[NodeSpec, ...]:
        """The nodes that hold memories, in the order of the file."""
        return tuple(node for node in self.nodes.values() if node.role == "memory")

    def generators(self) -> tuple[NodeSpec, ...]:
        """The nodes that generate text, in the order of the file."""
        return tuple(node for node in self.nodes.values() if node.role == "generator")

    def session_nodes(self) -> tuple[str, ...]:
        """Names of the nodes that hold sessions."""
        return tuple(node.name for node in self.memory_nodes() if node.sessions)

    def holders(self, collection: str) -> tuple[str, ...]:
        """Names of the nodes that hold a collection, whichever tenant's; empty when none does."""
        name = plain(collection)
        return tuple(node.name for node in self.memory_nodes() if name in node.collections)

    def collections(self) -> tuple[str, ...]:
        """Every collection that some node holds, in the order of the file."""
        return tuple(dict.fromkeys(name for node in self.memory_nodes() for name in node.collections))

    def nodes_on(self, host: str) -> tuple[NodeSpec, ...]:
        """The memory nodes that a host runs."""
        return tuple(node for node in self.memory_nodes() if node.host == host)

    def graph(self) -> nx.DiGraph:
        """The network for networkx: every node with its `spec`, every link with its attributes."""
        graph = nx.DiGraph(name=self.name, ingress=self.ingress)
        for node in self.nodes.values():
            graph.add_node(node.name, spec=node, role=node.role, host=node.host)
        for link in self.links:
            graph.add_edge(
                link.source,
                link.target,
                spec=link,
                latency_ms=link.latency_ms,
                bandwidth_mbps=link.bandwidth_mbps,
                bits=link.bits,
            )
        return graph
