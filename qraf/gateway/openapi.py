"""OpenAPI from the records that decode bodies and make answers: one source for both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from qraf.gateway.problems import PROBLEM_JSON
from qraf.gateway.security.guard import PUBLIC, ROUTES

__all__ = ["Problem", "operation", "serve_document"]

_REF = "#/components/schemas/{name}"


class ProblemFault(msgspec.Struct, frozen=True):
    """One fault of a request: a JSON pointer into the body (`/query/...` for a query) and what is wrong there."""

    pointer: str
    detail: str


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    retryable: bool
    errors: tuple[ProblemFault, ...] = ()
    retry_after_ms: int | None = None
    instance: str = ""


def operation(
    *,
    body: type | tuple[type, ...] | None = None,
    example: Any = None,
    query: type[msgspec.Struct] | None = None,
    path: dict[str, str] | None = None,
    answer: type | tuple[type, ...] | None = None,
    status: int = 200,
    media_type: str = "application/json",
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What FastAPI cannot see of a route: its body, query, path and answer, for `openapi_extra`.

    `more` adds media types of the answer. Several types for a body or an answer: one of them.
    """
    schema: dict[str, Any] = _ref(answer) if answer is not None else {"type": "object"}
    if media_type.startswith("text/"):
        schema = {"type": "string"}
    content = {media_type: {"schema": schema}, **(more or {})}
    extra: dict[str, Any] = {
        "parameters": [*_path_parameters(path or {}), *_query_parameters(query)],
        "responses": {
            str(status): {"description": "the answer", "content": content},
            "default": {"description": "a problem", "content": {PROBLEM_JSON: {"schema": _ref(Problem)}}},
        },
    }
    if body is not None:
        media: dict[str, Any] = {"schema": _ref(body)}
        if example is not None:
            media["example"] = example
        extra["requestBody"] = {"required": True, "content": {"application/json": media}}
    return extra


def serve_document(app: FastAPI, types: Iterable[type]) -> None:
    """Let `app.openapi()` add the schemas of these records to what FastAPI knows."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _, components = msgspec.json.schema_components([*types, Problem], ref_template=_REF)
            made.setdefault("components", {}).setdefault("schemas", {}).update(components)
            _secure(made)
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _secure(document: dict[str, Any]) -> None:
    """Say what each operation needs: a bearer credential and, as `x-qraf-scope`, a scope."""
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "an API key (`qraf_...`) or a JSON Web Token"}
    }
    rules = {(method.lower(), path.replace(":path}", "}")): scope for (method, path), scope in ROUTES.items()}
    for path, methods in document["paths"].items():
        for method, found in methods.items():
            scope = rules[method, path]
            found["security"] = [] if scope == PUBLIC else [{"bearer": []}]
            if scope != PUBLIC:
                found["x-qraf-scope"] = scope


def _ref(kind: type | tuple[type, ...]) -> dict[str, Any]:
    if isinstance(kind, tuple):
        return {"oneOf": [_ref(one) for one in kind]}
    return {"$ref": _REF.format(name=kind.__name__)}


def _path_parameters(path: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "description": text, "schema": {"type": "string"}}
        for name, text in path.items()
    ]


def _query_parameters(query: type[msgspec.Struct] | None) -> list[dict[str, Any]]:
    if query is None:
        return []
    schema = msgspec.json.schema(query)
    fields = schema["$defs"][query.__name__]
    required = fields.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in required, "schema": kind}
        for name, kind in fields["properties"].items()
    ]
