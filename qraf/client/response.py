"""A response while it streams: its frames, its text, its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import msgspec

from qraf.client.connection import Connection
from qraf.client.inbox import Elsewhere, Gap, Inbox
from qraf.client.sent import lost_end
from qraf.errors import ConnectionLost, InvalidRequest, QrafError, ServerError, TimedOut
from qraf.frames import (
    Enhance,
    EvidenceOut,
    ResponseCreated,
    ResponseDelta,
    ResponseDone,
    ResponseEvidence,
    ResponseHop,
    ResponseRoute,
    ServerFrame,
)

__all__ = ["Response"]

_LOOK_S = 0.5


class Response:
    """One response, read once: `async for frame in response`, or `async for piece in response.texts()`.

    Nothing is sent before the first frame is asked for. Leaving the loop, by `break`, by an error or by cancellation,
    cancels the response at the server within one token; `async with response:` does so at the end of the block at
    the latest. While it is read the parts are gathered: `created`, `route`, `hops`, `evidence`, `text`, `done`.

    A connection that breaks meanwhile is not seen here: the frames go on where they were, also over another gateway
    than the one that runs the response (there about once a second). Only when the client was away for so long that the
    server no longer has what it missed, the text is fetched as one delta (of 0 tokens), and hops or evidence may be
    missing; `gaps` counts that. When its gateway died, the response ends as `failed`, code `gateway_lost`, which may be
    tried again. If nobody had heard of it yet, it is begun again unasked where none of its text had come (`created` is
    then that of the new one), and else ends as `failed`, code `replay_gone`.

    A reader that is slow delays no other call on the same connection: waiting deltas are joined without loss, and a
    response with more than 4 MiB of unread text ends, alone, with `LimitExceeded`.

    Raises, while it is read:
        ServerError: the command was refused. (A response that fails later ends with `done.status == "failed"`.)
        ConnectionLost: the connection ended first, and there is no way back.
        TimedOut: the server sent nothing for the client's `timeout_s`.
    """

    def __init__(
        self, connection: Connection, command: Enhance, fetch: Callable[[str], Awaitable[dict[str, Any]]]
    ) -> None:
        self._connection, self._command, self._fetch = connection, command, fetch
        self._inbox = Inbox()
        self._is_started = self._is_refused = False
        self.created: ResponseCreated | None = None
        self.route: ResponseRoute | None = None
        self.hops: list[ResponseHop] = []
        self.evidence: tuple[EvidenceOut, ...] = ()
        self.coverage = 0.0
        self.text = ""
        self.gaps = 0
        self.done: ResponseDone | None = None
        self._text_seq = 0  # the text of frames up to here was fetched

    @property
    def id(self) -> str:
        """The response's id, as `GET /v1/responses/{id}` knows it; empty until it was created."""
        return self.created.response if self.created else ""

    async def __aiter__(self) -> AsyncGenerator[ServerFrame]:
        await self._start()
        try:
            while self.done is None:
                try:
                    frame = await self._inbox.get(self._connection.timeout_s, "the next frame of a response")
                except ServerError:
                    self._is_refused = True
                    raise
                if frame is None:
                    break
                if isinstance(frame, Gap):
                    async with contextlib.aclosing(self._fill(has_end=isinstance(frame, Elsewhere))) as filled:
                        async for missed in filled:
                            self._gather(missed)
                            yield missed
                    continue
                if isinstance(frame, ResponseCreated) and self.created is not None:
                    self._begin_again(frame)
                    continue
                if isinstance(frame, ResponseDelta) and frame.seq <= self._text_seq:
                    continue
                self._gather(frame)
                yield frame
        finally:
            await self._leave()

    async def texts(self) -> AsyncGenerator[str]:
        """Yield the pieces of generated text as they come."""
        async with contextlib.aclosing(self.__aiter__()) as frames:
            async for frame in frames:
                if isinstance(frame, ResponseDelta):
                    yield frame.text

    async def result(self) -> ResponseDone:
        """Read to the end and return it; `text`, `evidence` and the rest are filled then.

        Raises:
            ServerError: the response failed.
        """
        if self.done is None:
            async with contextlib.aclosing(self.__aiter__()) as frames:
                async for _ in frames:
                    pass
        assert self.done is not None
        if self.done.status == "failed" and self.done.error is not None:
            error = self.done.error
            raise ServerError(error.code, error.detail, error.pointer, error.retryable, error.retry_after_ms)
        return self.done

    async def cancel(self) -> None:
        """Ask the server to stop; go on reading to see `response.done`. Harmless when late, too early, or twice."""
        if self._is_started and self.done is None:
            target = self.created.stream if self.created else self._command.key or self._command.id
            await self._connection.cancel(target)

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave()

    # -------------------------------------------------------------------------------------------------- inside
    async def _start(self) -> None:
        if self._is_started:
            if self.created is None and self.done is None:
                return  # entered by `async with`, now read
            raise InvalidRequest("a response is read once; what it held is in its attributes")
        self._is_started = True
        await self._connection.start(self._command, self._inbox)

    async def _leave(self) -> None:
        self._connection.leave(self._inbox)
        if self.done is None and not self._is_refused:
            with contextlib.suppress(ConnectionLost, TimeoutError):
                async with asyncio.timeout(5):
                    await self.cancel()
            self._inbox.close(drop=True)

    async def _fill(self, has_end: bool) -> AsyncGenerator[ResponseDelta | ResponseDone]:
        """The text that was missed; what still comes of it is dropped. With `has_end`: all of it, and the end."""
        clock, timeout_s = asyncio.get_running_loop().time, self._connection.timeout_s
        give_up_at = clock() + timeout_s
        self.gaps += 1
        while True:
            try:
                told = await self._fetch(self.id)
            except QrafError as error:
                if isinstance(error, ServerError) and error.error_code == "not_found":
                    yield lost_end(self.created.stream if self.created else "", self._text_seq)
                    return
                is_final = isinstance(error, ServerError) and not error.can_retry
                if is_final or clock() >= give_up_at:
                    raise
                pause_ms = error.retry_after_ms if isinstance(error, ServerError) else None
                await asyncio.sleep(_LOOK_S if pause_ms is None else pause_ms / 1000)
                continue
            stream, seq = told["stream"], told["seq"]
            if seq > self._text_seq:
                self._text_seq, give_up_at = seq, clock() + timeout_s
            if text := told["text"][len(self.text) :]:
                yield ResponseDelta(stream=stream, seq=seq, text=text, tokens=0)
            if not has_end:
                self._inbox.filled()
                return
            if told["status"] != "running":
                names = ("status", "finish_reason", "usage", "error")
                end = {"stream": stream, "seq": seq, **{name: told[name] for name in names}}
                yield msgspec.convert(end, ResponseDone)
                return
            if clock() >= give_up_at:
                raise TimedOut("the next frame of a response", timeout_s)
            await asyncio.sleep(_LOOK_S)

    def _begin_again(self, created: ResponseCreated) -> None:
        """The gateway that had begun it died before it told anybody; what came of it comes anew."""
        self.created, self.route, self.hops = created, None, []
        self.evidence, self.coverage, self._text_seq = (), 0.0, 0

    def _gather(self, frame: ServerFrame) -> None:
        match frame:
            case ResponseCreated():
                self.created = frame
            case ResponseRoute():
                self.route = frame
            case ResponseHop():
                self.hops.append(frame)
            case ResponseEvidence():
                self.evidence, self.coverage = frame.items, frame.coverage
            case ResponseDelta():
                self.text += frame.text
            case ResponseDone():
                self.done = frame
