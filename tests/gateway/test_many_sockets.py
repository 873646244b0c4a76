"""Thousands of idle sockets and one that never reads: memory stays bounded, the one is let go, nobody else notices.

`QRAF_SOAK_SOCKETS` sets how many (`make soak`: 8,000). The server has a process of its own, and so memory of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import time
from typing import Any

import httpx
import psutil
import pytest

from tests.gateway.process import served_apart
from tests.gateway.test_stream import ENHANCE, Deaf
from tests.gateway.wire import Wire
from tests.openai_server import OpenAIServer, Script

SOCKETS = int(os.environ.get("QRAF_SOAK_SOCKETS", "2000"))
HELLO = b'{"type":"hello"}'
MB = 1e6

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60 + SOCKETS // 20)]


class Idle(asyncio.Protocol):
    """A socket that says hello, answers pings, and does nothing else; cheap, for there are thousands."""

    def __init__(self) -> None:
        self.is_welcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_gone = False
        self._data = b""
        self._is_open = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(
            b"GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            b"Sec-WebSocket-Protocol: qraf.v1\r\n\r\n"
        )

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._is_open and b"\r\n\r\n" in self._data:
            head, _, self._data = self._data.partition(b"\r\n\r\n")
            assert b" 101 " in head, head
            self._is_open = True
            self._transport.write(bytes([0x81, 0x80 | len(HELLO)]) + bytes(4) + HELLO)
        while self._is_open and len(self._data) >= 4:
            size, start = self._data[1] & 127, 2
            if size == 126:
                size, start = int.from_bytes(self._data[2:4], "big"), 4
            if len(self._data) < start + size:
                break
            kind, payload, self._data = self._data[0] & 15, self._data[start : start + size], self._data[start + size :]
            if kind == 9:
                self._transport.write(bytes([0x8A, 0x80 | len(payload)]) + bytes(4) + payload)
            elif kind == 1 and not self.is_welcome.done():
                assert b'"welcome"' in payload, payload
                self.is_welcome.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_gone = True

    def close(self) -> None:
        self._transport.abort()


async def open_idle(port: int, count: int) -> list[Idle]:
    loop, opened = asyncio.get_running_loop(), []
    for begin in range(0, count, 50):
        some = min(50, count - begin)
        made = await asyncio.gather(*(loop.create_connection(Idle, "127.0.0.1", port) for _ in range(some)))
        for _, idle in made:
            await asyncio.wait_for(idle.is_welcome, 20)
            opened.append(idle)
    return opened


async def median_ping_ms(wire: Wire, seconds: float) -> float:
    times, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until:
        begin = time.perf_counter()
        assert (await wire.ask({"type": "ping", "id": "p"}))["type"] == "pong"
        times.append(1e3 * (time.perf_counter() - begin))
        await asyncio.sleep(0.005)
    return sorted(times)[len(times) // 2]


async def test_idle_sockets_and_one_that_never_reads_cost_little_and_hold_nobody_up() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < SOCKETS + 500:
        pytest.skip(f"{SOCKETS} sockets need more open files than {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, SOCKETS + 500), hard))
    script = Script(words=("x" * 4000,), num_tokens=2000)
    limits = {"send_timeout_s": 3.0, "idle_timeout_s": 3600.0}
    with OpenAIServer(script) as model, served_apart(model.url, **limits) as (url, pid):
        process = psutil.Process(pid)

        def used() -> float:
            return process.memory_info().rss / MB

        async with Wire(url) as wire:
            await wire.send(ENHANCE)  # what is loaded at first use is loaded
            await wire.until("response.done")
            before, alone_ms = used(), await median_ping_ms(wire, 2.0)
            idle = await open_idle(int(url.rsplit(":", 1)[1]), SOCKETS)
            with_idle, idle_ms = used(), await median_ping_ms(wire, 2.0)
            async with Deaf(_At(url)) as deaf:  # type: ignore[arg-type]
                await deaf.ws.send(json.dumps(ENHANCE | {"generate": {"max_tokens": 2000}}))
                deaf_ms, highest = 0.0, 0.0
                begin = time.perf_counter()
                while 'qraf_ws_closes_total{code="4008"} 1.0' not in await _metrics(url):
                    assert time.perf_counter() - begin < 45, "the reader was not let go"
                    deaf_ms = max(deaf_ms, await median_ping_ms(wire, 0.5))
                    highest = max(highest, used())
            model.script = Script(num_tokens=50)
            await wire.send(ENHANCE)
            frames = await wire.until("response.done")
            assert "".join(f.get("text", "") for f in frames) == model.script.text(50)
            after = used()
        assert not [one for one in idle if one.is_gone]
        for one in idle:
            one.close()
        each_kb = 1e3 * (with_idle - before) / SOCKETS
        print(
            f"\n{SOCKETS} idle sockets: {with_idle - before:.0f} MB, {each_kb:.0f} kB each; with one that never reads: "
            f"{highest - with_idle:+.0f} MB at most, {after - with_idle:+.0f} MB after; ping {alone_ms:.2f} ms alone, "
            f"x{idle_ms / alone_ms:.2f} with idle sockets, x{deaf_ms / alone_ms:.2f} beside the one"
        )
        assert each_kb < 150
        assert highest - with_idle < 100  # 8 MB of text, some times over
        assert max(idle_ms, deaf_ms) < 10 * alone_ms + 20


class _At:
    def __init__(self, url: str) -> None:
        self.url = url


async def _metrics(url: str) -> str:
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
        return (await http.get(url + "/metrics")).text
