"""OpenAPI from the records that decode bodies and make answers: one source for both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from qraf.gateway.problems import CODES, PROBLEM_JSON
from qraf.gateway.repeats import HEADER, REPLAYED
from qraf.gateway.security.guard import PUBLIC, ROUTES

__all__ = ["EVENTS", "Problem", "operation", "serve_document"]

_REF = "#/components/schemas/{name}"
_ALWAYS = (403, 429, 500, 503)
_OF_BODY = (400, 413, 415, 422)
_BOUNDS = {"limit": {"minimum": 1, "maximum": 200}}
_OF_HTTP = {405: "method_not_allowed", 413: "too_large", 415: "unsupported_media_type"}
EVENTS: dict[str, Any] = {
    "type": "object",
    "description": "a stream of events; each is a frame, and `id` is its `seq`",
    "properties": {
        "event": {"type": "string", "description": "the frame's `type`"},
        "id": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "retry": {"type": "integer"},
    },
}
"""The schema of `text/event-stream`."""


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
    headers: dict[str, str] | None = None,
    answer: type | tuple[type, ...] | None = None,
    status: int = 200,
    media_type: str = "application/json",
    more: dict[str, Any] | None = None,
    also: dict[int, type | tuple[type, ...] | None] | None = None,
    errors: tuple[int, ...] = (),
    repeatable: bool = False,
) -> dict[str, Any]:
    """What FastAPI cannot see of a route: its body, query, path, headers and answers, for `openapi_extra`.

    `more` adds media types of the answer, `also` other statuses with theirs (None: no body), `errors` statuses of
    problems beyond those that follow from the rest. Several types for a body or an answer: one of them. `repeatable`:
    the route heeds `Idempotency-Key`.
    """
    schema: dict[str, Any] = _ref(answer) if answer is not None else {"type": "object"}
    if media_type.startswith("text/"):
        schema = EVENTS if media_type == "text/event-stream" else {"type": "string"}
    content = {media_type: {"schema": schema}, **(more or {})}
    responses: dict[str, Any] = {str(status): {"description": "the answer", "content": content}}
    for other, kind in (also or {}).items():
        responses[str(other)] = {"description": "the answer" if kind else "no body"}
        if kind is not None:
            responses[str(other)]["content"] = {"application/json": {"schema": _ref(kind)}}
    wrong = {*_ALWAYS, *errors, *(_OF_BODY if body else ()), *((422,) if query or headers else ())}
    if path:
        wrong |= {404, 422}
    for one in sorted(wrong - {int(code) for code in responses}):
        responses[str(one)] = _problem(one)
    extra: dict[str, Any] = {
        "parameters": [*_path_parameters(path or {}), *_query_parameters(query), *_header_parameters(headers or {})],
        "responses": responses,
    }
    if body is not None:
        media: dict[str, Any] = {"schema": _ref(body)}
        if example is not None:
            media["example"] = example
        extra["requestBody"] = {"required": True, "content": {"application/json": media}}
    if repeatable:
        _tell_repeats(extra)
    return extra


def serve_document(app: FastAPI, types: Iterable[type]) -> None:
    """Let `app.openapi()` add the schemas of these records to what FastAPI knows."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _, components = msgspec.json.schema_components([*types, Problem], ref_template=_REF)
            made.setdefault("components", {}).setdefault("schemas", {}).update(components)
            _secure(made)
            _untag(components)
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _secure(document: dict[str, Any]) -> None:
    """Say what each operation needs: a bearer credential, and a scope (`x-qraf-scope`)."""
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
                found["responses"]["401"] = _problem(401)


def _tell_repeats(found: dict[str, Any]) -> None:
    schema = {"type": "string", "pattern": "^[!-~]{1,255}$", "minLength": 1, "maxLength": 255}
    text = "the same request with the same key again is answered as before, and not carried out"
    found["parameters"].append(
        {"name": HEADER, "in": "header", "required": False, "description": text, "schema": schema}
    )
    found["responses"] |= {str(status): _problem(status) for status in (409, 422)}
    told = {REPLAYED: {"description": "the answer is one given before", "schema": {"type": "string", "enum": ["true"]}}}
    for status, response in found["responses"].items():
        if status.startswith("2"):
            response["headers"] = told


def _untag(components: dict[str, Any]) -> None:
    """A tag that tells no types apart may be left out."""
    for name in ("Quantize", "Dequantize"):
        required = components[name]["required"]
        required.remove("op")


def _problem(status: int) -> dict[str, Any]:
    codes = [code for code, (of, _) in CODES.items() if of == status] or [_OF_HTTP.get(status, "")]
    return {
        "description": f"a problem: {', '.join(f'`{code}`' for code in codes)}",
        "content": {PROBLEM_JSON: {"schema": _ref(Problem)}},
    }


def _ref(kind: type | tuple[type, ...]) -> dict[str, Any]:
    if isinstance(kind, tuple):
        return {"oneOf": [_ref(one) for one in kind]}
    return {"$ref": _REF.format(name=kind.__name__)}


def _path_parameters(path: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "description": text, "schema": {"type": "string"}}
        for name, text in path.items()
    ]


def _header_parameters(headers: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}
        for name, text in headers.items()
    ]


def _query_parameters(query: type[msgspec.Struct] | None) -> list[dict[str, Any]]:
    if query is None:
        return []
    schema = msgspec.json.schema(query)
    fields = schema["$defs"][query.__name__]
    required = fields.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in required, "schema": kind | _BOUNDS.get(name, {})}
        for name, kind in fields["properties"].items()
    ]
