"""What a client may see of an error: `ErrorBody` in frames, `application/problem+json` (RFC 9457) over HTTP.

The facts of our own errors go out; of a foreign exception nothing does, it is logged where it is caught.
"""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import Any, get_args

import msgspec

from qraf import errors
from qraf.code_orders import Basis, CodeName
from qraf.errors import InvalidTopology, QrafError
from qraf.frames import ErrorBody
from qraf.records import Role
from qraf.service_orders import Code
from qraf.sessions.faults import error_body
from qraf.state_orders import Channel, DType, Format, Into, Measure, StateOrder

__all__ = [
    "CODES",
    "PROBLEM_JSON",
    "decoding_fault",
    "error_body",
    "holds_long_integer",
    "http_problem",
    "problem",
    "problem_of_body",
    "status_of",
    "unusable",
]

PROBLEM_JSON = "application/problem+json"

CODES: dict[str, tuple[int, str]] = {
    kind.code: (kind.status, kind.title)
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, QrafError)
}
"""Every code with its HTTP status and title."""

_AT = re.compile(r"^(?P<what>.*?)(?: - at (?P<key>`key` in )?`\$(?P<path>.*)`)?$", re.DOTALL)
_FIELD = re.compile(r"(unknown|missing required) field `(?P<name>.*)`$", re.DOTALL)
_LONGEST = 400  # a client's own field names are not echoed at any length
_NOT_FINITE, _TOO_LONG = object(), object()
_LONG_INTEGER = re.compile(rb"(?<![\d.])\d{19}")
_CHOICES: dict[str, tuple[str, ...]] = {
    "role": get_args(Role),
    "channel": get_args(Channel),
    "format": get_args(Format),
    "into": get_args(Into),
    "dtype": get_args(DType),
    "measures": get_args(Measure),
    "code": get_args(Code),
    "experiment/code": get_args(CodeName),
    "experiment/basis": get_args(Basis),
    "order/op": tuple(order.__struct_config__.tag for order in get_args(StateOrder)),
}
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]")


def status_of(code: str) -> int:
    """The HTTP status of an error code; 500 for one that is not known."""
    return CODES.get(code, (500, ""))[0]


def problem(error: BaseException, request: str = "") -> dict[str, Any]:
    """The error as a problem document; `request` names it in the log."""
    document = problem_of_body(error_body(error), request)
    if isinstance(error, InvalidTopology):
        document["errors"] = [{"pointer": "", "detail": str(fault)} for fault in error.faults]
    return document


def problem_of_body(body: ErrorBody, request: str = "") -> dict[str, Any]:
    """An `ErrorBody` as a problem document."""
    document: dict[str, Any] = {
        "type": "about:blank",
        "title": body.title,
        "status": status_of(body.code),
        "detail": body.detail,
        "code": body.code,
        "retryable": body.retryable,
        "errors": [{"pointer": body.pointer, "detail": body.detail}] if body.pointer else [],
    }
    if body.retry_after_ms is not None:
        document["retry_after_ms"] = body.retry_after_ms
    if request:
        document["instance"] = f"urn:qraf:request:{request}"
    return document


def http_problem(status: int, code: str, detail: str, request: str = "") -> dict[str, Any]:
    """A problem of HTTP itself (no such route, wrong method, wrong content type)."""
    document = problem_of_body(ErrorBody(code=code, title=HTTPStatus(status).phrase, detail=detail), request)
    document["status"] = status
    return document


def decoding_fault(error: Exception) -> tuple[str, str]:
    """What msgspec says of a wrong value, as (detail, JSON pointer): `$.items[0]` becomes `/items/0`."""
    found = _AT.match(str(error))
    if not isinstance(error, msgspec.ValidationError) or found is None:
        return str(error), ""
    detail, path = found["what"], found["path"] or ""
    if found["key"]:
        detail = f"{detail} as a key"
    # `[...]` stands for a key of a map that msgspec does not tell
    pointer = "".join(f"/{_escaped(name or index)}" for name, index in _STEP.findall(path.replace("[...]", "")))
    field = _FIELD.search(detail)
    if field is not None:
        pointer += f"/{_escaped(field['name'])}"
        detail = f"unknown field `{field['name']}`" if field[1] == "unknown" else f"field `{field['name']}` is required"
    if detail.startswith(("Invalid enum value", "Invalid value")):
        # of the last names in the pointer; the last one alone may mean several things
        *_, owner, name = ["", "", *(step for step in pointer.split("/") if not step.isdigit())]
        choices = _CHOICES.get(f"{owner}/{name}") or _CHOICES.get(name)
        if choices:
            detail += f"; there are {', '.join(choices)}"
    return detail[:1].lower() + detail[1:_LONGEST], pointer[:_LONGEST]


def holds_long_integer(data: bytes) -> bool:
    """Whether JSON may hold an integer over 64 bits, which its decoder takes and nothing behind it does."""
    return _LONG_INTEGER.search(data) is not None


def unusable(data: bytes) -> tuple[str, str] | None:
    """What JSON that other encoders write holds and no request may: NaN, Infinity, an integer over 64 bits.

    As (detail, JSON pointer); None when that is not its fault.
    """
    try:
        found = json.loads(data, parse_constant=lambda name: _NOT_FINITE, parse_int=_parse_int)
    except (ValueError, RecursionError):
        return None
    waiting: list[tuple[str, Any]] = [("", found)]
    while waiting:
        pointer, value = waiting.pop()
        if value is _NOT_FINITE:
            return "must be a finite number; JSON has no NaN or Infinity", pointer[:_LONGEST]
        if value is _TOO_LONG:
            return "an integer must fit into 64 bits", pointer[:_LONGEST]
        if isinstance(value, dict):
            waiting += [(f"{pointer}/{_escaped(str(key))}", inner) for key, inner in reversed(value.items())]
        elif isinstance(value, list):
            waiting += [(f"{pointer}/{place}", inner) for place, inner in reversed(list(enumerate(value)))]
    return None


def _parse_int(text: str) -> object:
    return int(text) if len(text) < 19 or (len(text) < 22 and -(2**63) <= int(text) < 2**64) else _TOO_LONG


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
