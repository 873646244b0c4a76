"""HTTP as servers speak it: bodies of every kind, connections kept and lost, readers that are slow."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest

from qraf.text.transport import StreamTransport

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def talking_to(handler: Handler) -> AsyncIterator[httpx.AsyncClient]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    transport = StreamTransport(2, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    async with httpx.AsyncClient(transport=transport, base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
        yield client
    server.close()


def saying(*answers: bytes, closes: bool = False) -> Handler:
    """Answers one request of a connection after the other."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            head = await reader.readuntil(b"\r\n\r\n")
            size = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            await reader.readexactly(int(size[0].split(b":")[1]) if size else 0)
            writer.write(answer)
            await writer.drain()
        if closes:
            writer.close()
        else:
            await reader.read()

    return handler


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n", b"hello"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", b"hello"),
        (b"HTTP/1.0 200 OK\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", b"ok"),
    ],
    ids=["length", "chunked", "until-close", "http-1.0", "empty", "continue"],
)
async def test_bodies_of_every_kind_are_read_to_their_end(answer: bytes, body: bytes) -> None:
    async with talking_to(saying(answer, closes=True)) as client:
        response = await client.post("/v1/x", content=b"question", headers={"x-one": "1"})
    assert response.content == body
    assert response.status_code in (200, 204)


async def test_status_and_headers_are_the_answers() -> None:
    answer = b"HTTP/1.1 418 Teapot\r\nX-Tea: green\r\nx-tea: black\r\ncontent-length: 0\r\n\r\n"
    async with talking_to(saying(answer)) as client:
        response = await client.get("/")
    assert response.status_code == 418
    assert response.headers.get_list("x-tea") == ["green", "black"]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", httpx.ReadError),
        (b"HTTP/1.1 200", httpx.ReadError),
        (b"SSH-2.0-OpenSSH\r\n\r\n", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhello", httpx.ReadError),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", httpx.ReadError),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", httpx.RemoteProtocolError),
    ],
    ids=["nothing", "half-head", "not-http", "short", "unfinished", "bad-chunk"],
)
async def test_a_broken_answer_is_an_error(answer: bytes, error: type[Exception]) -> None:
    async with talking_to(saying(answer, closes=True)) as client:
        with pytest.raises(error):
            await client.get("/")


async def test_what_arrived_together_is_read_together() -> None:
    chunks = b"".join(b"1\r\n%d\r\n" % (i % 10) for i in range(50))
    answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    async with talking_to(saying(answer)) as client, client.stream("GET", "/") as response:
        pieces = [piece async for piece in response.aiter_raw()]
    assert b"".join(pieces) == b"0123456789" * 5
    assert len(pieces) < 10


async def test_a_connection_serves_again_unless_the_server_says_otherwise() -> None:
    connections = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await saying(
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na",
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: close\r\n\r\nb",
        )(reader, writer)

    async with talking_to(handler) as client:
        assert [(await client.get("/")).text for _ in range(4)] == ["a", "b", "a", "b"]
    assert connections == 2


async def test_a_kept_connection_that_the_server_closed_is_not_used() -> None:
    async with talking_to(saying(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", closes=True)) as client:
        for _ in range(3):
            assert (await client.get("/")).text == "ok"
            await asyncio.sleep(0.05)


async def test_leaving_a_body_closes_its_connection() -> None:
    left = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nfirst")
        await reader.read()
        left.set()
        writer.close()

    async with talking_to(handler) as client:
        async with client.stream("GET", "/") as response:
            assert await anext(response.aiter_raw()) == b"first"
        async with asyncio.timeout(20):
            await left.wait()


async def test_a_reader_that_does_not_read_makes_the_server_wait() -> None:
    sent = 0
    block = bytes(1 << 16)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (400 * len(block)))
        for _ in range(400):
            writer.write(block)
            await writer.drain()
            sent += 1

    async with talking_to(handler) as client, client.stream("GET", "/") as response:
        seen = -1
        while seen != sent:  # until the buffers of the system are full, too
            seen = sent
            await asyncio.sleep(0.2)
        assert sent < 400
        assert sum([len(piece) async for piece in response.aiter_raw()]) == 400 * len(block)


async def test_nobody_listens() -> None:
    async with httpx.AsyncClient(transport=StreamTransport(1, ssl.create_default_context())) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("http://127.0.0.1:9/")


async def test_a_server_without_tls_is_not_talked_to_as_if_it_had_it() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with talking_to(handler) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(str(client.base_url).replace("http:", "https:"))
