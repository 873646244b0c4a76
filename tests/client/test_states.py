"""Stored states through the client, against a real server: NumPy in, records and arrays out."""

from __future__ import annotations

import numpy as np
import pytest

import qraf
from qraf.client.states import array_data, wire
from qraf.errors import InvalidRequest, ServerError
from qraf.state_orders import ArrayData, Preparation, Step

_PLUS = np.array([1, 1j]) / np.sqrt(2)


def test_arrays_keep_their_numbers_on_the_wire() -> None:
    for x in (np.float32([[1, 2]]), np.array([1, 2]), np.complex64([1j]), np.array([[1 + 2j, 3]])[:, ::-1], [1, 2j]):
        data = array_data(x)
        assert data.data is not None
        assert data.dtype is not None
        back = np.frombuffer(data.data, np.dtype(data.dtype).newbyteorder("<")).reshape(data.shape)
        assert np.array_equal(back, np.asarray(x))
    with pytest.raises(InvalidRequest):
        array_data(["one"])


def test_a_request_is_made_of_what_json_has() -> None:
    made = wire(
        {
            "steps": [Step(channel="dephasing", p=0.1), {"unitary": np.eye(2), "subsystems": (0,)}],
            "kets": [_PLUS, _PLUS],
            "weights": [np.float64(0.5), 0.5],
            "others": [Preparation(named="bell"), "st_1"],
            "label": None,
        }
    )
    assert made["steps"][0] == {"channel": "dephasing", "p": 0.1}
    assert made["steps"][1]["unitary"]["shape"] == (2, 2)
    assert made["kets"]["shape"] == (2, 2)
    assert made["weights"] == [0.5, 0.5]
    assert made["others"] == [{"named": "bell"}, "st_1"]
    assert "label" not in made
    assert isinstance(array_data([1j]), ArrayData)


@pytest.mark.slow  # a whole service
async def test_states_from_python(url: str) -> None:
    async with qraf.connect(url) as q:
        bell = await q.state.prepare(amplitudes=np.array([1, 0, 0, 1j]), dims=(2, 2), normalize=True, label="mine")
        assert (bell.version, bell.dims, bell.rank, bell.label) == (1, (2, 2), 1, "mine")
        assert bell.moved == pytest.approx(0.5)
        damped = await q.state.evolve(
            bell.id, {"channel": "amplitude_damping", "gamma": 0.5, "subsystems": [0]}, version=1
        )
        assert (damped.id, damped.version) == (bell.id, 2)
        with pytest.raises(ServerError) as caught:
            await q.state.evolve(bell.id, {"unitary": np.eye(4)}, version=1)
        assert caught.value.error_code == "version_conflict"
        compared = await q.state.compare(bell.id, {"amplitudes": np.array([1, 0, 0, 1j]) / np.sqrt(2), "dims": (2, 2)})
        assert compared.fidelity == pytest.approx((1 + np.sqrt(0.5)) ** 2 / 4, abs=1e-12)
        found = await q.state.measure(bell.id, vectors=np.eye(4, dtype=complex))
        assert found.probabilities == pytest.approx((0.5, 0.25, 0, 0.25), abs=1e-12)
        drawn = await q.state.measure(bell.id, basis="ZZ", shots=100, seed=1)
        assert sum((drawn.counts or {}).values()) == 100
        assert (await q.state.measure(bell.id, basis="ZZ", shots=100, seed=1)).counts == drawn.counts
        assert (await q.state.measure(bell.id, paulis={"ZI": 1.0})).mean == pytest.approx(0.5)
        arrays = await q.state.arrays(bell.id)
        assert arrays.rho is not None
        assert np.allclose(arrays.factor.conj().T @ arrays.factor, arrays.rho, atol=1e-15)
        assert arrays.dims == (2, 2)
        [copy] = await q.state.prepare_many([Preparation(packet=await q.state.export(bell.id))])
        assert (await q.state.compare(copy.id, bell.id)).trace_distance == pytest.approx(0, abs=1e-12)
        part = await q.state.partial_trace(bell.id, [1])
        both = await q.state.tensor(part.id, {"named": "plus:1"}, copy.id)
        assert both.dims == (2, 2, 2, 2)
        mixed = await q.state.merge(part.id, {"named": "basis:0"}, weights=[0.5, 0.5])
        assert (mixed.id, mixed.version) == (part.id, 2)
        fork = await q.state.fork(part.id)
        assert fork.version == 1
        views = await q.state.evolve_many([part.id, fork.id], Step(channel="depolarizing", p=1.0))
        assert [view.figures.entropy_bits for view in views] == pytest.approx([1, 1])
        assert len(await q.state.measure_many([part.id, fork.id], basis="X")) == 2
        listed = (await q.state.list(limit=200)).data
        assert {bell.id, part.id, both.id, fork.id, copy.id} <= {view.id for view in listed}
        await q.state.delete(bell.id)
        with pytest.raises(ServerError) as caught:
            await q.state.get(bell.id)
        assert caught.value.error_code == "not_found"


@pytest.mark.slow  # a whole service
def test_the_twin_does_the_same(url: str) -> None:
    with qraf.connect_sync(url) as q:
        made = q.state.prepare(kets=np.eye(2), probabilities=[0.75, 0.25])
        assert q.state.get(made.id) == made
        assert q.state.measure(made.id, observable=np.diag([1.0, -1.0])).mean == pytest.approx(0.5)
        assert q.state.evolve(made.id, {"kraus": np.array([[[0, 1], [1, 0]]])}, into="new").id != made.id
        q.state.delete(made.id, version=1)
