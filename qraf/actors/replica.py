"""What runs in a replica of a service: batches, one after the other, off its event loop. Imports no Ray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qraf.actors.services import Work
from qraf.errors import QrafError
from qraf.service_orders import ServiceAnswer, ServiceOrder
from qraf.settings import EncoderSettings, GeneratorSettings
from qraf.text.generator import Endpoint

if TYPE_CHECKING:
    from qraf.text.encoder import Encoder
    from qraf.text.engine import EmbeddedEngine

__all__ = ["EncodeReplica", "GenerateReplica", "Replica"]


class Replica:
    """One process of a service.

    Args:
        version: of what was deployed; a change of it is a rolling update.
        threads: of torch, for one batch.
        stuck_s: a batch that works longer than this makes the replica unhealthy, so that another takes its place.
        work: does the work; default: the operations. Must be importable here.
    """

    def __init__(self, version: str, threads: int, stuck_s: float, work: Work | None = None) -> None:
        if work is None:
            import torch

            from qraf.operations.work import work as operations

            torch.set_num_threads(threads)
            work = operations
        self.version, self._work, self._stuck_s = version, work, stuck_s
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="replica")
        self._since: float | None = None

    async def __call__(self, orders: Sequence[ServiceOrder]) -> list[ServiceAnswer | QrafError]:
        """Answer a batch; errors of ours travel as values, so that they arrive as themselves."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._answer, orders)

    async def check_health(self) -> None:
        """Serve asks this now and then; a raise has the replica replaced."""
        if self._since is not None and time.monotonic() - self._since > self._stuck_s:
            raise RuntimeError(f"a batch has been working for more than {self._stuck_s:g} s")

    def _answer(self, orders: Sequence[ServiceOrder]) -> list[ServiceAnswer | QrafError]:
        self._since = time.monotonic()
        try:
            return list(self._work(orders))
        finally:
            self._since = None


class EncodeReplica:
    """One process that encodes, behind the queue that hosts have for it too.

    Args:
        version: as of `Replica`.
        settings: which encoder, and its threads.
        timeout_s: for one batch.
        load: makes the encoder; default: the one that the settings name. Must be importable here.
    """

    def __init__(
        self, version: str, settings: EncoderSettings, timeout_s: float, load: Callable[[], Encoder] | None = None
    ) -> None:
        from qraf.actors.encoding import EncodeQueue
        from qraf.text.encoder import load_encoder

        self.version, self._timeout_s = version, timeout_s
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="replica")
        self._queue = EncodeQueue(load or partial(load_encoder, settings), settings.max_batch)
        self._queue.encoder()

    async def __call__(self, texts: Sequence[str], urgent: bool) -> NDArray[np.float32] | QrafError:
        """Amplitudes of texts, (n, d) float32 unit rows; errors of ours travel as values."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._encode, texts, urgent)

    async def check_health(self) -> None:
        """Serve asks this now and then; a raise has the replica replaced."""
        if not self._queue.is_ready:
            raise RuntimeError("the encoder is not loaded")

    def _encode(self, texts: Sequence[str], urgent: bool) -> NDArray[np.float32] | QrafError:
        try:
            return self._queue.encode(texts, urgent=urgent, timeout_s=self._timeout_s)
        except QrafError as error:
            return error


class GenerateReplica:
    """One process with a model's engine, to which the gateway streams directly.

    A *lease* is a call that tells where the engine listens and lasts until the caller lets go: by its leases Serve
    knows how busy a replica is, and lets an old one finish its answers; no token passes through Ray.

    Args:
        version: as of `Replica`.
        settings: of the engine.
        load: makes the engine; default: the embedded one. Must be importable here.
    """

    def __init__(
        self,
        version: str,
        settings: GeneratorSettings,
        load: Callable[[GeneratorSettings], EmbeddedEngine] | None = None,
    ) -> None:
        from qraf.text.engine import EmbeddedEngine

        self.version = version
        self._engine = (load or EmbeddedEngine)(settings)
        self._endpoint = self._engine.start()

    async def lease(self) -> AsyncGenerator[Endpoint]:
        """Where the engine listens; held until it is cancelled."""
        yield self._endpoint
        await asyncio.Event().wait()

    async def check_health(self) -> None:
        """Serve asks this now and then; a raise has the replica replaced."""
        if not await asyncio.to_thread(self._engine.alive):
            raise RuntimeError("the engine does not answer")

    def __del__(self) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.stop()
