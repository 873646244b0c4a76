"""What comes in has one bound over all clients: large messages and bodies are refused, small ones never."""

from __future__ import annotations

import asyncio
import socket

import httpx
import pytest

from qraf.errors import LimitExceeded
from qraf.gateway.room import FREE, Held, Room
from tests.gateway.conftest import serving
from tests.gateway.wire import Wire


def test_what_is_held_adds_up_and_goes_again() -> None:
    room = Room(1000)
    one, two = Held(room), Held(room)
    one.add(FREE + 600)
    two.add(FREE)  # needs no room
    with pytest.raises(LimitExceeded, match="max_incoming_bytes"):
        two.add(401)
    two.add(400)
    assert room.used == 1000
    for held in (one, one, two):
        held.let_go()
    assert room.used == 0


@pytest.mark.slow
async def test_many_large_messages_and_bodies_do_not_fill_the_gateway(models, model) -> None:
    """Three clients begin messages of 300 KiB where there is room for two; others go on."""
    async with serving(models, max_incoming_bytes=2 * 300 * 1024) as server:
        room = server.app.state.room
        async with Wire(server.url) as quiet, Wire(server.url) as first, Wire(server.url) as second:
            large = [b'{"type": "ping", "id": "', b"x" * 300 * 1024, b'"}']

            async def begin(wire: Wire) -> asyncio.Task[None]:
                more = asyncio.Event()

                async def parts():
                    yield large[0].decode()
                    yield large[1].decode()
                    await more.wait()
                    yield large[2].decode()

                task = asyncio.create_task(wire.ws.send(parts()))
                task.more = more  # type: ignore[attr-defined]
                return task

            tasks = [await begin(first), await begin(second)]
            async with asyncio.timeout(5):
                while room.used < 2 * 280 * 1024:
                    await asyncio.sleep(0.01)
            async with Wire(server.url) as third:
                sending = await begin(third)
                assert await third.closed() == 1013
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            async with httpx.AsyncClient(base_url=server.url, trust_env=False) as http:
                body = {"collection": "manuals", "items": [{"text": "y" * 200_000}]}
                refused = await http.post("/v1/memory", json=body)
                assert (refused.status_code, refused.json()["code"]) == (429, "limit_exceeded")
                assert "`max_incoming_bytes`" in refused.json()["detail"]
                small = {"collection": "manuals", "items": [{"text": "small"}]}
                assert (await http.post("/v1/memory", json=small)).status_code == 200
                assert (await quiet.ask({"type": "ping", "id": "1"}))["type"] == "pong"
                for task, wire in zip(tasks, (first, second), strict=True):
                    task.more.set()  # type: ignore[attr-defined]
                    await task
                    assert (await wire.recv())["error"]["pointer"] == "/id"  # whole now, and too long an id
                assert room.used == 0
                assert (await http.post("/v1/memory", json=body)).status_code == 200
                assert room.used == 0


@pytest.mark.slow
async def test_a_client_that_goes_in_the_middle_leaves_no_bytes_behind(models, model) -> None:
    async with serving(models) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as raw:
            head = f"POST /v1/memory HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
            raw.sendall(f"{head}content-length: 300000\r\n\r\n".encode() + b" " * 200_000)
            async with asyncio.timeout(5):
                while not server.app.state.room.used:
                    await asyncio.sleep(0.01)
        async with asyncio.timeout(5):
            while server.app.state.room.used:
                await asyncio.sleep(0.01)
