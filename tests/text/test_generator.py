"""The client of language models against a server that does everything servers do, and everything they should not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from qraf.errors import EngineFailed, LimitExceeded
from qraf.settings import GeneratorSettings
from qraf.text.generator import Endpoint, Generator, Piece, TokenUsage
from tests.openai_server import OpenAIServer, Script

QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it?"}]

Make = Callable[..., tuple[Generator, OpenAIServer]]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    opened: list[tuple[Generator, OpenAIServer]] = []

    def build(script: Script | None = None, *, api_key: str = "", **settings: Any) -> tuple[Generator, OpenAIServer]:
        server = OpenAIServer(script, api_key=api_key).__enter__()
        generator = Generator(lambda: server.endpoint, GeneratorSettings(**settings))
        opened.append((generator, server))
        return generator, server

    yield build
    for generator, server in opened:
        await generator.aclose()
        await asyncio.to_thread(server.__exit__)


async def read(generator: Generator, **choices: Any) -> list[Piece]:
    async with aclosing(generator.stream(QUESTION, **choices)) as pieces:
        return [piece async for piece in pieces]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_answer_comes_whole_and_in_order_with_the_servers_count(make: Make) -> None:
    generator, server = make()
    pieces = await read(generator, max_tokens=50)
    assert "".join(piece.text for piece in pieces) == server.script.text(50)
    assert sum(piece.tokens for piece in pieces) == 50
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1] == Piece("", 0, "length", TokenUsage(prompt_tokens=5, completion_tokens=50, cached_tokens=1))


async def test_request_carries_every_choice(make: Make) -> None:
    generator, server = make(api_key="secret")
    await read(generator, max_tokens=3, temperature=0.5, top_p=0.9, stop=["\n", "END"], seed=7)
    (request,) = server.requests
    assert request == {
        "messages": QUESTION,
        "max_tokens": 3,
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["\n", "END"],
        "seed": 7,
        "model": "scripted",
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_choices_that_were_not_made_are_not_sent(make: Make) -> None:
    generator, server = make()
    await read(generator)
    assert not {"stop", "seed"} & set(server.requests[0])


@pytest.mark.parametrize(
    "script",
    [
        Script(per_write=7),
        Script(words=("日本", "é", "\n", '"', "\\", "👩‍👧")),
        Script(newline=b"\r\n"),
        Script(has_done=False),
        Script(has_usage=False, has_done=False),
        Script(has_finish=False),
    ],
    ids=["merged", "unicode", "crlf", "no-done", "no-usage", "no-finish"],
)
async def test_dialects_of_the_protocol_give_the_same_text(make: Make, script: Script) -> None:
    generator, _ = make(script)
    pieces = await read(generator, max_tokens=20)
    assert "".join(piece.text for piece in pieces) == script.text(20)
    assert pieces[-1].finish_reason == ("length" if script.has_finish else "stop")
    assert (pieces[-1].usage is not None) == script.has_usage


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
async def test_events_may_be_cut_anywhere(size: int) -> None:
    events = (
        'data: {"choices":[{"delta":{"role":"assistant","content":null}}]}\n\n: ping\n\nevent: x\n'
        'data: {"choices":[{"delta":{"content":"é"}}]}\r\n\r\ndata:{"choices":[]}\n\n'
        'data: {"choices":[{"delta":{"content":"b"},"finish_reason":"stop"}],"timings":{"n":1}}\n\ndata: [DONE]\n\n'
    ).encode()
    async with _RawServer([events[at : at + size] for at in range(0, len(events), size)]) as generator:
        pieces = await read(generator)
    assert "".join(piece.text for piece in pieces) == "éb"
    assert pieces[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (Script(close_after=5), "connection lost"),
        (Script(error_after=5), "broke by script"),
        (Script(garbage_after=5), "not a chat chunk"),
        (Script(num_tokens=5, has_finish=False, has_done=False), "in the middle of an answer"),
    ],
    ids=["closed", "error", "garbage", "ended"],
)
async def test_a_break_in_the_stream_is_told_after_the_text_before_it(make: Make, script: Script, reason: str) -> None:
    generator, _ = make(script)
    pieces = generator.stream(QUESTION, max_tokens=50)
    text = ""
    while len(text) < len(script.text(5)):
        text += (await anext(pieces)).text
    with pytest.raises(EngineFailed, match=reason):
        await anext(pieces)
    assert text == script.text(5)
    assert generator.running == 0


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (400, '{"error":{"code":400,"message":"too long"}}', "HTTP 400: too long"),
        (404, '{"detail":"no model"}', "HTTP 404: no model"),
        (429, '{"object":"error","message":"busy"}', "HTTP 429: busy"),
        (500, "<html>oops</html>", "HTTP 500: <html>oops"),
        (500, "", "HTTP 500: no reason given"),
    ],
)
async def test_a_refusal_says_status_and_reason(make: Make, status: int, body: str, reason: str) -> None:
    generator, _ = make(Script(status=status, error_body=body))
    with pytest.raises(EngineFailed) as caught:
        await read(generator)
    assert caught.value.model == "scripted"
    assert caught.value.reason.startswith(reason)
    assert caught.value.retryable == (status != 400)


async def test_a_wrong_key_is_a_refusal(make: Make) -> None:
    generator, server = make(api_key="right")
    wrong = Generator(lambda: Endpoint(server.url, "m", "wrong"), GeneratorSettings())
    with pytest.raises(EngineFailed, match="Invalid API Key"):
        await read(wrong)
    await wrong.aclose()
    assert await read(generator, max_tokens=1)


async def test_nobody_listens() -> None:
    generator = Generator(lambda: Endpoint("http://127.0.0.1:9/v1", "m"), GeneratorSettings())
    with pytest.raises(EngineFailed, match=r"no answer from http://127\.0\.0\.1:9"):
        await read(generator)
    await generator.aclose()


async def test_silence_before_the_first_token_ends(make: Make) -> None:
    generator, server = make(Script(delay_s=30), first_token_timeout_s=0.1)
    with pytest.raises(EngineFailed, match="first_token_timeout_s"):
        await read(generator)
    await until(lambda: server.running == 0)


async def test_silence_between_tokens_ends(make: Make) -> None:
    generator, server = make(Script(stall_after=3), token_timeout_s=0.1)
    with pytest.raises(EngineFailed, match="token_timeout_s"):
        await read(generator)
    await until(lambda: server.running == 0)


@pytest.mark.slow
async def test_a_slow_reader_is_not_silence(make: Make) -> None:
    generator, _ = make(Script(per_write=2), token_timeout_s=0.5)
    text = ""
    async for piece in generator.stream(QUESTION, max_tokens=6):
        await asyncio.sleep(0 if text else 0.7)
        text += piece.text
    assert text == " t0 t1 t2 t3 t4 t5"


async def test_leaving_stops_the_model_within_one_token(make: Make) -> None:
    generator, server = make(Script(tokens_per_s=5))
    seen = 0
    async with aclosing(generator.stream(QUESTION, max_tokens=1000)) as pieces:
        async for piece in pieces:
            seen += piece.tokens
            if seen >= 2:
                break
    await until(lambda: server.running == 0)
    assert server.produced <= seen + 1
    assert generator.running == 0


async def test_cancelling_stops_the_model_within_one_token(make: Make) -> None:
    generator, server = make(Script(tokens_per_s=5))
    task = asyncio.create_task(read(generator, max_tokens=1000))
    await until(lambda: server.produced >= 1)
    produced = server.produced
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: server.running == 0)
    assert server.produced <= produced + 1


async def test_cancelling_before_the_first_token_closes_the_connection(make: Make) -> None:
    generator, server = make(Script(delay_s=30))
    task = asyncio.create_task(read(generator))
    await until(lambda: server.running == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: server.running == 0)
    assert server.produced == 0


async def test_no_more_than_slots_run_and_all_are_answered(make: Make) -> None:
    generator, server = make(Script(tokens_per_s=500), slots=2, max_waiting=8)
    answers = await asyncio.gather(*(read(generator, max_tokens=10) for _ in range(10)))
    assert all(sum(piece.tokens for piece in answer) == 10 for answer in answers)
    assert server.max_running == 2
    assert (generator.running, generator.waiting) == (0, 0)


async def test_more_than_may_wait_are_refused_at_once(make: Make) -> None:
    generator, server = make(Script(stall_after=1), slots=1, max_waiting=1)
    tasks = [asyncio.create_task(read(generator)) for _ in range(2)]
    await until(lambda: generator.waiting == 1 and server.running == 1)
    with pytest.raises(LimitExceeded) as caught:
        await read(generator)
    assert (caught.value.limit, caught.value.allowed, caught.value.got) == ("max_waiting", 1, 2)
    assert caught.value.retry_after_ms
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (generator.running, generator.waiting) == (0, 0)
    assert len(server.requests) == 1


async def test_waiting_for_a_slot_ends(make: Make) -> None:
    generator, server = make(Script(tokens_per_s=20), slots=1, first_token_timeout_s=0.5)
    first = asyncio.create_task(read(generator, max_tokens=1000))
    await until(lambda: server.running == 1)
    with pytest.raises(LimitExceeded, match="`slots` allows 1"):
        await read(generator)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


async def test_connections_are_kept_and_used_again(make: Make) -> None:
    generator, server = make()
    for _ in range(3):
        await read(generator, max_tokens=5)
    assert server.connections == 1


async def test_a_restarted_server_is_found_at_its_new_place(make: Make) -> None:
    _, first = make()
    _, second = make()
    places = [first.endpoint]
    generator = Generator(lambda: places[-1], GeneratorSettings())
    await read(generator, max_tokens=1)
    await asyncio.to_thread(first.__exit__)
    with pytest.raises(EngineFailed):
        await read(generator, max_tokens=1)
    places.append(second.endpoint)
    assert sum(piece.tokens for piece in await read(generator, max_tokens=4)) == 4
    await generator.aclose()


def test_a_key_is_not_shown() -> None:
    assert "secret" not in repr(Endpoint("http://x/v1", "m", "secret"))


class _RawServer:
    """Sends the given chunks, one write each, to whoever asks."""

    def __init__(self, chunks: list[bytes]) -> None:
        self.chunks = chunks

    async def __aenter__(self) -> Generator:
        self.server = await asyncio.start_server(self.answer, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        self.generator = Generator(lambda: Endpoint(f"http://127.0.0.1:{port}/v1", "m"), GeneratorSettings())
        return self.generator

    async def __aexit__(self, *exc: object) -> None:
        await self.generator.aclose()
        self.server.close()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for chunk in self.chunks:
            writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        writer.close()


async def test_a_leased_endpoint_is_held_for_as_long_as_its_answer_streams(make: Make) -> None:
    _, server = make(Script(num_tokens=4, tokens_per_s=100))
    held: list[str] = []

    @asynccontextmanager
    async def lease() -> AsyncGenerator[Endpoint]:
        held.append("taken")
        try:
            yield server.endpoint
        finally:
            held.append("returned")

    generator = Generator(lambda: Endpoint("http://127.0.0.1:9/v1", "m"), GeneratorSettings(), lease=lease, slots=3)
    pieces = await read(generator)
    assert "".join(piece.text for piece in pieces) == server.script.text(4)
    assert held == ["taken", "returned"]
    async with aclosing(generator.stream(QUESTION)) as answer:  # left in the middle
        await anext(answer)
        assert held[2:] == ["taken"]
    assert held[2:] == ["taken", "returned"]
    await generator.aclose()


async def test_a_lease_that_does_not_come_is_a_limit_with_the_time_to_come_back() -> None:
    @asynccontextmanager
    async def lease() -> AsyncGenerator[Endpoint]:
        await asyncio.sleep(60)
        yield Endpoint("http://127.0.0.1:9/v1", "m")

    settings = GeneratorSettings(first_token_timeout_s=0.05)
    generator = Generator(lambda: Endpoint("http://127.0.0.1:9/v1", "m"), settings, lease=lease)
    with pytest.raises(LimitExceeded) as refused:
        await read(generator)
    assert refused.value.retryable
    assert generator.running == 0
    await generator.aclose()
