"""The responses that one connection reads: begun by its prompts, or gone on with after an earlier connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal

import msgspec

from qraf.errors import InvalidRequest, LimitExceeded, ReplayGone, RunsElsewhere, Superseded
from qraf.frames import Cancel, Enhance, ResponseCreated, ResponseDelta, Resume, Resumed
from qraf.gateway.peer import Peer
from qraf.gateway.protocol import Close
from qraf.gateway.watches import Usage
from qraf.sessions.response import Reader, Response

__all__ = ["Responding"]

CancelStatus = Literal["accepted", "duplicate", "not_found"]


class Responding:
    """What a connection does with `enhance`, `cancel` and `hello.resume`.

    Args:
        peer: who reads.
        usage: of the connection; responses and tokens are counted there.
        most: responses that may be read at once.
        own: starts a task that ends with the connection.
    """

    def __init__(self, peer: Peer, usage: Usage, most: int, own: Callable[[Coroutine[Any, Any, None]], object]) -> None:
        self._peer, self._usage, self._most, self._own = peer, usage, most, own
        self.coalesce_s = 0.0
        """How long text is gathered into one delta."""
        self.idle = asyncio.Event()
        """Nothing is read."""
        self.idle.set()
        self._readers: set[Reader] = set()
        self._early_cancels: dict[str, bool] = {}  # commands whose response is not made yet -> cancelled meanwhile
        self._open = 0

    @property
    def is_busy(self) -> bool:
        """Whether a response is begun or read."""
        return bool(self._readers or self._open)

    def enter(self, command: Enhance) -> None:
        """Count a prompt, until `leave`; raises LimitExceeded."""
        if self._open >= self._most:
            raise LimitExceeded("max_responses", self._most, self._open + 1, 1000)
        self._open += 1
        self._early_cancels[command.id] = False

    def leave(self, command: Enhance) -> None:
        """It was answered to its end."""
        self._open -= 1
        self._early_cancels.pop(command.id, None)

    async def enhance(self, command: Enhance) -> None:
        """Begin a response and send what it emits, to its end. Cancel: it runs on, for a client that comes back."""
        response = await self._peer.service.enhance(command, owner=self._peer.id)
        if response.task is not None:
            response.task.add_done_callback(lambda _: self._peer.note_limit(response.error, "enhance"))
        if self._early_cancels.pop(command.id, False):
            response.cancel()
        if any(reader.response is response for reader in self._readers):
            raise InvalidRequest("is that of a response that streams on this connection already", "/key")
        self._usage.responses += 1
        await self._read_on(response.attach(), command.id)

    def cancel(self, command: Cancel) -> CancelStatus | None:
        """What became of a cancel; None: no such response is known to this gateway."""
        response = self._peer.service.response(command.target, self._peer.id)
        if response is not None:
            return "accepted" if response.cancel() else "duplicate"
        if command.target in self._early_cancels:
            self._early_cancels[command.target] = True
            return "accepted"
        return None

    async def cancel_elsewhere(self, command: Cancel) -> CancelStatus:
        """As `cancel`, for a response that other gateways may know."""
        try:
            found = await self._peer.service.find_response(command.target, follow=False)
        except RunsElsewhere as running:
            await self._peer.service.cancel_elsewhere(running)
            return "accepted"
        return "not_found" if found is None else "duplicate"  # it has ended

    async def resume(self, wanted: Sequence[Resume]) -> tuple[Resumed, ...]:
        """What became of the streams of an earlier connection; those that are there are read on.

        The tasks that do so take their first step after the caller's: what it sends at once goes out first.

        Raises:
            StorageFailed: the journal, which knows of those of other gateways, does not answer.
        """
        found = await asyncio.gather(*map(self._found, wanted))
        resumed: list[Resumed] = []
        for one, response in zip(wanted, found, strict=True):
            reader = response.attach(one.after_seq) if isinstance(response, Response) else None
            result: Any = response if reader is None else reader.result
            epoch = self._peer.service.epoch if reader is None else one.epoch
            resumed.append(Resumed(stream=one.stream, result=result, epoch=epoch))
            self._peer.meters.resumes.labels(result).inc()
            if reader is not None:
                self._readers.add(reader)  # also one whose task ends before its first step is let go
                self._open += 1
                self._own(self._resumed(reader))
        return tuple(resumed)

    def cancel_all(self, reason: str) -> None:
        """Cancel what is read here."""
        for reader in tuple(self._readers):
            reader.response.cancel(reason)

    def detach(self) -> None:
        """Read no more; the responses run on for a while."""
        for reader in tuple(self._readers):
            reader.detach()

    async def _read_on(self, reader: Reader, id: str = "") -> None:
        """Send what a response emits; `id` is the command that asked for it on this connection."""
        peer = self._peer
        self._readers.add(reader)
        self.idle.clear()
        try:
            async for frame in reader.frames():
                if id and isinstance(frame, ResponseCreated) and frame.id != id:
                    frame = msgspec.structs.replace(frame, id=id)  # started by an earlier command with the same key
                peer.send(frame)
                if isinstance(frame, ResponseDelta):
                    self._usage.tokens += frame.tokens
                    # text that comes meanwhile is merged inside the response, and goes out as one delta
                    if self.coalesce_s and not reader.is_behind:
                        await asyncio.sleep(self.coalesce_s)
                if not peer.outbox.is_empty:
                    if self.coalesce_s and isinstance(frame, ResponseDelta):
                        peer.meters.slow.labels("merged").inc()
                    await peer.outbox.drained()
        except Superseded:
            peer.end(Close.SUPERSEDED, "a newer reader went on with a response of this connection")
        except ReplayGone:
            peer.too_slow("frames that it had not read yet are no longer kept")
        finally:
            reader.detach()
            self._readers.discard(reader)
            if not self._readers:
                self.idle.set()

    async def _resumed(self, reader: Reader) -> None:
        try:
            await self._read_on(reader)
        finally:
            self._open -= 1

    async def _found(self, wanted: Resume) -> Response | str:
        """A response to go on with, or what to say where there is none."""
        try:
            response = await self._peer.service.find_response(wanted.stream, after_seq=wanted.after_seq)
        except RunsElsewhere:
            return "elsewhere"  # and its gateway tells nothing of it
        is_it = response is not None and (response.stream, response.epoch) == (wanted.stream, wanted.epoch)
        return response if response is not None and is_it else "expired"
