"""Days that a text names by the day on which it was said: "yesterday", "two weeks ago", "next Friday". No model.

Who reads a note later, out of its conversation, has to count; small language models cannot, see
docs/decisions/0017-dated-words.md.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

__all__ = ["format_day", "with_dates"]

# strftime would follow the process's locale
_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_COUNTS = "one two three four five six seven eight nine ten eleven twelve"
_NUMBERS = {"a": 1, "an": 1} | {word: number for number, word in enumerate(_COUNTS.split(), 1)}
_DAYS = {
    "yesterday": -1, "last night": -1, "today": 0, "tonight": 0, "this morning": 0, "this evening": 0, "tomorrow": 1,
}  # fmt: skip
_STEP = {"last": -1, "next": 1}
_NEVER = datetime.max.replace(tzinfo=UTC).timestamp()

_WORDS = re.compile(
    rf"\b(?:(?P<day>{'|'.join(_DAYS)})"
    rf"|(?P<number>\d{{1,3}}|{'|'.join(_NUMBERS)})\s(?P<unit>day|week|month|year)s?\sago"
    rf"|(?P<step>last|next)\s(?P<span>week(?:end)?|month|year|{'|'.join(_WEEKDAYS)})"
    r")\b(?:['’]s)?(?!\s*\()",
    re.IGNORECASE,
)


def with_dates(text: str, at: float) -> str:
    """The text with the date in brackets behind each word that names one by the day it was said, `at` (s, UTC).

    What names no certain day, month or year stays as it is ("a few days ago", "this week").

    >>> with_dates("We moved yesterday, I was born twenty... 30 years ago and start next Monday.", 1683504000.0)
    'We moved yesterday (7 May 2023), I was born twenty... 30 years ago (1993) and start next Monday (15 May 2023).'
    """
    if not 0 < at < _NEVER:
        return text
    said = datetime.fromtimestamp(at, UTC).date()

    def dated(found: re.Match[str]) -> str:
        try:
            return f"{found[0]} ({_meant(found, said)})"
        # no year of the calendar, or letters that only look alike when case is ignored ("yeſterday", "tonıght")
        except (LookupError, OverflowError, ValueError):
            return found[0]

    return _WORDS.sub(dated, text)


def format_day(day: date) -> str:
    """As people write it.

    >>> format_day(date(2023, 5, 8))
    '8 May 2023'
    """
    return f"{day.day} {_MONTHS[day.month - 1]} {day.year}"


def _meant(found: re.Match[str], said: date) -> str:
    if found["day"]:
        return format_day(said + timedelta(_DAYS[found["day"].lower()]))
    if found["unit"]:
        number = found["number"].lower()
        return _before(said, _NUMBERS.get(number) or int(number), found["unit"].lower())
    step, span = _STEP[found["step"].lower()], found["span"].lower()
    if span == "year":
        return str(said.replace(year=said.year + step, day=1).year)
    if span == "month":
        return _month(said, step)
    if span in ("week", "weekend"):
        return f"the {span} {'before' if step < 0 else 'after'} {format_day(said)}"
    away = (_WEEKDAYS.index(span) - said.weekday()) % 7
    return format_day(said + timedelta((away or 7) if step > 0 else away - 7))


def _before(said: date, number: int, unit: str) -> str:
    if unit == "year":
        return str(said.replace(year=said.year - number, day=1).year)
    if unit == "month":
        return _month(said, -number)
    if unit == "week":
        return f"about {format_day(said - timedelta(weeks=number))}"
    return format_day(said - timedelta(number))


def _month(said: date, step: int) -> str:
    years, month = divmod(said.month - 1 + step, 12)
    return f"{_MONTHS[month]} {said.replace(year=said.year + years, day=1).year}"
