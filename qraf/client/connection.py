"""One WebSocket that speaks `qraf.v1`: commands out, answers and streams in, a heartbeat, and one way to end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import Literal, TypeVar, get_args

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as ws_connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.typing import Subprotocol

from qraf.client.inbox import Inbox
from qraf.client.urls import is_loopback, socket_url
from qraf.errors import CannotConnect, ConnectionLost, InvalidRequest, QrafError, ServerError, TimedOut
from qraf.frames import (
    Ack,
    Cancel,
    ClientFrame,
    ClientInfo,
    ErrorBody,
    ErrorFrame,
    Goodbye,
    Hello,
    Metrics,
    NetworkDelta,
    NetworkSnapshot,
    Ping,
    Pong,
    RecallDone,
    ResponseCreated,
    ServerFrame,
    SessionOpened,
    UsageFrame,
    Welcome,
    WriteDone,
)

__all__ = ["CLOSE_REASONS", "Connection", "Framing", "server_error"]

Framing = Literal["msgpack", "json"]
T = TypeVar("T")

CLOSE_REASONS = {
    1000: "closed",
    1001: "the server is going away",
    1006: "the connection broke",
    1011: "internal error of the server",
    1012: "the server restarts",
    1013: "the server is overloaded",
    4008: "this client reads too slowly",
    4009: "superseded by a newer connection",
    4400: "malformed frame",
    4401: "not authenticated",
    4403: "forbidden",
    4404: "no such session",
    4406: "no common protocol",
    4408: "hello came too late",
    4409: "duplicate id",
    4413: "frame too large",
    4429: "rate or quota",
}
MAX_SERVER_FRAME_BYTES = 64 * 1024 * 1024

_SUBPROTOCOLS: dict[str, Subprotocol] = {"msgpack": Subprotocol("qraf.v1+msgpack"), "json": Subprotocol("qraf.v1")}
_TAGS = {kind.__struct_config__.tag for kind in get_args(ServerFrame)}


def server_error(body: ErrorBody) -> ServerError:
    """The error that a client raises for an error of the server."""
    return ServerError(body.code, body.detail or body.title, body.pointer, body.retryable, body.retry_after_ms)


class Connection:
    """The transport of a client. `open` once, `close` any number of times; it does not come back by itself.

    Every waiting call ends: with its answer, with `ServerError`, with `TimedOut`, or with `ConnectionLost`.
    """

    def __init__(
        self,
        url: str,
        *,
        framing: Framing = "msgpack",
        coalesce_ms: int = 15,
        open_timeout_s: float = 10.0,
        timeout_s: float = 180.0,
        heartbeat_s: float | None = None,
        client: ClientInfo,
    ) -> None:
        self.url, self.timeout_s = socket_url(url), timeout_s
        self._framing, self._coalesce_ms, self._client = framing, coalesce_ms, client
        self._open_timeout_s, self._heartbeat_s = open_timeout_s, heartbeat_s
        codec = msgspec.msgpack if framing == "msgpack" else msgspec.json
        self._encode = codec.Encoder().encode
        self._decoder, self._plain = codec.Decoder(ServerFrame), codec.Decoder()
        self._ws: ClientConnection | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[str, tuple[type[ServerFrame], asyncio.Future[ServerFrame]]] = {}
        self._starting: dict[str, Inbox] = {}  # by command id, until `response.created` names the stream
        self._streams: dict[str, Inbox] = {}
        self._topics: dict[str, Inbox] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._lost: ConnectionLost | None = None
        self._fault = ""
        self._heard = 0.0
        self.welcome: Welcome | None = None

    @property
    def is_open(self) -> bool:
        """Whether commands can be sent."""
        return self._ws is not None and self._lost is None

    # -------------------------------------------------------------------------------------------------- life
    async def open(self) -> Welcome:
        """Connect, say hello, and start reading.

        Cancel: safe, the socket closes. Twice: refused.

        Raises:
            CannotConnect: nobody listens, or nobody that speaks `qraf.v1`.
            ServerError: the server refused the hello.
        """
        if self._ws is not None:
            raise InvalidRequest("this client is connected already, or was; make a new one")
        try:
            async with asyncio.timeout(self._open_timeout_s):
                self._ws = await ws_connect(
                    self.url,
                    subprotocols=[_SUBPROTOCOLS[self._framing]],
                    compression=None,
                    max_size=MAX_SERVER_FRAME_BYTES,
                    open_timeout=None,
                    close_timeout=2,
                    ping_interval=None,
                    proxy=None if is_loopback(self.url) else True,
                )
                try:
                    self.welcome = await self._greet(self._ws)
                except BaseException:
                    self._ws.transport.abort()
                    raise
        except TimeoutError:
            raise CannotConnect(self.url, f"no answer within {self._open_timeout_s:g} s") from None
        except InvalidStatus as error:
            raise CannotConnect(self.url, f"it answered with HTTP status {error.response.status_code}") from None
        except ConnectionClosed as error:
            raise CannotConnect(self.url, _closed_text(error), _close_code(error)) from None
        except (OSError, InvalidHandshake, InvalidURI) as error:
            raise CannotConnect(self.url, _os_text(error)) from None
        self._heard = asyncio.get_running_loop().time()
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._beat())]
        return self.welcome

    async def close(self) -> None:
        """Cancel what still streams, then close the socket; calls that wait get `ConnectionLost`. Twice: harmless."""
        if self.is_open:
            with contextlib.suppress(ConnectionLost, TimeoutError):
                async with asyncio.timeout(2):
                    for target in (*self._starting, *self._streams):
                        await self.send(Cancel(id=self.next_id(), target=target))
        self._end(ConnectionLost(self.url, "closed by this client"))
        if self._ws is not None:
            with contextlib.suppress(Exception):
                await self._ws.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    # -------------------------------------------------------------------------------------------------- commands
    def next_id(self) -> str:
        """A command id that was not used on this connection."""
        return f"c{next(self._numbers)}"

    async def send(self, frame: ClientFrame) -> None:
        """Send without waiting for an answer; waits while the server does not read.

        Raises:
            ConnectionLost: the connection has ended.
        """
        ws = self._ws
        if self._lost is not None:
            raise self._lost
        if ws is None:
            raise ConnectionLost(self.url, "not connected; use `async with`")
        data = self._encode(frame)
        try:
            await ws.send(data if self._framing == "msgpack" else data.decode())
        except ConnectionClosed as error:
            self._end(self._loss(error))
            raise self._lost or self._loss(error) from None

    async def request(self, frame: ClientFrame, answer: type[T], timeout_s: float | None = None) -> T:
        """Send a command and wait for its answer.

        Cancel: safe; the answer is dropped when it comes.

        Raises:
            ServerError: the server answered with an error.
            ConnectionLost: the connection ended before the answer came.
            TimedOut: no answer in time.
        """
        timeout_s = timeout_s or self.timeout_s
        future: asyncio.Future[ServerFrame] = asyncio.get_running_loop().create_future()
        self._waiting[frame.id] = (answer, future)  # type: ignore[assignment]
        try:
            async with asyncio.timeout(timeout_s):
                await self.send(frame)
                got = await future
        except TimeoutError:
            raise TimedOut(f"the answer to `{frame.__struct_config__.tag}`", timeout_s) from None
        finally:
            self._waiting.pop(frame.id, None)
            if future.done() and not future.cancelled():
                future.exception()  # seen, even if `send` raised first
        assert isinstance(got, answer)
        return got

    # -------------------------------------------------------------------------------------------------- streams
    def expect_stream(self, command: str, inbox: Inbox) -> None:
        """Frames of the response to this command go to `inbox`."""
        self._starting[command] = inbox

    def expect_topic(self, topic: str, inbox: Inbox) -> None:
        """Frames of a watched topic go to `inbox`; one watch per topic and connection."""
        if topic in self._topics:
            raise InvalidRequest(f"topic '{topic}' is watched already on this connection", "/topic")
        self._topics[topic] = inbox

    def leave(self, inbox: Inbox) -> None:
        """Forget an inbox; frames that still come for it are dropped."""
        for table in (self._starting, self._streams, self._topics):
            for key in [key for key, value in table.items() if value is inbox]:
                del table[key]

    # -------------------------------------------------------------------------------------------------- inside
    async def _greet(self, ws: ClientConnection) -> Welcome:
        if ws.subprotocol != _SUBPROTOCOLS[self._framing]:
            raise CannotConnect(self.url, "it does not speak qraf.v1")
        hello = self._encode(Hello(id="hello", client=self._client, coalesce_ms=self._coalesce_ms))
        await ws.send(hello if self._framing == "msgpack" else hello.decode())
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
                self._heard = loop.time()
                frame = self._parse(data)
                if frame is not None:
                    self._dispatch(frame)
        except ConnectionClosed as error:
            self._end(self._loss(error))
        except QrafError as error:
            self._end(ConnectionLost(self.url, str(error)))
            self._ws.transport.abort()

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
            raise ConnectionLost(self.url, f"the server sent a frame that does not parse: {error}") from None

    def _dispatch(self, frame: ServerFrame) -> None:
        match frame:
            case ErrorFrame():
                self._on_error(frame)
            case ResponseCreated():
                inbox = self._starting.pop(frame.id, None)
                if inbox is not None:
                    self._streams[frame.stream] = inbox
                    self._deliver(inbox, frame)
            case NetworkSnapshot() | NetworkDelta():
                self._deliver(self._topics.get("network"), frame)
            case Metrics():
                self._deliver(self._topics.get(f"session:{frame.session}"), frame)
            case UsageFrame():
                self._deliver(self._topics.get("usage"), frame)
            case Ack() | SessionOpened() | WriteDone() | RecallDone() | Pong() | Welcome():
                waits = self._waiting.get(frame.id)
                if waits is not None and isinstance(frame, waits[0]) and not waits[1].done():
                    waits[1].set_result(frame)
            case Goodbye():
                self._fault = frame.reason
            case _:
                self._deliver(self._streams.get(frame.stream), frame)

    def _deliver(self, inbox: Inbox | None, frame: ServerFrame) -> None:
        if inbox is not None and not inbox.put(frame):
            self.leave(inbox)

    def _on_error(self, frame: ErrorFrame) -> None:
        error = server_error(frame.error)
        waits = self._waiting.get(frame.id) if frame.id else None
        inbox = self._starting.get(frame.id, self._streams.get(frame.stream))
        if waits is not None and not waits[1].done():
            waits[1].set_exception(error)
        elif inbox is not None:
            inbox.close(error)
            self.leave(inbox)
        elif not frame.id and not frame.stream:
            self._fault = str(error)  # a fault of the connection: the close that follows is told by it

    async def _beat(self) -> None:
        """Ping when nothing was heard for a beat, and end a connection that stays silent."""
        assert self.welcome is not None
        assert self._ws is not None
        beat = self._heartbeat_s or max(self.welcome.heartbeat_ms / 1000, 0.05)
        loop = asyncio.get_running_loop()
        while self._lost is None:
            await asyncio.sleep(beat)
            try:
                # each beat, heard or not: the server counts our silence too
                await self.request(Ping(id=self.next_id()), Pong, timeout_s=beat)
            except TimedOut:
                silent_s = loop.time() - self._heard
                if silent_s > beat:  # else it is busy sending other frames
                    self._end(ConnectionLost(self.url, f"the server was silent for {silent_s:.1f} s"))
                    self._ws.transport.abort()
            except ConnectionLost:
                return

    def _loss(self, error: ConnectionClosed) -> ConnectionLost:
        text = _closed_text(error)
        return ConnectionLost(self.url, f"{text}; {self._fault}" if self._fault else text, _close_code(error))

    def _end(self, lost: ConnectionLost) -> None:
        if self._lost is not None:
            return
        self._lost = lost
        for _, future in self._waiting.values():
            if not future.done():
                future.set_exception(lost)
        for inbox in (*self._starting.values(), *self._streams.values(), *self._topics.values()):
            inbox.close(lost)
        self._starting.clear()
        self._streams.clear()
        self._topics.clear()


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
