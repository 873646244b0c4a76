"""A gateway's server: uvicorn inside the running loop, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from qraf.errors import CannotListen, NotAllowed
from qraf.gateway.app import create_app
from qraf.gateway.door import is_loopback
from qraf.sessions.service import Service
from qraf.settings import Settings

__all__ = ["Server"]

log = logging.getLogger(__name__)

_LINGER_S = 2.0
_STOP_S = 8
# a frame over `max_frame_bytes` is told 4413 by the protocol; only one that is this much larger is cut off by the
# transport with 1009, before it is read to its end
_FRAME_SLACK = 16


class Server:
    """Serves a started service over HTTP and WebSocket. `start` once, `stop` any number of times."""

    def __init__(self, service: Service, settings: Settings) -> None:
        self.service, self.settings = service, settings
        self.app = create_app(service, settings)
        self.url = ""
        self._uvicorn: _Uvicorn | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Listen; returns the URL.

        Raises:
            NotAllowed: the host is not loopback.
            CannotListen: the port is taken, or may not be used.
        """
        gateway = self.settings.gateway
        if not is_loopback(gateway.host):
            raise NotAllowed(
                f"listening on '{gateway.host}'",
                "there is no authentication yet, so the server listens on loopback (127.0.0.1, ::1, localhost) alone",
            )
        listening = _listen(gateway.host, gateway.port)
        host, port = listening.getsockname()[:2]
        heartbeat_s = gateway.heartbeat_ms / 1000
        limits = self.settings.limits
        config = uvicorn.Config(
            self.app,
            http="httptools",
            ws=_WebSocket,
            ws_max_size=_FRAME_SLACK * limits.max_frame_bytes,
            ws_per_message_deflate=False,
            ws_ping_interval=heartbeat_s,
            ws_ping_timeout=max(1.0, limits.idle_timeout_s - heartbeat_s),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=int(limits.idle_timeout_s),
            timeout_graceful_shutdown=_STOP_S,
        )
        self._uvicorn = _Uvicorn(config)
        self._task = asyncio.create_task(self._uvicorn.serve(sockets=[listening]), name="gateway")
        while not self._uvicorn.started:
            if self._task.done():
                await self._task
                raise CannotListen(gateway.host, gateway.port, "the server ended at once")
            await asyncio.sleep(0.005)
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        return self.url

    async def stop(self) -> None:
        """Say goodbye to every connection (1001), cancel what still streams, and close the socket."""
        if self._uvicorn is None or self._task is None:
            return
        await self.app.state.gate.sockets.close()
        self._uvicorn.should_exit = True
        await self._task
        self._uvicorn = None


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to whoever owns the loop."""
        yield


class _WebSocket(WebSocketsSansIOProtocol):
    """Ends for sure: a close waits for a client that never reads, so after a while the socket is cut."""

    async def run_asgi(self) -> None:
        await super().run_asgi()
        self._cut_later()

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self._cut_later()

    def _cut_later(self) -> None:
        self.loop.call_later(_LINGER_S, self._cut)

    def _cut(self) -> None:
        if not self.disconnected:
            transport: Any = self.transport
            transport.abort()


def _listen(host: str, port: int) -> socket.socket:
    address = "127.0.0.1" if host.lower().rstrip(".") == "localhost" else host
    try:
        return socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    except OSError as error:
        raise CannotListen(host, port, error.strerror or str(error)) from None
