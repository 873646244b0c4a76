"""Pumps one WebSocket through `protocol`: a reader, a writer, and one task for every command that takes time.

Every task belongs to the connection's task group and ends with it. The reader never waits for a command, so that a
disconnect and a `cancel` are noticed at once; what a client may have in flight is bounded instead.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, NamedTuple

from ulid import ULID

from qraf.errors import LimitExceeded, NotAvailable, NotFound, QrafError
from qraf.frames import (
    Ack,
    AuthRefresh,
    Cancel,
    ClientFrame,
    Enhance,
    ErrorFrame,
    Goodbye,
    Hello,
    Limits,
    Ping,
    Pong,
    Recall,
    ResponseDelta,
    ServerFrame,
    ServerInfo,
    SessionOpen,
    Unwatch,
    Watch,
    Welcome,
    Write,
)
from qraf.gateway.metrics import GatewayMeters
from qraf.gateway.outbox import Message, Outbox, SlowReader
from qraf.gateway.problems import error_body
from qraf.gateway.protocol import Close, Connection, Refusal
from qraf.gateway.watches import Usage, Watched, topic_for
from qraf.sessions.responses import Response
from qraf.sessions.service import Service

__all__ = ["Receive", "Send", "Stream"]

log = logging.getLogger(__name__)

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_FLUSH_S = 2.0  # how long a planned close waits for what is still to be sent
_CLOSE_S = 1.0  # how long a close frame may wait for room in the socket


class _End(NamedTuple):
    code: int | None
    """None: the client went, there is nobody to tell."""
    reason: str
    can_flush: bool = True


class Stream:
    """One accepted WebSocket. `run` once; `end` from anywhere, any number of times."""

    def __init__(
        self, receive: Receive, send: Send, connection: Connection, service: Service, meters: GatewayMeters
    ) -> None:
        limits = service.settings.limits
        self.id = f"con_{ULID()}"
        self.outbox = Outbox(limits.outbox_frames, limits.outbox_bytes)
        self._receive, self._send_event = receive, send
        self._connection, self._service, self._meters, self._limits = connection, service, meters, limits
        self._coalesce_s = 0.0
        self._usage = Usage()
        self._responses: dict[str, Response] = {}
        self._idle = asyncio.Event()  # no response runs
        self._idle.set()
        self._early_cancels: dict[str, bool] = {}  # commands whose response is not made yet -> cancelled meanwhile
        self._watches: dict[str, Watched] = {}
        self._opening: set[asyncio.Task[None]] = set()
        self._writes = self._commands = self._enhances = 0
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Future[_End] = asyncio.get_running_loop().create_future()

    # ------------------------------------------------------------------------------------------------ life
    async def run(self) -> None:
        """Serve until one side ends it. Cancel: the running responses are cancelled, nothing is sent any more."""
        timer = asyncio.get_running_loop().call_later(self._limits.hello_timeout_s, self._hello_is_late)
        end = _End(Close.INTERNAL, "internal error", can_flush=False)
        try:
            try:
                async with asyncio.TaskGroup() as self._group:
                    self._own(self._read())
                    self._own(self._write())
                    end = await asyncio.shield(self._ended)
                    await self._finish(end)
                    for task in tuple(self._tasks):
                        task.cancel()
            except* Exception as errors:
                log.error("%s: the connection failed", self.id, exc_info=errors)
            if end.code is not None:
                await self._close(end)
        finally:
            timer.cancel()
            for response in tuple(self._responses.values()):
                response.cancel("disconnected")

    def end(self, code: int | None, reason: str, *, can_flush: bool = True) -> None:
        """End the connection; the first call counts."""
        if not self._ended.done():
            self._ended.set_result(_End(code, reason, can_flush))

    async def _finish(self, end: _End) -> None:
        """Let go of what may still be sent: the ends of the responses and a goodbye, when the close is planned."""
        if end.code is None or not end.can_flush:
            return
        if end.code == Close.GOING_AWAY:
            for response in tuple(self._responses.values()):
                response.cancel("shutdown")
        try:
            async with asyncio.timeout(_FLUSH_S):
                if end.code == Close.GOING_AWAY:
                    await self._idle.wait()
                    self._send(Goodbye(reason=end.reason, reconnect_after_ms=1000))
                await self.outbox.drained()
        except TimeoutError:
            log.info("%s: a client does not read; closed without the rest", self.id)

    async def _close(self, end: _End) -> None:
        self._meters.closes.labels(str(end.code)).inc()
        reason = end.reason.encode()[:120].decode("utf-8", "ignore")
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._send_event({"type": "websocket.close", "code": end.code, "reason": reason})
        except (TimeoutError, OSError):
            log.info("%s: a client could not be told of close %s", self.id, end.code)

    def _hello_is_late(self) -> None:
        if self._connection.state == "hello":
            self.end(Close.HELLO_TIMEOUT, f"no hello within {self._limits.hello_timeout_s:g} s")

    def _own(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        assert self._group is not None
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ------------------------------------------------------------------------------------------------ out
    async def _write(self) -> None:
        kind = "bytes" if self._connection.is_binary else "text"
        while True:
            message = await self.outbox.get()
            try:
                async with asyncio.timeout(self._limits.send_timeout_s):
                    await self._send_event({"type": "websocket.send", kind: message})
            except TimeoutError:
                self._too_slow(f"took nothing for {self._limits.send_timeout_s:g} s")
                return
            except OSError:
                self.end(None, "the client went")
                return

    def _send(self, frame: ServerFrame) -> None:
        self._meters.frame(str(frame.__struct_config__.tag))
        try:
            self.outbox.put(self._connection.encode(frame))
        except SlowReader:
            self._too_slow("more frames wait than are allowed")

    def _answer(self, id: str, frame: ServerFrame) -> None:
        self._connection.settle(id)
        self._send(frame)

    def _fail(self, id: str, error: BaseException) -> None:
        if not isinstance(error, QrafError):
            log.error("%s: a command failed", self.id, exc_info=error)
        self._answer(id, ErrorFrame(id=id, error=error_body(error)))

    def _too_slow(self, why: str) -> None:
        if not self._ended.done():
            self._meters.slow.labels("closed").inc()
        self.end(Close.SLOW_READER, f"slow reader: {why}", can_flush=False)

    # ------------------------------------------------------------------------------------------------ in
    async def _read(self) -> None:
        while True:
            event = await self._receive()
            if event["type"] == "websocket.disconnect":
                self.end(None, "the client went")
                return
            if self._ended.done():
                continue
            data = event.get("bytes")
            command = self._connection.feed(event["text"] if data is None else data)
            if isinstance(command, Refusal):
                self._send(command.frame)
                if command.close is not None:
                    self.end(command.close, command.frame.error.detail)
                    return
            else:
                self._meters.frame(str(command.__struct_config__.tag))
                self._start(command)

    def _start(self, command: ClientFrame) -> None:
        try:
            match command:
                case Hello():
                    self._coalesce_s = command.coalesce_ms / 1000
                    self._send(self._welcome(command.id))
                case Ping():
                    self._answer(command.id, Pong(id=command.id))
                case Cancel():
                    self._cancel(command)
                case Watch():
                    self._watch(command)
                case Unwatch():
                    self._unwatch(command)
                case AuthRefresh():
                    raise NotAvailable("authentication")
                case SessionOpen() | Recall() | Write() | Enhance():
                    self._admit(command)
                    # what comes after a `session.open` waits for it, so a client need not
                    task = self._own(self._carry_out(command, tuple(self._opening)))
                    if isinstance(command, SessionOpen):
                        self._opening.add(task)
                        task.add_done_callback(self._opening.discard)
        except Exception as error:
            self._fail(command.id, error)

    def _admit(self, command: SessionOpen | Recall | Write | Enhance) -> None:
        limits = self._limits
        if isinstance(command, Write):
            if self._writes >= limits.max_inflight_writes:
                raise LimitExceeded("max_inflight_writes", limits.max_inflight_writes, self._writes + 1, 100)
            self._writes += 1
        elif isinstance(command, Enhance):
            if self._enhances >= limits.max_responses:
                raise LimitExceeded("max_responses", limits.max_responses, self._enhances + 1, 1000)
            self._enhances += 1
            self._early_cancels[command.id] = False
        else:
            if self._commands >= limits.max_inflight_commands:
                raise LimitExceeded("max_inflight_commands", limits.max_inflight_commands, self._commands + 1, 100)
            self._commands += 1

    async def _carry_out(
        self, command: SessionOpen | Recall | Write | Enhance, opening: tuple[asyncio.Task[None], ...]
    ) -> None:
        try:
            if opening:
                await asyncio.wait(opening)
            match command:
                case SessionOpen():
                    self._answer(command.id, await self._service.open_session(command))
                case Recall():
                    self._answer(command.id, await self._service.recall(command))
                    self._usage.recalls += 1
                case Write():
                    done = await self._service.write(command)
                    self._usage.written_items += done.accepted
                    self._answer(command.id, done)
                case Enhance():
                    await self._enhance(command)
                    self._connection.settle(command.id)
        except Exception as error:
            self._fail(command.id, error)
        finally:
            if isinstance(command, Write):
                self._writes -= 1
            elif isinstance(command, Enhance):
                self._enhances -= 1
                self._early_cancels.pop(command.id, None)
            else:
                self._commands -= 1

    # ------------------------------------------------------------------------------------------------ responses
    async def _enhance(self, command: Enhance) -> None:
        response = await self._service.enhance(command, owner=self.id)
        self._responses[response.id] = response
        self._idle.clear()
        self._usage.responses += 1
        if self._early_cancels.pop(command.id, False):
            response.cancel()
        try:
            async for frame in response.frames():
                self._send(frame)
                if isinstance(frame, ResponseDelta):
                    self._usage.tokens += frame.tokens
                    # text that comes meanwhile is merged inside the response, and goes out as one delta
                    if self._coalesce_s:
                        await asyncio.sleep(self._coalesce_s)
                if not self.outbox.is_empty:
                    if self._coalesce_s and isinstance(frame, ResponseDelta):
                        self._meters.slow.labels("merged").inc()
                    await self.outbox.drained()
        finally:
            response.cancel("disconnected")
            del self._responses[response.id]
            if not self._responses:
                self._idle.set()

    def _cancel(self, command: Cancel) -> None:
        response = self._service.response(command.target, self.id)
        if response is not None:
            status = "accepted" if response.cancel() else "duplicate"
        elif command.target in self._early_cancels:
            self._early_cancels[command.target] = True
            status = "accepted"
        else:
            status = "not_found"
        self._answer(command.id, Ack(id=command.id, status=status))  # type: ignore[arg-type]

    # ------------------------------------------------------------------------------------------------ watches
    def _watch(self, command: Watch) -> None:
        watched = self._watches.get(command.topic)
        if watched is not None:
            watched.every_s = command.every_ms / 1000
            self._answer(command.id, Ack(id=command.id, status="duplicate"))
            return
        if len(self._watches) >= self._limits.max_watches:
            raise LimitExceeded("max_watches", self._limits.max_watches, len(self._watches) + 1)
        topic = topic_for(command.topic, self._service, self._usage)
        watched = Watched(command.id, topic, command.every_ms / 1000, self._message)
        self._watches[command.topic] = watched
        watched.task = self._own(self._follow(command.topic, watched, tuple(self._opening)))

    def _unwatch(self, command: Unwatch) -> None:
        watched = self._watches.pop(command.topic, None)
        if watched is not None:
            self._drop(watched)
        self._answer(command.id, Ack(id=command.id, status="accepted" if watched else "not_found"))

    def _drop(self, watched: Watched) -> None:
        if watched.task is not None:
            watched.task.cancel()
        self.outbox.remove(watched)
        if not watched.is_answered:  # its task was stopped before it could
            watched.is_answered = True
            self._answer(watched.id, Ack(id=watched.id, status="accepted"))

    async def _follow(self, name: str, watched: Watched, opening: tuple[asyncio.Task[None], ...]) -> None:
        topic = watched.topic
        try:
            if opening:
                await asyncio.wait(opening)
            await topic.poll()
            watched.is_answered = True
            self._answer(watched.id, Ack(id=watched.id, status="accepted"))
            self._put(watched)
            while True:
                await asyncio.sleep(watched.every_s)
                try:
                    if await topic.poll():
                        self._put(watched)
                except NotFound:
                    raise
                except QrafError as error:  # a node that is being restarted; the next look may find it
                    log.info("%s: watch of %s: %s", self.id, name, error)
        except Exception as error:
            if self._watches.get(name) is watched:
                del self._watches[name]
            self.outbox.remove(watched)
            if watched.is_answered:
                self._send(ErrorFrame(stream=topic.stream, error=error_body(error)))
                if not isinstance(error, QrafError):
                    log.exception("%s: the watch of %s failed", self.id, name)
            else:
                watched.is_answered = True
                self._fail(watched.id, error)

    def _put(self, watched: Watched) -> None:
        try:
            if not self.outbox.put_slot(watched):
                watched.topic.skipped += 1
                self._meters.slow.labels("skipped").inc()
        except SlowReader:
            self._too_slow("more frames wait than are allowed")

    def _message(self, frame: ServerFrame) -> Message:
        self._meters.frame(str(frame.__struct_config__.tag))
        return self._connection.encode(frame)

    # ------------------------------------------------------------------------------------------------ hello
    def _welcome(self, id: str) -> Welcome:
        service, limits = self._service, self._limits
        return Welcome(
            id=id,
            connection=self.id,
            server=ServerInfo(version=service.version),
            heartbeat_ms=service.settings.gateway.heartbeat_ms,
            limits=Limits(**{name: getattr(limits, name) for name in Limits.__struct_fields__}),
            topology=service.topology.name,
        )
