"""Pumps one WebSocket through `protocol`: a reader, a writer, and one task for every command that takes time.

Every task belongs to the connection's task group and ends with it. The reader never waits for a command, so that a
disconnect and a `cancel` are noticed at once; what a client may have in flight is bounded instead.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

from qraf.decode_frames import DecodeClose, DecodeOpen, DecodeRounds
from qraf.errors import (
    InvalidRequest,
    LimitExceeded,
    NotReady,
    QrafError,
)
from qraf.frames import (
    Ack,
    AuthRefresh,
    Cancel,
    ClientFrame,
    Enhance,
    Goodbye,
    Hello,
    Limits,
    Ping,
    Pong,
    Recall,
    ServerInfo,
    SessionOpen,
    Unwatch,
    Watch,
    Welcome,
    Write,
)
from qraf.gateway.decoding import DecodePool, Decoding
from qraf.gateway.metrics import GatewayMeters
from qraf.gateway.peer import End, Peer, Send, tag_of
from qraf.gateway.protocol import Close, Connection, Refusal
from qraf.gateway.responding import Responding
from qraf.gateway.security.authority import Authority
from qraf.gateway.security.principal import Principal
from qraf.gateway.watches import Usage, Watches
from qraf.sessions.tenants import TenantService
from qraf.state_frames import StateCommand, StateDone
from qraf.times import format_time

__all__ = ["Receive", "Send", "Stream"]

log = logging.getLogger(__name__)

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Lasting = SessionOpen | Recall | Write | Enhance | StateCommand | Cancel

_FLUSH_S = 2.0  # how long a planned close waits for what is still to be sent


class Stream:
    """One accepted WebSocket. `run` once; `peer.end` ends it."""

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
        self.peer = peer = Peer(send, connection, service, meters, authority, who, address)
        self._receive, self._connection, self._limits = receive, connection, limits
        self._usage = Usage()
        self._responding = Responding(peer, self._usage, limits.max_responses, self._own)
        self._watches = Watches(peer, self._usage, limits.max_watches, self._own)
        self._decoding = Decoding(
            decoders,
            limits,
            send=peer.send,
            answer=peer.answer,
            fail=peer.fail,
            own=self._own,
            drained=peer.outbox.drained,
            count=service.whole.meters.corrections.labels("decoded").inc,
        )
        self._large = asyncio.Lock()
        self._opening: set[asyncio.Task[None]] = set()
        self._writes = self._commands = 0
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------------------------------------ life
    async def run(self) -> None:
        """Serve until one side ends it. Its responses run on for a while, for a client that comes back."""
        timer = asyncio.get_running_loop().call_later(self._limits.hello_timeout_s, self._hello_is_late)
        end = End(Close.INTERNAL, "internal error", can_flush=False)
        try:
            try:
                async with asyncio.TaskGroup() as self._group:
                    self._own(self._read())
                    self._own(self.peer.write())
                    end = await asyncio.shield(self.peer.ended)
                    await self._finish(end)
                    for task in tuple(self._tasks):
                        task.cancel()
            except* Exception as errors:
                log.error("%s: the connection failed", self.peer.id, exc_info=errors)
            await self.peer.close(end)
        finally:
            timer.cancel()
            self._responding.detach()
            self.peer.leave()

    @property
    def is_busy(self) -> bool:
        """Whether a command is not answered yet, or a response still streams."""
        return bool(self._opening or self._writes or self._commands or self._responding.is_busy)

    async def _finish(self, end: End) -> None:
        """Let go of what may still be sent: the ends of the responses and a goodbye, when the close is planned."""
        if end.code is None or not end.can_flush:
            return
        if end.code == Close.GOING_AWAY:
            self._responding.cancel_all("shutdown")
        try:
            async with asyncio.timeout(_FLUSH_S):
                if end.code == Close.GOING_AWAY:
                    await self._responding.idle.wait()
                    self.peer.send(Goodbye(reason=end.reason, reconnect_after_ms=1000))
                await self.peer.outbox.drained()
        except TimeoutError:
            log.info("%s: a client does not read; closed without the rest", self.peer.id)

    def _hello_is_late(self) -> None:
        if self._connection.state == "hello":
            self.peer.end(Close.HELLO_TIMEOUT, f"no hello within {self._limits.hello_timeout_s:g} s")

    def _own(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        assert self._group is not None
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ------------------------------------------------------------------------------------------------ in
    async def _read(self) -> None:
        peer = self.peer
        if peer.fault is not None:
            peer.refuse(peer.fault, "hello")
            return
        while True:
            event = await self._receive()
            if event["type"] == "websocket.disconnect":
                peer.end(None, "the client went")
                return
            if peer.ended.done():
                continue
            data = event.get("bytes")
            command = self._connection.feed(event["text"] if data is None else data)
            if isinstance(command, Refusal):
                peer.send(command.frame)
                if command.close is not None:
                    peer.end(command.close, command.frame.error.code)
                    return
            else:
                peer.meters.frame(tag_of(command))
                if not await peer.may(command):
                    return
                if not isinstance(command, Hello):
                    if await peer.is_in_rate(command):
                        self._start(command)
                elif not await self._greet(command):
                    return

    async def _greet(self, hello: Hello) -> bool:
        """Welcome, with what became of the streams of an earlier connection; what they missed follows.

        False: that cannot be told now, and the connection ends.
        """
        peer, limits = self.peer, self._limits
        self._responding.coalesce_s = hello.coalesce_ms / 1000
        try:
            resumed = await self._responding.resume(hello.resume)
        except QrafError as error:
            peer.refuse(error, "hello", hello.id)
            return False
        who, service = peer.who, peer.service
        welcome = Welcome(
            id=hello.id,
            resumed=resumed,
            connection=peer.id,
            server=ServerInfo(version=service.version),
            heartbeat_ms=service.settings.gateway.heartbeat_ms,
            auth_expires_at=None if who is None or who.expires_at is None else format_time(who.expires_at),
            rate_limits=peer.rates(),
            limits=Limits(**{name: getattr(limits, name) for name in Limits.__struct_fields__}),
            topology=service.topology.name,
        )
        peer.send(welcome)  # before anything of what was resumed: no step lies between
        return True

    # ------------------------------------------------------------------------------------------------ commands
    def _start(self, command: ClientFrame) -> None:
        try:
            match command:
                case Ping():
                    self.peer.answer(command.id, Pong(id=command.id))
                case Cancel():
                    self._cancel(command)
                case Watch():
                    self._watches.watch(command, tuple(self._opening))
                case Unwatch():
                    self._watches.unwatch(command)
                case DecodeOpen() | DecodeRounds() | DecodeClose():
                    if isinstance(command, DecodeOpen):
                        self._check_ready()
                    self._decoding.take(command)
                case AuthRefresh():
                    self._own(self.peer.refresh(command))
                case SessionOpen() | Recall() | Write() | Enhance() | StateCommand():
                    self._admit(command)
                    # what comes after a `session.open` waits for it, so a client need not
                    task = self._own(self._carry_out(command, tuple(self._opening)))
                    if isinstance(command, SessionOpen):
                        self._opening.add(task)
                        task.add_done_callback(self._opening.discard)
        except Exception as error:
            self.peer.fail(command.id, error, tag_of(command))

    def _check_ready(self) -> None:
        state = self.peer.service.whole.health.state
        if state != "ready":
            raise NotReady(state)

    def _admit(self, command: _Lasting) -> None:
        self._check_ready()
        limits = self._limits
        if isinstance(command, Write):
            if self._writes >= limits.max_inflight_writes:
                raise LimitExceeded("max_inflight_writes", limits.max_inflight_writes, self._writes + 1, 100)
            self._writes += 1
        elif isinstance(command, Enhance):
            self._responding.enter(command)
        else:
            self._count_command()

    def _count_command(self) -> None:
        most = self._limits.max_inflight_commands
        if self._commands >= most:
            raise LimitExceeded("max_inflight_commands", most, self._commands + 1, 100)
        self._commands += 1

    async def _carry_out(self, command: _Lasting, opening: tuple[asyncio.Task[None], ...]) -> None:
        peer, service = self.peer, self.peer.service
        try:
            if opening:
                await asyncio.wait(opening)
            match command:
                case SessionOpen():
                    peer.answer(command.id, await service.open_session(command))
                case Recall():
                    peer.answer(command.id, await service.recall(command))
                    self._usage.recalls += 1
                case Write():
                    queued = Ack(id=command.id, status="queued")  # tells of a wait; the answer comes after it
                    done = await service.write(command, lambda: peer.send(queued))
                    self._usage.written_items += done.accepted
                    peer.answer(command.id, done)
                case StateCommand():
                    answer = await self._state(command)
                    # answers of many MiB go out one after the other, not as a slow reader's pile
                    async with self._large:
                        await peer.outbox.drained()
                        peer.answer(command.id, answer)
                case Cancel():
                    status = await self._responding.cancel_elsewhere(command)
                    peer.answer(command.id, Ack(id=command.id, status=status))
                case Enhance():
                    await self._responding.enhance(command)
                    self._connection.settle(command.id)
        except Exception as error:
            peer.fail(command.id, error, tag_of(command))
        finally:
            if isinstance(command, Write):
                self._writes -= 1
            elif isinstance(command, Enhance):
                self._responding.leave(command)
            else:
                self._commands -= 1

    async def _state(self, command: StateCommand) -> StateDone:
        try:
            return StateDone(id=command.id, answer=await self.peer.service.states.order(command.order))
        except InvalidRequest as fault:
            raise InvalidRequest(fault.detail, f"/order{fault.pointer}") from None

    def _cancel(self, command: Cancel) -> None:
        status = self._responding.cancel(command)
        if status is None:
            self._count_command()
            self._own(self._carry_out(command, ()))
        else:
            self.peer.answer(command.id, Ack(id=command.id, status=status))
