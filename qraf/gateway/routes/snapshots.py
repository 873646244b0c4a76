"""`/v1/snapshots`: make snapshots of memories now."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from qraf.gateway.bodies import gate, read
from qraf.gateway.openapi import operation
from qraf.gateway.repeats import repeatable
from qraf.gateway.routes.background import accepted
from qraf.service_orders import OperationView, SnapshotsMade

__all__ = ["TYPES", "router"]

router = APIRouter(tags=["operations"])


class SnapshotsWanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of which memory: of one `session` or one `collection`; without either of all of the tenant's that have changed.

    For the default tenant: of everybody's.
    """

    session: str | None = None
    collection: str | None = None


TYPES = (SnapshotsWanted, SnapshotsMade)


@router.post(
    "/snapshots",
    status_code=202,
    openapi_extra=operation(
        body=SnapshotsWanted,
        example={"session": "ses_ann"},
        answer=OperationView,
        status=202,
        errors=(404, 429, 501, 503),
        repeatable=True,
    ),
)
@repeatable
async def make_snapshots(request: Request) -> Response:
    """Begin to make snapshots; `Location` leads to the operation, whose result says of how many memories."""
    wanted = await read(request, SnapshotsWanted)
    return accepted(await gate(request).service.make_snapshots(wanted.session, wanted.collection), False)
