"""The WebSocket endpoint: accepts, refuses, and knows every open connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import MutableMapping
from typing import Any

from qraf.gateway.metrics import GatewayMeters
from qraf.gateway.protocol import SUBPROTOCOLS, Close, Connection, choose_subprotocol
from qraf.gateway.stream import Receive, Send, Stream
from qraf.sessions.service import Service

__all__ = ["Sockets"]

_GOODBYE_S = 5.0


class Sockets:
    """An ASGI application for `GET /v1/ws`. A close code is told after accepting, so that browsers see it too."""

    def __init__(self, service: Service, meters: GatewayMeters) -> None:
        self._service, self._meters = service, meters
        self._streams: set[Stream] = set()
        self._is_closing = False
        self._gone = asyncio.Event()

    @property
    def outboxes(self) -> list[Any]:
        """The outbox of every open connection."""
        return [stream.outbox for stream in self._streams]

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one connection to its end."""
        await receive()
        subprotocol = choose_subprotocol(list(scope.get("subprotocols", ())))
        await send({"type": "websocket.accept", "subprotocol": subprotocol})
        if subprotocol is None:
            await self._refuse(send, Close.NO_PROTOCOL, f"offer a subprotocol: {' or '.join(SUBPROTOCOLS)}")
            return
        most = self._service.settings.limits.max_connections
        if self._is_closing or len(self._streams) >= most:
            reason = "the server stops" if self._is_closing else f"max_connections allows {most}; try again later"
            await self._refuse(send, Close.OVERLOAD, reason)
            return
        connection = Connection(subprotocol, self._service.settings.limits)
        stream = Stream(receive, send, connection, self._service, self._meters)
        self._streams.add(stream)
        self._meters.connections.set(len(self._streams))
        try:
            await stream.run()
        finally:
            self._streams.discard(stream)
            if not self._streams:
                self._gone.set()
            self._meters.connections.set(len(self._streams))

    async def close(self) -> None:
        """Say goodbye to everyone (1001) and wait for them to be gone, a few seconds at most."""
        self._is_closing = True
        for stream in self._streams:
            stream.end(Close.GOING_AWAY, "the server stops")
        if not self._streams:
            return
        self._gone.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_S):
                await self._gone.wait()

    async def _refuse(self, send: Send, code: int, reason: str) -> None:
        self._meters.closes.labels(str(code)).inc()
        await send({"type": "websocket.close", "code": code, "reason": reason})
