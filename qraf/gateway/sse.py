"""A response as server-sent events, and as one JSON document."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.responses import Response as HttpResponse
from starlette.types import Receive, Scope, Send

from qraf.errors import ReplayGone, Superseded
from qraf.frames import (
    ErrorBody,
    Goodbye,
    ResponseDelta,
    ResponseDone,
    ResponseEvidence,
    ResponseHop,
    ResponseRoute,
    ServerFrame,
)
from qraf.sessions.response import Reader

__all__ = ["EventStream", "gather"]

log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode


class EventStream(HttpResponse):
    """`text/event-stream`: one event per frame, `event` its type, `id` its `seq`, `data` the frame as JSON.

    Comments (`:`) keep the connection alive while nothing is said. A reader that takes nothing for `send_timeout_s` is
    let go; one that goes may come back with `Last-Event-ID`, and one that is so far behind that frames went has to. One
    that is superseded gets a `goodbye`.
    """

    media_type = "text/event-stream"

    def __init__(self, reader: Reader, *, coalesce_s: float, heartbeat_s: float, send_timeout_s: float) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._reader = reader
        self._coalesce_s, self._heartbeat_s, self._send_timeout_s = coalesce_s, heartbeat_s, send_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the frames until the end, or until the client goes or reads nothing."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with asyncio.TaskGroup() as group:
                pump = group.create_task(self._pump(send))
                watch = group.create_task(_when_gone(receive, pump.cancel))
                beat = group.create_task(self._beat(send))
                try:
                    await asyncio.wait([pump])
                finally:
                    watch.cancel()
                    beat.cancel()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except* TimeoutError:
            log.info("response %s: a reader took nothing for %g s", self._reader.response.id, self._send_timeout_s)
        finally:
            self._reader.detach()

    async def _pump(self, send: Send) -> None:
        try:
            async for frame in self._reader.frames():
                await self._event(send, frame)
                if isinstance(frame, ResponseDelta) and self._coalesce_s and not self._reader.is_behind:
                    await asyncio.sleep(self._coalesce_s)
        except Superseded as error:
            await self._event(send, Goodbye(reason=str(error)))
        except ReplayGone as error:
            log.info("%s; its reader may come back", error)

    async def _event(self, send: Send, frame: ServerFrame) -> None:
        tag, seq = frame.__struct_config__.tag, getattr(frame, "seq", None)
        head = f"event: {tag}\ndata: " if seq is None else f"event: {tag}\nid: {seq}\ndata: "
        async with asyncio.timeout(self._send_timeout_s):
            body = head.encode() + _encode(frame) + b"\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})

    async def _beat(self, send: Send) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_s)
            async with asyncio.timeout(self._send_timeout_s):
                await send({"type": "http.response.body", "body": b":\n\n", "more_body": True})


async def gather(reader: Reader, receive: Receive) -> dict[str, Any] | ErrorBody:
    """The whole response as one document, or the error that it ended with.

    When the client goes, one that started it without a key could never come back, so its response is cancelled.

    Raises:
        Superseded: a newer reader took over.
    """
    document: dict[str, Any] = {"hops": [], "evidence": [], "coverage": 0.0, "route": None}
    error: ErrorBody | None = None
    response = reader.response

    def leave() -> None:
        if not response.key:
            response.cancel("disconnected")
        reader.detach()

    watch = asyncio.create_task(_when_gone(receive, leave))
    try:
        async for frame in reader.frames():
            match frame:
                case ResponseRoute():
                    document["route"] = _bare(frame)
                case ResponseHop():
                    document["hops"].append(_bare(frame))
                case ResponseEvidence():
                    document["evidence"], document["coverage"] = frame.items, frame.coverage
                case ResponseDone():
                    # one that is incomplete has its text, and says why in its `error`
                    document["state"], error = frame.state, frame.error if frame.status == "failed" else None
        return {**response.snapshot(), **document} if error is None else error
    finally:
        watch.cancel()
        reader.detach()


async def _when_gone(receive: Receive, act: Callable[[], object]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    act()


def _bare(frame: msgspec.Struct) -> dict[str, Any]:
    return {key: value for key, value in msgspec.structs.asdict(frame).items() if key not in ("stream", "seq")}
