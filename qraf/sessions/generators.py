"""The generators of the network's nodes, as this process reaches them."""

from __future__ import annotations

from qraf.actors.runtime import Runtime
from qraf.settings import GeneratorSettings
from qraf.text.generator import Generator

__all__ = ["Generators"]


class Generators:
    """One generator for each node that has one, made when it is first asked for."""

    def __init__(self, settings: GeneratorSettings, runtime: Runtime) -> None:
        self._settings, self._runtime = settings, runtime
        self._by_node: dict[str, Generator] = {}

    def of(self, node: str) -> Generator:
        """That of a node; the same one every time."""
        if node not in self._by_node:
            away = self._runtime.leases(node)
            self._by_node[node] = Generator(
                lambda: self._runtime.endpoint(node),
                self._settings,
                lease=None if away is None else away.lease,
                slots=None if away is None else away.slots,
            )
        return self._by_node[node]

    async def close(self) -> None:
        """Close their connections."""
        for generator in self._by_node.values():
            await generator.aclose()
