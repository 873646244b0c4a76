"""One response: what it emits, in order, with exactly one end, for a reader that may go and come back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Literal

import msgspec
from ulid import ULID

from qraf.clock import Clock
from qraf.errors import GatewayLost, LimitExceeded, ReplayGone, Superseded
from qraf.frames import (
    ErrorBody,
    ResponseCreated,
    ResponseDelta,
    ResponseDone,
    ResponseMetrics,
    ServerFrame,
    Usage,
)
from qraf.records import Figures
from qraf.sessions.faults import error_body
from qraf.sessions.rings import Ring, RingPool
from qraf.storage.responses import ResponseRecord

__all__ = ["Reader", "Response"]

# Frames other than deltas that one response can emit before it ends are bounded by its route (one hop per memory
# visited); metrics that wait are replaced, so this bound is a guard, not a policy.
_MAX_WAITING = 4096
_MAX_DELTA = 128 * 1024  # characters of a merged delta; more would be too long a message for many clients

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ServerFrame).decode


class Response:
    """A stream of stamped frames: `response.created` first, exactly one `response.done` last.

    What was emitted waits until a reader asks for it: deltas that wait are merged, metrics that wait are replaced. A
    frame gets its `seq` when it leaves, and from then on is kept as it is, in the ring, for a reader that comes back.
    So a slow reader, or one that was away, sees fewer frames, no holes, and loses no text; and what it saw before and
    what it sees again under one `seq` is the same. One reader at a time: a newer one supersedes it.
    """

    is_elsewhere = False
    """Whether another gateway runs it."""
    is_lost = False
    """Whether nothing of it comes here any more, though it goes on elsewhere."""

    def __init__(
        self,
        command_id: str,
        owner: str,
        clock: Clock,
        ring: Ring | None = None,
        *,
        key: str = "",
        epoch: str = "",
        session: str | None = None,
    ) -> None:
        self.id = f"rsp_{ULID()}"
        self.stream = f"str_{ULID()}"
        self.command_id, self.owner, self.key, self.epoch = command_id, owner, key, epoch
        self.session, self.model = session, ""
        self.request = b""  # what the key stands for
        self.created_at, self.ended_at = clock.now(), 0.0
        self.left_at: float | None = clock.monotonic()
        """Since when nobody reads; None while somebody does."""
        self.grace_s = float("inf")
        self.status = "running"
        self.finish_reason = ""
        self.usage = Usage()
        self.state = Figures()
        self.error: ErrorBody | None = None
        self.cancel_reason = ""
        self.task: asyncio.Task[None] | None = None
        self.length = 0
        """Characters of text so far."""
        self.is_followed, self.told_seq, self.told_at = False, 0, float("-inf")
        """Whether another gateway follows it, and up to which frame and when it was told."""
        self._clock = clock
        self._parts: list[str] = []
        self._waiting: deque[ServerFrame | _Delta] = deque()
        self._metrics: ResponseMetrics | None = None  # the one that waits
        self._ring = ring or RingPool(max_frames=1 << 30, group_bytes=1 << 62, total_bytes=1 << 62).open("")
        self._pinned: dict[int, ServerFrame] = {}  # the first frame and the last
        self._reader: Reader | None = None
        self._is_orphan = False

    @property
    def text(self) -> str:
        """The text generated so far."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    @property
    def has_ended(self) -> bool:
        """Whether `response.done` was emitted."""
        return self.status != "running"

    @property
    def seq(self) -> int:
        """The last `seq` that was given."""
        return self._ring.last

    @property
    def last_seq(self) -> int:
        """The `seq` of `response.done`, which is certain once the response has ended."""
        return self.seq + len(self._waiting)

    @property
    def has_waiting(self) -> bool:
        """Whether something was emitted that has no `seq` yet."""
        return bool(self._waiting)

    @property
    def is_all_sent(self) -> bool:
        """Whether `response.done` has its `seq`."""
        return self._ring.has_ended

    def is_read_by(self, reader: Reader) -> bool:
        """Whether this is the newest reader."""
        return self._reader is reader

    # ------------------------------------------------------------------------------------------------ emit
    def emit(self, frame: ServerFrame) -> None:
        """Add a frame (its `seq` is given later). After the end, nothing is added any more."""
        if self.has_ended:
            return
        if isinstance(frame, ResponseMetrics):
            self._forget_metrics()
            self._metrics = frame
        if len(self._waiting) >= _MAX_WAITING and not isinstance(frame, ResponseMetrics):
            raise LimitExceeded("frames of a response that wait to be read", _MAX_WAITING)
        self._waiting.append(frame)
        self._wake()

    def delta(self, text: str, tokens: int) -> None:
        """Add generated text; merged with what still waits."""
        if self.has_ended or not text:
            return
        self._parts.append(text)
        self.length += len(text)
        last = self._waiting[-1] if self._waiting else None
        if isinstance(last, _Delta) and last.length + len(text) <= _MAX_DELTA:
            last.add([text], tokens)
        else:
            self._waiting.append(_Delta([text], tokens))
        self._wake()

    def end(
        self,
        status: str,
        finish_reason: str = "",
        usage: Usage | None = None,
        state: Figures | None = None,
        error: ErrorBody | None = None,
    ) -> None:
        """Emit `response.done`, once; later calls change nothing."""
        if self.has_ended:
            return
        self.usage, self.finish_reason, self.error = usage or self.usage, finish_reason, error
        self.status, self.state, self.ended_at = status, state or self.state, self._clock.now()
        self._waiting.append(self._done(0))
        self._wake()

    def restore(self, record: ResponseRecord, after_seq: int = 0) -> None:
        """Become one that ended in another life of a gateway: its text, its end, and what its row has of its frames.

        The end of one whose gateway died comes after all that is known to have been seen, `after_seq` included.
        """
        self.name_as(record)
        if record.is_lost:
            self.go_on(record, max(record.seq, after_seq, 1))
            self.lose_gateway()
        else:
            self.go_on(record, record.seq)
            self.end_as(record)

    def name_as(self, record: ResponseRecord) -> None:
        """Become one that another gateway began."""
        self.id, self.stream, self.created_at = record.id, record.stream, record.created_at
        self.request, self.model = record.body.request, record.body.model
        self._pinned[1] = ResponseCreated(
            stream=self.stream, seq=1, id=self.command_id, response=self.id, model=self.model, epoch=self.epoch
        )

    def go_on(self, record: ResponseRecord, seq: int | None = None) -> None:
        """Take the text of a row, and those of its frames that are new; with `seq` these are all that is here."""
        frames = record.body.frames
        if seq is not None:
            frames = frames if seq == record.seq else ()
            self._ring.drop()
            self._ring.last = seq - len(frames)
        for data in frames[max(0, self.seq - record.seq + len(frames)) :]:
            self._ring.push(data)
        self._parts, self.length = [record.body.text], len(record.body.text)
        self._wake()

    def end_as(self, record: ResponseRecord) -> None:
        """End as a row says, whose last frame is here already."""
        body, seq = record.body, self.seq
        self.status, self.ended_at = record.status, record.ended_at or self._clock.now()
        self.finish_reason, self.usage, self.state, self.error = body.finish_reason, body.usage, body.state, body.error
        self._pinned[seq], self._ring.has_ended = self._done(seq), True
        self._wake()

    def lose_gateway(self) -> None:
        """End as one whose gateway died."""
        self.end("failed", "error", error=error_body(GatewayLost(self.id)))
        self.stamp()
        self._is_orphan = True

    def cancel(self, reason: str = "cancelled") -> bool:
        """Stop generating; the reader still gets what waits and the end. Harmless when late; returns whether it ran."""
        if self.has_ended:
            return False
        self.cancel_reason = self.cancel_reason or reason
        if self.task is not None:
            self.task.cancel()
        else:
            self.end("cancelled", reason)
        return True

    # ------------------------------------------------------------------------------------------------ read
    def attach(self, after_seq: int = 0) -> Reader:
        """Read on after a frame; an older reader is superseded. See `Reader.result` for what will come."""
        if self._reader is not None:
            self._reader.wake.set()
        if self._is_orphan and after_seq > self.seq:  # its gateway sent this reader more than anybody here knew
            self._waiting.append(self._pinned.pop(self.seq))
            self._ring.drop()
            self._ring.last = after_seq
            self.stamp()
        self._reader = Reader(self, after_seq)
        self.left_at = None
        return self._reader

    def detach(self, reader: Reader) -> None:
        """This reader is gone. Without one, the response runs on for `grace_s`."""
        if self._reader is not reader:
            return
        self._reader, self.left_at = None, self._clock.monotonic()
        reader.wake.set()
        if self.grace_s <= 0:
            self.cancel("disconnected")

    async def frames(self) -> AsyncIterator[ServerFrame]:
        """Yield every frame from the first; see `Reader.frames`."""
        async for frame in self.attach().frames():
            yield frame

    def snapshot(self) -> dict[str, Any]:
        """The response as `GET /v1/responses/{id}` tells it: `text` is what the frames up to `seq` hold."""
        self.stamp_all()
        return {
            "response": self.id,
            "stream": self.stream,
            "epoch": self.epoch,
            "seq": self.seq,
            "status": self.status,
            "finish_reason": self.finish_reason,
            "text": self.text,
            "usage": msgspec.to_builtins(self.usage),
            "error": msgspec.to_builtins(self.error),
            "created_at": self.created_at,
        }

    def close(self) -> None:
        """Let the kept frames go."""
        self._ring.close()

    def stamp(self) -> ServerFrame:
        """Give the first frame that waits its `seq`, and keep it."""
        waiting, seq = self._waiting.popleft(), self.seq + 1
        frame: ServerFrame
        if isinstance(waiting, _Delta):
            frame = ResponseDelta(stream=self.stream, seq=seq, text="".join(waiting.parts), tokens=waiting.tokens)
        else:
            frame = msgspec.structs.replace(waiting, seq=seq)
            if waiting is self._metrics:
                self._metrics = None
        if isinstance(frame, ResponseCreated | ResponseDone):
            self._pinned[seq] = frame
        self._ring.has_ended = isinstance(frame, ResponseDone)
        self._ring.push(_encode(frame))
        return frame

    def stamp_all(self) -> None:
        """Give everything that waits its `seq`; then `text` is what the frames up to `seq` hold."""
        while self._waiting:
            self.stamp()

    def tail(self, most_bytes: int) -> tuple[bytes, ...]:
        """The last frames that have a `seq`, as they are kept, as many as have so many bytes together."""
        return self._ring.tail(most_bytes)

    def kept(self, seq: int) -> ServerFrame | None:
        """The frame that has this `seq`; None when it is not kept any more."""
        data = self._ring.get(seq)
        return self._pinned.get(seq) if data is None else _decode(data)

    def can_replay(self, after_seq: int) -> bool:
        """Whether every frame after this one is kept."""
        ring, following = self._ring, after_seq + 1
        return ring.first <= following <= ring.last + 1 or (following == ring.last and following in self._pinned)

    def _forget_metrics(self) -> None:
        """Take out the metrics that wait, and merge the text before and behind them."""
        if self._metrics is None:
            return
        place = next(i for i, frame in enumerate(self._waiting) if frame is self._metrics)
        del self._waiting[place]
        before = self._waiting[place - 1] if place else None
        behind = self._waiting[place] if place < len(self._waiting) else None
        if isinstance(before, _Delta) and isinstance(behind, _Delta) and before.length + behind.length <= _MAX_DELTA:
            before.add(behind.parts, behind.tokens)
            del self._waiting[place]

    def _done(self, seq: int) -> ResponseDone:
        return ResponseDone(
            stream=self.stream,
            seq=seq,
            status=self.status,  # type: ignore[arg-type]
            finish_reason=self.finish_reason,
            usage=self.usage,
            state=self.state,
            error=self.error,
        )

    def _wake(self) -> None:
        if self._reader is not None:
            self._reader.wake.set()


class Reader:
    """One reading of a response, from `Response.attach` to `detach`.

    `result` is `replayed` (what comes after `after_seq` follows), `gap` (some of it is no longer kept: the newest
    follow, after `response.created` when nothing was seen), or `done` (the end was seen: nothing follows).
    """

    def __init__(self, response: Response, after_seq: int) -> None:
        self.response, self.wake = response, asyncio.Event()
        self.result: Literal["replayed", "gap", "done"] = "replayed"
        self._next = after_seq + 1
        self._is_new = after_seq < 1
        if response.is_all_sent and after_seq >= response.seq:
            self.result = "done"
        elif not response.can_replay(after_seq):
            self.result = "gap"
            # the end is told to everyone
            self._next = response.seq + (not response.is_all_sent)

    @property
    def is_behind(self) -> bool:
        """Whether what was read is older than what was sent before."""
        return self._next <= self.response.seq

    async def frames(self) -> AsyncIterator[ServerFrame]:
        """Yield the frames as they come; ends after `response.done`. Cancel: safe, no frame is lost.

        Raises:
            Superseded: a newer reader took over.
            ReplayGone: this reader fell so far behind that frames went, or nothing comes here any more.
        """
        response = self.response
        if self.result == "gap" and self._is_new and (created := response.kept(1)) is not None:
            yield created
        while self.result != "done":
            if not response.is_read_by(self):
                raise Superseded(response.stream)
            if self._next <= response.seq:
                frame = response.kept(self._next)
                if frame is None:
                    raise ReplayGone(response.id, self._next - 1)
            elif response.has_waiting:
                frame = response.stamp()
            elif response.is_lost:
                raise ReplayGone(response.id, self._next - 1)
            else:
                self.wake.clear()
                await self.wake.wait()
                continue
            self._next += 1
            yield frame
            if isinstance(frame, ResponseDone):
                return

    def detach(self) -> None:
        """Stop reading. Twice: nothing more happens."""
        self.response.detach(self)


class _Delta:
    __slots__ = ("length", "parts", "tokens")

    def __init__(self, parts: list[str], tokens: int) -> None:
        self.parts, self.tokens, self.length = parts, tokens, sum(map(len, parts))

    def add(self, parts: list[str], tokens: int) -> None:
        self.parts += parts
        self.length += sum(map(len, parts))
        self.tokens += tokens
