"""`/v1/sessions`: open, list, read, pause, resume and erase sessions."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from qraf.frames import SessionOpen, SessionOpened
from qraf.gateway.bodies import PageQuery, answer, body_of, gate, query, read, to_frame
from qraf.gateway.openapi import operation
from qraf.gateway.repeats import about_session, made_id, repeatable
from qraf.gateway.routes.records import ReceiptOut, SessionOut, SessionPage
from qraf.storage.records import SessionRecord

__all__ = ["TYPES", "router"]

router = APIRouter(tags=["sessions"])

SessionBody = body_of(SessionOpen, "SessionBody")


class SessionChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of a session's memory changes. Null: as its node says; what is left out stays."""

    bits: int | UnsetType | None = UNSET
    budget_bytes: int | UnsetType | None = UNSET
    rank: int | UnsetType | None = UNSET


class EraseQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`dry_run` erases nothing."""

    dry_run: bool = False


TYPES = (SessionBody, SessionChange, SessionOpened, SessionOut, SessionPage, ReceiptOut)
_SESSION = {"session": "the session's id"}


@router.post(
    "/sessions",
    status_code=201,
    openapi_extra=operation(
        body=SessionBody,
        answer=SessionOpened,
        status=201,
        also={200: SessionOpened},
        example={"session": "ses_ann", "metadata": {"team": "a"}},
        errors=(404, 409),
        repeatable=True,
    ),
)
@repeatable
async def open_session(request: Request) -> Response:
    """Open a session or make one (201 when it is new, else 200)."""
    frame = to_frame(SessionOpen, await read(request, SessionBody), request)
    if frame.session is None:
        frame = msgspec.structs.replace(frame, session=made_id(request, "ses"))
    opened = await gate(request).service.open_session(frame)
    about_session(request, opened.session)
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


@router.patch(
    "/sessions/{session}",
    openapi_extra=operation(
        path=_SESSION, body=SessionChange, answer=SessionOut, example={"bits": 2, "budget_bytes": 65536}
    ),
)
async def configure_session(request: Request) -> Response:
    """Change bits, byte budget and rank of a session's memory; it is made anew from the journal and answers on."""
    service, session = gate(request).service, request.path_params["session"]
    change = await read(request, SessionChange)
    record = await service.configure_session(session, change.bits, change.budget_bytes, change.rank)
    figures = await service.figures(session)
    etag = f'"{figures.version}"'
    return answer(SessionOut.of(record, _node(request, record), figures), headers={"ETag": etag})


@router.delete("/sessions/{session}", openapi_extra=operation(path=_SESSION, query=EraseQuery, answer=ReceiptOut))
async def delete_session(request: Request) -> Response:
    """Erase a session and everything that it remembers; with `dry_run`, count its items only."""
    asked = query(request, EraseQuery)
    return answer(
        ReceiptOut.of(await gate(request).service.delete_session(request.path_params["session"], asked.dry_run))
    )


@router.post("/sessions/{session}/pause", openapi_extra=operation(path=_SESSION, answer=SessionOut, repeatable=True))
@repeatable
async def pause_session(request: Request) -> Response:
    """Refuse writes and prompts until it is resumed."""
    record = await gate(request).service.pause_session(request.path_params["session"])
    about_session(request, record.id)
    return answer(SessionOut.of(record, _node(request, record)))


@router.post("/sessions/{session}/resume", openapi_extra=operation(path=_SESSION, answer=SessionOut, repeatable=True))
@repeatable
async def resume_session(request: Request) -> Response:
    """End a pause."""
    record = await gate(request).service.resume_session(request.path_params["session"])
    about_session(request, record.id)
    return answer(SessionOut.of(record, _node(request, record)))


def _node(request: Request, record: SessionRecord) -> str:
    return gate(request).service.home(record.id)
