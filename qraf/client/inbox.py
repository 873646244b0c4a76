"""Frames of one stream between the socket's reader and the caller: bounded, and never in another stream's way."""

from __future__ import annotations

import asyncio
from collections import deque

import msgspec

from qraf.errors import LimitExceeded, QrafError, TimedOut
from qraf.frames import (
    Metrics,
    NetworkDelta,
    ResponseDelta,
    ResponseMetrics,
    ServerFrame,
    UsageFrame,
)

__all__ = ["Elsewhere", "Gap", "Inbox"]

_NEWEST_ONLY = (ResponseMetrics, Metrics, UsageFrame)


class Gap:
    """Stands where frames of a response were lost for good: its text is fetched, then the stream goes on."""


class Elsewhere(Gap):
    """Another gateway runs the response, and no frame of it comes here: the rest is fetched, the end included."""


class Inbox:
    """A bounded queue of frames with one reader.

    `put` never waits, so a stream whose reader is slow does not delay the others on the same socket. What happens
    instead, in order: above `soft` waiting frames, deltas of text are joined (nothing is lost, `seq` is that of the
    last), metrics skip to the newest and network deltas are united by node (both counted in `skipped`). Above
    `max_frames` frames, or `max_text` characters waiting, this stream alone ends with `LimitExceeded`.
    """

    def __init__(self, soft: int = 64, max_frames: int = 4096, max_text: int = 4 * 1024 * 1024) -> None:
        self._soft, self._max_frames, self._max_text = soft, max_frames, max_text
        self._frames: deque[ServerFrame | Gap] = deque()
        self._text = 0
        self._error: QrafError | None = None
        self._closed = False
        self._wake = asyncio.Event()
        self._gaps = 0
        self.skipped = 0

    def put(self, frame: ServerFrame | Gap) -> bool:
        """Take a frame; False when the stream has ended, and when this frame was too much and ended it."""
        if self._closed:
            return False
        if isinstance(frame, Gap):
            self._gaps += 1
        elif len(self._frames) >= self._soft and not self._gaps:
            frame = self._join(frame)
        self._frames.append(frame)
        if isinstance(frame, ResponseDelta):
            self._text += len(frame.text)
        if len(self._frames) > self._max_frames:
            self.close(LimitExceeded("queued frames of a response", self._max_frames, len(self._frames)), drop=True)
        elif self._text > self._max_text:
            self.close(LimitExceeded("queued text of a response", self._max_text, self._text), drop=True)
        self._wake.set()
        return not self._closed

    def filled(self) -> None:
        """A gap is known; until then nothing is joined, for some of what comes may be part of it."""
        self._gaps -= 1

    def close(self, error: QrafError | None = None, *, drop: bool = False) -> None:
        """End the stream: the reader gets what waits (unless `drop`), then `error` or the end."""
        if self._closed:
            return
        self._closed, self._error = True, error
        if drop:
            self._frames.clear()
        self._wake.set()

    async def get(self, timeout_s: float, what: str) -> ServerFrame | Gap | None:
        """The next frame, or where some are missing; None at the end.

        Raises:
            TimedOut: nothing came for `timeout_s`.
            QrafError: what the stream was closed with.
        """
        while not self._frames:
            if self._closed:
                if self._error is not None:
                    raise self._error
                return None
            self._wake.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
            except TimeoutError:
                raise TimedOut(what, timeout_s) from None
        frame = self._frames.popleft()
        if isinstance(frame, ResponseDelta):
            self._text -= len(frame.text)
        return frame

    def _join(self, frame: ServerFrame) -> ServerFrame:
        last = self._frames[-1]
        if isinstance(frame, ResponseDelta) and isinstance(last, ResponseDelta):
            self._frames.pop()
            self._text -= len(last.text)
            return msgspec.structs.replace(frame, text=last.text + frame.text, tokens=last.tokens + frame.tokens)
        if isinstance(frame, NetworkDelta) and isinstance(last, NetworkDelta):
            self._frames.pop()
            self.skipped += 1
            nodes = {view.node: view for view in (*last.nodes, *frame.nodes)}
            return msgspec.structs.replace(frame, nodes=tuple(nodes.values()), skipped=last.skipped + frame.skipped + 1)
        if isinstance(frame, _NEWEST_ONLY):
            for index, waiting in enumerate(self._frames):
                if type(waiting) is type(frame):
                    del self._frames[index]
                    self.skipped += 1
                    break
        return frame
