"""A gateway's server: uvicorn inside the running loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from qraf.errors import CannotListen, InvalidRequest, LimitExceeded, NotAllowed
from qraf.gateway.app import create_app
from qraf.gateway.heads import BoundedHttp
from qraf.gateway.loopback import is_loopback
from qraf.gateway.protocol import Close
from qraf.gateway.room import Held
from qraf.sessions.service import Service
from qraf.settings import Settings

__all__ = ["Server"]

log = logging.getLogger(__name__)

_LINGER_S = 2.0
_STOP_S = 8
_LOOK_S = 0.05
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
            NotAllowed: the host is not loopback, and there is no authentication or no TLS.
            CannotListen: the port is taken, or may not be used.
        """
        gateway = self.settings.gateway
        has_tls = gateway.tls_cert is not None and gateway.tls_key is not None
        if not is_loopback(gateway.host):
            what = f"listening on '{gateway.host}'"
            if self.settings.auth.mode == "off":
                raise NotAllowed(what, "without authentication only loopback may be: 127.0.0.1, ::1, localhost")
            if not has_tls and not gateway.behind_proxy:
                why = "it needs TLS (`--tls-cert` and `--tls-key`), or a proxy in front that has it (`--behind-proxy`)"
                raise NotAllowed(what, why)
        if (gateway.tls_cert is None) != (gateway.tls_key is None):
            raise InvalidRequest("`tls_cert` and `tls_key` go together", "/gateway/tls_cert")
        listening = _listen(gateway.host, gateway.port)
        host, port = listening.getsockname()[:2]
        heartbeat_s = gateway.heartbeat_ms / 1000
        limits = self.settings.limits
        config = uvicorn.Config(
            self.app,
            http=BoundedHttp,
            ws=_WebSocket,
            ws_max_size=_FRAME_SLACK * limits.max_frame_bytes,
            ws_per_message_deflate=False,
            ws_ping_interval=heartbeat_s,
            ws_ping_timeout=max(1.0, limits.idle_timeout_s - heartbeat_s),
            lifespan="off",
            log_config=None,
            ssl_certfile=gateway.tls_cert,
            ssl_keyfile=None if gateway.tls_key is None else str(gateway.tls_key),
            proxy_headers=gateway.behind_proxy,
            forwarded_allow_ips=gateway.trusted_proxies,
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
        scheme = "https" if has_tls else "http"
        self.url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
        return self.url

    async def drain(self) -> None:
        """Start nothing new, and let what runs come to its end for up to `gateway.drain_s`; then `stop`. Cancel: safe.

        New commands are refused as `not_ready`; a socket gets `goodbye` once nothing of it runs. Responses that nobody
        reads are not waited for, because nobody can come back for them.
        """
        within_s, responses = self.settings.gateway.drain_s, self.service.responses
        self.service.drain()
        if self._task is None:
            return
        until = time.monotonic() + within_s
        await self.app.state.gate.sockets.drain(within_s)
        while time.monotonic() < until:
            if all(one.left_at is not None for one in responses.all_running()):
                return
            await asyncio.sleep(_LOOK_S)

    async def stop(self) -> None:
        """Say goodbye to every connection (1001), cancel what still streams, and close the socket."""
        if self._uvicorn is None or self._task is None:
            return
        await self.app.state.gate.sockets.close()
        self._uvicorn.should_exit = True
        await self._task
        await self.app.state.gate.authority.close()
        self._uvicorn = None


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to whoever owns the loop."""
        yield


class _WebSocket(WebSocketsSansIOProtocol):
    """Holds a large message only while the gateway has room for it, and ends for sure.

    A close waits for a client that never reads, so after a while the socket is cut.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        app: Any = self.config.app
        self._held = Held(app.state.room)

    async def run_asgi(self) -> None:
        await super().run_asgi()
        self._cut_later()

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and self.close_sent:
            self.handshake_complete = True  # else uvicorn logs an error for every socket that is refused

    def data_received(self, data: bytes) -> None:
        try:
            self._held.add(len(data))
        except LimitExceeded as error:
            self._full(str(error))
        else:
            super().data_received(data)
            if self.conn.handshake_exc is not None and not self.handshake_initiated:
                self._unreadable()

    def _unreadable(self) -> None:
        """An upgrade that cannot be read, for a header over 8 KiB, say: send the 431 that uvicorn leaves lying."""
        transport: Any = self.transport
        self.handshake_initiated = self.handshake_complete = self.close_sent = True
        transport.write(b"".join(self.conn.data_to_send()))
        transport.close()

    def send_receive_event_to_app(self) -> None:
        self._held.let_go()
        super().send_receive_event_to_app()

    def handle_ping(self) -> None:
        self._between()
        super().handle_ping()

    def handle_pong(self, event: Any) -> None:
        self._between()
        super().handle_pong(event)

    def connection_lost(self, exc: Exception | None) -> None:
        self._held.let_go()
        super().connection_lost(exc)

    def _between(self) -> None:
        """A control frame: where no message has begun, nothing is held."""
        if not self.frames:
            self._held.let_go()

    def _full(self, reason: str) -> None:
        transport: Any = self.transport
        self.queue.put_nowait({"type": "websocket.disconnect", "code": Close.OVERLOAD, "reason": reason})
        if self.handshake_complete:
            self.conn.send_close(Close.OVERLOAD, reason[:120])
            transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        transport.close()

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
        listening = socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
        # inherited by what is accepted; asyncio's own loop does not set it there, and a second frame then waits 40 ms
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        raise CannotListen(host, port, error.strerror or str(error)) from None
