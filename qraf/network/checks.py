"""What a topology must satisfy as a whole: names that exist, paths, dimensions, fidelities, what the machine has."""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Iterable
from urllib.parse import urlsplit

import networkx as nx

from qraf.network import models
from qraf.network.document import Document
from qraf.network.noise import noise_faults
from qraf.network.topology import CODE_FIDELITY, EMBEDDED_MODEL, ENCODER_DIMS

__all__ = ["check", "count_gpus"]

_GENERATOR_KEYS = ("model", "url", "scaling")
_MEMORY_KEYS = ("holds", "capacity", "budget", "recall", "decay", "rank", "bits", "encoder", "fidelity")


def check(
    document: Document,
    file: models.File,
    *,
    nodes: tuple[str, ...],
    hosts: tuple[str, ...],
    has_ingress: bool,
    gpus: int | None = None,
) -> None:
    """Note every fault of a topology as a whole in `document`.

    Args:
        document: places, and where faults go.
        file: the topology, repaired where its shape was wrong.
        nodes: node names as the file has them, also of nodes whose shape was wrong.
        hosts: host names likewise.
        has_ingress: whether the file names an ingress.
        gpus: how many GPUs there are; counted on this machine when not given.
    """
    _Checks(document, file, nodes, hosts, has_ingress, gpus).run()


def count_gpus() -> int:
    """GPUs that this process may use, counted without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = len(glob.glob("/dev/nvidia[0-9]*"))
    if visible is None:
        return there
    return min(there, len([part for part in visible.split(",") if part.strip() not in ("", "-1")]))


class _Checks:
    def __init__(
        self,
        document: Document,
        file: models.File,
        nodes: tuple[str, ...],
        hosts: tuple[str, ...],
        has_ingress: bool,
        gpus: int | None,
    ) -> None:
        self.document, self.file, self.nodes, self.hosts = document, file, nodes, hosts
        self.has_ingress, self.gpus = has_ingress, gpus

    def run(self) -> None:
        self._names()
        self._hosts()
        for name, node in self.file.nodes.items():
            if node.role == "memory":
                self._memory(name, node)
            else:
                self._generator(name, node)
        memories = {name: node for name, node in self.file.nodes.items() if node.role == "memory"}
        if memories and not any(node.holds and node.holds.sessions for node in memories.values()):
            self._tell(("nodes",), "no node holds sessions", "give one memory node `holds: sessions`", key=True)
        graph = self._links()
        self._ingress(graph)
        self._services()
        self._states()
        self._tests()

    # ---------------------------------------------------------------------------------------------- single parts
    def _names(self) -> None:
        for section, names in (("nodes", self.nodes), ("hosts", self.hosts)):
            for name in names:
                if not models.NAME.fullmatch(name):
                    need = "must be letters, digits, '_', '-' and '.', at most 64"
                    self._tell((section, name), f"name '{name[:80]}' {need}", key=True)

    def _hosts(self) -> None:
        wanted = 0.0
        for name, host in self.file.hosts.items():
            if host is None:
                continue
            if host.replicas > 1:
                self._tell(("hosts", name, "replicas"), "`replicas` above 1 is not available yet", "use 1")
            if host.device == "cuda" and not host.gpus:
                self._tell(
                    ("hosts", name, "device"), f"host '{name}' wants cuda but no `gpus`", "give it a share of one"
                )
            wanted += host.gpus * host.replicas
        if not wanted:
            return
        there = count_gpus() if self.gpus is None else self.gpus
        if wanted > there:
            for name, host in self.file.hosts.items():
                if host is not None and host.gpus:
                    what = f"the hosts ask for {wanted:g} GPUs together, but there are {there}"
                    self._tell(("hosts", name, "gpus"), what)
                    break

    def _memory(self, name: str, node: models.Node) -> None:
        self._wrong_role(name, node, _GENERATOR_KEYS, "generator")
        if node.host is not None:
            self._host_exists(name, node.host)
        elif len(self.hosts) > 1:
            self._tell(("nodes", name), f"`nodes.{name}.host` is required when there are several hosts", key=True)
        collections = node.holds.collections if node.holds else []
        if not collections and not (node.holds and node.holds.sessions):
            what = f"memory node '{name}' holds nothing"
            self._tell(("nodes", name), what, "give it `holds: sessions` or `holds: [collection]`", key=True)
        if len(set(collections)) < len(collections):
            self._tell(("nodes", name, "holds"), f"node '{name}' names a collection twice")
        dim, rank = ENCODER_DIMS[self._encoder(node)], node.rank or self.file.defaults.rank
        if rank > dim:
            where = ("nodes", name, "rank") if node.rank else ("defaults", "rank")
            self._tell(where, f"rank {rank} is above the dimension {dim} of encoder '{self._encoder(node)}'")
        self._fidelity(("nodes", name), f"node '{name}'", node.bits or self.file.defaults.bits, node.fidelity)

    def _generator(self, name: str, node: models.Node) -> None:
        self._wrong_role(name, node, _MEMORY_KEYS, "memory")
        if node.host is not None:
            self._host_exists(name, node.host)
        if node.url:
            parts = urlsplit(node.url)
            if parts.scheme not in ("http", "https") or not parts.netloc:
                self._tell(("nodes", name, "url"), "`url` must be an http or https address")
            if not node.model:
                self._tell(("nodes", name), f"generator '{name}' with a `url` needs the name of its `model`", key=True)
        elif node.model and node.model != EMBEDDED_MODEL:
            what = f"model '{node.model}' is not embedded"
            self._tell(("nodes", name, "model"), what, f"write '{EMBEDDED_MODEL}', or give the `url` of its server")
        if node.scaling and (node.scaling.min, node.scaling.max) != (1, 1):
            what, hint = "`scaling` of a node is not available yet", "scale `services.generate`, which all nodes share"
            self._tell(("nodes", name, "scaling"), what, hint, key=True)

    def _wrong_role(self, name: str, node: models.Node, keys: Iterable[str], role: str) -> None:
        for key in keys:
            if key in node.model_fields_set and getattr(node, key) is not None:
                self._tell(("nodes", name, key), f"`{key}` belongs to {role} nodes, but '{name}' is not one", key=True)

    def _host_exists(self, node: str, host: str) -> None:
        if host not in self.hosts:
            self._tell(("nodes", node, "host"), f"unknown host '{host}'", self._near(host, self.hosts))

    def _fidelity(self, path: tuple[str | int, ...], what: str, bits: int, wanted: float | None) -> None:
        if wanted is None or CODE_FIDELITY[bits] >= wanted:
            return
        enough = min(code for code, kept in CODE_FIDELITY.items() if kept >= wanted)
        text = f"{bits} bits are too few for fidelity {wanted:g} on {what}: they keep {CODE_FIDELITY[bits]:g}"
        self._tell((*path, "fidelity"), text, f"use bits: {enough}")

    # ------------------------------------------------------------------------------------------------- the graph
    def _links(self) -> nx.DiGraph:
        """Check the links; the graph has an unknown name replaced by its nearest, so that a slip is told once."""
        graph = nx.DiGraph()
        graph.add_nodes_from(self.nodes)
        for index, link in enumerate(self.file.links):
            sources = [self._node_or_near(where, name) for where, name in self._ends(index, "source", link.source)]
            for where, name in self._ends(index, "target", link.target):
                target = self._node_or_near(where, name)
                for source in sources:
                    if source is not None and target is not None:
                        self._link(graph, where, source, target)
            self._fidelity(("links", index), f"links[{index}]", link.bits, link.fidelity)
            for fault in noise_faults(link):
                self._tell(("links", index, *fault.path), fault.what, fault.hint, key=fault.is_key)
        return graph

    def _ends(self, index: int, key: str, names: list[str]) -> list[tuple[tuple[str | int, ...], str]]:
        """Each end of a link with its place."""
        listed = isinstance(self.document.root["links"][index].get(key), list)
        return [(("links", index, key, at) if listed else ("links", index, key), name) for at, name in enumerate(names)]

    def _link(self, graph: nx.DiGraph, path: tuple[str | int, ...], source: str, target: str) -> None:
        if source == target:
            self._tell(path, f"a link must join two nodes, but '{source}' is linked to itself")
        elif graph.has_edge(source, target):
            self._tell(path, f"link '{source}' -> '{target}' is there twice")
        else:
            self._dimensions(path, source, target)
            graph.add_edge(source, target)

    def _node_or_near(self, path: tuple[str | int, ...], name: str) -> str | None:
        if name in self.nodes:
            return name
        self._tell(path, f"unknown node '{name}'", self._near(name, self.nodes))
        near = difflib.get_close_matches(name, self.nodes, 1)
        return near[0] if near else None

    def _dimensions(self, path: tuple[str | int, ...], source: str, target: str) -> None:
        ends = [self.file.nodes.get(name) for name in (source, target)]
        if any(end is None or end.role != "memory" for end in ends):
            return
        first, second = (self._encoder(end) for end in ends if end is not None)
        if ENCODER_DIMS[first] != ENCODER_DIMS[second]:
            sizes = f"{ENCODER_DIMS[first]} ({first}) and {ENCODER_DIMS[second]} ({second})"
            self._tell(path, f"link '{source}' -> '{target}' joins mismatched dimensions, {sizes}")

    def _ingress(self, graph: nx.DiGraph) -> None:
        if not self.has_ingress:
            return
        ingress = self._node_or_near(("ingress",), self.file.ingress)
        if ingress is None:
            return
        entry = self.file.nodes.get(ingress)
        if entry is not None and entry.role != "memory":
            self._tell(("ingress",), f"the ingress must be a memory node, but '{ingress}' is a {entry.role}")
            return
        reached = nx.descendants(graph, ingress) | {ingress}
        for name in self.nodes:
            if name not in reached:
                self._tell(("nodes", name), f"node '{name}' cannot be reached from ingress '{ingress}'", key=True)
        generators = [name for name, node in self.file.nodes.items() if node.role == "generator"]
        if generators and not any(name in reached for name in generators):
            self._tell(("ingress",), f"no path from ingress '{ingress}' to a generator")

    # -------------------------------------------------------------------------------------------------- the rest
    def _services(self) -> None:
        generators = [node for node in self.file.nodes.values() if node.role == "generator"]
        generate = self.file.services.generate if self.file.services is not None else None
        if generate is not None and all(node.url for node in generators):
            what = "service 'generate' runs the embedded model, but no generator node is without a `url`"
            self._tell(("services", "generate"), what, key=True)
        for name in type(self.file.services).model_fields if self.file.services is not None else ():
            service = getattr(self.file.services, name)
            if service is not None and service.scaling.min > service.scaling.max:
                bounds = service.scaling
                what = f"`scaling.min` of service '{name}' is {bounds.min}, above its `scaling.max` {bounds.max}"
                self._tell(("services", name, "scaling", "min"), what)

    def _states(self) -> None:
        kinds = [name for name in models.State.model_fields if name not in ("dims", "normalize")]
        for name, state in self.file.states.items():
            given = [kind for kind in kinds if getattr(state, kind) is not None]
            if len(given) != 1:
                what = f"state '{name}' must have exactly one of {', '.join(kinds)}, but has {len(given)}"
                self._tell(("states", name), what, key=True)

    def _tests(self) -> None:
        held = tuple({name for node in self.file.nodes.values() if node.holds for name in node.holds.collections})
        for index, test in enumerate(self.file.tests):
            for name in test.expect.visits or ():
                if name not in self.nodes:
                    self._tell(
                        ("tests", index, "expect", "visits"), f"unknown node '{name}'", self._near(name, self.nodes)
                    )
            for position, name in enumerate(test.collections):
                if name not in held:
                    where = ("tests", index, "collections", position)
                    self._tell(where, f"unknown collection '{name}'", self._near(name, held))

    def _encoder(self, node: models.Node) -> str:
        return node.encoder or self.file.defaults.encoder

    def _near(self, word: str, known: Iterable[str]) -> str:
        near = difflib.get_close_matches(word, list(known), 1)
        return f"did you mean '{near[0]}'?" if near else ""

    def _tell(self, path: tuple[str | int, ...], what: str, hint: str = "", key: bool = False) -> None:
        self.document.fault(self.document.at(*path, key=key), what, hint)
