"""Quantise, optimise, correct through the client, against a real server: NumPy in, records and arrays out."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

import qraf
from qraf.client.services import array_of
from qraf.errors import InvalidRequest, ServerError
from qraf.service_orders import Nearest, NearestStates
from qraf.state_orders import ArrayData

pytestmark = pytest.mark.slow  # a whole service

rng = np.random.default_rng(2)


async def test_rows_are_quantised_and_come_back(url: str) -> None:
    rows = rng.normal(size=(3, 384)).astype(np.float32)
    async with qraf.connect(url) as q:
        table = await q.quantize(rows)
        assert len({coding.code for coding in table.codings}) == 6
        coded = await q.quantize(rows, code="int8", codes=True)
        back = await q.dequantize(coded)
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        assert np.abs(back - unit).max() < 0.01
        with pytest.raises(InvalidRequest, match="name a `code`"):
            await q.dequantize(table)
        with pytest.raises(ServerError) as fault:
            await q.quantize(np.zeros((2, 4)))
        assert fault.value.pointer == "/rows/0"


async def test_matrices_are_repaired_optimised_and_aligned(url: str) -> None:
    mu = np.stack([np.diag([1.25, -0.25]), np.diag([0.9, 0.1])]) + 0j
    async with qraf.connect(url) as q:
        bell = await q.state.prepare(named="bell")
        nearest = await q.nearest(mu)
        np.testing.assert_allclose(nearest.arrays[0], np.diag([1, 0]), atol=1e-12)
        mixed = await q.nearest([np.eye(2), np.eye(3)])
        assert [one.d for one in mixed.results] == [2, 3]
        repaired = await q.repair(mu[0], noise=0.3)
        assert repaired.results[0].syndromes.found == ("negativity",)
        assert repaired.results[0].bound == pytest.approx(1.0)
        truncated = await q.truncate([bell.id, {"density": np.diag([0.7, 0.3])}], rank=1, arrays=False)
        assert [round(one.moved, 9) for one in truncated.results] == [0, 0.3]
        assert truncated.arrays == ()
        aligned = await q.align([0.6, 0.8], vectors=[0.6j, 0.8j])
        np.testing.assert_allclose(aligned.arrays[0], [0.6, 0.8], atol=1e-12)


async def test_a_long_job_is_followed_and_cancelling_the_call_cancels_it(url: str) -> None:
    mu = rng.normal(size=(10, 64, 64))
    async with qraf.connect(url) as q:
        operation = await q.submit(Nearest(matrices=ArrayData(data=mu.tobytes(), shape=mu.shape, dtype="float64")))
        seen: list[float] = []
        answer = await operation.result(seen.append)
        assert isinstance(answer, NearestStates)
        assert len(answer.results) == 10
        assert seen[-1] == 1.0
        assert (await operation.status()).status == "completed"
        assert operation.id in [one.id for one in await q.operations()]
        await operation.drop()
        with pytest.raises(ServerError) as gone:
            await q.operation(operation.id).status()
        assert gone.value.error_code == "not_found"

        large = rng.normal(size=(9, 512, 512))  # above the size that is stated for a direct answer
        call = asyncio.create_task(q.nearest(large, arrays=False))
        while not (running := [one for one in await q.operations() if one.status == "running"]):
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (await q.operation(running[0].id).status()).status == "cancelled"
        with pytest.raises(ServerError) as stopped:
            await q.operation(running[0].id).result()
        assert stopped.value.error_code == "cancelled"


async def test_codes_are_built_drawn_and_decoded(url: str) -> None:
    experiment = {"code": "repetition", "distance": 5, "rounds": 4, "noise": 0.02}
    async with qraf.connect(url) as q:
        built = await q.build_code(experiment)
        drawn = await q.sample_code(experiment, 100, seed=7)
        assert len(drawn.detectors) == 100 * built.bytes_per_shot
        decoded = await q.decode_shots(drawn.detectors, experiment=experiment, observables=drawn.observables)
        assert decoded.shots == 100
        assert decoded.errors is not None
        assert decoded.errors.rate < 0.1


def test_the_synchronous_twin_does_the_same(url: str) -> None:
    with qraf.connect_sync(url) as q:
        coded = q.quantize([[0.6, 0.8]], code="int8", codes=True)
        assert q.dequantize(coded) == pytest.approx(np.array([[0.6, 0.8]]), abs=0.01)
        assert q.repair(np.diag([1.25, -0.25])).results[0].moved == pytest.approx(0.25)
        assert q.nearest([[1.25, 0], [0, -0.25]]).arrays[0].tolist() == [[1, 0], [0, 0]]
        assert q.truncate(matrices=np.diag([0.7, 0.3]), loss=0.5).results[0].rank == 1
        assert q.align([1, 0], vectors=[-1, 0]).results[0].after == 0
        experiment = {"code": "repetition", "distance": 3, "rounds": 2, "noise": 0.1}
        drawn = q.sample_code(experiment, 10, seed=1)
        assert q.build_code(experiment).bytes_per_shot * 10 == len(drawn.detectors)
        assert q.decode_shots(drawn.detectors, experiment=experiment).shots == 10
        operation = q.submit({"op": "repair", "matrices": np.diag([0.5, 0.5])})
        assert operation.result() == operation.status().result
        assert q.operation(operation.id).cancel().status == "completed"
        assert len(q.operations()) >= 1
        operation.drop()
        assert {one["name"] for one in q.services()} == {"optimization", "correction"}


def test_arrays_come_back_from_each_form() -> None:
    assert array_of(ArrayData(real=[[1.0]], imag=[[2.0]])).tolist() == [[1 + 2j]]
    x = np.arange(6, dtype=np.complex64).reshape(2, 3)
    assert np.array_equal(array_of(ArrayData(data=x.tobytes(), shape=(2, 3), dtype="complex64")), x)
