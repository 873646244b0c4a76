"""What a connection remembers of the commands that it sent, until they are answered."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from qraf.client.inbox import Inbox
from qraf.client.reconnect import can_repeat
from qraf.errors import ConnectionLost
from qraf.frames import ClientFrame, Enhance, ErrorBody, ResponseDone, ServerFrame, Watch

__all__ = ["Call", "Run", "Sent", "Topic", "lost_end", "unrepeated"]


class Sent:
    """A command, and how often it was sent."""

    def __init__(self, frame: ClientFrame) -> None:
        self.frame, self.sends = frame, 0

    @property
    def is_settled(self) -> bool:
        """Whether nothing more is awaited."""
        return False

    def repeat(self) -> None:
        """It is sent once more."""
        self.sends += 1
        if isinstance(self.frame, Enhance) and self.frame.key is not None:
            self.frame = msgspec.structs.replace(self.frame, again=True)


class Call(Sent):
    """A command that waits for its one answer."""

    def __init__(self, frame: ClientFrame, answer: type[Any]) -> None:
        super().__init__(frame)
        self.answer = answer
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    @property
    def is_settled(self) -> bool:
        """Whether it was answered."""
        return self.future.done()

    def take(self, frame: ServerFrame) -> None:
        """The answer, if it is one."""
        if isinstance(frame, self.answer) and not self.future.done():
            self.future.set_result(frame)

    def fail(self, error: Exception) -> None:
        """There will be no answer."""
        if not self.future.done():
            self.future.set_exception(error)

    def see(self) -> None:
        """Look at an error that nobody waits for any more."""
        if self.future.done() and not self.future.cancelled():
            self.future.exception()


class Run(Sent):
    """A response: where its frames go, and the last `seq` that came. `has_gap`: the next frame is not the one after.

    `has_text`: some of its text came.
    """

    def __init__(self, command: Enhance, inbox: Inbox) -> None:
        super().__init__(command)
        self.inbox, self.epoch, self.seq = inbox, "", 0
        self.has_gap = self.has_text = False


class Topic:
    """A watched topic; `stream` is empty until its first frame came."""

    def __init__(self, watch: Watch, inbox: Inbox) -> None:
        self.watch, self.inbox, self.watch_id, self.stream = watch, inbox, watch.id, ""

    def is_meant(self, id: str, stream: str) -> bool:
        """Whether an error is about this one."""
        return bool(id and id == self.watch_id) or bool(stream and stream == self.stream)


def unrepeated(one: Sent, lost: ConnectionLost) -> ConnectionLost:
    """The error of a command that was sent and will not be sent again."""
    tag = one.frame.__struct_config__.tag
    why = f"was sent {one.sends} times" if can_repeat(one.frame) else "is not repeated, for it may have been done"
    return ConnectionLost(lost.url, f"{lost.reason}; `{tag}` {why}", lost.close)


def lost_end(stream: str, seq: int) -> ResponseDone:
    """The end of a response that no server knows any more."""
    detail = "no server has this response any more: it was started again, or the client was away for too long"
    error = ErrorBody(code="replay_gone", title="No longer kept", detail=detail, retryable=True)
    return ResponseDone(stream=stream, seq=seq, status="failed", finish_reason="error", error=error)
