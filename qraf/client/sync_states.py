"""The synchronous twin of `states`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from numpy.typing import ArrayLike

from qraf.client.states import Other, StateArrays, StatesApi, Steps
from qraf.client.sync_parts import LoopThread
from qraf.state_orders import (
    MEASURES,
    Comparison,
    Format,
    Into,
    Measure,
    Measurement,
    Preparation,
    StatePage,
    StateView,
)

__all__ = ["SyncStatesApi"]


class SyncStatesApi:
    """`/v1/state`, for programs without an event loop."""

    def __init__(self, loop: LoopThread, api: StatesApi) -> None:
        self._loop, self._api = loop, api

    def prepare(
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
        return self._loop.call(
            self._api.prepare(
                preparation,
                amplitudes=amplitudes,
                density=density,
                factor=factor,
                kets=kets,
                probabilities=probabilities,
                text=text,
                counts=counts,
                circuit=circuit,
                named=named,
                packet=packet,
                state=state,
                dims=dims,
                normalize=normalize,
                label=label,
                id=id,
            )
        )

    def prepare_many(self, preparations: Iterable[Preparation | Mapping[str, Any]]) -> tuple[StateView, ...]:
        """Make many states in one call: all or none. Each is a `Preparation` or its fields."""
        return self._loop.call(self._api.prepare_many(preparations))

    def list(self, *, limit: int = 50, cursor: str | None = None) -> StatePage:
        """A page of states, oldest first; `next_cursor` leads to the next page."""
        return self._loop.call(self._api.list(limit=limit, cursor=cursor))

    def get(self, state: str) -> StateView:
        """A state's figures with their certificate."""
        return self._loop.call(self._api.get(state))

    def measure(
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
        return self._loop.call(
            self._api.measure(
                state,
                vectors=vectors,
                basis=basis,
                observable=observable,
                paulis=paulis,
                subsystems=subsystems,
                shots=shots,
                seed=seed,
            )
        )

    def measure_many(
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
        return self._loop.call(
            self._api.measure_many(
                states,
                vectors=vectors,
                basis=basis,
                observable=observable,
                paulis=paulis,
                subsystems=subsystems,
                shots=shots,
                seed=seed,
            )
        )

    def evolve(
        self,
        state: str,
        *steps: Steps,
        into: Into = "same",
        loss: float = 0.0,
        version: int | None = None,
    ) -> StateView:
        """Send a state through steps: `{"channel": "dephasing", "p": 0.1}`, `{"unitary": U, "subsystems": [0]}`, ..."""
        return self._loop.call(self._api.evolve(state, *steps, into=into, loss=loss, version=version))

    def evolve_many(
        self,
        states: Sequence[str],
        *steps: Steps,
        into: Into = "same",
        loss: float = 0.0,
        versions: Sequence[int] | None = None,
    ) -> tuple[StateView, ...]:
        """Send many states through the same steps, in one call: all or none."""
        return self._loop.call(self._api.evolve_many(states, *steps, into=into, loss=loss, versions=versions))

    def merge(
        self,
        state: str,
        *others: Other,
        weights: Sequence[float] | None = None,
        into: Into = "same",
        loss: float = 0.0,
        version: int | None = None,
    ) -> StateView:
        """Mix with others; `weights` has the state's own first."""
        return self._loop.call(self._api.merge(state, *others, weights=weights, into=into, loss=loss, version=version))

    def tensor(self, state: str, *others: Other, into: Into = "new", version: int | None = None) -> StateView:
        """The product with others; this state's subsystems vary slowest."""
        return self._loop.call(self._api.tensor(state, *others, into=into, version=version))

    def partial_trace(
        self, state: str, keep: Sequence[int], *, into: Into = "new", version: int | None = None
    ) -> StateView:
        """Keep these subsystems."""
        return self._loop.call(self._api.partial_trace(state, keep, into=into, version=version))

    def fork(self, state: str, *, label: str = "") -> StateView:
        """A copy of the state as it is now."""
        return self._loop.call(self._api.fork(state, label=label))

    def compare(self, a: Other, b: Other, *, measures: Sequence[Measure] = MEASURES) -> Comparison:
        """Fidelity, trace distance and Bures distance of two states, stored (id) or prepared (`{"named": "bell"}`)."""
        return self._loop.call(self._api.compare(a, b, measures=measures))

    def compare_many(
        self, pairs: Iterable[tuple[Other, Other]], *, measures: Sequence[Measure] = MEASURES
    ) -> tuple[Comparison, ...]:
        """Compare many pairs in one call."""
        return self._loop.call(self._api.compare_many(pairs, measures=measures))

    def export(self, state: str, format: Format = "msgpack") -> bytes:
        """The state as a file: `msgpack` or `npz` (both come back by `packet=`), or `json`."""
        return self._loop.call(self._api.export(state, format))

    def arrays(self, state: str) -> StateArrays:
        """The state's numbers."""
        return self._loop.call(self._api.arrays(state))

    def delete(self, state: str, *, version: int | None = None) -> None:
        """Delete a state."""
        return self._loop.call(self._api.delete(state, version=version))
