"""One WebSocket that speaks `qraf.v1`: from hello to its end, with a heartbeat."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Literal, get_args

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as ws_connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.typing import Subprotocol

from qraf.client.reconnect import FINAL_CLOSES
from qraf.client.urls import is_loopback
from qraf.errors import CannotConnect, ConnectionLost, QrafError, ServerError
from qraf.frames import ClientFrame, ErrorBody, ErrorFrame, Goodbye, Hello, Ping, Pong, ServerFrame, Welcome

__all__ = ["CLOSE_REASONS", "Framing", "Link", "server_error"]

Framing = Literal["msgpack", "json"]

CLOSE_REASONS = {
    1000: "closed",
    1001: "the server is going away",
    1006: "the connection broke",
    1011: "internal error of the server",
    1012: "the server restarts",
    1013: "the server is overloaded",
    4008: "this client reads too slowly",
    4009: "superseded by a newer connection",
    4010: "the credential has expired",
    4400: "malformed frame",
    4401: "not authenticated",
    4403: "forbidden",
    4404: "no such session",
    4406: "no common protocol",
    4408: "hello came too late",
    4409: "duplicate id",
    4411: "the credential was revoked",
    4412: "the ticket was used, or is none",
    4413: "frame too large",
    4421: "the token is for another server",
    4422: "the token's algorithm is not taken",
    4425: "the token is not valid yet",
    4429: "rate or quota",
}
MAX_SERVER_FRAME_BYTES = 64 * 1024 * 1024

_SUBPROTOCOLS: dict[str, Subprotocol] = {"msgpack": Subprotocol("qraf.v1+msgpack"), "json": Subprotocol("qraf.v1")}
_TAGS = {kind.__struct_config__.tag for kind in get_args(ServerFrame)}
_BEAT = "beat"


def server_error(body: ErrorBody) -> ServerError:
    """The error that a client raises for an error of the server."""
    return ServerError(body.code, body.detail or body.title, body.pointer, body.retryable, body.retry_after_ms)


class Link:
    """`open`, then `start`; when it ends, for whatever reason, `lost` is told once and nothing comes any more.

    Args:
        url: of the socket.
        framing: what frames are encoded as.
        heartbeat_s: pause between pings; None: what the server asks for.
        api_key: goes with the request that opens the socket.
        take: gets every frame that comes after the welcome.
        lost: told why it ended.
    """

    def __init__(
        self,
        url: str,
        framing: Framing,
        heartbeat_s: float | None,
        *,
        api_key: str | None = None,
        take: Callable[[ServerFrame], None],
        lost: Callable[[Link, ConnectionLost], None],
    ) -> None:
        self._url, self._framing, self._heartbeat_s = url, framing, heartbeat_s
        self._take, self._lost, self._api_key = take, lost, api_key
        codec = msgspec.msgpack if framing == "msgpack" else msgspec.json
        self._encode = codec.Encoder().encode
        self._decoder, self._plain = codec.Decoder(ServerFrame), codec.Decoder()
        self._ws: ClientConnection | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._fault = ""
        self._heard = self._beat_s = 0.0
        self._pong = asyncio.Event()
        self._has_ended = False
        self.is_proven = False
        """Whether anything came after the welcome."""
        self.is_final = False
        """Whether trying again could not help."""
        self.reconnect_after_s = 0.0

    async def open(self, hello: Hello, timeout_s: float) -> Welcome:
        """Connect and say hello. Cancel: safe, the socket closes.

        Raises:
            CannotConnect: nobody listens, or nobody that speaks `qraf.v1`.
            ServerError: the server refused the hello.
        """
        try:
            async with asyncio.timeout(timeout_s):
                self._ws = await ws_connect(
                    self._url,
                    additional_headers={} if self._api_key is None else {"Authorization": f"Bearer {self._api_key}"},
                    subprotocols=[_SUBPROTOCOLS[self._framing]],
                    compression=None,
                    max_size=MAX_SERVER_FRAME_BYTES,
                    open_timeout=None,
                    close_timeout=2,
                    ping_interval=None,
                    proxy=None if is_loopback(self._url) else True,
                )
                try:
                    welcome = await self._greet(self._ws, hello)
                except BaseException:
                    self._ws.transport.abort()
                    raise
        except TimeoutError:
            raise CannotConnect(self._url, f"no answer within {timeout_s:g} s") from None
        except InvalidStatus as error:
            status = error.response.status_code
            self.is_final = 400 <= status < 500 and status not in (408, 425, 429)
            raise CannotConnect(self._url, f"it answered with HTTP status {status}") from None
        except ConnectionClosed as error:
            self.is_final = _close_code(error) in FINAL_CLOSES
            raise CannotConnect(self._url, _closed_text(error), _close_code(error)) from None
        except (OSError, InvalidHandshake, InvalidURI) as error:
            self.is_final = isinstance(error, InvalidURI)
            raise CannotConnect(self._url, _os_text(error)) from None
        self._heard = asyncio.get_running_loop().time()
        self._beat_s = self._heartbeat_s or max(welcome.heartbeat_ms / 1000, 0.05)
        return welcome

    def start(self) -> None:
        """Take what comes from now on."""
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._beat())]

    async def send(self, frame: ClientFrame) -> None:
        """Send; waits while the server does not read.

        Raises:
            ConnectionLost: it has ended.
        """
        assert self._ws is not None
        data = self._encode(frame)
        try:
            await self._ws.send(data if self._framing == "msgpack" else data.decode())
        except ConnectionClosed as error:
            lost = self._loss(error)
            self._end(lost)
            raise lost from None

    async def close(self) -> None:
        """Close the socket and end the tasks. Twice: nothing more happens."""
        self._has_ended = True
        if self._ws is not None:
            with contextlib.suppress(Exception):
                await self._ws.close()
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -------------------------------------------------------------------------------------------------- inside
    async def _greet(self, ws: ClientConnection, hello: Hello) -> Welcome:
        if ws.subprotocol != _SUBPROTOCOLS[self._framing]:
            self.is_final = True
            raise CannotConnect(self._url, "it does not speak qraf.v1")
        data = self._encode(hello)
        await ws.send(data if self._framing == "msgpack" else data.decode())
        while True:
            frame = self._parse(await ws.recv())
            if isinstance(frame, Welcome):
                return frame
            if isinstance(frame, ErrorFrame):
                raise server_error(frame.error)

    async def _read(self) -> None:
        assert self._ws is not None
        loop = asyncio.get_running_loop()
        try:
            while True:
                data = await self._ws.recv()
                self._heard, self.is_proven = loop.time(), True
                match self._parse(data):
                    case None:
                        pass
                    case Pong(id=id) if id == _BEAT:
                        self._pong.set()
                    case Goodbye() as goodbye:
                        self._fault = goodbye.reason
                        self.reconnect_after_s = goodbye.reconnect_after_ms / 1000
                    case ErrorFrame(id="", stream="") as frame:
                        self._fault = str(server_error(frame.error))  # the close that follows is told by it
                    case frame:
                        self._take(frame)
        except ConnectionClosed as error:
            self._end(self._loss(error))
        except QrafError as error:
            self.is_final = True
            self._end(ConnectionLost(self._url, str(error)))

    def _parse(self, data: str | bytes) -> ServerFrame | None:
        """The frame, or None where its type is not known here (the protocol may grow)."""
        raw = data.encode() if isinstance(data, str) else data
        try:
            frame: ServerFrame = self._decoder.decode(raw)
            return frame
        except msgspec.DecodeError as error:
            with contextlib.suppress(msgspec.DecodeError):
                plain = self._plain.decode(raw)
                if isinstance(plain, dict) and isinstance(plain.get("type"), str) and plain["type"] not in _TAGS:
                    return None
            raise ConnectionLost(self._url, f"the server sent a frame that does not parse: {error}") from None

    async def _beat(self) -> None:
        """Ping each beat, heard or not, for the server counts our silence too; end a connection that stays silent."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._beat_s)
            self._pong.clear()
            try:
                async with asyncio.timeout(self._beat_s):
                    await self.send(Ping(id=_BEAT))
                    await self._pong.wait()
            except TimeoutError:
                silent_s = loop.time() - self._heard
                if silent_s > self._beat_s:  # else it is busy sending other frames
                    self._end(ConnectionLost(self._url, f"the server was silent for {silent_s:.1f} s"))
                    return
            except ConnectionLost:
                return

    def _loss(self, error: ConnectionClosed) -> ConnectionLost:
        text, code = _closed_text(error), _close_code(error)
        self.is_final = self.is_final or code in FINAL_CLOSES
        if self._fault.startswith(f"{text}: "):  # the reason of the close is the code of the error before it
            return ConnectionLost(self._url, self._fault, code)
        return ConnectionLost(self._url, f"{text}; {self._fault}" if self._fault else text, code)

    def _end(self, lost: ConnectionLost) -> None:
        if not self._has_ended:
            self._has_ended = True
            for task in self._tasks:
                if task is not asyncio.current_task():
                    task.cancel()
            if self._ws is not None:
                self._ws.transport.abort()
            self._lost(self, lost)


def _close_code(error: ConnectionClosed) -> int | None:
    return error.rcvd.code if error.rcvd is not None else None


def _closed_text(error: ConnectionClosed) -> str:
    if error.rcvd is None:
        return CLOSE_REASONS[1006]
    return error.rcvd.reason or CLOSE_REASONS.get(error.rcvd.code, "closed")


def _os_text(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
