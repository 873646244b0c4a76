"""The synchronous twin of `services`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qraf.client.client import Client
from qraf.client.rest import Json
from qraf.client.services import Experiment, Found, Operation, Order, Progress
from qraf.client.states import Other
from qraf.client.sync_parts import LoopThread
from qraf.code_orders import CodeBuilt, CodeSampled, ShotsDecoded
from qraf.service_orders import (
    Alignment,
    Code,
    NearestState,
    OperationResult,
    OperationView,
    Quantized,
    Recompressed,
    RepairedState,
    TruncatedState,
)

__all__ = ["SyncOperation", "SyncServiceCalls"]


class SyncOperation:
    """`Operation`, for programs without an event loop."""

    def __init__(self, loop: LoopThread, operation: Operation) -> None:
        self._loop, self._operation = loop, operation
        self.id = operation.id

    def status(self) -> OperationView:
        """How far it is; completed, with its result."""
        return self._loop.call(self._operation.status())

    def result(self, progress: Progress | None = None) -> OperationResult:
        """Wait for the end and give the answer; raises `ServerError` when it failed or was cancelled."""
        return self._loop.call(self._operation.result(progress))

    def cancel(self) -> OperationView:
        """Stop it before its next part. Harmless when late."""
        return self._loop.call(self._operation.cancel())

    def drop(self) -> OperationView:
        """Stop it, and let the server forget it with its result."""
        return self._loop.call(self._operation.drop())


class SyncServiceCalls:
    """`ServiceCalls`, for programs without an event loop. `progress` is called in the client's thread."""

    _loop: LoopThread
    _client: Client

    def quantize(
        self,
        rows: ArrayLike | None = None,
        *,
        states: Sequence[Other] | None = None,
        code: Code | None = None,
        rotate: bool | None = None,
        group: int = 64,
        codes: bool = False,
        progress: Progress | None = None,
    ) -> Quantized:
        """Code amplitudes (n, d) or states; a table of all codes when none is named. `codes`: the coded rows too."""
        return self._loop.call(
            self._client.quantize(
                rows, states=states, code=code, rotate=rotate, group=group, codes=codes, progress=progress
            )
        )

    def dequantize(self, coded: Quantized) -> NDArray[np.float32]:
        """The decoded rows (n, d) of a quantisation in one code that was asked for its `codes`."""
        return self._loop.call(self._client.dequantize(coded))

    def decode_rows(
        self, codes: bytes, d: int, code: Code, rotate: bool | None = None, group: int = 64
    ) -> NDArray[np.float32]:
        """The amplitudes of coded rows, (n, d) float32."""
        return self._loop.call(self._client.decode_rows(codes, d, code, rotate, group))

    def nearest(
        self,
        matrices: ArrayLike | Sequence[ArrayLike] | None = None,
        *,
        states: Sequence[Other] | None = None,
        rank: int | None = None,
        arrays: bool = True,
        progress: Progress | None = None,
    ) -> Found[NearestState]:
        """The states nearest to matrices, (d, d) or (n, d, d) or a list; of at most `rank`."""
        return self._loop.call(
            self._client.nearest(matrices, states=states, rank=rank, arrays=arrays, progress=progress)
        )

    def truncate(
        self,
        states: Sequence[Other] | None = None,
        *,
        matrices: ArrayLike | Sequence[ArrayLike] | None = None,
        rank: int | None = None,
        loss: float | None = None,
        arrays: bool = True,
        progress: Progress | None = None,
    ) -> Found[TruncatedState]:
        """States of fewer directions: at most `rank`, or the fewest that lose at most `loss`; factors L (r, d)."""
        return self._loop.call(
            self._client.truncate(states, matrices=matrices, rank=rank, loss=loss, arrays=arrays, progress=progress)
        )

    def recompress(
        self,
        rank: int,
        *,
        session: str | None = None,
        collection: str | None = None,
        sketches: Sequence[bytes] | None = None,
        apply: bool = False,
        packets: bool = False,
        progress: Progress | None = None,
    ) -> Recompressed:
        """What the sketch of a memory would be with at most `rank` directions; with `apply` a session's becomes so."""
        return self._loop.call(
            self._client.recompress(
                rank,
                session=session,
                collection=collection,
                sketches=sketches,
                apply=apply,
                packets=packets,
                progress=progress,
            )
        )

    def repair(
        self,
        matrices: ArrayLike | Sequence[ArrayLike] | None = None,
        *,
        states: Sequence[Other] | None = None,
        rank: int | None = None,
        noise: float | None = None,
        arrays: bool = True,
        progress: Progress | None = None,
    ) -> Found[RepairedState]:
        """Find what keeps matrices from being states, and give the nearest states."""
        return self._loop.call(
            self._client.repair(matrices, states=states, rank=rank, noise=noise, arrays=arrays, progress=progress)
        )

    def align(
        self,
        reference: ArrayLike,
        *,
        vectors: ArrayLike | None = None,
        factors: ArrayLike | None = None,
        arrays: bool = True,
    ) -> Found[Alignment]:
        """Turn `vectors` by their phase, or `factors` by a unitary among their rows, towards a reference."""
        return self._loop.call(self._client.align(reference, vectors=vectors, factors=factors, arrays=arrays))

    def build_code(self, experiment: Experiment, *, dem: bool = False) -> CodeBuilt:
        """The sizes of a memory experiment, and its detector error model where asked for."""
        return self._loop.call(self._client.build_code(experiment, dem=dem))

    def sample_code(self, experiment: Experiment, shots: int, *, seed: int | None = None) -> CodeSampled:
        """Draw shots of a memory experiment, as b8."""
        return self._loop.call(self._client.sample_code(experiment, shots, seed=seed))

    def decode_shots(
        self,
        detectors: bytes | NDArray[np.uint8],
        *,
        experiment: Experiment | None = None,
        dem: str | None = None,
        observables: bytes | NDArray[np.uint8] | None = None,
        window: int | None = None,
        commit: int | None = None,
        progress: Progress | None = None,
    ) -> ShotsDecoded:
        """Which observables flipped, from whole shots of detection events (b8); rounds that stream in: `decode`."""
        given: dict[str, Any] = {"experiment": experiment, "dem": dem, "observables": observables}
        work = self._client.decode_shots(detectors, **given, window=window, commit=commit, progress=progress)
        return self._loop.call(work)

    def submit(self, order: Order) -> SyncOperation:
        """Begin an order as an operation, whatever its size: an order of `service_orders`, or its fields with `op`."""
        return SyncOperation(self._loop, self._loop.call(self._client.submit(order)))

    def operation(self, id: str) -> SyncOperation:
        """An operation by its id."""
        return SyncOperation(self._loop, self._client.operation(id))

    def operations(self) -> tuple[OperationView, ...]:
        """Every operation that the server keeps, newest first, without results."""
        return self._loop.call(self._client.operations())

    def services(self) -> list[Json]:
        """Where each service runs, with how many replicas, and what waits for it."""
        return self._loop.call(self._client.services())
