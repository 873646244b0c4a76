"""What the commands share: where they print, how they fail, and with which exit code."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import Coroutine, Iterator
from typing import Any, TextIO, TypeVar

import msgspec
import typer
from rich.console import Console, ConsoleOptions
from rich.segment import Segment

from qraf.errors import CannotConnect, ConnectionLost, InvalidRequest, QrafError, ServerError

__all__ = ["FAILED", "NO_SERVER", "console", "errors", "facts", "guarded", "print_json", "run", "shown"]

T = TypeVar("T")

FAILED = 1
NO_SERVER = 3

# C0 without tab and newline, DEL, C1, and what turns the direction of text
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class _Console(Console):
    """Lets no text command the terminal: paths in the audit log are strangers' words, and so are items and answers."""

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=_CONTROLS.sub("", segment.text))


console = _Console(highlight=False)
errors = _Console(stderr=True, highlight=False)


def print_json(value: Any, file: TextIO | None = None) -> None:
    """One JSON object on one line of standard output, or of `file`, written out at once."""
    file = file or sys.stdout
    file.write(msgspec.json.encode(value).decode() + "\n")
    file.flush()


def shown(value: object) -> str:
    """A value for a table; a time in UTC without its fraction, so that it breaks at its space where room is short.

    >>> shown("2026-11-23T06:51:20.034823Z"), shown(None)
    ('2026-11-23 06:51:20', '')
    """
    text = "" if value is None else str(value)
    return re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(\.\d+)?Z$", r"\1 \2", text)


@contextlib.contextmanager
def guarded(as_json: bool = False) -> Iterator[None]:
    """Turn errors raised on purpose into a message and an exit code; anything else is our bug and keeps its trace."""
    try:
        yield
    except QrafError as error:
        is_lost = isinstance(error, ConnectionLost)
        if as_json:
            print_json({"error": facts(error)})
        else:
            errors.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
            if isinstance(error, CannotConnect):
                errors.print("start a server with `qraf serve`, or name one with --url", markup=False)
        raise typer.Exit(NO_SERVER if is_lost else FAILED) from None
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        sys.stderr.close()
        raise typer.Exit(0) from None


def run(work: Coroutine[Any, Any, T], as_json: bool = False) -> T:
    """Run a command's coroutine under `guarded`; Ctrl-C ends it with exit code 130."""
    with guarded(as_json):
        try:
            return asyncio.run(work)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except asyncio.CancelledError:  # SIGTERM, where the command listens to it
            raise typer.Exit(143) from None
        except UnicodeEncodeError as error:
            if error.reason != "surrogates not allowed":
                raise
            # arguments and standard input bring bytes that are no text as halves of surrogate pairs
            raise InvalidRequest("what was given is no UTF-8 text") from None


def facts(error: QrafError) -> dict[str, Any]:
    """An error as JSON output has it; of a server's error its own code and detail."""
    if isinstance(error, ServerError):
        code, detail, pointer, retryable = error.error_code, error.detail, error.pointer, error.can_retry
    else:
        code, detail, pointer, retryable = (
            error.code,
            getattr(error, "detail", None) or str(error),
            getattr(error, "pointer", ""),
            error.retryable,
        )
    return {"code": code, "detail": detail, "pointer": pointer, "retryable": retryable}
