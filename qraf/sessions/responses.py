"""One response: what it emits, in order, with exactly one end."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from ulid import ULID

from qraf.clock import Clock
from qraf.errors import LimitExceeded
from qraf.frames import ErrorBody, ResponseDelta, ResponseDone, ServerFrame, Usage
from qraf.records import Figures

__all__ = ["Response", "Responses"]

# Frames other than deltas that one response can emit before it ends are bounded by its route (one hop per memory
# visited) and by the metrics' rate; metrics that wait are replaced, so this bound is a guard, not a policy.
_MAX_WAITING = 4096


class Response:
    """A stream of stamped frames: `response.created` first, exactly one `response.done` last.

    Deltas that wait for the reader are merged, metrics that wait are replaced by newer ones, and `seq` is given when a
    frame leaves, so a slow reader sees fewer frames, no holes, and loses no text. One reader.
    """

    def __init__(self, command_id: str, owner: str, clock: Clock) -> None:
        self.id = f"rsp_{ULID()}"
        self.stream = f"str_{ULID()}"
        self.command_id, self.owner = command_id, owner
        self.created_at, self.ended_at = clock.now(), 0.0
        self.status = "running"
        self.finish_reason = ""
        self.usage = Usage()
        self.error: ErrorBody | None = None
        self.cancel_reason = ""
        self.task: asyncio.Task[None] | None = None
        self._clock = clock
        self._parts: list[str] = []
        self._waiting: deque[ServerFrame | _Delta] = deque()
        self._wake = asyncio.Event()
        self._seq = 0
        self._is_read = False

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

    def emit(self, frame: ServerFrame) -> None:
        """Add a frame (its `seq` is given later). After the end, nothing is added any more."""
        if self.has_ended:
            return
        if type(frame).__name__ == "ResponseMetrics" and self._waiting and type(self._waiting[-1]) is type(frame):
            self._waiting.pop()
        if len(self._waiting) >= _MAX_WAITING:
            raise LimitExceeded("frames of a response that wait to be read", _MAX_WAITING)
        self._waiting.append(frame)
        self._wake.set()

    def delta(self, text: str, tokens: int) -> None:
        """Add generated text; merged with what still waits."""
        if self.has_ended or not text:
            return
        self._parts.append(text)
        last = self._waiting[-1] if self._waiting else None
        if isinstance(last, _Delta):
            last.parts.append(text)
            last.tokens += tokens
        else:
            self._waiting.append(_Delta(text, tokens))
        self._wake.set()

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
        self._waiting.append(
            ResponseDone(
                stream=self.stream,
                seq=0,
                status=status,  # type: ignore[arg-type]
                finish_reason=finish_reason,
                usage=self.usage,
                state=state or Figures(),
                error=error,
            )
        )
        self.status, self.ended_at = status, self._clock.now()
        self._wake.set()

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

    async def frames(self) -> AsyncIterator[ServerFrame]:
        """Yield the frames as they come, stamped; ends after `response.done`. Cancel: safe, no frame is lost."""
        if self._is_read:
            raise RuntimeError("a response has one reader")
        self._is_read = True
        while True:
            while self._waiting:
                frame = self._waiting.popleft()
                self._seq += 1
                if isinstance(frame, _Delta):
                    yield ResponseDelta(
                        stream=self.stream, seq=self._seq, text="".join(frame.parts), tokens=frame.tokens
                    )
                else:
                    yield msgspec.structs.replace(frame, seq=self._seq)
                    if isinstance(frame, ResponseDone):
                        return
            self._wake.clear()
            if not self._waiting:
                await self._wake.wait()

    def snapshot(self) -> dict[str, Any]:
        """The response as `GET /v1/responses/{id}` tells it."""
        return {
            "response": self.id,
            "stream": self.stream,
            "status": self.status,
            "finish_reason": self.finish_reason,
            "text": self.text,
            "usage": msgspec.to_builtins(self.usage),
            "error": msgspec.to_builtins(self.error),
            "created_at": self.created_at,
        }


class _Delta:
    __slots__ = ("parts", "tokens")

    def __init__(self, text: str, tokens: int) -> None:
        self.parts, self.tokens = [text], tokens


class Responses:
    """The running responses and the last ended ones, found by stream, id, or the owner's command id."""

    def __init__(self, clock: Clock, *, max_running: int, max_kept: int, kept_s: float) -> None:
        self._clock = clock
        self._max_running, self._max_kept, self._kept_s = max_running, max_kept, kept_s
        self._by_id: OrderedDict[str, Response] = OrderedDict()
        self._alias: dict[str, str] = {}

    def create(self, command_id: str, owner: str) -> Response:
        """Start a response.

        Raises:
            LimitExceeded: as many as allowed are running.
        """
        self.sweep()
        running = self.running()
        if running >= self._max_running:
            raise LimitExceeded("max_running_responses", self._max_running, running + 1, retry_after_ms=1000)
        response = Response(command_id, owner, self._clock)
        self._by_id[response.id] = response
        self._alias[response.stream] = response.id
        self._alias[f"{owner}\0{command_id}"] = response.id
        return response

    def find(self, target: str, owner: str | None = None) -> Response | None:
        """By response id, stream, or (with `owner`) command id."""
        found = self._by_id.get(target) or self._by_id.get(self._alias.get(target, ""))
        if found is None and owner is not None:
            found = self._by_id.get(self._alias.get(f"{owner}\0{target}", ""))
        return found

    def running(self) -> int:
        """How many have not ended."""
        return sum(not r.has_ended for r in self._by_id.values())

    def all_running(self) -> list[Response]:
        """Those that have not ended."""
        return [r for r in self._by_id.values() if not r.has_ended]

    def sweep(self) -> None:
        """Let go of ended responses that are too old or too many."""
        now = self._clock.now()
        ended = [r for r in self._by_id.values() if r.has_ended]
        excess = len(ended) - self._max_kept
        for rank, response in enumerate(ended):
            if rank < excess or now - response.ended_at > self._kept_s:
                del self._by_id[response.id]
                for alias in (response.stream, f"{response.owner}\0{response.command_id}"):
                    if self._alias.get(alias) == response.id:
                        del self._alias[alias]
