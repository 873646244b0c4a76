"""Decoders of the client, asynchronous and synchronous, against the real server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import pytest
from numpy.typing import NDArray

import qraf
from qraf.code_orders import CodeExperiment
from qraf.codes.decoder import Decoder
from qraf.codes.experiment import Experiment, Noise, dem, sample
from qraf.codes.window import WindowPlan
from qraf.errors import ConnectionLost, InvalidRequest, ServerError

pytestmark = pytest.mark.slow  # a whole service

CODE = {"code": "rotated_surface", "distance": 3, "rounds": 9, "noise": 0.01}
EXPERIMENT = Experiment("rotated_surface", 3, 9, Noise.uniform(0.01))


def layers(shots: int) -> tuple[list[NDArray[np.bool_]], NDArray[np.bool_]]:
    drawn = sample(EXPERIMENT, shots, 5)
    bits = np.unpackbits(drawn.detectors, axis=1, count=EXPERIMENT.num_detectors, bitorder="little").astype(bool)
    parts = np.split(bits, np.cumsum(WindowPlan.of(EXPERIMENT).layer_bits)[:-1], axis=1)
    whole = Decoder.of(EXPERIMENT).decode(drawn.detectors).observables.astype(bool)
    return parts, whole


async def test_rounds_are_fed_ahead_and_decided_as_they_go(url: str) -> None:
    parts, whole = layers(300)

    async def source() -> AsyncIterator[NDArray[np.bool_]]:
        for part in parts:
            yield part

    async with qraf.connect(url) as q, q.decode(CODE, shots=300, count=True) as decoder:
        with pytest.raises(InvalidRequest, match="no prediction"):
            assert decoder.predictions is None
        committed = [answer.committed async for answer in decoder.feed(source())]
        # ten layers, windows of six, three committed: the last window takes seven
        assert committed == [0] * 5 + [3] * 4 + [10]
        assert decoder.done is not None
        assert decoder.done.corrections is not None
        assert 0 < decoder.done.corrections <= decoder.done.events
        assert decoder.predictions.shape == (300, 1)
        assert (decoder.predictions != whole).mean() < 0.02
        assert (await decoder.result()) is decoder.done


async def test_both_framings_and_every_form_of_rounds_give_the_same(url: str) -> None:
    parts, _ = layers(8)
    found = []
    packed = [np.packbits(part, axis=1, bitorder="little") for part in parts]
    async with qraf.connect(url) as q, qraf.connect(url, framing="json") as other:
        for client, rounds in ((q, parts), (q, packed), (other, [part.tobytes() for part in packed])):
            async with client.decode(CodeExperiment(**CODE), shots=8) as decoder:  # type: ignore[arg-type]
                for part in rounds:
                    await decoder.push(part)
                found.append((await decoder.result()).observables)
        drawn = sample(EXPERIMENT, 8, 5)
        async with q.decode(dem=str(dem(EXPERIMENT)), shots=8, window=6, commit=3) as decoder:
            await decoder.push(drawn.detectors, rounds=10)
            found.append((await decoder.result()).observables)
    assert len(set(found)) == 1


async def test_what_is_wrong_is_raised_where_it_was_sent(url: str) -> None:
    parts, _ = layers(2)
    async with qraf.connect(url) as q:
        with pytest.raises(ServerError) as refused:
            await q.decode(CODE | {"distance": 99}).__aenter__()
        assert refused.value.pointer == "/experiment/distance"
        with pytest.raises(InvalidRequest, match="unknown field `size`"):
            q.decode(CODE | {"size": 3})
        with pytest.raises(InvalidRequest, match="not open"):
            await q.decode(CODE).push(b"")
        with pytest.raises(ServerError, match="nonsense") as refused:
            await q.decode(dem="nonsense").__aenter__()
        assert refused.value.pointer == "/dem"
        async with q.decode(CODE, shots=2) as decoder:
            with pytest.raises(ServerError, match="must have 2 bytes") as refused:
                await decoder.push(b"\0")
            with pytest.raises(InvalidRequest, match="bool, or uint8"):
                await decoder.push(np.zeros((2, 4)))  # type: ignore[arg-type]
            with pytest.raises(
                InvalidRequest, match=r"must be \(2, 4\) of bool, .* of round 0, but is \(2, 3\)"
            ) as wrong:
                await decoder.push(parts[0][:, :3])  # as many bytes as four
            assert wrong.value.pointer == "/detectors"
            with pytest.raises(InvalidRequest, match="of rounds 0 to 1, but is"):
                await decoder.push(parts[0], rounds=2)
            with pytest.raises(InvalidRequest, match=r"of round 1, but is \(1, 8\)"):
                _ = [answer async for answer in decoder.feed([parts[0], parts[1][:1], *parts[2:]])]
            assert decoder.received == 1
            packed = [np.packbits(part, axis=1, bitorder="little") for part in parts]
            with pytest.raises(ServerError, match="must have 2 bytes"):
                _ = [answer async for answer in decoder.feed([packed[1], packed[2][:1], *packed[3:]])]
            assert decoder.received == 2
            for part in parts[2:]:
                await decoder.push(part)
            assert decoder.done is not None
            with pytest.raises(ServerError, match="no decoder"):
                await decoder.push(parts[0])


async def test_leaving_gives_the_decoder_up(url: str) -> None:
    async with qraf.connect(url) as q:
        most = q.welcome.limits.max_decoders
        for _ in range(2 * most):
            async with q.decode(CODE) as decoder:
                await decoder.push(b"\0")
        decoder = q.decode(CODE)
        await decoder.__aenter__()
    with pytest.raises(ConnectionLost):
        await decoder.push(b"\0")
    await decoder.__aexit__(None, None, None)


def test_the_synchronous_twin(url: str) -> None:
    parts, whole = layers(100)
    with qraf.connect_sync(url) as q, q.decode(CODE, shots=100) as decoder:
        assert decoder.opened.detectors == (4, *[8] * 8, 4)
        assert decoder.push(parts[0]).received == 1
        answers = list(decoder.feed(parts[1:]))
        assert (answers[-1].committed, decoder.received) == (10, 10)
        assert decoder.done is decoder.result()
        assert (decoder.predictions != whole).mean() < 0.02
