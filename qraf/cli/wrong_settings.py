"""What is wrong with `QRAF_...` variables, told by the names that were typed."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from qraf.settings import Settings

__all__ = ["told", "unknown", "unread"]

_PREFIX = "QRAF_"
_OTHERS = ("QRAF_API_KEY", "QRAF_URL")  # what clients read


def told(error: ValidationError, settings: type[Settings]) -> str:
    """Every value that the settings do not allow, by its variable where it came from one; values are not repeated."""
    return "; ".join(_fault(dict(fault), settings) for fault in error.errors(include_input=False, include_url=False))


def unread(error: SettingsError) -> str:
    """The variable whose JSON cannot be read; pydantic names the field above it alone."""
    cause = error.__cause__
    text = cause.doc if isinstance(cause, json.JSONDecodeError) else None
    names = [name for name, value in os.environ.items() if name.upper().startswith(_PREFIX) and value == text]
    what = " or ".join(sorted(names)) or "a `QRAF_...` variable"
    return f"""{what}: must be JSON, such as '["https://app.example"]' or '{{"requests": "600/minute"}}'; {cause}"""


def unknown(settings: type[Settings]) -> list[str]:
    """A line for every `QRAF_...` variable that is no setting (pydantic overlooks them), with the nearest that is."""
    known = [_variable([name]) for name in settings.model_fields]
    return [
        f"{name} is no setting{_hint(name.upper(), _names(settings))}"
        for name in sorted(os.environ)
        if name.upper().startswith(_PREFIX) and name.upper().partition("__")[0] not in (*known, *_OTHERS)
    ]


def _fault(fault: dict[str, Any], settings: type[Settings]) -> str:
    place = tuple(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        is_variable = _variable(place) in map(str.upper, os.environ)
        name, known = (
            (_variable(place), _names(settings)) if is_variable else (place[-1], _fields(place[:-1], settings))
        )
        return f"{_where(place)}: no such setting{_hint(name, known)}"
    return f"{_where(place)}: {fault['msg'].removeprefix('Value error, ')}" if place else str(fault["msg"])


def _where(place: Sequence[str]) -> str:
    """The variable that holds the value, and what of it; else the path of the setting."""
    given = {name.upper(): name for name in os.environ}
    for length in range(len(place), 0, -1):
        if (name := given.get(_variable(place[:length]))) is not None:
            return " ".join(filter(None, (name, ".".join(place[length:]))))
    return ".".join(place)


def _variable(place: Iterable[str]) -> str:
    return _PREFIX + "__".join(place).upper()


def _fields(place: Iterable[str], settings: type[Any]) -> list[str]:
    """The fields of the slice at a path; none where there is no slice."""
    for name in place:
        found = settings.model_fields.get(name)
        settings = type(None) if found is None else found.annotation
        if not hasattr(settings, "model_fields"):
            return []
    return list(settings.model_fields)


def _names(settings: type[Any], above: tuple[str, ...] = ()) -> list[str]:
    """The variable of every setting."""
    names = []
    for name, field in settings.model_fields.items():
        names.append(_variable((*above, name)))
        if hasattr(field.annotation, "model_fields"):
            names += _names(field.annotation, (*above, name))
    return names


def _hint(name: str, known: Sequence[str]) -> str:
    last = "__" + name.removeprefix(_PREFIX).rpartition("__")[2]
    near = difflib.get_close_matches(name, known, 1, 0.8) or [one for one in known if one.endswith(last)]
    return f"; did you mean {near[0]}?" if near else ""
