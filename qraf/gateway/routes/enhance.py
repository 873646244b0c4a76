"""`POST /v1/enhance` and `/v1/responses`: a prompt to routed evidence and text."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from qraf.errors import InvalidRequest, NotFound, ReplayGone, RunsElsewhere
from qraf.frames import ClientInfo, Enhance, ErrorBody, EvidenceOut, Hop, RouteOut, Usage
from qraf.gateway.bodies import answer, body_of, failure, gate, note_limit, query, read, request_id, time_out, to_frame
from qraf.gateway.commands import check_command
from qraf.gateway.openapi import EVENTS, operation
from qraf.gateway.repeats import HEADER, key_of
from qraf.gateway.sse import EventStream, gather
from qraf.gateway.values import check_number
from qraf.records import Figures
from qraf.sessions.following import Followed
from qraf.sessions.response import Reader
from qraf.sessions.response import Response as Running

__all__ = ["TYPES", "router"]

router = APIRouter(tags=["responses"])

EnhanceBody = body_of(Enhance, "EnhanceBody", [("stream", bool, False)])
_SSE = {
    "event": "response.delta",
    "id": "5",
    "data": '{"type":"response.delta","stream":"str_01","seq":5,"text":"Nuts.","tokens":2}',
}
_LAST = {"Last-Event-ID": "the `id` of the last event that was seen"}
_RESPONSE = {"response": "the response's id, its stream, or its key"}
_MOST = 2**53
_CANCEL_S = 3.0  # how long it may take another gateway to stop a response


class HopOut(msgspec.Struct, frozen=True, kw_only=True):
    """A node that answered."""

    node: str
    memory: str
    ms: float
    items_scanned: int
    state: Figures
    error: str


class ResponseOut(msgspec.Struct, frozen=True, kw_only=True):
    """A response as it stands: `text` is what its frames up to `seq` hold."""

    response: str
    stream: str
    epoch: str
    seq: int
    status: str
    finish_reason: str
    text: str
    usage: Usage
    error: ErrorBody | None
    created_at: str


class EnhanceOut(ResponseOut, frozen=True, kw_only=True):
    """A response that has ended, with the way to it."""

    route: RouteOut | None
    hops: tuple[HopOut, ...]
    evidence: tuple[EvidenceOut, ...]
    coverage: float
    state: Figures


class CancelOut(ResponseOut, frozen=True, kw_only=True):
    """The response, and whether it was running when it was cancelled."""

    was_running: bool


class EventsQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The last `seq` that was seen; the header `Last-Event-ID` counts more."""

    after_seq: int = 0


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No query."""


TYPES = (EnhanceBody, EnhanceOut, ResponseOut, CancelOut, Hop, ClientInfo)


@router.post(
    "/enhance",
    openapi_extra=operation(
        body=EnhanceBody,
        answer=EnhanceOut,
        example={"session": "ses_ann", "prompt": "What can Ann not eat?", "generate": {"max_tokens": 64}},
        more={"text/event-stream": {"schema": EVENTS, "example": _SSE}},
        headers=_LAST | {HEADER: "stands for `key` where the body has none"},
        also={204: None},
        errors=(404, 409, 410, 502),
    ),
)
async def enhance(request: Request) -> Response:
    """Prompt in, routed evidence and text out; with `stream: true` as server-sent events, one per frame.

    A stream that breaks is resumed at `/responses/{response}/events`, or by the same body with the same `key`; both
    take `Last-Event-ID`. A response runs on for a minute without a reader. Without `stream` and `key` nobody could come
    back: then going away cancels it, and the model stops within one token.
    """
    gateway = gate(request)
    body = await read(request, EnhanceBody)
    frame = _keyed(request, to_frame(Enhance, body, request))
    frame = msgspec.structs.replace(frame, again=frame.key is not None)  # over HTTP nobody says so
    after_seq = _last_event_id(request) or 0
    if after_seq and (frame.key is None or await gateway.service.find_response(frame.key, after_seq=after_seq) is None):
        if frame.key is None:
            raise InvalidRequest("`Last-Event-ID` needs the `key` that the response was started with", "/key")
        raise ReplayGone(frame.key, after_seq)
    response = await gateway.service.enhance(frame, owner=request_id(request))
    if response.task is not None:
        response.task.add_done_callback(lambda _: note_limit(request, response.error))
    if getattr(body, "stream", False):
        return _events(request, response, after_seq)
    reader = _attach(response, 0)
    document = await gather(reader, request.receive)
    if isinstance(document, ErrorBody):
        return failure(document, request)
    document["created_at"] = time_out(document["created_at"])
    return answer(document)


@router.get("/responses/{response}", openapi_extra=operation(path=_RESPONSE, answer=ResponseOut))
async def get_response(request: Request) -> Response:
    """A response while it runs and a short while after, with its whole text.

    That of one that another gateway runs may be a second or two old; where that gateway tells nothing of it,
    `runs_elsewhere` (503, with `Retry-After`).
    """
    query(request, NoQuery)
    return answer(_snapshot(await _find(request)))


@router.get(
    "/responses/{response}/events",
    openapi_extra=operation(
        path=_RESPONSE,
        query=EventsQuery,
        answer=ResponseOut,
        media_type="text/event-stream",
        headers=_LAST,
        also={204: None},
        errors=(409, 410),
    ),
)
async def get_events(request: Request) -> Response:
    """The frames of a response after `Last-Event-ID` or `after_seq`, as server-sent events; then those that come.

    204 when the end was seen, so that an `EventSource` stops. 410 when what comes next is no longer kept: the response
    itself has its whole text, and the `seq` to go on from. A reader supersedes the one before it.
    """
    asked = query(request, EventsQuery)
    check_number(asked.after_seq, "/query/after_seq", 0, _MOST)
    after_seq = _last_event_id(request)
    after_seq = asked.after_seq if after_seq is None else after_seq
    return _events(request, await _find(request, after_seq), after_seq)


@router.post("/responses/{response}/cancel", openapi_extra=operation(path=_RESPONSE, answer=CancelOut))
async def cancel_response(request: Request) -> Response:
    """Stop a response; harmless when late."""
    try:
        found = await _find(request, follow=False)
        was_running = found.cancel()
        if was_running and isinstance(found, Followed):
            raise RunsElsewhere(found.id, found.gateway)
    except RunsElsewhere as running:
        ended = await gate(request).service.cancel_elsewhere(running, _CANCEL_S)
        if ended is None:
            raise
        found, was_running = ended, True
    return answer({**_snapshot(found), "was_running": was_running})


def _events(request: Request, response: Running, after_seq: int) -> Response:
    settings = gate(request).settings
    reader = _attach(response, after_seq)
    if reader.result == "done":
        reader.detach()
        return Response(status_code=204)
    return EventStream(
        reader,
        coalesce_s=settings.gateway.coalesce_ms / 1000,
        heartbeat_s=settings.gateway.heartbeat_ms / 1000,
        send_timeout_s=settings.limits.send_timeout_s,
    )


def _attach(response: Running, after_seq: int) -> Reader:
    reader = response.attach(after_seq)
    if reader.result == "gap":
        reader.detach()
        raise ReplayGone(response.id, after_seq)
    return reader


def _keyed(request: Request, frame: Enhance) -> Enhance:
    key = key_of(request)
    if key is None or frame.key == key:
        return frame
    if frame.key is not None:
        raise InvalidRequest(f"is not the body's `key`, and one of them is enough: leave out `{HEADER}`", "/key")
    frame = msgspec.structs.replace(frame, key=key)
    check_command(frame, gate(request).settings.limits)
    return frame


def _last_event_id(request: Request) -> int | None:
    told = request.headers.get("last-event-id", "")
    if not told:
        return None
    if not (told.isascii() and told.isdigit() and int(told) <= _MOST):
        raise InvalidRequest("`Last-Event-ID` must be the `id` of an event", "/headers/last-event-id")
    return int(told)


async def _find(request: Request, after_seq: int | None = None, *, follow: bool = True) -> Running:
    name = request.path_params["response"]
    found = await gate(request).service.find_response(name, after_seq=after_seq, follow=follow)
    if found is None:
        raise NotFound("response", name)
    return found


def _snapshot(response: Running) -> dict[str, object]:
    return {**response.snapshot(), "created_at": time_out(response.created_at)}
