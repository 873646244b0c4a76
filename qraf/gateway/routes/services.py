"""`/v1/quantize`, `/v1/optimize`, `/v1/correct`: answered at once, or as an operation when the work is long."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from qraf.actors.services import ServiceStatus
from qraf.code_orders import BuildCode, CodeBuilt, CodeSampled, DecodeShots, SampleCode, ShotsDecoded
from qraf.errors import InvalidRequest, NotAllowed
from qraf.gateway.bodies import answer, gate, principal, read, refused
from qraf.gateway.openapi import operation
from qraf.gateway.repeats import Route, repeatable
from qraf.gateway.routes.background import accepted, may_be_long, wants_background
from qraf.gateway.security.guard import check_scope
from qraf.service_orders import (
    Align,
    Aligned,
    Correct,
    Dequantize,
    Dequantized,
    Nearest,
    NearestStates,
    OperationView,
    Optimize,
    Quantize,
    Quantized,
    Recompress,
    Recompressed,
    Repair,
    Repaired,
    ServiceOrder,
    Truncate,
    Truncated,
)

__all__ = ["TYPES", "router"]

router = APIRouter(tags=["services"])


class ServiceList(msgspec.Struct, frozen=True, kw_only=True):
    """The services that were asked for so far, and those that run on Ray Serve."""

    data: tuple[ServiceStatus, ...]


_OPTIMIZE, _OPTIMIZED = (Nearest, Truncate, Recompress), (NearestStates, Truncated, Recompressed)
_CORRECT, _CORRECTED = (
    (Repair, Align, BuildCode, SampleCode, DecodeShots),
    (Repaired, Aligned, CodeBuilt, CodeSampled, ShotsDecoded),
)
TYPES = (
    *(Quantize, Quantized, Dequantize, Dequantized),
    *(*_OPTIMIZE, *_OPTIMIZED, *_CORRECT, *_CORRECTED),
    *(OperationView, ServiceList),
)


def _repeatable(route: Route) -> Route:
    """Only what starts a job writes; the other answers may be long, and are the same again."""
    return repeatable(route, is_kept=lambda response: response.status_code == 202)


def _responds(example: dict[str, Any], body: Any, made: Any) -> dict[str, Any]:
    """What such a route takes and gives: its answer, or 202 with the operation."""
    return may_be_long(operation(body=body, answer=made, example=example, errors=(404,), repeatable=True))


@router.post(
    "/quantize", openapi_extra=_responds({"rows": [[0.6, 0.8, 0.0, 0.0]], "code": "int4"}, Quantize, Quantized)
)
@_repeatable
async def quantize(request: Request) -> Response:
    """Code amplitudes or states; without a `code`, a table of all codes."""
    return await _ask(request, Quantize)


@router.post(
    "/quantize/decode",
    openapi_extra=_responds({"codes": "AwQALg==", "d": 2, "code": "int8"}, Dequantize, Dequantized),
)
@_repeatable
async def dequantize(request: Request) -> Response:
    """The amplitudes of coded rows."""
    return await _ask(request, Dequantize)


@router.post(
    "/optimize",
    openapi_extra=_responds({"op": "nearest", "matrices": [[1.25, 0.0], [0.0, -0.25]]}, _OPTIMIZE, _OPTIMIZED),
)
@_repeatable
async def optimize(request: Request) -> Response:
    """`nearest`: nearest physical states; `truncate`: fewer directions; `recompress`: a smaller sketch of a memory."""
    return await _ask(request, Optimize)


@router.post(
    "/correct",
    openapi_extra=_responds(
        {"op": "repair", "matrices": [{"real": [[0.5, 0.6], [0.5, 0.5]], "imag": [[0.0, 0.1], [-0.1, 0.0]]}]},
        _CORRECT,
        _CORRECTED,
    ),
)
@_repeatable
async def correct(request: Request) -> Response:
    """`repair` and `align` states; `build`, `sample` and `decode` stabiliser codes."""
    return await _ask(request, Correct)


@router.get("/services", openapi_extra=operation(answer=ServiceList))
async def services(request: Request) -> Response:
    """Where each service runs, with how many replicas, and what waits for it."""
    return answer(ServiceList(data=tuple(await gate(request).service.orders.status())))


async def _ask(request: Request, kind: Any) -> Response:
    found = gate(request)
    try:
        order: ServiceOrder = await read(request, kind, found.settings.services.max_body_bytes)
    except InvalidRequest as fault:
        if fault.pointer != "/op" or not get_args(kind):
            raise
        known = ", ".join(str(one.__struct_config__.tag) for one in get_args(kind))
        raise InvalidRequest(f"{fault.detail}; there are {known}", "/op") from None
    if isinstance(order, Recompress) and order.apply:
        _check_change(request)
    in_background = wants_background(request)
    made = await found.service.orders.ask(order, in_background=in_background)
    return accepted(made, in_background) if isinstance(made, OperationView) else answer(made)


def _check_change(request: Request) -> None:
    """What changes a session needs more than the route's scope."""
    try:
        check_scope(principal(request), "sessions:write", "`apply`")
    except NotAllowed as error:
        refused(request, principal(request), "POST /v1/optimize", error)
        raise
