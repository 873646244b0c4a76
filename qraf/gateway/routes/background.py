"""What a route says and does that may answer with an operation instead: `Prefer: respond-async`, 202, `Location`."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from qraf.gateway.bodies import answer
from qraf.service_orders import OperationView

__all__ = ["accepted", "may_be_long", "wants_background"]


def may_be_long(extra: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI of a route with `Prefer` and 202 added."""
    schema = {"$ref": f"#/components/schemas/{OperationView.__name__}"}
    extra["responses"]["202"] = {
        "description": "a long job, or one asked for with `Prefer: respond-async`; `Location` leads to it",
        "content": {"application/json": {"schema": schema}},
    }
    extra["parameters"].append(
        {
            "name": "Prefer",
            "in": "header",
            "required": False,
            "description": "`respond-async` asks for an operation; preferences that are not known are passed over",
            "schema": {"type": "string"},
            "example": "respond-async",
        }
    )
    return extra


def wants_background(request: Request) -> bool:
    """Whether `Prefer` (RFC 7240) asks for an operation; preferences that are not known are passed over."""
    given = ",".join(request.headers.getlist("prefer"))
    return any(one.partition(";")[0].strip().lower() == "respond-async" for one in given.split(","))


def accepted(view: OperationView, is_preferred: bool) -> Response:
    """The answer that names an operation; `is_preferred`: the request asked for one."""
    headers = {"Location": f"/v1/operations/{view.id}", "Retry-After": "1"}
    if is_preferred:
        headers["Preference-Applied"] = "respond-async"
    return answer(view, 202, headers)
