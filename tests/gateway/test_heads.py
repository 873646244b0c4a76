"""Requests that have no end: a head that goes on, and a client that says nothing more."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.gateway.conftest import serving
from tests.gateway.wire import Wire

START = b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n"
POST = b"POST /v1/sessions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"


async def answer(url: str, start: bytes, part: bytes = b"", within_s: float = 20) -> bytes:
    """What comes until the server closes, while this goes on and on."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))

    async def send() -> None:
        writer.write(start)
        for _ in range(500 if part else 0):
            writer.write(part)
            await writer.drain()

    sending = asyncio.create_task(send())
    try:
        async with asyncio.timeout(within_s):
            return await reader.read()
    except ConnectionResetError:
        return b"reset"
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()


@pytest.mark.parametrize(
    ("start", "part"),
    [
        (START + b"x: ", b"y" * 40_000),
        (START, b"x: y\r\n" * 5000),
        (b"GET /", b"y" * 40_000),
        (POST + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx: ", b"y" * 40_000),
    ],
    ids=["one header", "many headers", "path", "trailer"],
)
async def test_a_head_without_an_end_is_refused(server, start, part) -> None:
    told = await answer(server.url, start, part)
    assert told == b"reset" or told.startswith(b"HTTP/1.1 431 ")


async def test_heads_and_bodies_that_are_long_but_have_an_end_are_taken(http) -> None:
    assert (await http.get("/health", headers={"x": "y" * 60_000})).status_code == 200

    async def parts():
        yield b'{"session": "long", "metadata": {"a": "'
        for _ in range(300):
            yield b"y"
            await asyncio.sleep(0)
        yield b'"}}' + b" " * 300_000

    headers = {"content-type": "application/json"}
    assert (await http.post("/v1/sessions", content=parts(), headers=headers)).status_code == 201
    assert (await http.get("/v1/sessions/long")).status_code == 200


@pytest.mark.parametrize(
    "start",
    [b"", START, POST + b"content-length: 9\r\n\r\n{", START + b"\r\n\r\n"],
    ids=["nothing", "half a head", "half a body", "an empty line after a request"],
)
async def test_a_connection_whose_request_does_not_come_is_closed_and_is_no_error(models, start, caplog) -> None:
    async with serving(models, idle_timeout_s=1.0) as server:
        async with Wire(server.url) as wire:
            await answer(server.url, start)
            assert (await wire.ask({"type": "ping", "id": "p"}))["type"] == "pong"
        async with httpx.AsyncClient(base_url=server.url, trust_env=False) as http:
            assert (await http.get("/health")).status_code == 200
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []
