"""Times at the door: RFC 3339 text or seconds since 1970 in, seconds inside, RFC 3339 in UTC out."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta, timezone

from qraf.errors import InvalidRequest

__all__ = ["EARLIEST", "LATEST", "format_time", "parse_time"]

EARLIEST = -62_135_596_800.0  # 0001-01-01T00:00:00Z
LATEST = 253_402_300_800.0  # the end of 9999-12-31, not included

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339 = re.compile(
    r"(\d{4})-(\d{2})-(\d{2})"
    r"(?:[Tt ](\d{2}):(\d{2}):(\d{2})(?:\.(\d{1,9}))?(?:([Zz])|([+-])(\d{2}):(\d{2}))?)?",
    re.ASCII,
)


def parse_time(value: str | float, pointer: str = "") -> float:
    """Seconds since 1970 of an RFC 3339 time; a date alone is its midnight in UTC; seconds are checked and kept.

    A leap second (`:60`) is the second after `:59`.

    Raises:
        InvalidRequest: no time, a time without an offset, or one outside the years 1 to 9999.

    >>> parse_time("2023-05-07T14:00:00+02:00")
    1683460800.0
    """
    if isinstance(value, str):
        seconds = _parse(value, pointer)
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(f"a time must be RFC 3339 text or seconds since 1970, but is {value!r:.80}", pointer)
    elif not EARLIEST <= value < LATEST:  # NaN too
        raise InvalidRequest(
            f"a time must lie in the years 1 to 9999, but is {value!r:.80} seconds since 1970", pointer
        )
    else:
        seconds = float(value)
    return seconds


def format_time(seconds: float) -> str:
    """RFC 3339 in UTC, to the microsecond, without trailing zeros.

    >>> format_time(1683460800.25)
    '2023-05-07T12:00:00.25Z'
    """
    whole = math.floor(seconds)
    micros = round((seconds - whole) * 1_000_000)
    moment = _EPOCH + timedelta(seconds=whole, microseconds=micros)
    text = moment.strftime("%H:%M:%S") + (f".{moment.microsecond:06d}".rstrip("0") if moment.microsecond else "")
    return f"{moment.year:04d}-{moment.month:02d}-{moment.day:02d}T{text}Z"


def _parse(text: str, pointer: str) -> float:
    found = _RFC3339.fullmatch(text)
    if found is None:
        raise InvalidRequest(f"a time must be RFC 3339, such as 2023-05-07T12:00:00Z, but is {text!r:.80}", pointer)
    year, month, day, hour, minute, second, fraction, zulu, sign, off_hour, off_minute = found.groups()
    if hour is not None and zulu is None and sign is None:
        raise InvalidRequest(f"a time needs its offset, such as Z or +02:00, but is {text!r:.80}", pointer)
    leap = second == "60"
    try:
        zone = UTC
        if sign is not None:
            offset = timedelta(hours=int(off_hour), minutes=int(off_minute))
            if offset >= timedelta(days=1) or int(off_minute) > 59:
                raise ValueError("offset out of range")
            zone = timezone(-offset if sign == "-" else offset)
        second_number = 59 if leap else int(second or 0)
        moment = datetime(int(year), int(month), int(day), int(hour or 0), int(minute or 0), second_number, tzinfo=zone)
    except ValueError as fault:
        raise InvalidRequest(f"no such time: {text!r:.80} ({fault})", pointer) from None
    delta = moment - _EPOCH
    seconds = float(delta.days * 86_400 + delta.seconds + leap) + (float(f"0.{fraction}") if fraction else 0.0)
    if not EARLIEST <= seconds < LATEST:
        raise InvalidRequest(f"a time must lie in the years 1 to 9999, but is {text!r:.80}", pointer)
    return seconds
