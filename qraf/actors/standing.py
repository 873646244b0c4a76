"""What a supervisor and the gateways say to each other: what is to run, and what runs. No torch, no Ray."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import msgspec
from pydantic import BaseModel

from qraf.actors.messages import HostReport, Spell
from qraf.network.topology import Topology
from qraf.settings import EncoderSettings, GeneratorSettings, RuntimeSettings, SealSettings
from qraf.text.generator import Endpoint

if TYPE_CHECKING:
    from qraf.text.encoder import Encoder

__all__ = ["ENGINE", "SUPERVISOR", "Charter", "Joined", "Phase", "Post", "Standing"]

ENGINE = "embedded engine"  # its name in the supervisor's books; no host can be called so
SUPERVISOR = "supervisor"  # the name of its actor

_ENGINES = {"gguf", "threads", "slots", "context_tokens"}  # what an embedded engine is made with

Phase = Literal["down", "starting", "up"]
Joined = Literal["first", "joined", "tolerated", "replace"]
"""How a supervisor took a gateway: as its first one; beside others; beside others whose bounds count, not its own; or
not at all, because it keeps a network that nobody uses any more and is to be replaced."""


@dataclass(frozen=True, slots=True)
class Charter:
    """What a supervisor is to keep running.

    Args:
        spell: what every host is told, but for its name, epoch and run.
        generator: of the embedded engine; None: there is none.
        masters: where the journal's keys come from.
        load: makes the encoder inside each host; must be importable there. None: the one that is named.
        epoch: the highest that is known to have been used.
    """

    spell: Spell
    journal_url: str
    encoder: EncoderSettings
    runtime: RuntimeSettings
    generator: GeneratorSettings | None
    masters: tuple[SealSettings, Path]
    load: Callable[[], Encoder] | None = None
    epoch: int = 0

    @property
    def topology(self) -> Topology:
        """The network."""
        return self.spell.topology

    @property
    def names(self) -> tuple[str, ...]:
        """The processes: every host, and the engine."""
        return (*self.topology.hosts, *((ENGINE,) if self.generator is not None else ()))

    def marks(self) -> dict[str, str]:
        """What must be the same for all that share hosts, as a digest each; no secret can be read from it.

        `bounds`, all else that hosts are told, may differ: then those count under which they were started.
        """
        place = urlsplit(self.journal_url)
        told = {field.name: getattr(self.spell, field.name) for field in fields(self.spell)}
        bounds = {name: value.model_dump(mode="json") for name, value in told.items() if isinstance(value, BaseModel)}
        return {
            "topology": _digest(replace(self.topology, file="", description="", tests=())),
            "journal": _digest([place.scheme.partition("+")[0], place.netloc.rpartition("@")[2], place.path]),
            "encoder": _digest(self.encoder.model_dump(mode="json")),
            "engine": _digest(
                None if self.generator is None else self.generator.model_dump(mode="json", include=_ENGINES)
            ),
            "bounds": _digest(bounds),
        }

    def mark(self) -> str:
        """All marks but for the bounds in one: processes that were made for another one are of no use."""
        return _digest({name: mark for name, mark in self.marks().items() if name != "bounds"})


@dataclass(frozen=True, slots=True)
class Post:
    """One process as the supervisor knows it. `actor` is its handle, `report` a host's last word on itself.

    `has_failed`: it did not come up at its first start; whoever starts the network is told so.
    """

    name: str
    phase: Phase
    epoch: int
    restarts: int
    reason: str = ""
    has_failed: bool = False
    actor: Any = None
    report: HostReport | None = None
    endpoint: Endpoint | None = None
    pid: int = 0
    machine: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """The network at one moment. `term` names the supervisor's life, `version` rises with every change in it.

    `departures` counts the gateways that vanished in this term without a word. `has_found`: hosts were taken over that
    an earlier supervisor had started.
    """

    term: str
    version: int
    departures: int
    has_found: bool
    pid: int
    machine: str
    posts: tuple[Post, ...] = ()


def _digest(value: Any) -> str:
    return hashlib.blake2b(msgspec.json.encode(value, order="deterministic"), digest_size=8).hexdigest()
