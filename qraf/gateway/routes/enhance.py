"""`POST /v1/enhance` and `/v1/responses`: a prompt to routed evidence and text."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from qraf.errors import NotFound
from qraf.frames import ClientInfo, Enhance, ErrorBody, EvidenceOut, Hop, RouteOut, Usage
from qraf.gateway.bodies import answer, body_of, failure, gate, query, read, request_id, time_out, to_frame
from qraf.gateway.openapi import operation
from qraf.gateway.sse import EventStream, gather
from qraf.records import Figures
from qraf.sessions.responses import Response as Running

__all__ = ["TYPES", "router"]

router = APIRouter(tags=["responses"])

EnhanceBody = body_of(Enhance, "EnhanceBody", [("stream", bool, False)])
_SSE = (
    "event: response.delta\nid: 5\n"
    'data: {"type":"response.delta","stream":"str_01","seq":5,"text":"Nuts.","tokens":2}\n\n'
)
_RESPONSE = {"response": "the response's id, its stream, or its command's id"}


class HopOut(msgspec.Struct, frozen=True, kw_only=True):
    """A node that answered."""

    node: str
    memory: str
    ms: float
    items_scanned: int
    state: Figures
    error: str


class ResponseOut(msgspec.Struct, frozen=True, kw_only=True):
    """A response as it stands."""

    response: str
    stream: str
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


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No query."""


TYPES = (EnhanceBody, EnhanceOut, ResponseOut, CancelOut, Hop, ClientInfo)


@router.post(
    "/enhance",
    openapi_extra=operation(
        body=EnhanceBody,
        answer=EnhanceOut,
        example={"session": "ses_ann", "prompt": "What can Ann not eat?", "generate": {"max_tokens": 64}},
        more={"text/event-stream": {"schema": {"type": "string"}, "example": _SSE}},
    ),
)
async def enhance(request: Request) -> Response:
    """Prompt in, routed evidence and text out; with `stream: true` as server-sent events, one per frame.

    Going away cancels the response: the model stops within one token.
    """
    gateway = gate(request)
    body = await read(request, EnhanceBody)
    frame = to_frame(Enhance, body, request)
    response = await gateway.service.enhance(frame, owner=request_id(request))
    if getattr(body, "stream", False):
        settings = gateway.settings
        return EventStream(
            response,
            coalesce_s=settings.gateway.coalesce_ms / 1000,
            heartbeat_s=settings.gateway.heartbeat_ms / 1000,
            send_timeout_s=settings.limits.send_timeout_s,
        )
    document = await gather(response, request.receive)
    if isinstance(document, ErrorBody):
        return failure(document, request)
    document["created_at"] = time_out(document["created_at"])
    return answer(document)


@router.get("/responses/{response}", openapi_extra=operation(path=_RESPONSE, answer=ResponseOut))
async def get_response(request: Request) -> Response:
    """A response while it runs and a short while after, with its whole text."""
    query(request, NoQuery)
    return answer(_snapshot(_find(request)))


@router.post("/responses/{response}/cancel", openapi_extra=operation(path=_RESPONSE, answer=CancelOut))
async def cancel_response(request: Request) -> Response:
    """Stop a response; harmless when late."""
    found = _find(request)
    was_running = found.cancel()
    return answer({**_snapshot(found), "was_running": was_running})


def _find(request: Request) -> Running:
    name = request.path_params["response"]
    found = gate(request).service.response(name)
    if found is None:
        raise NotFound("response", name)
    return found


def _snapshot(response: Running) -> dict[str, object]:
    return {**response.snapshot(), "created_at": time_out(response.created_at)}
