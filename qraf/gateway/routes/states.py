"""`/v1/state`: prepare, read, measure, change, compare, export and delete stored states."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from qraf.errors import InvalidRequest, NotFound
from qraf.gateway.bodies import PageQuery, answer, body_of, gate, query, read
from qraf.gateway.openapi import operation
from qraf.gateway.repeats import made_id, repeatable
from qraf.gateway.routes.background import accepted, may_be_long, wants_background
from qraf.state_orders import (
    Compared,
    Deleted,
    Exported,
    Format,
    Measured,
    Measurement,
    Preparation,
    StateAnswer,
    StateCompare,
    StateCompareBody,
    StateDelete,
    StateEvolve,
    StateEvolveBody,
    StateExport,
    StateFork,
    StateForkBody,
    StateMeasure,
    StateMeasureBody,
    StateMerge,
    StateMergeBody,
    StateOrder,
    StatePage,
    StatePartialTrace,
    StatePartialTraceBody,
    StatePrepare,
    StatePrepareBody,
    StateTensor,
    StateTensorBody,
    StateView,
    StateViews,
)
from qraf.tenants import plain

__all__ = ["TYPES", "router"]

router = APIRouter(tags=["states"])

T = TypeVar("T")
P = TypeVar("P", bound=Preparation)

_STATE = {"state": "the state's id"}
_IF_MATCH = {"If-Match": "the `ETag` of the version that is meant"}
_IF_NONE_MATCH = {"If-None-Match": "the `ETag` of the version that is known"}
_ETAG = re.compile(r'(?:W/)?"(\d{1,18})"')

StateMeasureManyBody = body_of(StateMeasure, "StateMeasureManyBody")
StateEvolveManyBody = body_of(StateEvolve, "StateEvolveManyBody")


class ExportQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`msgpack`: an exact packet. `npz`: for NumPy. `json`: numbers and dims, for QuTiP and by hand."""

    format: Format = "msgpack"


TYPES = (
    StatePrepareBody,
    StateViews,
    StateView,
    StatePage,
    StateMeasureBody,
    Measurement,
    StateMeasureManyBody,
    Measured,
    StateEvolveBody,
    StateEvolveManyBody,
    StateMergeBody,
    StateTensorBody,
    StatePartialTraceBody,
    StateForkBody,
    StateCompareBody,
    Compared,
    Deleted,
)


@router.post(
    "/state",
    status_code=201,
    openapi_extra=may_be_long(
        operation(
            body=StatePrepareBody,
            answer=(StateView, StateViews),
            status=201,
            errors=(404, 412),
            repeatable=True,
            example={
                "circuit": 'OPENQASM 3.0;\ninclude "stdgates.inc";\nqubit[2] q;\nh q[0];\ncx q[0], q[1];',
                "label": "bell",
            },
        )
    ),
)
@repeatable
async def prepare(request: Request) -> Response:
    """Make a state; `ETag` is its version. With `states` many: the answer is then a list of them."""
    body = await _read(request, StatePrepareBody)
    fields = _fields(body)
    if body.states is not None:
        fields["states"] = tuple(_named(request, one, place) for place, one in enumerate(body.states))
    show = _one if body.states is None else answer
    return await _answered(request, _named(request, StatePrepare(**fields)), lambda found: show(found, 201))


@router.get("/state", openapi_extra=operation(query=PageQuery, answer=StatePage))
async def list_states(request: Request) -> Response:
    """A page of states, oldest first."""
    asked = query(request, PageQuery)
    data, cursor = await gate(request).service.states.page(asked.cursor, asked.limit)
    return answer(StatePage(data=data, next_cursor=cursor))


@router.post(
    "/state/compare",
    openapi_extra=may_be_long(
        operation(
            body=StateCompareBody,
            answer=Compared,
            example={"pairs": [["st_01M834YDH9G4SV57G23CCDYHX0", {"named": "bell"}]], "measures": ["fidelity"]},
        )
    ),
)
async def compare(request: Request) -> Response:
    """Compare states pair by pair; either may be stored, or prepared for this call alone."""
    return await _answered(request, StateCompare(**_fields(await _read(request, StateCompareBody))), answer)


@router.post(
    "/state/measure",
    openapi_extra=may_be_long(
        operation(
            body=StateMeasureManyBody,
            answer=Measured,
            example={"ids": ["st_01M834YDH9G4SV57G23CCDYHX0"], "basis": "computational", "shots": 100, "seed": 7},
        )
    ),
)
async def measure_many(request: Request) -> Response:
    """Measure many states in the same way."""
    return await _many(request, StateMeasure(**_fields(await _read(request, StateMeasureManyBody))))


@router.post(
    "/state/evolve",
    openapi_extra=may_be_long(
        operation(
            body=StateEvolveManyBody,
            answer=StateViews,
            errors=(412,),
            repeatable=True,
            example={"ids": ["st_01M834YDH9G4SV57G23CCDYHX0"], "steps": [{"channel": "depolarizing", "p": 0.01}]},
        )
    ),
)
@repeatable
async def evolve_many(request: Request) -> Response:
    """Evolve many states by the same steps: all or none."""
    return await _many(request, StateEvolve(**_fields(await _read(request, StateEvolveManyBody))))


@router.get(
    "/state/{state}", openapi_extra=operation(path=_STATE, headers=_IF_NONE_MATCH, answer=StateView, also={304: None})
)
async def get_state(request: Request) -> Response:
    """A state's figures with their certificate; `ETag` is its version, `If-None-Match` with it is answered by 304."""
    view = await gate(request).service.states.view(request.path_params["state"])
    known = request.headers.get("if-none-match", "")
    if known.strip() == "*" or str(view.version) in _ETAG.findall(known):
        return Response(status_code=304, headers=_etag(view))
    return answer(view, headers=_etag(view))


@router.delete("/state/{state}", openapi_extra=operation(path=_STATE, headers=_IF_MATCH, answer=Deleted, errors=(412,)))
async def delete_state(request: Request) -> Response:
    """Delete a state; with `If-Match` only in that version."""
    order = StateDelete(ids=(request.path_params["state"],), versions=_if_match(request))
    return answer(await _order(request, order))


@router.post(
    "/state/{state}/measure",
    openapi_extra=may_be_long(
        operation(
            path=_STATE, body=StateMeasureBody, answer=Measurement, example={"basis": "ZZ", "shots": 1000, "seed": 7}
        )
    ),
)
async def measure(request: Request) -> Response:
    """Born probabilities, outcomes of a basis, samples, or an observable's mean and variance."""
    order = StateMeasure(ids=(request.path_params["state"],), **_fields(await _read(request, StateMeasureBody)))
    return await _answered(request, order, _measured)


@router.post(
    "/state/{state}/evolve",
    openapi_extra=may_be_long(
        operation(
            path=_STATE,
            body=StateEvolveBody,
            answer=StateView,
            also={201: StateView},
            headers=_IF_MATCH,
            errors=(412,),
            repeatable=True,
            example={"steps": [{"channel": "amplitude_damping", "gamma": 0.1, "subsystems": [0]}]},
        )
    ),
)
@repeatable
async def evolve(request: Request) -> Response:
    """Channels, unitaries, Kraus sets and circuits, one after the other."""
    return await _changed(request, StateEvolve, StateEvolveBody)


@router.post(
    "/state/{state}/merge",
    openapi_extra=may_be_long(
        operation(
            path=_STATE,
            body=StateMergeBody,
            answer=StateView,
            also={201: StateView},
            headers=_IF_MATCH,
            errors=(412,),
            repeatable=True,
            example={"others": ["st_01M834YDH9G4SV57G23CCDYHX0"], "weights": [0.75, 0.25]},
        )
    ),
)
@repeatable
async def merge(request: Request) -> Response:
    """Mix with other states."""
    return await _changed(request, StateMerge, StateMergeBody)


@router.post(
    "/state/{state}/tensor",
    openapi_extra=may_be_long(
        operation(
            path=_STATE,
            body=StateTensorBody,
            answer=StateView,
            also={201: StateView},
            headers=_IF_MATCH,
            errors=(412,),
            repeatable=True,
            example={"others": [{"named": "bell"}]},
        )
    ),
)
@repeatable
async def tensor(request: Request) -> Response:
    """The product with other states; a new state unless `into` is `same`."""
    return await _changed(request, StateTensor, StateTensorBody)


@router.post(
    "/state/{state}/partial_trace",
    openapi_extra=may_be_long(
        operation(
            path=_STATE,
            body=StatePartialTraceBody,
            answer=StateView,
            also={201: StateView},
            headers=_IF_MATCH,
            errors=(412,),
            repeatable=True,
            example={"keep": [0]},
        )
    ),
)
@repeatable
async def partial_trace(request: Request) -> Response:
    """Keep some subsystems; a new state unless `into` is `same`."""
    return await _changed(request, StatePartialTrace, StatePartialTraceBody)


@router.post(
    "/state/{state}/fork",
    status_code=201,
    openapi_extra=operation(
        path=_STATE,
        body=StateForkBody,
        answer=(StateView, StateViews),
        status=201,
        errors=(412,),
        repeatable=True,
        example={"copies": 1},
    ),
)
@repeatable
async def fork(request: Request) -> Response:
    """Copy the state as it is now; more than one copy is answered by a list."""
    body = await _read(request, StateForkBody)
    found = await _views(request, StateFork(ids=(request.path_params["state"],), **_fields(body)))
    return answer(found, 201) if body.copies != 1 else _one(found, 201)


@router.get(
    "/state/{state}/export",
    openapi_extra=operation(
        path=_STATE,
        query=ExportQuery,
        media_type="application/msgpack",
        more={"application/x-npz": {"schema": {"type": "string", "format": "binary"}}, "application/json": {}},
    ),
)
async def export(request: Request) -> Response:
    """The state as a file: what `packet` of a preparation takes (msgpack), or for other programs."""
    state = request.path_params["state"]
    found = await _order(request, StateExport(id=state, format=query(request, ExportQuery).format))
    assert isinstance(found, Exported)
    name = f"{re.sub(r'[^A-Za-z0-9_]', '_', state)}.{found.format}"
    headers = {"ETag": f'"{found.version}"', "Content-Disposition": f'attachment; filename="{name}"'}
    return Response(found.data, headers=headers, media_type=found.media_type)


# ------------------------------------------------------------------------------------------------------ how it is done
def _named(request: Request, given: P, *place: int) -> P:
    """What is prepared, with an id where it has none and the request may come again."""
    if given.id is not None or getattr(given, "states", None) is not None:
        return given
    return msgspec.structs.replace(given, id=made_id(request, "st", *place))


async def _changed(request: Request, kind: Any, body: type[msgspec.Struct]) -> Response:
    fields = _fields(await _read(request, body))
    order = kind(ids=(request.path_params["state"],), versions=_if_match(request), **fields)
    return await _answered(request, order, lambda found: _one(found, 201 if order.into == "new" else 200))


async def _many(request: Request, order: StateMeasure | StateEvolve) -> Response:
    """Like an operand, a state that the body names and that is not there is a fault of the body, by its place."""
    try:
        return await _answered(request, order, answer)
    except NotFound as fault:
        name, names = plain(fault.name), [plain(one) for one in order.ids]
        if name not in names:
            raise
        raise InvalidRequest(f"no state '{name}'", f"/ids/{names.index(name)}") from None


async def _answered(request: Request, order: StateOrder, show: Callable[[Any], Response]) -> Response:
    """The answer to an order as `show` has it; an operation instead where the request prefers one."""
    if wants_background(request):
        return accepted(await gate(request).service.states.job(order), is_preferred=True)
    return show(await _order(request, order))


async def _order(request: Request, order: StateOrder) -> StateAnswer:
    return await gate(request).service.states.order(order)


async def _views(request: Request, order: StateOrder) -> StateViews:
    found = await _order(request, order)
    assert isinstance(found, StateViews)
    return found


def _measured(found: Measured) -> Response:
    [result] = found.results
    return answer(result, headers={"ETag": f'"{result.version}"'})


def _one(found: StateViews, status: int) -> Response:
    [view] = found.states
    return answer(view, status, _etag(view) | ({"Location": f"/v1/state/{view.id}"} if status == 201 else {}))


async def _read(request: Request, kind: type[T]) -> T:
    return await read(request, kind, gate(request).settings.states.max_body_bytes)


def _fields(body: Any) -> dict[str, Any]:
    return {name: getattr(body, name) for name in body.__struct_fields__}


def _etag(view: StateView) -> dict[str, str]:
    return {"ETag": f'"{view.version}"'}


def _if_match(request: Request) -> tuple[int] | None:
    """The version that `If-Match` names; None where any will do."""
    wanted = request.headers.get("if-match", "").strip()
    if wanted in ("", "*"):
        return None
    found = _ETAG.fullmatch(wanted)
    if found is None:
        raise InvalidRequest(
            f'must be the `ETag` of the state, such as "3", but is {wanted[:80]!r}', "/headers/if-match"
        )
    return (int(found[1]),)
