"""`/v1/memory`: write, list, read, recall and forget items."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from qraf.errors import InvalidRequest
from qraf.frames import Recall, RecallDone, Write, WriteDone
from qraf.gateway.bodies import PageQuery, answer, body_of, gate, query, read, time_out, to_frame
from qraf.gateway.openapi import operation
from qraf.gateway.problems import decoding_fault
from qraf.gateway.repeats import about_session, made_id, repeatable
from qraf.gateway.routes.records import ForgetOut, ItemOut, ItemPage, ReceiptOut
from qraf.gateway.values import check_filter
from qraf.records import Filter, Item

__all__ = ["TYPES", "router"]

router = APIRouter(tags=["memory"])

WriteBody, RecallBody = body_of(Write, "WriteBody"), body_of(Recall, "RecallBody")
_ITEM = {"item_id": "the item's id, percent-encoded"}


class ForgetBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to forget: everything in a session or a collection that passes the filter; `dry_run` only counts."""

    session: str | None = None
    collection: str | None = None
    filter: Filter
    dry_run: bool = False


class WhereQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose memory: exactly one of the two."""

    session: str | None = None
    collection: str | None = None


class ListQuery(PageQuery, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A page of a memory; `filter` is a filter as JSON."""

    session: str | None = None
    collection: str | None = None
    filter: str | None = None


class DeleteQuery(WhereQuery, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose memory: exactly one of the two; `dry_run` forgets nothing."""

    dry_run: bool = False


TYPES = (WriteBody, WriteDone, RecallBody, RecallDone, ForgetBody, ForgetOut, ItemOut, ItemPage, ReceiptOut)


@router.post(
    "/memory",
    openapi_extra=operation(
        body=WriteBody,
        answer=WriteDone,
        errors=(404, 409),
        repeatable=True,
        example={
            "session": "ses_ann",
            "items": [
                {"text": "I am allergic to nuts.", "speaker": "Ann", "at": "2026-05-07T14:00:00Z", "item_id": "t1"}
            ],
        },
    ),
)
@repeatable
async def write(request: Request) -> Response:
    """Write items. Answered when they are durable and absorbed; the same `item_id` again changes nothing."""
    frame = _named(request, to_frame(Write, await read(request, WriteBody), request))
    done = await gate(request).service.write(frame)
    about_session(request, frame.session)
    return answer(done)


@router.get("/memory", openapi_extra=operation(query=ListQuery, answer=ItemPage, errors=(404,)))
async def list_items(request: Request) -> Response:
    """Items in the order they were written."""
    asked = query(request, ListQuery)
    items, cursor = await gate(request).service.list_items(
        asked.session, asked.collection, asked.cursor, asked.limit, _filter(asked.filter)
    )
    data = tuple(_out(item, asked.session, asked.collection) for item in items)
    return answer(ItemPage(data=data, next_cursor=cursor))


@router.post(
    "/memory/recall",
    openapi_extra=operation(
        body=RecallBody,
        answer=RecallDone,
        example={"session": "ses_ann", "text": "What can Ann not eat?", "k": 5},
        errors=(404, 409),
    ),
)
async def recall(request: Request) -> Response:
    """Evidence for a text, by falling probability, with the route that was taken."""
    frame = to_frame(Recall, await read(request, RecallBody), request)
    return answer(await gate(request).service.recall(frame))


@router.post(
    "/memory/forget",
    openapi_extra=operation(
        body=ForgetBody,
        answer=ForgetOut,
        errors=(404,),
        repeatable=True,
        example={"session": "ses_ann", "filter": {"field": "speaker", "eq": "Ann"}, "dry_run": True},
    ),
)
@repeatable
async def forget(request: Request) -> Response:
    """Forget every item that passes a filter; `dry_run` counts them first."""
    body = await read(request, ForgetBody)
    check_filter(body.filter, "/filter")
    count, receipts = await gate(request).service.forget(body.session, body.collection, body.filter, body.dry_run)
    about_session(request, body.session)
    return answer(ForgetOut(count=count, dry_run=body.dry_run, receipts=tuple(ReceiptOut.of(r) for r in receipts)))


@router.get("/memory/{item_id:path}", openapi_extra=operation(path=_ITEM, query=WhereQuery, answer=ItemOut))
async def get_item(request: Request) -> Response:
    """One item with its text."""
    asked = query(request, WhereQuery)
    item = await gate(request).service.get_item(asked.session, asked.collection, request.path_params["item_id"])
    return answer(_out(item, asked.session, asked.collection))


@router.delete("/memory/{item_id:path}", openapi_extra=operation(path=_ITEM, query=DeleteQuery, answer=ReceiptOut))
async def delete_item(request: Request) -> Response:
    """Forget one item; the receipt has the figures before and after. With `dry_run` they are the same."""
    asked = query(request, DeleteQuery)
    item = request.path_params["item_id"]
    receipt = await gate(request).service.delete_item(asked.session, asked.collection, item, asked.dry_run)
    return answer(ReceiptOut.of(receipt))


def _named(request: Request, frame: Write) -> Write:
    """The write with ids for the items that have none, where the request may come again."""
    if made_id(request, "itm") is None:
        return frame
    items = (
        item if item.item_id is not None else msgspec.structs.replace(item, item_id=made_id(request, "itm", place))
        for place, item in enumerate(frame.items)
    )
    return msgspec.structs.replace(frame, items=tuple(items))


def _filter(text: str | None) -> Filter | None:
    if text is None:
        return None
    try:
        found = msgspec.json.decode(text, type=Filter)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        detail, pointer = decoding_fault(error)
        raise InvalidRequest(detail, f"/query/filter{pointer}") from None
    check_filter(found, "/query/filter")
    return found


def _out(item: Item, session: str | None, collection: str | None) -> ItemOut:
    return ItemOut(
        item_id=item.item_id,
        seq=item.seq,
        text=item.text,
        speaker=item.speaker,
        role=item.role,
        at=time_out(item.at) or "",
        metadata=item.metadata,
        pin=item.pin,
        expires_at=time_out(item.expires_at),
        session=session,
        collection=collection,
        has_amplitudes=item.amplitudes is not None,
    )
