"""The server's log: one line an event, in JSON or for reading, with the id of the request that it belongs to.

A line never holds what people wrote: of an exception that is not our own only the type and the places in the code are
told, because the text of a foreign exception may quote what it failed at.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import IO, Any

from qraf.errors import QrafError
from qraf.settings import LogSettings
from qraf.times import format_time

__all__ = ["JsonLines", "Readable", "current_request", "log_to", "request"]

_REQUEST: ContextVar[str] = ContextVar("request", default="")
_OWN = frozenset((*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"))


def current_request() -> str:
    """The id of the request that is being served here; empty outside of requests."""
    return _REQUEST.get()


@contextmanager
def request(id: str) -> Iterator[None]:
    """Every line that is logged inside the block, and by tasks that start in it, belongs to this request."""
    token = _REQUEST.set(id)
    try:
        yield
    finally:
        _REQUEST.reset(token)


class Readable(logging.Formatter):
    """A line for people: time, level, request, logger, message; the places of an exception below."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        told, extra = _message(record), _extra(record)
        where = f" [{one}]" if (one := _REQUEST.get()) else ""
        more = "".join(f" {name}={value}" for name, value in extra.items())
        line = f"{format_time(record.created)} {record.levelname}{where} {record.name}: {told}{more}"
        return "\n  ".join((line.replace("\n", "\\n"), *_places(record)))


class JsonLines(logging.Formatter):
    """A JSON object a line: `at`, `level`, `logger`, `message`, `request` if there is one, and what an event adds."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        event: dict[str, Any] = {
            "at": format_time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        if one := _REQUEST.get():
            event["request"] = one
        event |= _extra(record)
        if places := _places(record):
            event["exception"] = places
        return json.dumps(event, default=str)


def log_to(settings: LogSettings, stream: IO[str] | None = None) -> logging.Handler:
    """Log everything of this process there (default: standard error); what was set up before is replaced.

    Other packages are heard from `warning` on only: what they tell in detail is not ours to keep clean.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if settings.format == "json" else Readable())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("qraf").setLevel(settings.level.upper())
    return handler


def _message(record: logging.LogRecord) -> str:
    """The message; an argument that is a foreign exception is told by its type alone."""
    args = record.args
    if isinstance(args, tuple) and any(_is_foreign(arg) for arg in args):
        return str(record.msg) % tuple(type(arg).__name__ if _is_foreign(arg) else arg for arg in args)
    return record.getMessage()


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    """What an event adds; not what begins with `_`, which Ray puts on every record once it has started."""
    return {name: value for name, value in vars(record).items() if name not in _OWN and not name.startswith("_")}


def _is_foreign(value: object) -> bool:
    return isinstance(value, BaseException) and not isinstance(value, QrafError)


def _places(record: logging.LogRecord) -> list[str]:
    if not record.exc_info or record.exc_info[1] is None:
        return []
    return list(_told(record.exc_info[1], set()))


def _told(error: BaseException, seen: set[int]) -> Iterator[str]:
    """An exception, where it came through, and what it came from."""
    if id(error) in seen:
        return
    seen.add(id(error))
    kind = type(error)
    name = f"{kind.__module__}.{kind.__qualname__}"
    yield f"{name}: {error}" if isinstance(error, QrafError) else name
    for frame in traceback.extract_tb(error.__traceback__):
        yield f"at {frame.filename}:{frame.lineno} in {frame.name}"
    for part in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        yield from _told(part, seen)
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        yield "because of"
        yield from _told(cause, seen)
