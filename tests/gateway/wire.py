"""A plain `websockets` client that knows only docs/protocol.md: JSON framing, dicts in and out."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Self

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed


class Wire:
    def __init__(self, url: str, *, subprotocol: str | None = "qraf.v1", hello: bool = True, **options: Any) -> None:
        self._url = url.replace("http", "ws", 1) + "/v1/ws"
        self._subprotocols = [subprotocol] if subprotocol else None
        self._is_binary = subprotocol == "qraf.v1+msgpack"
        self._hello, self._options = hello, options
        self.welcome: dict[str, Any] = {}
        self.ws: ClientConnection

    async def __aenter__(self) -> Self:
        self.ws = await connect(
            self._url, subprotocols=self._subprotocols, compression=None, proxy=None, **self._options
        )
        if self._hello:
            self.welcome = await self.ask({"type": "hello"})
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.ws.close()

    async def send(self, frame: Any) -> None:
        if isinstance(frame, dict):
            frame = msgspec.msgpack.encode(frame) if self._is_binary else json.dumps(frame)
        await self.ws.send(frame)

    async def recv(self) -> dict[str, Any]:
        async with asyncio.timeout(20):
            data = await self.ws.recv()
        frame: dict[str, Any] = msgspec.msgpack.decode(data) if isinstance(data, bytes) else json.loads(data)
        return frame

    async def ask(self, frame: Any) -> dict[str, Any]:
        await self.send(frame)
        return await self.recv()

    async def until(self, type: str) -> list[dict[str, Any]]:
        """Frames up to and with the first of this type; any other error fails the test."""
        frames = [await self.recv()]
        while frames[-1]["type"] != type:
            assert frames[-1]["type"] != "error", frames[-1]
            frames.append(await self.recv())
        return frames

    async def closed(self) -> int:
        """The code of the close that comes, after any frames."""
        try:
            async with asyncio.timeout(20):
                while True:
                    await self.ws.recv()
        except ConnectionClosed as error:
            return error.rcvd.code if error.rcvd is not None else 1006
