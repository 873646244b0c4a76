"""What runs in an actor's process: a host, or the embedded engine. `ray_actors` makes actors of these classes."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qraf.actors.messages import HostReport
from qraf.errors import QrafError
from qraf.settings import EncoderSettings, GeneratorSettings, SealSettings
from qraf.text.generator import Endpoint

if TYPE_CHECKING:
    from qraf.text.encoder import Encoder

__all__ = ["EngineActor", "HostActor", "Identity"]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a process is: `mark` says what it was made for, a host without a name in its report stands by as a spare."""

    mark: str
    epoch: int
    pid: int
    machine: str
    report: HostReport | None = None
    endpoint: Endpoint | None = None


class HostActor:
    """A `Host` in an actor. The encoder loads in its own thread while the journal opens."""

    def __init__(
        self,
        journal_url: str,
        settings: EncoderSettings,
        wants_gpu: bool,
        encoder: Callable[[], Encoder] | None,
        masters: tuple[SealSettings, Path] | None = None,
        mark: str = "",
    ) -> None:
        from qraf.actors.encoding import EncodeQueue
        from qraf.actors.host import Host
        from qraf.storage.journal import Journal
        from qraf.storage.seal import MasterKeys

        load = encoder or partial(_load_encoder, settings, wants_gpu)
        self._mark = mark
        self._encoding = EncodeQueue(load, settings.max_batch)
        self._journal = Journal.open(journal_url, None, MasterKeys(*masters) if masters else None, leads=False)
        self._host = Host(self._encoding, self._journal)

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the host. An error of ours is the answer: so it arrives as itself."""
        try:
            return getattr(self._host, method)(*args)
        except QrafError as error:
            return error

    def identity(self) -> Identity:
        """Who this is, for a supervisor that finds it."""
        report = self._host.ping()
        return Identity(self._mark, report.epoch, report.pid, report.machine, report)

    def ready(self) -> QrafError | None:
        """Wait until the encoder is loaded; what went wrong if it cannot be."""
        try:
            self._encoding.encoder()
        except QrafError as error:
            return error
        return None

    def stop(self) -> None:
        """Store what waits and stop the threads; the process is killed afterwards."""
        self._host.close()
        self._encoding.close()
        self._journal.close()


class EngineActor:
    """The embedded engine in an actor: it dies with its process, never takes the gateway along."""

    def __init__(self, settings: GeneratorSettings, mark: str = "") -> None:
        from qraf.text.engine import EmbeddedEngine

        self._mark, self._epoch = mark, 0
        self._endpoint: Endpoint | None = None
        self._engine = EmbeddedEngine(settings)

    def start(self, epoch: int = 0) -> Identity | QrafError:
        """Load the model and listen."""
        try:
            self._endpoint, self._epoch = self._engine.start(), epoch
            return self.identity()
        except QrafError as error:
            return error

    def identity(self) -> Identity:
        """Who this is; without an endpoint it has not started."""
        return Identity(self._mark, self._epoch, os.getpid(), socket.gethostname(), endpoint=self._endpoint)

    def alive(self) -> bool:
        """Whether it answers."""
        return bool(self._engine.alive())

    def stop(self) -> None:
        """Stop listening."""
        self._engine.stop()


def _load_encoder(settings: EncoderSettings, wants_gpu: bool) -> Encoder:
    from qraf.text.encoder import load_encoder

    device = "cpu"
    if wants_gpu:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_encoder(settings, device)
