"""`/v1/sessions`: open, list, read, pause, resume and erase sessions."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from qraf.frames import SessionOpen, SessionOpened
from qraf.gateway.bodies import PageQuery, answer, body_of, gate, query, read, to_frame
from qraf.gateway.openapi import operation
from qraf.gateway.routes.records import ReceiptOut, SessionOut, SessionPage
from qraf.network.placement import session_node
from qraf.storage.records import SessionRecord

__all__ = ["TYPES", "router"]

router = APIRouter(tags=["sessions"])

SessionBody = body_of(SessionOpen, "SessionBody")
TYPES = (SessionBody, SessionOpened, SessionOut, SessionPage, ReceiptOut)
_SESSION = {"session": "the session's id"}


@router.post(
    "/sessions",
    status_code=201,
    openapi_extra=operation(
        body=SessionBody, answer=SessionOpened, status=201, example={"session": "ses_ann", "metadata": {"team": "a"}}
    ),
)
async def open_session(request: Request) -> Response:
    """Open a session or make one (201 when it is new, else 200)."""
    frame = to_frame(SessionOpen, await read(request, SessionBody), request)
    opened = await gate(request).service.open_session(frame)
    return answer(opened, 201 if opened.created else 200, {"Location": f"/v1/sessions/{opened.session}"})


@router.get("/sessions", openapi_extra=operation(query=PageQuery, answer=SessionPage))
async def list_sessions(request: Request) -> Response:
    """A page of sessions."""
    asked = query(request, PageQuery)
    records, cursor = await gate(request).service.list_sessions(asked.cursor, asked.limit)
    data = tuple(SessionOut.of(record, _node(request, record)) for record in records)
    return answer(SessionPage(data=data, next_cursor=cursor))


@router.get("/sessions/{session}", openapi_extra=operation(path=_SESSION, answer=SessionOut))
async def get_session(request: Request) -> Response:
    """A session with the figures of its state; `ETag` is the version of the state."""
    service, session = gate(request).service, request.path_params["session"]
    record = await service.get_session(session)
    figures = await service.figures(session)
    etag = f'"{figures.version}"'
    return answer(SessionOut.of(record, _node(request, record), figures), headers={"ETag": etag})


@router.delete("/sessions/{session}", openapi_extra=operation(path=_SESSION, answer=ReceiptOut))
async def delete_session(request: Request) -> Response:
    """Erase a session and everything that it remembers."""
    return answer(ReceiptOut.of(await gate(request).service.delete_session(request.path_params["session"])))


@router.post("/sessions/{session}/pause", openapi_extra=operation(path=_SESSION, answer=SessionOut))
async def pause_session(request: Request) -> Response:
    """Refuse writes and prompts until it is resumed."""
    record = await gate(request).service.pause_session(request.path_params["session"])
    return answer(SessionOut.of(record, _node(request, record)))


@router.post("/sessions/{session}/resume", openapi_extra=operation(path=_SESSION, answer=SessionOut))
async def resume_session(request: Request) -> Response:
    """End a pause."""
    record = await gate(request).service.resume_session(request.path_params["session"])
    return answer(SessionOut.of(record, _node(request, record)))


def _node(request: Request, record: SessionRecord) -> str:
    return session_node(gate(request).service.topology, record.id)
