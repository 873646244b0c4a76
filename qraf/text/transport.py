"""HTTP/1.1 for token streams: what arrived since the last read comes as one piece.

httpx's own transport costs about 80 microseconds of Python for every HTTP chunk, and model servers send a chunk for
every token. Here a C parser cuts a whole read of the socket, so a reader that falls behind catches up by itself.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import httptools
import httpx

__all__ = ["StreamTransport"]

_HIGH_WATER_BYTES = 1 << 18  # of a body that nobody reads; beyond it the server has to wait
_Origin = tuple[str, str, int]


class StreamTransport(httpx.AsyncBaseTransport):
    """A transport for `httpx.AsyncClient`; keeps at most `max_idle` connections for later requests.

    No proxies, no HTTP/2, no limit on connections: the caller bounds its requests. Timeouts are the caller's too, but
    for `connect`. Belongs to one event loop.
    """

    def __init__(self, max_idle: int, certificates: ssl.SSLContext) -> None:
        self._max_idle, self._certificates = max_idle, certificates
        self._idle: deque[tuple[_Origin, _Connection]] = deque()
        self._open: set[_Connection] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request; returns when the head of the answer is there.

        Cancel: safe; the connection is closed.

        Raises:
            httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError: as httpx's own transport.
        """
        body = await request.aread()
        url = request.url
        origin = (url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80))
        connection = self._kept(origin) or await self._connect(origin, request)
        try:
            connection.send(_head(request) + body)
            await connection.head()
        except BaseException:
            self._drop(connection)
            raise
        return httpx.Response(connection.status, headers=connection.headers, stream=_Body(self, origin, connection))

    async def aclose(self) -> None:
        """Close every connection, also those in use."""
        for connection in list(self._open):
            self._drop(connection)
        self._idle.clear()

    def release(self, origin: _Origin, connection: _Connection) -> None:
        """Keep a connection whose answer was read to its end; close any other, which tells the server to stop."""
        if not connection.is_reusable:
            self._drop(connection)
            return
        self._idle.append((origin, connection))
        if len(self._idle) > self._max_idle:
            self._drop(self._idle.popleft()[1])

    def _kept(self, origin: _Origin) -> _Connection | None:
        for entry in reversed(self._idle):
            if entry[0] == origin:
                self._idle.remove(entry)
                if not entry[1].is_closed:
                    return entry[1]
                self._drop(entry[1])
                return self._kept(origin)
        return None

    async def _connect(self, origin: _Origin, request: httpx.Request) -> _Connection:
        scheme, host, port = origin
        timeout = request.extensions.get("timeout", {}).get("connect")
        try:
            async with asyncio.timeout(timeout):
                _, connection = await asyncio.get_running_loop().create_connection(
                    _Connection, host, port, ssl=self._certificates if scheme == "https" else None
                )
        except TimeoutError as error:
            raise httpx.ConnectTimeout(f"no connection within {timeout:g} s", request=request) from error
        except OSError as error:
            raise httpx.ConnectError(str(error), request=request) from error
        self._open.add(connection)
        return connection

    def _drop(self, connection: _Connection) -> None:
        self._open.discard(connection)
        connection.close()


class _Body(httpx.AsyncByteStream):
    def __init__(self, transport: StreamTransport, origin: _Origin, connection: _Connection) -> None:
        self._transport, self._origin = transport, origin
        self._connection: _Connection | None = connection

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self._connection is not None and (data := await self._connection.read()):
            yield data

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._transport.release(self._origin, connection)


class _Connection(asyncio.Protocol):
    """One request at a time: `send`, `head`, `read` until it gives nothing."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._parser: Any = None
        self._parts: list[bytes] = []
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._error: httpx.TransportError | None = None
        self._is_sized = self._is_complete = self._is_kept = self._has_head = self._is_paused = False
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.is_closed = False

    @property
    def is_reusable(self) -> bool:
        """Whether the answer was read to its end and the server keeps the connection."""
        return self._is_complete and self._is_kept and not self._parts and self._error is None and not self.is_closed

    def send(self, data: bytes) -> None:
        """Begin a new exchange."""
        self._parser = httptools.HttpResponseParser(self)
        self._is_sized = self._is_complete = self._is_kept = self._has_head = False
        self._error, self.headers = None, []
        if self.is_closed:
            raise httpx.ReadError("the server closed the connection")
        self._transport.write(data)

    async def head(self) -> None:
        """Wait for status and headers."""
        while not self._has_head:
            self._check()
            await self._wait()

    async def read(self) -> bytes:
        """What has come since the last call, as soon as there is something; nothing at the end."""
        while not self._parts:
            if self._is_complete:
                return b""
            self._check()
            await self._wait()
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts, self._size = [], 0
        if self._is_paused and not self.is_closed:
            self._is_paused = False
            self._transport.resume_reading()
        return data

    def close(self) -> None:
        """Close at once, without waiting for what is still to be sent."""
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------------------------------- called by the event loop
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._parser is None or self._is_complete:
            self.close()  # an answer that nobody asked for
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._error = httpx.RemoteProtocolError(f"not HTTP: {error}")
            self.close()
        if self._size > _HIGH_WATER_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self.is_closed = True
        if self._has_head and not self._is_complete and not self._is_sized and error is None:
            self._is_complete = True  # a body without a length ends with the connection
        elif self._error is None:
            what = "in the middle of the answer" if self._has_head else "without an answer"
            self._error = httpx.ReadError(f"the server closed the connection {what}" + (f": {error}" if error else ""))
        self._wake()

    # ---------------------------------------------------------------------------------------- called by the parser
    def on_header(self, name: bytes, value: bytes) -> None:
        self._is_sized = self._is_sized or name.lower() in (b"content-length", b"transfer-encoding")
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._has_head = self.status >= 200

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)
        self._size += len(body)

    def on_message_complete(self) -> None:
        if self._has_head:
            self._is_complete, self._is_kept = True, bool(self._parser.should_keep_alive())
        else:
            self.headers = []  # 1xx: the answer itself follows

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _head(request: httpx.Request) -> bytes:
    lines = [b"%s %s HTTP/1.1" % (request.method.encode("ascii"), request.url.raw_path)]
    lines += [b"%s: %s" % (name, value) for name, value in request.headers.raw]
    return b"\r\n".join(lines) + b"\r\n\r\n"
