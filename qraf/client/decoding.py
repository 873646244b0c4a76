"""A decoder on the server: rounds of detectors in, what is decided out."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from qraf.client.connection import Connection
from qraf.client.inbox import Inbox
from qraf.code_orders import CodeExperiment
from qraf.decode_frames import DecodeClose, DecodeCommitted, DecodeDone, DecodeOpen, DecodeOpened, DecodeRounds
from qraf.errors import ConnectionLost, InvalidRequest, ServerError
from qraf.frames import Ack

__all__ = ["Decoding", "Detectors", "decode_command"]

Detectors: TypeAlias = bytes | NDArray[np.uint8] | NDArray[np.bool_]
"""Rounds of detectors of every shot: b8 bytes, b8 rows (shots, bytes) of uint8, or (shots, detectors) of bool."""


class Decoding:
    """One decoder: `async with q.decode({"code": "repetition", "distance": 3, "rounds": 9, "noise": 0.005}) as d:`.

    `push` sends rounds and waits for what they decide; `feed` sends ahead from an iterable. After the last round `done`
    is there soon, and `result` waits for it. Leaving the block gives up a decoder that is not at its end. One task at a
    time.

    Raises, at any call:
        ServerError: the server refused the code, the rounds, or a limit was reached.
        ConnectionLost: the connection ended first.
        TimedOut: the server sent nothing for the client's `timeout_s`.
    """

    def __init__(self, connection: Connection, command: DecodeOpen) -> None:
        self._connection, self._command = connection, command
        self._inbox = Inbox()
        self._opened: DecodeOpened | None = None
        self.received = 0
        self.done: DecodeDone | None = None

    @property
    def opened(self) -> DecodeOpened:
        """What the server made: rounds, detectors in each, window."""
        if self._opened is None:
            raise InvalidRequest("this decoder is not open; use `async with`")
        return self._opened

    @property
    def predictions(self) -> NDArray[np.bool_]:
        """Which observables flipped, (shots, num_observables), once `done` is there."""
        if self.done is None or self.done.status != "completed":
            raise InvalidRequest("there is no prediction before the last round")
        rows = np.frombuffer(self.done.observables, np.uint8).reshape(self.opened.shots, -1)
        bits = np.unpackbits(rows, axis=1, count=self.opened.num_observables, bitorder="little")
        return bits.astype(bool)

    async def push(self, detectors: Detectors, rounds: int = 1) -> DecodeCommitted:
        """Send the next rounds of every shot; returns what is decided so far. Cancel: they may have been taken."""
        command = self._rounds(detectors, rounds, self.received)
        answer = await self._connection.request(command, DecodeCommitted)
        self.received = answer.received
        await self._look()
        return answer

    async def feed(
        self, source: Iterable[Detectors] | AsyncIterable[Detectors], *, rounds: int = 1, ahead: int = 8
    ) -> AsyncGenerator[DecodeCommitted]:
        """Send the pieces of `source`, each of `rounds` rounds, at most `ahead` unanswered; yield every answer."""
        waiting: deque[asyncio.Task[DecodeCommitted]] = deque()
        sizes: deque[int] = deque()
        sent = self.received
        try:
            async for piece in _each(source):
                try:
                    command = self._rounds(piece, rounds, sent)
                except InvalidRequest:
                    while waiting:  # what was sent before is decided
                        yield await self._next(waiting)
                    raise
                size = len(command.detectors)
                # half of what may wait: the other half is for other decoders of this connection
                while waiting and (len(waiting) >= ahead or sum(sizes) + size > self.opened.max_bytes // 2):
                    sizes.popleft()
                    yield await self._next(waiting)
                waiting.append(asyncio.create_task(self._connection.request(command, DecodeCommitted)))
                sizes.append(size)
                sent += rounds
            while waiting:
                yield await self._next(waiting)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def result(self) -> DecodeDone:
        """Wait for the end, which comes after the last round.

        Raises:
            ServerError: the decoder failed, or was given up.
        """
        if self.done is None:
            frame = await self._inbox.get(self._connection.timeout_s, "the end of a decoder")
            if isinstance(frame, DecodeDone):
                self.done = frame
        if self.done is None or self.done.status != "completed":
            status = self.done.status if self.done else "closed"
            raise ServerError("invalid_request", f"the decoder ended as {status} after {self.received} rounds")
        return self.done

    async def __aenter__(self) -> Self:
        if self._opened is not None:
            raise InvalidRequest("a decoder is opened once")
        self._opened = await self._connection.request(self._command, DecodeOpened)
        self._connection.expect_decoder(self._opened.stream, self._inbox)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.done is None and self._opened is not None and self._connection.is_open:
                with contextlib.suppress(ConnectionLost, TimeoutError, ServerError):
                    async with asyncio.timeout(5):
                        close = DecodeClose(id=self._connection.next_id(), stream=self._opened.stream)
                        await self._connection.request(close, Ack)
        finally:
            self._connection.leave(self._inbox)

    # -------------------------------------------------------------------------------------------------- inside
    def _rounds(self, detectors: Detectors, rounds: int, start: int) -> DecodeRounds:
        if isinstance(detectors, np.ndarray):
            if detectors.dtype == np.bool_:
                self._check(detectors, rounds, start)
                detectors = np.packbits(detectors, axis=-1, bitorder="little")
            elif detectors.dtype != np.uint8:
                raise InvalidRequest(f"must be bool, or uint8 as b8, but is {detectors.dtype}", "/detectors")
            detectors = detectors.tobytes()
        return DecodeRounds(
            id=self._connection.next_id(),
            stream=self.opened.stream,
            detectors=bytes(detectors),
            rounds=rounds,
            start=start,
        )

    def _check(self, bits: NDArray[Any], rounds: int, start: int) -> None:
        """Refuse rows of another length, which may fill as many bytes; rounds behind the last are the server's."""
        opened = self.opened
        if rounds < 1 or start + rounds > opened.rounds:
            return
        need = (opened.shots, sum(opened.detectors[start : start + rounds]))
        if bits.shape != need and (opened.shots, *bits.shape) != (1, *need[1:]):
            name = f"round {start}" if rounds == 1 else f"rounds {start} to {start + rounds - 1}"
            detail = f"must be {need} of bool, (shots, detectors) of {name}, but is {bits.shape}"
            raise InvalidRequest(detail, "/detectors")

    async def _next(self, waiting: deque[asyncio.Task[DecodeCommitted]]) -> DecodeCommitted:
        answer = await waiting[0]
        waiting.popleft()
        self.received = answer.received
        await self._look()
        return answer

    async def _look(self) -> None:
        """Take the end, which follows the last answer at once."""
        if self.received == self.opened.rounds and self.done is None:
            await self.result()


def decode_command(
    id: str,
    experiment: CodeExperiment | Mapping[str, Any] | None = None,
    *,
    dem: str | None = None,
    shots: int = 1,
    window: int | None = None,
    commit: int | None = None,
    count: bool = False,
) -> DecodeOpen:
    """The `decode.open` frame of these choices.

    Raises:
        InvalidRequest: an unknown or mistyped field of the experiment.
    """
    if experiment is not None and not isinstance(experiment, CodeExperiment):
        try:
            experiment = msgspec.convert(experiment, CodeExperiment)
        except msgspec.ValidationError as error:
            raise InvalidRequest(str(error), "/experiment") from None
    return DecodeOpen(id=id, experiment=experiment, dem=dem, shots=shots, window=window, commit=commit, count=count)


async def _each(source: Iterable[Detectors] | AsyncIterable[Detectors]) -> AsyncIterator[Detectors]:
    if isinstance(source, AsyncIterable):
        async for piece in source:
            yield piece
    else:
        for piece in source:
            yield piece
