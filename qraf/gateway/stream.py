"""Pumps one WebSocket through `protocol`: a reader, a writer, and one task for every command that takes time.

Every task belongs to the connection's task group and ends with it. The reader never waits for a command, so that a
disconnect and a `cancel` are noticed at once; what a client may have in flight is bounded instead.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, NamedTuple

import msgspec
from ulid import ULID

from qraf.decode_frames import DecodeClose, DecodeOpen, DecodeRounds
from qraf.errors import (
    InvalidRequest,
    LimitExceeded,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    NotReady,
    QrafError,
    ReplayGone,
    RunsElsewhere,
    Superseded,
)
from qraf.frames import (
    Ack,
    AuthRefresh,
    Cancel,
    ClientFrame,
    Enhance,
    ErrorBody,
    ErrorFrame,
    Goodbye,
    Hello,
    Limits,
    Ping,
    Pong,
    Recall,
    ResponseCreated,
    ResponseDelta,
    Resume,
    Resumed,
    ServerFrame,
    ServerInfo,
    SessionOpen,
    Unwatch,
    Watch,
    Welcome,
    Write,
)
from qraf.gateway.decoding import DecodePool, Decoding
from qraf.gateway.metrics import GatewayMeters
from qraf.gateway.outbox import Message, Outbox, SlowReader
from qraf.gateway.problems import error_body
from qraf.gateway.protocol import Close, Connection, Refusal, close_of
from qraf.gateway.security.authority import Authority
from qraf.gateway.security.guard import check_frame
from qraf.gateway.security.limits import LIMIT_CODES, Visit, account_of
from qraf.gateway.security.principal import ANONYMOUS, Principal
from qraf.gateway.watches import Usage, Watched, topic_for
from qraf.sessions.response import Reader, Response
from qraf.sessions.tenants import TenantService
from qraf.state_frames import StateCommand, StateDone
from qraf.times import format_time

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
        self,
        receive: Receive,
        send: Send,
        connection: Connection,
        service: TenantService,
        meters: GatewayMeters,
        decoders: DecodePool,
        authority: Authority,
        who: Principal | QrafError | None,
        address: str = "",
    ) -> None:
        limits = service.settings.limits
        self.id = f"con_{ULID()}"
        self.outbox = Outbox(limits.outbox_frames, limits.outbox_bytes)
        self._receive, self._send_event = receive, send
        self._connection, self._service, self._meters, self._limits = connection, service, meters, limits
        self.who = None if isinstance(who, QrafError) else who
        """Who is at the other end, once that is known."""
        self._fault = who if isinstance(who, QrafError) else None
        self._authority, self._address = authority, address
        self._visit: Visit | None = None
        self._coalesce_s = 0.0
        self._usage = Usage()
        self._readers: set[Reader] = set()
        self._idle = asyncio.Event()  # no response runs
        self._idle.set()
        self._large = asyncio.Lock()
        self._early_cancels: dict[str, bool] = {}  # commands whose response is not made yet -> cancelled meanwhile
        self._watches: dict[str, Watched] = {}
        self._decoding = Decoding(
            decoders,
            limits,
            send=self._send,
            answer=self._answer,
            fail=self._fail,
            own=self._own,
            drained=self.outbox.drained,
            count=service.whole.meters.corrections.labels("decoded").inc,
        )
        self._opening: set[asyncio.Task[None]] = set()
        self._writes = self._commands = self._enhances = 0
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Future[_End] = asyncio.get_running_loop().create_future()

    # ------------------------------------------------------------------------------------------------ life
    async def run(self) -> None:
        """Serve until one side ends it. Its responses run on for a while, for a client that comes back."""
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
            for reader in tuple(self._readers):
                reader.detach()
            if self._visit is not None:
                self._visit.leave()

    @property
    def is_busy(self) -> bool:
        """Whether a command is not answered yet, or a response still streams."""
        return bool(self._readers or self._opening or self._writes or self._commands or self._enhances)

    def end(self, code: int | None, reason: str, *, can_flush: bool = True) -> None:
        """End the connection; the first call counts."""
        if not self._ended.done():
            self._ended.set_result(_End(code, reason, can_flush))

    async def _finish(self, end: _End) -> None:
        """Let go of what may still be sent: the ends of the responses and a goodbye, when the close is planned."""
        if end.code is None or not end.can_flush:
            return
        if end.code == Close.GOING_AWAY:
            for reader in tuple(self._readers):
                reader.response.cancel("shutdown")
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

    def _fail(self, id: str, error: BaseException, what: str = "command") -> None:
        if isinstance(error, QrafError) and error.code in LIMIT_CODES:
            self._audit(error, what)
            if self._visit is not None and self._visit.is_too_much(error, time.monotonic()):
                self.end(Close.LIMITED, error.code)
        if not isinstance(error, QrafError):
            log.error("%s: a command failed", self.id, exc_info=error)
        self._answer(id, ErrorFrame(id=id, error=error_body(error)))

    def _too_slow(self, why: str) -> None:
        if not self._ended.done():
            self._meters.slow.labels("closed").inc()
        self.end(Close.SLOW_READER, f"slow reader: {why}", can_flush=False)

    # ------------------------------------------------------------------------------------------------ in
    async def _read(self) -> None:
        if self._fault is not None:
            self.refuse(self._fault, "hello")
            return
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
                    self.end(command.close, command.frame.error.code)
                    return
            else:
                self._meters.frame(str(command.__struct_config__.tag))
                if not await self._may(command):
                    return
                if not isinstance(command, Hello):
                    if await self._is_in_rate(command):
                        self._start(command)
                elif not await self._greet(command):
                    return

    async def _may(self, command: ClientFrame) -> bool:
        """Whether the other end may send this; where not, it is told and the connection ends."""
        try:
            if isinstance(command, Hello):
                await self._identify(command)
            check_frame(self.who or ANONYMOUS, command)
        except QrafError as error:
            self.refuse(error, str(command.__struct_config__.tag), command.id)
            return False
        return True

    async def _is_in_rate(self, command: ClientFrame) -> bool:
        """Whether it does not come too soon; where it does, it is told so, and a client that goes on is let go."""
        visit = self._visit
        if visit is None:
            return True
        try:
            await visit.account.frame()
        except QrafError as error:
            self._fail(command.id, error, str(command.__struct_config__.tag))
            return False
        finally:
            if (warning := visit.warning(time.monotonic())) is not None:
                self._send(warning)
        return True

    async def _identify(self, hello: Hello) -> None:
        if hello.auth is not None:
            who = await self._authority.of_credential(hello.auth)
            if self.who is not None and (self.who.tenant, self.who.subject) != (who.tenant, who.subject):
                raise NotAllowed("`hello.auth`", "the request that opened the socket was of another subject")
            self.who = who
        if self.who is None:
            raise NotAuthenticated()
        self._visit = Visit(account_of(self._service.whole.accounts, self.who))
        self._service = TenantService(self._service.whole, self.who.tenant, self._visit.account)
        await self._visit.enter()

    async def _refresh(self, command: AuthRefresh) -> None:
        try:
            who = await self._authority.of_credential(command.token)
            assert self.who is not None
            if (self.who.tenant, self.who.subject) != (who.tenant, who.subject):
                raise NotAllowed("`auth.refresh`", "the new credential is of another subject")
        except NotAllowed as error:
            self.refuse(error, "auth.refresh", command.id)
        except Exception as error:
            if isinstance(error, NotAuthenticated):
                self._audit(error, "auth.refresh")
            self._fail(command.id, error)
        else:
            self.who = who
            self._answer(command.id, Ack(id=command.id, status="accepted"))

    def refuse(self, error: QrafError, what: str, id: str = "") -> None:
        """Say why the other end may not go on, and end the connection; the reason of the close is the error's code."""
        if self._ended.done():
            return
        self._audit(error, what)
        self._send(ErrorFrame(id=id, error=error_body(error)))
        self.end(close_of(error), error.code)

    def _audit(self, error: QrafError | ErrorBody, what: str) -> None:
        if isinstance(error, NotAuthenticated | NotAllowed) or error.code in LIMIT_CODES:
            self._authority.audit.refused(self.who, f"WS {what}", error, address=self._address, request=self.id)

    def _start(self, command: ClientFrame) -> None:
        try:
            match command:
                case Ping():
                    self._answer(command.id, Pong(id=command.id))
                case Cancel():
                    self._cancel(command)
                case Watch():
                    self._watch(command)
                case Unwatch():
                    self._unwatch(command)
                case DecodeOpen() | DecodeRounds() | DecodeClose():
                    if isinstance(command, DecodeOpen):
                        self._check_ready()
                    self._decoding.take(command)
                case AuthRefresh():
                    self._own(self._refresh(command))
                case SessionOpen() | Recall() | Write() | Enhance() | StateCommand():
                    self._admit(command)
                    # what comes after a `session.open` waits for it, so a client need not
                    task = self._own(self._carry_out(command, tuple(self._opening)))
                    if isinstance(command, SessionOpen):
                        self._opening.add(task)
                        task.add_done_callback(self._opening.discard)
        except Exception as error:
            self._fail(command.id, error, str(command.__struct_config__.tag))

    def _check_ready(self) -> None:
        state = self._service.whole.health.state
        if state != "ready":
            raise NotReady(state)

    def _admit(self, command: SessionOpen | Recall | Write | Enhance | StateCommand) -> None:
        self._check_ready()
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
            self._count_command()

    def _count_command(self) -> None:
        most = self._limits.max_inflight_commands
        if self._commands >= most:
            raise LimitExceeded("max_inflight_commands", most, self._commands + 1, 100)
        self._commands += 1

    async def _carry_out(
        self, command: SessionOpen | Recall | Write | Enhance | StateCommand, opening: tuple[asyncio.Task[None], ...]
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
                    queued = Ack(id=command.id, status="queued")  # tells of a wait; the answer comes after it
                    done = await self._service.write(command, lambda: self._send(queued))
                    self._usage.written_items += done.accepted
                    self._answer(command.id, done)
                case StateCommand():
                    answer = await self._state(command)
                    # answers of many MiB go out one after the other, not as a slow reader's pile
                    async with self._large:
                        await self.outbox.drained()
                        self._answer(command.id, answer)
                case Enhance():
                    await self._enhance(command)
                    self._connection.settle(command.id)
        except Exception as error:
            self._fail(command.id, error, str(command.__struct_config__.tag))
        finally:
            if isinstance(command, Write):
                self._writes -= 1
            elif isinstance(command, Enhance):
                self._enhances -= 1
                self._early_cancels.pop(command.id, None)
            else:
                self._commands -= 1

    async def _state(self, command: StateCommand) -> StateDone:
        try:
            return StateDone(id=command.id, answer=await self._service.states.order(command.order))
        except InvalidRequest as fault:
            raise InvalidRequest(fault.detail, f"/order{fault.pointer}") from None

    # ------------------------------------------------------------------------------------------------ responses
    async def _enhance(self, command: Enhance) -> None:
        response = await self._service.enhance(command, owner=self.id)
        if response.task is not None:
            response.task.add_done_callback(lambda _: self._note_limit(response))
        if self._early_cancels.pop(command.id, False):
            response.cancel()
        if any(reader.response is response for reader in self._readers):
            raise InvalidRequest("is that of a response that streams on this connection already", "/key")
        self._usage.responses += 1
        await self._read_on(response.attach(), command.id)

    def _note_limit(self, response: Response) -> None:
        if response.error is not None and response.error.code in LIMIT_CODES:
            self._audit(response.error, "enhance")

    async def _read_on(self, reader: Reader, id: str = "") -> None:
        """Send what a response emits; `id` is the command that asked for it on this connection."""
        self._readers.add(reader)
        self._idle.clear()
        try:
            async for frame in reader.frames():
                if id and isinstance(frame, ResponseCreated) and frame.id != id:
                    frame = msgspec.structs.replace(frame, id=id)  # started by an earlier command with the same key
                self._send(frame)
                if isinstance(frame, ResponseDelta):
                    self._usage.tokens += frame.tokens
                    # text that comes meanwhile is merged inside the response, and goes out as one delta
                    if self._coalesce_s and not reader.is_behind:
                        await asyncio.sleep(self._coalesce_s)
                if not self.outbox.is_empty:
                    if self._coalesce_s and isinstance(frame, ResponseDelta):
                        self._meters.slow.labels("merged").inc()
                    await self.outbox.drained()
        except Superseded:
            self.end(Close.SUPERSEDED, "a newer reader went on with a response of this connection")
        except ReplayGone:
            self._too_slow("frames that it had not read yet are no longer kept")
        finally:
            reader.detach()
            self._readers.discard(reader)
            if not self._readers:
                self._idle.set()

    async def _resumed(self, reader: Reader) -> None:
        try:
            await self._read_on(reader)
        finally:
            self._enhances -= 1

    def _cancel(self, command: Cancel) -> None:
        response = self._service.response(command.target, self.id)
        if response is not None:
            status = "accepted" if response.cancel() else "duplicate"
        elif command.target in self._early_cancels:
            self._early_cancels[command.target] = True
            status = "accepted"
        else:
            self._count_command()
            self._own(self._cancel_elsewhere(command))
            return
        self._answer(command.id, Ack(id=command.id, status=status))  # type: ignore[arg-type]

    async def _cancel_elsewhere(self, command: Cancel) -> None:
        status: Any = "not_found"
        try:
            if await self._service.find_response(command.target, follow=False) is not None:
                status = "duplicate"  # it has ended
        except RunsElsewhere as running:
            await self._service.cancel_elsewhere(running)
            status = "accepted"
        except Exception as error:
            self._fail(command.id, error)
            return
        finally:
            self._commands -= 1
        self._answer(command.id, Ack(id=command.id, status=status))

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
    async def _greet(self, hello: Hello) -> bool:
        """Welcome, with what became of the streams of an earlier connection; what they missed follows.

        False: that cannot be told now, and the connection ends.
        """
        self._coalesce_s = hello.coalesce_ms / 1000
        try:
            found = await asyncio.gather(*map(self._found, hello.resume))
        except QrafError as error:
            self.refuse(error, "hello", hello.id)
            return False
        resumed: list[Resumed] = []
        readers: list[Reader] = []
        for wanted, response in zip(hello.resume, found, strict=True):
            reader = response.attach(wanted.after_seq) if isinstance(response, Response) else None
            result: Any = response if reader is None else reader.result
            resumed.append(
                Resumed(
                    stream=wanted.stream, result=result, epoch=self._service.epoch if reader is None else wanted.epoch
                )
            )
            self._meters.resumes.labels(result).inc()
            if reader is not None:
                readers.append(reader)
        self._send(self._welcome(hello.id, tuple(resumed)))
        for reader in readers:
            self._readers.add(reader)  # also one whose task ends before its first step is let go
            self._enhances += 1
            self._own(self._resumed(reader))
        return True

    async def _found(self, wanted: Resume) -> Response | str:
        """A response to go on with, or what to say where there is none."""
        try:
            response = await self._service.find_response(wanted.stream, after_seq=wanted.after_seq)
        except RunsElsewhere:
            return "elsewhere"  # and its gateway tells nothing of it
        is_it = response is not None and (response.stream, response.epoch) == (wanted.stream, wanted.epoch)
        return response if response is not None and is_it else "expired"

    def _welcome(self, id: str, resumed: tuple[Resumed, ...]) -> Welcome:
        service, limits = self._service, self._limits
        return Welcome(
            id=id,
            resumed=resumed,
            connection=self.id,
            server=ServerInfo(version=service.version),
            heartbeat_ms=service.settings.gateway.heartbeat_ms,
            auth_expires_at=_expiry(self.who),
            rate_limits=() if self._visit is None else self._visit.rates(),
            limits=Limits(**{name: getattr(limits, name) for name in Limits.__struct_fields__}),
            topology=service.topology.name,
        )


def _expiry(who: Principal | None) -> str | None:
    return None if who is None or who.expires_at is None else format_time(who.expires_at)
