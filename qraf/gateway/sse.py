"""A response as server-sent events, and as one JSON document; either way a client that goes stops the model."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec
from starlette.responses import Response as HttpResponse
from starlette.types import Receive, Scope, Send

from qraf.frames import ErrorBody, ResponseDelta, ResponseDone, ResponseEvidence, ResponseHop, ResponseRoute
from qraf.sessions.responses import Response

__all__ = ["EventStream", "gather"]

log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode


class EventStream(HttpResponse):
    """`text/event-stream`: one event per frame, `event` its type, `id` its `seq`, `data` the frame as JSON.

    Comments (`:`) keep the connection alive while nothing is said. A reader that takes nothing for `send_timeout_s` is
    let go.
    """

    media_type = "text/event-stream"

    def __init__(self, response: Response, *, coalesce_s: float, heartbeat_s: float, send_timeout_s: float) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._response = response
        self._coalesce_s, self._heartbeat_s, self._send_timeout_s = coalesce_s, heartbeat_s, send_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the frames; the response is cancelled when the client goes or reads nothing."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(_cancel_when_gone(self._response, receive))
                beat = group.create_task(self._beat(send))
                try:
                    await self._pump(send)
                finally:
                    watch.cancel()
                    beat.cancel()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except* TimeoutError:
            log.info("response %s: a reader took nothing for %g s", self._response.id, self._send_timeout_s)
        finally:
            self._response.cancel("disconnected")

    async def _pump(self, send: Send) -> None:
        async for frame in self._response.frames():
            head = f"event: {frame.__struct_config__.tag}\nid: {getattr(frame, 'seq', 0)}\ndata: "
            body = head.encode() + _encode(frame) + b"\n\n"
            async with asyncio.timeout(self._send_timeout_s):
                await send({"type": "http.response.body", "body": body, "more_body": True})
            if isinstance(frame, ResponseDelta) and self._coalesce_s:
                await asyncio.sleep(self._coalesce_s)

    async def _beat(self, send: Send) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_s)
            async with asyncio.timeout(self._send_timeout_s):
                await send({"type": "http.response.body", "body": b":\n\n", "more_body": True})


async def gather(response: Response, receive: Receive) -> dict[str, Any] | ErrorBody:
    """The whole response as one document, or the error that it ended with."""
    document: dict[str, Any] = {"hops": [], "evidence": [], "coverage": 0.0, "route": None}
    error: ErrorBody | None = None
    try:
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(_cancel_when_gone(response, receive))
            try:
                async for frame in response.frames():
                    match frame:
                        case ResponseRoute():
                            document["route"] = _bare(frame)
                        case ResponseHop():
                            document["hops"].append(_bare(frame))
                        case ResponseEvidence():
                            document["evidence"], document["coverage"] = frame.items, frame.coverage
                        case ResponseDone():
                            document["state"], error = frame.state, frame.error
            finally:
                watch.cancel()
    finally:
        response.cancel("disconnected")
    if error is not None:
        return error
    return {**response.snapshot(), **document}


async def _cancel_when_gone(response: Response, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    response.cancel("disconnected")


def _bare(frame: msgspec.Struct) -> dict[str, Any]:
    return {key: value for key, value in msgspec.structs.asdict(frame).items() if key not in ("stream", "seq")}
