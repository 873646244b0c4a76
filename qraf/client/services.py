"""Quantise, optimise, correct, and long jobs: NumPy arrays in, records and arrays out.

A call whose work is long is followed as an operation until it ends; cancelling the call cancels the operation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypeVar
from urllib.parse import quote

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from qraf.client.rest import Json, Rest
from qraf.client.states import Other, array_data, wire
from qraf.code_orders import (
    BuildCode,
    CodeBuilt,
    CodeExperiment,
    CodeSampled,
    DecodeShots,
    SampleCode,
    ShotsDecoded,
)
from qraf.errors import InvalidRequest, ServerError
from qraf.service_orders import (
    Aligned,
    Alignment,
    Code,
    Coding,
    Dequantize,
    Dequantized,
    NearestState,
    NearestStates,
    OperationResult,
    OperationView,
    Quantized,
    Recompressed,
    Repaired,
    RepairedState,
    ServiceOrder,
    Truncated,
    TruncatedState,
)
from qraf.state_orders import ArrayData, StateOrder

__all__ = ["Experiment", "Found", "Operation", "Order", "Progress", "ServiceCalls", "ServicesApi", "array_of"]

Result = TypeVar("Result")
Answer = TypeVar("Answer")
Experiment: TypeAlias = CodeExperiment | Mapping[str, Any]
Progress: TypeAlias = Callable[[float], None]
Order: TypeAlias = ServiceOrder | StateOrder | Mapping[str, Any]

_FIRST_WAIT_S, _MOST_WAIT_S = 0.05, 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Found(Generic[Result]):
    """What a batch gave: a record and, where asked for, an array for each matrix, state or vector, in order."""

    results: tuple[Result, ...]
    arrays: tuple[NDArray[Any], ...]


def array_of(numbers: ArrayData) -> NDArray[Any]:
    """The array of numbers that came over the wire.

    >>> array_of(ArrayData(real=[[1.0, 0.0]], imag=[[0.0, 2.0]]))
    array([[1.+0.j, 0.+2.j]])
    """
    if numbers.data is not None:
        dtype = np.dtype(numbers.dtype).newbyteorder("<")
        array: NDArray[Any] = np.frombuffer(numbers.data, dtype).reshape(numbers.shape or ())
        return array.astype(dtype.newbyteorder("="))
    real = np.asarray(numbers.real, np.float64)
    return real if numbers.imag is None else real + 1j * np.asarray(numbers.imag, np.float64)


class Operation:
    """A long job at the server."""

    def __init__(self, rest: Rest, id: str) -> None:
        self._rest, self.id = rest, id

    async def status(self) -> OperationView:
        """How far it is; completed, with its result."""
        return _view(await self._rest.call("GET", f"/v1/operations/{self.id}"))

    async def result(self, progress: Progress | None = None) -> OperationResult:
        """Wait for the end and give the answer; `progress` is told the share that is done, 0 to 1.

        Cancel: the job goes on; `cancel` stops it.

        Raises:
            ServerError: it failed, or was cancelled (`cancelled`).
        """
        wait_s = _FIRST_WAIT_S
        while True:
            view = await self.status()
            if progress is not None:
                progress(view.progress)
            if view.result is not None:
                return view.result
            if view.error is not None:
                fault = view.error
                raise ServerError(fault.code, fault.detail, fault.pointer, fault.retryable, fault.retry_after_ms)
            if view.status == "cancelled":
                raise ServerError("cancelled", f"operation '{self.id}' was cancelled")
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _MOST_WAIT_S)

    async def cancel(self) -> OperationView:
        """Stop it before its next part. Harmless when late."""
        return _view(await self._rest.call("POST", f"/v1/operations/{self.id}/cancel"))

    async def drop(self) -> OperationView:
        """Stop it, and let the server forget it with its result."""
        return _view(await self._rest.call("DELETE", f"/v1/operations/{self.id}"))


class ServiceCalls:
    """The services as methods of a client. `progress` is told how far a long job is, 0 to 1."""

    _rest: Rest

    # ------------------------------------------------------------------------------------------------ quantize
    async def quantize(
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
        given = {"rows": _array(rows), "states": states, "code": code, "rotate": rotate, "group": group}
        return await self._ask("/v1/quantize", {**given, "return": codes}, Quantized, progress)

    async def dequantize(self, coded: Quantized) -> NDArray[np.float32]:
        """The decoded rows (n, d) of a quantisation in one code that was asked for its `codes`."""
        return await self.decode_rows(*_only(coded))

    async def decode_rows(
        self, codes: bytes, d: int, code: Code, rotate: bool | None = None, group: int = 64
    ) -> NDArray[np.float32]:
        """The amplitudes of coded rows, (n, d) float32."""
        order = Dequantize(codes=codes, d=d, code=code, rotate=rotate, group=group, form="bytes")
        found = await self._ask("/v1/quantize/decode", msgspec.to_builtins(order), Dequantized, None)
        assert found.rows is not None
        return array_of(found.rows)

    # ------------------------------------------------------------------------------------------------ optimize
    async def nearest(
        self,
        matrices: ArrayLike | Sequence[ArrayLike] | None = None,
        *,
        states: Sequence[Other] | None = None,
        rank: int | None = None,
        arrays: bool = True,
        progress: Progress | None = None,
    ) -> Found[NearestState]:
        """The states nearest to matrices, (d, d) or (n, d, d) or a list; of at most `rank`."""
        body = {"op": "nearest", "matrices": _arrays(matrices), "states": states, "rank": rank, **_form(arrays)}
        found = await self._ask("/v1/optimize", body, NearestStates, progress)
        return Found(found.results, _found(one.density for one in found.results))

    async def truncate(
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
        given = {"states": states, "matrices": _arrays(matrices), "rank": rank, "loss": loss}
        found = await self._ask("/v1/optimize", {"op": "truncate", **given, **_form(arrays)}, Truncated, progress)
        return Found(found.results, _found(one.factor for one in found.results))

    async def recompress(
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
        given: Json = {"rank": rank, "session": session, "collection": collection, "sketches": sketches}
        given |= {"apply": True} if apply else {}
        form = {"form": "bytes" if packets else "none"}
        return await self._ask("/v1/optimize", {"op": "recompress", **given, **form}, Recompressed, progress)

    # ------------------------------------------------------------------------------------------------ correct
    async def repair(
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
        given = {"matrices": _arrays(matrices), "states": states, "rank": rank, "noise": noise}
        found = await self._ask("/v1/correct", {"op": "repair", **given, **_form(arrays)}, Repaired, progress)
        return Found(found.results, _found(one.density for one in found.results))

    async def align(
        self,
        reference: ArrayLike,
        *,
        vectors: ArrayLike | None = None,
        factors: ArrayLike | None = None,
        arrays: bool = True,
    ) -> Found[Alignment]:
        """Turn `vectors` by their phase, or `factors` by a unitary among their rows, towards a reference."""
        given = {"vectors": _array(vectors), "factors": _array(factors), "reference": _array(reference)}
        found = await self._ask("/v1/correct", {"op": "align", **given, **_form(arrays)}, Aligned, None)
        return Found(found.results, _found(one.aligned for one in found.results))

    async def build_code(self, experiment: Experiment, *, dem: bool = False) -> CodeBuilt:
        """The sizes of a memory experiment, and its detector error model where asked for."""
        order = BuildCode(experiment=_experiment(experiment), dem=dem)
        return await self._ask("/v1/correct", msgspec.to_builtins(order), CodeBuilt, None)

    async def sample_code(self, experiment: Experiment, shots: int, *, seed: int | None = None) -> CodeSampled:
        """Draw shots of a memory experiment, as b8."""
        order = SampleCode(experiment=_experiment(experiment), shots=shots, seed=seed)
        return await self._ask("/v1/correct", msgspec.to_builtins(order), CodeSampled, None)

    async def decode_shots(
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
        order = DecodeShots(
            experiment=None if experiment is None else _experiment(experiment),
            dem=dem,
            detectors=_b8(detectors),
            observables=None if observables is None else _b8(observables),
            window=window,
            commit=commit,
        )
        return await self._ask("/v1/correct", msgspec.to_builtins(order), ShotsDecoded, progress)

    # ------------------------------------------------------------------------------------------------ operations
    async def submit(self, order: Order) -> Operation:
        """Begin an order as an operation, whatever its size: a record of an order, or its fields with `op`.

        Orders of the services, and those on stored states that may take long: `prepare`, `measure`, `evolve`,
        `compare`, and of one state (`ids` of one) `merge`, `tensor`, `partial_trace`.
        """
        body = _body(order)
        path, headers = _path(body), {"prefer": "respond-async"}
        if path == "/v1/state":
            path, body, headers = _of_states(body, headers)
        view = _view(await self._rest.call("POST", path, body=body, headers=headers))
        return self.operation(view.id)

    def operation(self, id: str) -> Operation:
        """An operation by its id."""
        return Operation(self._rest, id)

    async def operations(self) -> tuple[OperationView, ...]:
        """Every operation that the server keeps, newest first, without results."""
        found = await self._rest.call("GET", "/v1/operations")
        return tuple(_view(one) for one in found["data"])

    async def services(self) -> list[Json]:
        """Where each service runs, with how many replicas, and what waits for it."""
        found = await self._rest.call("GET", "/v1/services")
        listed: list[Json] = found["data"]
        return listed

    async def _ask(self, path: str, body: Json, kind: type[Answer], progress: Progress | None) -> Answer:
        answer = await self._rest.call("POST", path, body=wire(body))
        if "kind" not in answer:
            operation = self.operation(_view(answer).id)
            try:
                found = await operation.result(progress)
            except asyncio.CancelledError:
                await asyncio.shield(operation.cancel())
                raise
            if not isinstance(found, kind):
                raise ServerError("protocol", f"the answer of operation '{operation.id}' is another one")
            return found
        return msgspec.convert(answer, kind)


class ServicesApi(ServiceCalls):
    """The services over REST alone, without a WebSocket."""

    def __init__(self, rest: Rest) -> None:
        self._rest = rest


def _view(answer: Any) -> OperationView:
    return msgspec.convert(answer, OperationView)


def _array(x: ArrayLike | None) -> Any:
    return None if x is None else array_data(x)


def _arrays(matrices: Any) -> Any:
    """One array for matrices of one shape, a list for others."""
    if matrices is None:
        return None
    if isinstance(matrices, list | tuple) and matrices and not isinstance(matrices[0], int | float | complex):
        found = [np.asarray(one) for one in matrices]
        if any(one.shape != found[0].shape for one in found):
            return [array_data(one) for one in found]
    return array_data(matrices)


def _form(arrays: bool) -> Json:
    return {"form": "bytes" if arrays else "none"}


def _found(numbers: Any) -> tuple[NDArray[Any], ...]:
    return tuple(array_of(one) for one in numbers if one is not None)


def _only(coded: Quantized) -> tuple[bytes, int, Code, bool, int]:
    if len(coded.codings) != 1:
        raise InvalidRequest("name a `code` when you quantise what you want to decode", "/code")
    coding: Coding = coded.codings[0]
    if coding.codes is None:
        raise InvalidRequest("quantise with `codes=True` to decode", "/return")
    return coding.codes, coded.d, coding.code, coding.rotate, coding.group


def _experiment(experiment: Experiment) -> CodeExperiment:
    return experiment if isinstance(experiment, CodeExperiment) else msgspec.convert(experiment, CodeExperiment)


def _b8(x: bytes | NDArray[np.uint8]) -> bytes:
    return x if isinstance(x, bytes) else np.ascontiguousarray(x, np.uint8).tobytes()


def _body(order: Order) -> Json:
    body: Json = msgspec.to_builtins(order) if isinstance(order, msgspec.Struct) else wire(order)
    return body


_ALIKE = ("prepare", "measure", "evolve", "compare")
_SINGLE = ("merge", "tensor", "partial_trace")


def _of_states(body: Json, headers: dict[str, str]) -> tuple[str, Json, dict[str, str]]:
    """Path, body and headers of an order on stored states."""
    fields = {name: value for name, value in body.items() if name != "op"}
    op = body["op"]
    if op in _ALIKE:
        return "/v1/state" if op == "prepare" else f"/v1/state/{op}", fields, headers
    ids, versions = fields.pop("ids", ()), fields.pop("versions", None)
    if len(ids) != 1:
        raise InvalidRequest("must name one state", "/ids")
    match = {} if versions is None else {"if-match": f'"{versions[0]}"'}
    return f"/v1/state/{quote(ids[0], safe='')}/{op}", fields, headers | match


def _path(body: Json) -> str:
    if body.get("op") in (*_ALIKE, *_SINGLE):
        return "/v1/state"
    paths: dict[Any, Literal["/v1/quantize", "/v1/quantize/decode", "/v1/optimize", "/v1/correct"]] = {
        "quantize": "/v1/quantize",
        "dequantize": "/v1/quantize/decode",
        "nearest": "/v1/optimize",
        "truncate": "/v1/optimize",
        "recompress": "/v1/optimize",
    }
    return paths.get(body.get("op"), "/v1/correct")
