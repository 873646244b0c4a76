"""`/v1/state` for Python: NumPy arrays in, records and arrays out."""

from __future__ import annotations

import builtins
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from qraf.client.rest import Json, Rest
from qraf.errors import InvalidRequest
from qraf.state_orders import (
    MEASURES,
    ArrayData,
    Compared,
    Comparison,
    Format,
    Into,
    Measure,
    Measured,
    Measurement,
    Operand,
    Preparation,
    StatePage,
    StateView,
    StateViews,
    Step,
)

__all__ = ["StateArrays", "StatesApi", "array_data", "wire"]

Steps: TypeAlias = Step | Mapping[str, Any]
Other: TypeAlias = str | Operand | Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class StateArrays:
    """A state's numbers: `factor` L (r, d) with rho = L^H L, subsystem sizes, and `rho` for d up to 1024."""

    factor: NDArray[Any]
    dims: tuple[int, ...]
    rho: NDArray[Any] | None


class StatesApi:
    """Stored states. What changes one takes `version`: then it is changed in that version only (`version_conflict`)."""

    def __init__(self, rest: Rest) -> None:
        self._rest = rest

    async def prepare(
        self,
        preparation: Preparation | Mapping[str, Any] | None = None,
        *,
        amplitudes: ArrayLike | None = None,
        density: ArrayLike | None = None,
        factor: ArrayLike | None = None,
        kets: ArrayLike | None = None,
        probabilities: ArrayLike | None = None,
        text: str | None = None,
        counts: Mapping[str, Mapping[str, int]] | None = None,
        circuit: str | None = None,
        named: str | None = None,
        packet: bytes | None = None,
        state: str | None = None,
        dims: Sequence[int] | None = None,
        normalize: bool = False,
        label: str = "",
        id: str | None = None,
    ) -> StateView:
        """Make a state from a whole preparation, or from one of the arguments up to `state`.

        `kets` may have `probabilities`. With an `id` of your own (`st_...`) the call may be repeated.
        """
        ensemble = None if kets is None else {"kets": kets, "probabilities": probabilities}
        given: dict[str, Any] = {
            "amplitudes": amplitudes,
            "density": density,
            "factor": factor,
            "ensemble": ensemble,
            "text": text,
            "counts": counts,
            "circuit": circuit,
            "named": named,
            "packet": packet,
            "state": state,
            "dims": dims,
        }
        given |= {"normalize": normalize or None, "label": label or None, "id": id}
        whole = {} if preparation is None else wire(preparation)
        return await self._call("POST", "", StateView, whole | wire(given))

    async def prepare_many(self, preparations: Iterable[Preparation | Mapping[str, Any]]) -> tuple[StateView, ...]:
        """Make many states in one call: all or none. Each is a `Preparation` or its fields."""
        found = await self._call("POST", "", StateViews, {"states": builtins.list(preparations)})
        return found.states

    async def list(self, *, limit: int = 50, cursor: str | None = None) -> StatePage:
        """A page of states, oldest first; `next_cursor` leads to the next page."""
        return msgspec.convert(await self._rest.call("GET", "/v1/state", limit=limit, cursor=cursor), StatePage)

    async def get(self, state: str) -> StateView:
        """A state's figures with their certificate."""
        return await self._call("GET", _path(state), StateView)

    async def measure(
        self,
        state: str,
        *,
        vectors: ArrayLike | None = None,
        basis: str | ArrayLike | None = None,
        observable: ArrayLike | None = None,
        paulis: Mapping[str, float] | None = None,
        subsystems: Sequence[int] | None = None,
        shots: int | None = None,
        seed: int | None = None,
    ) -> Measurement:
        """Born probabilities of `vectors`, of a `basis` (with samples), or mean and variance of an observable."""
        given = _measuring(vectors, basis, observable, paulis, subsystems, shots, seed)
        return await self._call("POST", f"{_path(state)}/measure", Measurement, given)

    async def measure_many(
        self,
        states: Sequence[str],
        *,
        vectors: ArrayLike | None = None,
        basis: str | ArrayLike | None = None,
        observable: ArrayLike | None = None,
        paulis: Mapping[str, float] | None = None,
        subsystems: Sequence[int] | None = None,
        shots: int | None = None,
        seed: int | None = None,
    ) -> tuple[Measurement, ...]:
        """Measure many states in the same way, in one call."""
        given = _measuring(vectors, basis, observable, paulis, subsystems, shots, seed)
        found = await self._call("POST", "/measure", Measured, {"ids": builtins.list(states), **given})
        return found.results

    async def evolve(
        self,
        state: str,
        *steps: Steps,
        into: Into = "same",
        loss: float = 0.0,
        version: int | None = None,
    ) -> StateView:
        """Send a state through steps: `{"channel": "dephasing", "p": 0.1}`, `{"unitary": U, "subsystems": [0]}`, ..."""
        given = {"steps": builtins.list(steps), "into": into, "loss": loss}
        return await self._call("POST", f"{_path(state)}/evolve", StateView, given, version)

    async def evolve_many(
        self,
        states: Sequence[str],
        *steps: Steps,
        into: Into = "same",
        loss: float = 0.0,
        versions: Sequence[int] | None = None,
    ) -> tuple[StateView, ...]:
        """Send many states through the same steps, in one call: all or none."""
        given = {"ids": states, "steps": builtins.list(steps), "into": into, "loss": loss, "versions": versions}
        return (await self._call("POST", "/evolve", StateViews, given)).states

    async def merge(
        self,
        state: str,
        *others: Other,
        weights: Sequence[float] | None = None,
        into: Into = "same",
        loss: float = 0.0,
        version: int | None = None,
    ) -> StateView:
        """Mix with others; `weights` has the state's own first."""
        given = {"others": others, "weights": weights, "into": into, "loss": loss}
        return await self._call("POST", f"{_path(state)}/merge", StateView, given, version)

    async def tensor(self, state: str, *others: Other, into: Into = "new", version: int | None = None) -> StateView:
        """The product with others; this state's subsystems vary slowest."""
        given = {"others": others, "into": into}
        return await self._call("POST", f"{_path(state)}/tensor", StateView, given, version)

    async def partial_trace(
        self, state: str, keep: Sequence[int], *, into: Into = "new", version: int | None = None
    ) -> StateView:
        """Keep these subsystems."""
        given = {"keep": keep, "into": into}
        return await self._call("POST", f"{_path(state)}/partial_trace", StateView, given, version)

    async def fork(self, state: str, *, label: str = "") -> StateView:
        """A copy of the state as it is now."""
        return await self._call("POST", f"{_path(state)}/fork", StateView, {"label": label})

    async def compare(self, a: Other, b: Other, *, measures: Sequence[Measure] = MEASURES) -> Comparison:
        """Fidelity, trace distance and Bures distance of two states, stored (id) or prepared (`{"named": "bell"}`)."""
        return (await self.compare_many([(a, b)], measures=measures))[0]

    async def compare_many(
        self, pairs: Iterable[tuple[Other, Other]], *, measures: Sequence[Measure] = MEASURES
    ) -> tuple[Comparison, ...]:
        """Compare many pairs in one call."""
        given = {"pairs": builtins.list(pairs), "measures": builtins.list(measures)}
        return (await self._call("POST", "/compare", Compared, given)).results

    async def export(self, state: str, format: Format = "msgpack") -> bytes:
        """The state as a file: `msgpack` or `npz` (both come back by `packet=`), or `json`."""
        return await self._rest.file(f"/v1/state{_path(state)}/export", format=format)

    async def arrays(self, state: str) -> StateArrays:
        """The state's numbers."""
        with np.load(io.BytesIO(await self.export(state, "npz")), allow_pickle=False) as file:
            rho = file["rho"] if "rho" in file.files else None
            return StateArrays(file["factor"], tuple(int(size) for size in file["dims"]), rho)

    async def delete(self, state: str, *, version: int | None = None) -> None:
        """Delete a state."""
        await self._rest.call("DELETE", f"/v1/state{_path(state)}", headers=_if_match(version))

    async def _call(
        self, method: str, path: str, kind: type[T], given: Mapping[str, Any] | None = None, version: int | None = None
    ) -> T:
        body = None if given is None else wire({name: value for name, value in given.items() if value is not None})
        answer = await self._rest.call(method, f"/v1/state{path}", body=body, headers=_if_match(version))
        return msgspec.convert(answer, kind)


def array_data(x: ArrayLike) -> ArrayData:
    """An array as it goes over the wire, exact: float32, float64, complex64, complex128; whole numbers as float64.

    Raises:
        InvalidRequest: it holds no numbers.
    """
    array = np.asarray(x)
    if array.dtype.kind not in "biufc":
        raise InvalidRequest(f"an array must hold numbers, but holds {array.dtype}")
    name = array.dtype.name if array.dtype.name in ("float32", "float64", "complex64", "complex128") else ""
    if not name:
        name = "complex128" if array.dtype.kind == "c" else "float64"
    array = np.ascontiguousarray(array, np.dtype(name).newbyteorder("<"))
    return ArrayData(data=array.tobytes(), shape=array.shape, dtype=name)  # type: ignore[arg-type]


def wire(value: Any) -> Any:
    """What a request holds as JSON can say it: arrays and nested complex numbers as `ArrayData`."""
    if isinstance(value, np.ndarray):
        return msgspec.to_builtins(array_data(value))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(name): wire(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        is_array = _has_complex(value) or any(isinstance(inner, np.ndarray) for inner in value)
        return msgspec.to_builtins(array_data(value)) if is_array else [wire(inner) for inner in value]
    if hasattr(value, "__array__"):  # a tensor
        return wire(np.asarray(value))
    return msgspec.to_builtins(value)


def _has_complex(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_has_complex(inner) for inner in value)
    return isinstance(value, complex | np.complexfloating)


def _measuring(
    vectors: ArrayLike | None,
    basis: str | ArrayLike | None,
    observable: ArrayLike | None,
    paulis: Mapping[str, float] | None,
    subsystems: Sequence[int] | None,
    shots: int | None,
    seed: int | None,
) -> Json:
    given = {"vectors": vectors, "basis": basis, "observable": observable, "paulis": paulis}
    given |= {"subsystems": subsystems, "shots": shots, "seed": seed}
    return {name: value for name, value in given.items() if value is not None}


def _path(state: str) -> str:
    return f"/{quote(state, safe='')}"


def _if_match(version: int | None) -> dict[str, str] | None:
    return None if version is None else {"If-Match": f'"{version}"'}
