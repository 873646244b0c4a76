"""Rounds of detectors over the socket: committed while they come in, in order, bounded, and every wrong one named."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import numpy as np
import pytest

from qraf.codes.experiment import Experiment, Noise, dem, sample
from qraf.codes.window import WindowDecoder, WindowPlan
from tests.gateway.conftest import serving
from tests.gateway.wire import Wire

pytestmark = pytest.mark.slow  # a whole service

CODE = {"code": "rotated_surface", "distance": 3, "rounds": 12, "noise": 0.01}
EXPERIMENT = Experiment("rotated_surface", 3, 12, Noise.uniform(0.01))
DEM = "error(0.1) D0 L0\nerror(0.1) D0 D1\nerror(0.1) D1\ndetector(0, 0) D0\ndetector(0, 1) D1\n"
OPEN: dict[str, Any] = {"type": "decode.open", "id": "o", "experiment": CODE}


def layers(shots: int, seed: int = 1) -> tuple[list[bytes], bytes]:
    """The rounds of some shots as b8, and the predictions of our own window decoder for them."""
    plan, drawn = WindowPlan.of(EXPERIMENT), sample(EXPERIMENT, shots, seed)
    bits = np.unpackbits(drawn.detectors, axis=1, bitorder="little", count=EXPERIMENT.num_detectors)
    parts = np.split(bits, np.cumsum(plan.layer_bits)[:-1], axis=1)
    local = WindowDecoder(plan, shots)
    local.push(drawn.detectors, plan.num_layers)
    found = local.finish().observables.tobytes()
    return [np.packbits(part, axis=1, bitorder="little").tobytes() for part in parts], found


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def rounds(stream: str, data: bytes, id: str = "r", **fields: Any) -> dict[str, Any]:
    return {"type": "decode.rounds", "id": id, "stream": stream, "detectors": text(data), **fields}


async def test_rounds_are_committed_as_they_come_and_the_end_comes_once(wire) -> None:
    opened = await wire.ask(OPEN | {"shots": 20, "count": True})
    assert opened["type"] == "decode.opened"
    assert (opened["rounds"], opened["detectors"]) == (13, [4, *[8] * 11, 4])
    assert (opened["window"], opened["commit"], opened["shots"], opened["num_observables"]) == (6, 3, 20, 1)
    assert opened["max_bytes"] == wire.welcome["limits"]["max_decode_bytes"]
    parts, found = layers(20)
    committed = []
    for index, part in enumerate(parts):
        answer = await wire.ask(rounds(opened["stream"], part, id=f"r{index}", start=index))
        assert (answer["type"], answer["id"], answer["seq"]) == ("decode.committed", f"r{index}", index + 1)
        assert answer["received"] == index + 1
        committed.append(answer["committed"])
    assert committed == [0] * 5 + [3] * 3 + [6] * 4 + [13]
    done = await wire.recv()
    assert (done["type"], done["status"], done["seq"]) == ("decode.done", "completed", 14)
    assert base64.b64decode(done["observables"]) == found == base64.b64decode(answer["observables"])
    assert (done["rounds"], done["committed"]) == (13, 13)
    assert 0 < done["corrections"] <= done["events"]
    assert 0 < done["ms_per_round"] < done["ms"]
    assert (await wire.ask({"type": "ping", "id": "p"}))["type"] == "pong"  # and nothing else came


async def test_frames_sent_ahead_are_taken_in_order_in_both_framings(server) -> None:
    parts, found = layers(50, seed=3)
    async with Wire(server.url, subprotocol="qraf.v1+msgpack") as wire:
        stream = (await wire.ask(OPEN | {"shots": 50}))["stream"]
        for index, part in enumerate(parts):
            await wire.send({"type": "decode.rounds", "id": f"r{index}", "stream": stream, "detectors": part})
        frames = await wire.until("decode.done")
        assert [frame["id"] for frame in frames[:-1]] == [f"r{index}" for index in range(13)]
        assert [frame["seq"] for frame in frames] == list(range(1, 15))
        assert frames[-1]["observables"] == found


async def test_several_rounds_in_one_frame_and_two_decoders_side_by_side(wire) -> None:
    plan, drawn = WindowPlan.of(EXPERIMENT), sample(EXPERIMENT, 4, 8)
    _, found = layers(4, seed=8)
    first, second = [(await wire.ask(OPEN | {"shots": 4}))["stream"] for _ in range(2)]
    await wire.send(rounds(first, drawn.detectors.tobytes(), rounds=plan.num_layers))
    await wire.send(rounds(second, drawn.detectors.tobytes(), id="s", rounds=plan.num_layers))
    frames = [await wire.recv() for _ in range(4)]
    ends = {frame["stream"]: frame for frame in frames if frame["type"] == "decode.done"}
    assert set(ends) == {first, second}
    assert {base64.b64decode(end["observables"]) for end in ends.values()} == {found}


async def test_a_model_of_ones_own_is_decoded(wire) -> None:
    opened = await wire.ask({"type": "decode.open", "id": "o", "dem": DEM, "window": 2, "commit": 1, "shots": 2})
    assert opened["detectors"] == [1, 1]
    await wire.ask(rounds(opened["stream"], bytes([1, 0])))
    answer = await wire.ask(rounds(opened["stream"], bytes([0, 0])))
    assert answer["committed"] == 2
    done = await wire.recv()
    assert base64.b64decode(done["observables"]) == bytes([1, 0])
    text_of_code = await wire.ask({"type": "decode.open", "id": "o", "dem": str(dem(EXPERIMENT))})
    assert (text_of_code["rounds"], text_of_code["window"], text_of_code["commit"]) == (13, 20, 10)


async def test_wrong_rounds_are_named_and_change_nothing(wire) -> None:
    stream = (await wire.ask(OPEN | {"shots": 3}))["stream"]
    parts, found = layers(3, seed=2)
    for fields, pointer, says in (
        ({"detectors": text(parts[0][:-1])}, "/detectors", "must have 3 bytes, 1 byte for each shot: 4 bits"),
        ({"detectors": text(b"\xff" * 3)}, "/detectors", "must be 0 behind their 4 bits"),
        ({"detectors": "no base64!"}, "/detectors", "base64"),
        ({"rounds": 2}, "/detectors", "must have 6 bytes, 2 bytes for each shot: 12 bits"),
        ({"rounds": 14}, "/rounds", "must be 1 to 13, of 13 in all, but is 14"),
        ({"rounds": 0}, "/rounds", "must be 1 to"),
        ({"start": 1}, "/start", "must be 0, the rounds that came so far, but is 1"),
        ({"bits": 4}, "/bits", "unknown field"),
    ):
        error = await wire.ask(rounds(stream, parts[0]) | fields)
        assert (error["type"], error["id"], error["error"]["pointer"]) == ("error", "r", pointer), (fields, error)
        assert says in error["error"]["detail"]
    for part in parts:
        assert (await wire.ask(rounds(stream, part)))["type"] == "decode.committed"
    assert base64.b64decode((await wire.recv())["observables"]) == found
    late = await wire.ask(rounds(stream, parts[0]))
    assert (late["type"], late["error"]["code"]) == ("error", "not_found")


@pytest.mark.parametrize(
    ("fields", "pointer", "says"),
    [
        ({"experiment": CODE | {"code": "steane"}}, "/experiment/code", "steane"),
        ({"experiment": CODE | {"distance": 40}}, "/experiment/distance", "must be 2 to 25, but is 40"),
        ({"experiment": CODE | {"noise": 0.9}}, "/experiment/noise", "0.75"),
        ({"experiment": CODE | {"distance": 11, "rounds": 100}}, "/experiment", "may have 10,000 detectors"),
        ({"experiment": None}, "/experiment", "give one of"),
        ({"dem": DEM}, "/experiment", "give one of"),
        ({"experiment": None, "dem": DEM + "nonsense 1"}, "/dem", "line 6 must be a line of a detector error model"),
        ({"experiment": None, "dem": "error(0.1) D0 L0"}, "/dem", "give every detector its time"),
        ({"experiment": None, "dem": "error(0.1) D0 D1 D2 L0"}, "/dem", "flip at most two detectors"),
        ({"experiment": None, "dem": "error(0.1) D10000 L0"}, "/dem", "may have 10,000 detectors"),
        ({"window": 3, "commit": 3}, "/window", "must be at least 4"),
        ({"commit": 7}, "/commit", "must be 1 to the window of 6"),
        ({"shots": 0}, "/shots", "must be 1 to"),
        ({"shots": 900_000, "window": 20}, "/shots", "must be 1 to 838,860 for a window of 20"),
    ],
)
async def test_what_cannot_be_opened_is_named(wire, fields, pointer, says) -> None:
    error = await wire.ask(OPEN | fields)
    assert (error["type"], error["id"], error["error"]["pointer"]) == ("error", "o", pointer), error
    assert error["error"]["code"] == "invalid_request"
    assert says in error["error"]["detail"]
    assert (await wire.ask(OPEN))["type"] == "decode.opened"


async def test_a_shot_that_cannot_be_matched_ends_its_decoder_as_failed(wire) -> None:
    odd = "error(0.1) D0 D1 L0\ndetector(0, 0) D0\ndetector(0, 1) D1"
    stream = (await wire.ask({"type": "decode.open", "id": "o", "dem": odd}))["stream"]
    error = await wire.ask(rounds(stream, b"\x01", rounds=2))
    assert "perfect matching" in error["error"]["detail"]
    done = await wire.recv()
    assert (done["type"], done["status"]) == ("decode.done", "failed")


async def test_predicted_flips_are_metered(wire, http) -> None:
    async def counted() -> float:
        text = (await http.get("/metrics")).text
        lines = [line for line in text.splitlines() if line.startswith('qraf_corrections_total{kind="decoded"}')]
        return float(lines[0].split()[1]) if lines else 0.0

    before = await counted()
    stream = (await wire.ask({"type": "decode.open", "id": "o", "dem": DEM, "shots": 3}))["stream"]
    await wire.ask(rounds(stream, bytes([1, 0, 1]), rounds=2))
    assert base64.b64decode((await wire.recv())["observables"]) == bytes([1, 0, 1])
    assert await counted() == before + 2


async def test_closing_gives_up_in_order_and_once(wire) -> None:
    stream = (await wire.ask(OPEN))["stream"]
    parts, _ = layers(1)
    await wire.send(rounds(stream, parts[0]))
    await wire.send({"type": "decode.close", "id": "c", "stream": stream})
    await wire.send(rounds(stream, parts[1], id="late"))
    await wire.send({"type": "decode.close", "id": "d", "stream": stream})
    frames = {frame.get("id", "done"): frame for frame in [await wire.recv() for _ in range(5)]}
    assert frames["r"]["type"] == "decode.committed"
    assert frames["c"]["status"] == "accepted"
    assert frames["done"]["type"] == "decode.done"
    assert (frames["done"]["status"], frames["done"]["rounds"], frames["done"]["committed"]) == ("cancelled", 1, 0)
    assert frames["late"]["error"]["code"] == "not_found"
    assert frames["d"]["status"] == "not_found"


async def test_decoders_and_their_bytes_are_bounded_and_free_again(model) -> None:
    async with serving(model, max_decoders=2, max_open_decoders=3, max_decode_bytes=1024) as server:
        pool = server.app.state.gate.sockets._decoders
        async with Wire(server.url) as wire, Wire(server.url) as other:
            stream = (await wire.ask(OPEN | {"shots": 600}))["stream"]
            assert (await wire.ask(OPEN))["type"] == "decode.opened"
            error = (await wire.ask(OPEN))["error"]
            assert (error["code"], error["detail"]) == ("limit_exceeded", "`max_decoders` allows 2, but 3 came")
            assert (await other.ask(OPEN))["type"] == "decode.opened"
            error = (await other.ask(OPEN))["error"]
            assert (error["detail"], error["retryable"]) == ("`max_open_decoders` allows 3, but 4 came", True)
            assert pool.open == 3
            assert pool.reserved > 0
            parts, _ = layers(600)
            await wire.send(rounds(stream, parts[0], id="a", start=0))
            await wire.send(rounds(stream, parts[1], id="b", start=1))  # may come while the first one waits
            await wire.send(rounds(stream, parts[2], id="c", start=2))
            answers = {frame["id"]: frame for frame in [await wire.recv() for _ in range(3)]}
            assert answers["a"]["type"] == "decode.committed"
            for late in "bc":  # each was taken in its turn or refused by name, never out of turn
                if answers[late]["type"] == "error":
                    assert (
                        "max_decode_bytes" in answers[late]["error"]["detail"]
                        or answers[late]["error"]["pointer"] == "/start"
                    )
            large = (await wire.ask(rounds(stream, b"\0" * 1200, id="d", rounds=2)))["error"]
            assert (large["code"], large["retryable"]) == ("limit_exceeded", False)
        async with asyncio.timeout(15):
            while pool.open:
                await asyncio.sleep(0.01)
        assert pool.reserved == 0


async def test_decoders_hold_no_more_than_they_may_together(model) -> None:
    async with serving(model, max_open_decode_bytes=900_000) as server, Wire(server.url) as wire:
        large = (await wire.ask(OPEN | {"shots": 200_000}))["error"]
        assert "`max_open_decode_bytes` allows 900000" in large["detail"]
        assert not large["retryable"]
        assert (await wire.ask(OPEN))["type"] == "decode.opened"  # 96 detectors, about half of it
        assert (await wire.ask(OPEN))["error"]["retryable"]


async def test_a_long_decoding_keeps_nobody_waiting(server) -> None:
    async with Wire(server.url) as wire, Wire(server.url) as other:
        heavy = {"code": "rotated_surface", "distance": 7, "rounds": 28, "noise": 0.02}
        stream = (await wire.ask({"type": "decode.open", "id": "o", "experiment": heavy, "shots": 2000}))["stream"]
        experiment = Experiment("rotated_surface", 7, 28, Noise.uniform(0.02))
        drawn = sample(experiment, 2000, 0)
        bits = experiment.num_detectors
        assert len(drawn.detectors.tobytes()) == 2000 * -(-bits // 8)
        await wire.send(rounds(stream, drawn.detectors.tobytes(), rounds=29))
        loop, worst, pings = asyncio.get_running_loop(), 0.0, 0
        done = asyncio.create_task(wire.until("decode.done"))
        while not done.done():
            start = loop.time()
            await other.ask({"type": "ping", "id": "p"})
            worst, pings = max(worst, loop.time() - start), pings + 1
        took = (await done)[-1]["ms"] / 1000
        # the decoding itself is one call; the loop must have had many turns within it
        assert took > 0.2
        assert pings > 5
        assert worst < took
