"""`/v1/operations`: long jobs, how far they are, their results, and how to stop them."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from qraf.gateway.bodies import answer, gate
from qraf.gateway.openapi import operation
from qraf.gateway.repeats import repeatable
from qraf.service_orders import OperationView

__all__ = ["TYPES", "router"]

router = APIRouter(tags=["operations"])

_OPERATION = {"operation": "the operation's id"}


class OperationList(msgspec.Struct, frozen=True, kw_only=True):
    """Every operation that is kept, newest first, without results."""

    data: tuple[OperationView, ...]


TYPES = (OperationView, OperationList)


@router.get("/operations", openapi_extra=operation(answer=OperationList))
async def list_operations(request: Request) -> Response:
    """Every operation, newest first."""
    return answer(OperationList(data=tuple(gate(request).service.orders.operations.list())))


@router.get("/operations/{operation}", openapi_extra=operation(path=_OPERATION, answer=OperationView))
async def get_operation(request: Request) -> Response:
    """How far an operation is; once it is completed, with its result. `Retry-After` while it runs."""
    view = gate(request).service.orders.operations.get(request.path_params["operation"])
    return answer(view, headers={} if view.ended_at else {"Retry-After": "1"})


@router.post(
    "/operations/{operation}/cancel",
    openapi_extra=operation(path=_OPERATION, answer=OperationView, repeatable=True),
)
@repeatable
async def cancel_operation(request: Request) -> Response:
    """Stop it before its next part; one that has ended stays as it is."""
    return answer(await gate(request).service.orders.operations.cancel(request.path_params["operation"]))


@router.delete("/operations/{operation}", openapi_extra=operation(path=_OPERATION, answer=OperationView))
async def delete_operation(request: Request) -> Response:
    """Stop it, and forget it with its result."""
    return answer(await gate(request).service.orders.operations.drop(request.path_params["operation"]))
