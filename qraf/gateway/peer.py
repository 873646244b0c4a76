"""The other end of one socket: who it is, what it is told, and why it is let go."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple

from ulid import ULID

from qraf.errors import NotAllowed, NotAuthenticated, QrafError
from qraf.frames import Ack, AuthRefresh, ClientFrame, ErrorBody, ErrorFrame, Hello, RateLimit, ServerFrame
from qraf.gateway.metrics import GatewayMeters
from qraf.gateway.outbox import Message, Outbox, Slot, SlowReader
from qraf.gateway.problems import error_body
from qraf.gateway.protocol import Close, Connection, close_of
from qraf.gateway.security.authority import Authority
from qraf.gateway.security.guard import check_frame
from qraf.gateway.security.limits import LIMIT_CODES, Visit, account_of
from qraf.gateway.security.principal import ANONYMOUS, Principal
from qraf.sessions.tenants import TenantService

__all__ = ["End", "Peer", "Send", "tag_of"]

log = logging.getLogger(__name__)

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_CLOSE_S = 1.0  # how long a close frame may wait for room in the socket


class End(NamedTuple):
    """Why a connection ends. `code` None: the client went, there is nobody to tell."""

    code: int | None
    reason: str
    can_flush: bool = True


class Peer:
    """Who is at the other end of a socket. What is sent waits in `outbox`, from which `write` takes it to the socket.

    `who` is None until that is known; `service` is from then on what their tenant sees. `ended` is set by the first
    `end`.
    """

    def __init__(
        self,
        send: Send,
        connection: Connection,
        service: TenantService,
        meters: GatewayMeters,
        authority: Authority,
        who: Principal | QrafError | None,
        address: str = "",
    ) -> None:
        limits = service.settings.limits
        self.id = f"con_{ULID()}"
        self.connection, self.service, self.meters = connection, service, meters
        self.outbox = Outbox(limits.outbox_frames, limits.outbox_bytes)
        self.ended: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self.who = None if isinstance(who, QrafError) else who
        self.fault = who if isinstance(who, QrafError) else None
        """Why whoever opened the socket may not."""
        self._send_event, self._send_timeout_s = send, limits.send_timeout_s
        self._authority, self._address = authority, address
        self._visit: Visit | None = None

    # ------------------------------------------------------------------------------------------------ who
    async def may(self, command: ClientFrame) -> bool:
        """Whether the other end may send this; where not, it is told and the connection ends."""
        try:
            if isinstance(command, Hello):
                await self._identify(command)
            check_frame(self.who or ANONYMOUS, command)
        except QrafError as error:
            self.refuse(error, tag_of(command), command.id)
            return False
        return True

    async def is_in_rate(self, command: ClientFrame) -> bool:
        """Whether it does not come too soon; where it does, it is told so, and a client that goes on is let go."""
        visit = self._visit
        if visit is None:
            return True
        try:
            await visit.account.frame()
        except QrafError as error:
            self.fail(command.id, error, tag_of(command))
            return False
        finally:
            if (warning := visit.warning(time.monotonic())) is not None:
                self.send(warning)
        return True

    async def refresh(self, command: AuthRefresh) -> None:
        """Take a new credential; one of another subject ends the connection, any other fault leaves it who it was."""
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
            self.fail(command.id, error)
        else:
            self.who = who
            self.answer(command.id, Ack(id=command.id, status="accepted"))

    def rates(self) -> tuple[RateLimit, ...]:
        """How its rates stand."""
        return () if self._visit is None else self._visit.rates()

    def leave(self) -> None:
        """The socket is closed, and counts no more. Twice: nothing more happens."""
        if self._visit is not None:
            self._visit.leave()

    async def _identify(self, hello: Hello) -> None:
        if hello.auth is not None:
            who = await self._authority.of_credential(hello.auth)
            if self.who is not None and (self.who.tenant, self.who.subject) != (who.tenant, who.subject):
                raise NotAllowed("`hello.auth`", "the request that opened the socket was of another subject")
            self.who = who
        if self.who is None:
            raise NotAuthenticated()
        self._visit = Visit(account_of(self.service.whole.accounts, self.who))
        self.service = TenantService(self.service.whole, self.who.tenant, self._visit.account)
        await self._visit.enter()

    # ------------------------------------------------------------------------------------------------ told
    def send(self, frame: ServerFrame) -> None:
        """Send a frame; a client that lets too much wait is let go."""
        try:
            self.outbox.put(self.message(frame))
        except SlowReader:
            self.too_slow("more frames wait than are allowed")

    def put(self, slot: Slot) -> bool:
        """Send what a slot holds when its turn comes; False where it waits already."""
        try:
            return self.outbox.put_slot(slot)
        except SlowReader:
            self.too_slow("more frames wait than are allowed")
            return True

    def message(self, frame: ServerFrame) -> Message:
        """A frame that leaves now, as a message."""
        self.meters.frame(tag_of(frame))
        return self.connection.encode(frame)

    def answer(self, id: str, frame: ServerFrame) -> None:
        """Send the one answer to a command, whose id is free again."""
        self.connection.settle(id)
        self.send(frame)

    def fail(self, id: str, error: BaseException, what: str = "command") -> None:
        """As `answer`, with an error; one limit too many ends the connection."""
        if isinstance(error, QrafError) and error.code in LIMIT_CODES:
            self._audit(error, what)
            if self._visit is not None and self._visit.is_too_much(error, time.monotonic()):
                self.end(Close.LIMITED, error.code)
        if not isinstance(error, QrafError):
            log.error("%s: a command failed", self.id, exc_info=error)
        self.answer(id, ErrorFrame(id=id, error=error_body(error)))

    def note_limit(self, error: ErrorBody | None, what: str) -> None:
        """A limit that was met later than its command was answered."""
        if error is not None and error.code in LIMIT_CODES:
            self._audit(error, what)

    async def write(self) -> None:
        """Take messages from the outbox to the socket, until the connection ends. Cancel: safe."""
        kind = "bytes" if self.connection.is_binary else "text"
        while True:
            message = await self.outbox.get()
            try:
                async with asyncio.timeout(self._send_timeout_s):
                    await self._send_event({"type": "websocket.send", kind: message})
            except TimeoutError:
                self.too_slow(f"took nothing for {self._send_timeout_s:g} s")
                return
            except OSError:
                self.end(None, "the client went")
                return

    def _audit(self, error: QrafError | ErrorBody, what: str) -> None:
        if isinstance(error, NotAuthenticated | NotAllowed) or error.code in LIMIT_CODES:
            self._authority.audit.refused(self.who, f"WS {what}", error, address=self._address, request=self.id)

    # ------------------------------------------------------------------------------------------------ let go
    def end(self, code: int | None, reason: str, *, can_flush: bool = True) -> None:
        """End the connection; the first call counts. From anywhere, any number of times."""
        if not self.ended.done():
            self.ended.set_result(End(code, reason, can_flush))

    def refuse(self, error: QrafError, what: str, id: str = "") -> None:
        """Say why the other end may not go on, and end the connection; the reason of the close is the error's code."""
        if self.ended.done():
            return
        self._audit(error, what)
        self.send(ErrorFrame(id=id, error=error_body(error)))
        self.end(close_of(error), error.code)

    def too_slow(self, why: str) -> None:
        """End the connection of a client that does not read."""
        if not self.ended.done():
            self.meters.slow.labels("closed").inc()
        self.end(Close.SLOW_READER, f"slow reader: {why}", can_flush=False)

    async def close(self, end: End) -> None:
        """Close the socket, unless the client went."""
        if end.code is None:
            return
        self.meters.closes.labels(str(end.code)).inc()
        reason = end.reason.encode()[:120].decode("utf-8", "ignore")
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._send_event({"type": "websocket.close", "code": end.code, "reason": reason})
        except (TimeoutError, OSError):
            log.info("%s: a client could not be told of close %s", self.id, end.code)


def tag_of(frame: ClientFrame | ServerFrame) -> str:
    """The `type` of a frame."""
    return str(frame.__struct_config__.tag)
