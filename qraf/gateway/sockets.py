"""The WebSocket endpoint: accepts, refuses, and knows every open connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import MutableMapping
from typing import Any

from qraf.errors import QrafError
from qraf.gateway.decoding import DecodePool
from qraf.gateway.metrics import GatewayMeters
from qraf.gateway.protocol import SUBPROTOCOLS, Close, Connection, choose_subprotocol
from qraf.gateway.security.authority import Authority
from qraf.gateway.security.principal import LOCAL, Principal
from qraf.gateway.security.tickets import offered_ticket
from qraf.gateway.stream import Receive, Send, Stream
from qraf.sessions.tenants import TenantService

__all__ = ["Sockets"]

log = logging.getLogger(__name__)

_GOODBYE_S = 5.0
_WATCH_S = 0.4
_DRAIN_EVERY_S = 0.05


def _address(scope: MutableMapping[str, Any]) -> str:
    return str(scope["client"][0]) if scope.get("client") else ""


class Sockets:
    """An ASGI application for `GET /v1/ws`. A close code is told after accepting, so that browsers see it too."""

    def __init__(self, service: TenantService, meters: GatewayMeters, authority: Authority) -> None:
        self._service, self._meters, self._authority = service, meters, authority
        self._watching: asyncio.Task[None] | None = None
        self._streams: set[Stream] = set()
        self._decoders = DecodePool(service.settings.limits)
        self._is_closing = False
        self._gone = asyncio.Event()

    @property
    def outboxes(self) -> list[Any]:
        """The outbox of every open connection."""
        return [stream.peer.outbox for stream in self._streams]

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one connection to its end."""
        await receive()
        subprotocol = choose_subprotocol(list(scope.get("subprotocols", ())))
        await send({"type": "websocket.accept", "subprotocol": subprotocol})
        if subprotocol is None:
            await self._refuse(send, Close.NO_PROTOCOL, f"offer a subprotocol: {' or '.join(SUBPROTOCOLS)}")
            return
        most = self._service.settings.limits.max_connections
        state = "stopping" if self._is_closing else self._service.whole.health.state
        if state != "ready" or len(self._streams) >= most:
            reason = f"max_connections allows {most}; try again later"
            reason = reason if state == "ready" else f"the server is {state}; try again later"
            await self._refuse(send, Close.OVERLOAD, reason)
            return
        connection = Connection(subprotocol, self._service.settings.limits)
        who: Principal | QrafError | None = scope["state"].get("refused")
        try:
            who = who or await self._who(scope)
        except QrafError as error:
            who = error
        stream = Stream(
            receive,
            send,
            connection,
            self._service,
            self._meters,
            self._decoders,
            self._authority,
            who,
            _address(scope),
        )
        self._streams.add(stream)
        self._meters.connections.set(len(self._streams))
        if self._authority.is_on and (self._watching is None or self._watching.done()):
            self._watching = asyncio.create_task(self._watch(), name="credentials")
        try:
            await stream.run()
        finally:
            self._streams.discard(stream)
            if not self._streams:
                self._gone.set()
            self._meters.connections.set(len(self._streams))

    async def drain(self, within_s: float) -> None:
        """Let nobody in, and say goodbye (1001) to each connection once nothing of it runs; returns when all are gone.

        Those that are not through within this time stay. Cancel: safe.
        """
        self._is_closing = True
        until = time.monotonic() + within_s
        while self._streams:
            for stream in self._streams:
                if not stream.is_busy:
                    stream.peer.end(Close.GOING_AWAY, "the server stops")
            if time.monotonic() >= until:
                return
            await asyncio.sleep(_DRAIN_EVERY_S)

    async def close(self) -> None:
        """Say goodbye to everyone (1001) and wait for them to be gone, a few seconds at most."""
        self._is_closing = True
        for stream in self._streams:
            stream.peer.end(Close.GOING_AWAY, "the server stops")
        if self._streams:
            self._gone.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GOODBYE_S):
                    await self._gone.wait()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        self._decoders.close()

    async def _who(self, scope: MutableMapping[str, Any]) -> Principal | None:
        """Who opens a socket; None where `hello` has to say it."""
        if not self._authority.is_on:
            return LOCAL
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if given := [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]:
            return await self._authority.of_headers(given)
        ticket = offered_ticket(list(scope.get("subprotocols", ())))
        if ticket is None:
            return None
        who = await self._authority.tickets.redeem(ticket, headers.get(b"origin", ""))
        faults = await self._authority.refused((who,))
        if who in faults:
            raise faults[who]
        return who

    async def _watch(self) -> None:
        """While sockets are open: end those whose credential has expired or was revoked."""
        while self._streams:
            await asyncio.sleep(_WATCH_S)
            try:
                known = {one.peer.who for one in self._streams if one.peer.who is not None}
                faults = await self._authority.refused(known)
            except Exception:  # the watch must go on whatever happens
                log.exception("looking after the credentials of open sockets failed")
                continue
            for peer in [stream.peer for stream in self._streams]:
                if peer.who is not None and peer.who in faults:
                    peer.refuse(faults[peer.who], "stay")

    async def _refuse(self, send: Send, code: int, reason: str) -> None:
        self._meters.closes.labels(str(code)).inc()
        await send({"type": "websocket.close", "code": code, "reason": reason})
