"""A TCP proxy on loopback that cuts connections when it is told to, or after so many WebSocket frames of the server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from urllib.parse import urlsplit


class CuttingProxy:
    """`frames_until_cut` is asked at each connection; it is cut in the middle of the server's next frame."""

    def __init__(self, url: str, frames_until_cut: Callable[[], int | None] = lambda: None) -> None:
        self.lead_to(url)
        self._frames_until_cut = frames_until_cut
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""
        self.connections = self.cuts = 0
        self.is_refusing = False

    def lead_to(self, url: str) -> None:
        """Where connections lead that come from now on."""
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 0

    def cut(self) -> None:
        """Cut every connection, without a word."""
        self.cuts += 1
        for writer in self._open:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_refusing:
            writer.transport.abort()
            return
        self.connections += 1
        above, below = await asyncio.open_connection(self._host, self._port)
        self._open |= {writer, below}
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        up = asyncio.create_task(self._copy(reader, below))
        try:
            await self._down(above, writer)
        finally:
            up.cancel()
            for one in (writer, below):
                self._open.discard(one)
                one.transport.abort()
            self._tasks.discard(task)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(head)
            left = self._frames_until_cut() if b" 101 " in head else None
            if left is None:
                await self._copy(reader, writer)
                return
            while True:
                frame = await _frame(reader)
                if left == 0:
                    writer.write(frame[: len(frame) // 2])
                    await writer.drain()
                    self.cuts += 1
                    return
                left -= 1
                writer.write(frame)
                await writer.drain()


async def _frame(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(2)
    size = head[1] & 127
    if size >= 126:
        more = await reader.readexactly(2 if size == 126 else 8)
        head, size = head + more, int.from_bytes(more, "big")
    return head + await reader.readexactly(size)


@contextlib.asynccontextmanager
async def cutting(url: str, frames_until_cut: Callable[[], int | None] = lambda: None) -> AsyncIterator[CuttingProxy]:
    """The proxy, for the block; `proxy.url` leads through it."""
    proxy = CuttingProxy(url, frames_until_cut)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        for task in tuple(proxy._tasks):
            task.cancel()
        await asyncio.gather(*proxy._tasks, return_exceptions=True)
