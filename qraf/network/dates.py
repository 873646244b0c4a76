"""How near the time that a memory spans is to the dates that a prompt names: recall's clock, over whole memories."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from qraf.records import DateMention, RecallSettings

__all__ = ["nearness"]

_DAY_S = 86_400.0
_SIGMA = RecallSettings()
_MAX_YEARS = 64  # tried for a date without a year; memories that span more are not about one


def nearness(
    dates: Sequence[DateMention], first_at: NDArray[np.float64], last_at: NDArray[np.float64]
) -> NDArray[np.float64]:
    """exp(-gap^2 / 2 sigma^2), the best over the named dates: 1 where the memory spans one, near 0 far away.

    `gap` leads from the middle of the named day, month or year to the nearest end of [first_at, last_at], 0 inside;
    sigma goes with what was named, as in recall. Without a year, the best over the years that the memories span.
    Memories that do not tell their times (both 0) are near to nothing.

    >>> may = datetime(2023, 5, 7, tzinfo=UTC).timestamp()
    >>> nearness([DateMention(2023, 5, 8)], np.array([may, may]), np.array([may + 3e6, may])).round(2).tolist()
    [1.0, 0.93]
    """
    best = np.zeros(len(first_at))
    told = (first_at != 0) | (last_at != 0)
    if not len(dates) or not told.any():
        return best
    years = _years(float(first_at[told].min()), float(last_at[told].max()))
    for mention in dates:
        for year in years if mention.year is None else (mention.year,):
            moment = _moment(year, mention)
            if moment is not None:
                middle, sigma_s = moment
                gap = np.maximum(0.0, np.maximum(first_at - middle, middle - last_at))
                np.maximum(best, np.exp(-((gap / sigma_s) ** 2) / 2), out=best)
    return np.where(told, best, 0.0)


def _years(first: float, last: float) -> Iterable[int]:
    newest = _year(last)
    return range(max(_year(first), newest - _MAX_YEARS), newest + 1)


def _year(at: float) -> int:
    return int(np.datetime64(int(at), "s").astype("datetime64[Y]").astype(np.int64)) + 1970


def _moment(year: int, mention: DateMention) -> tuple[float, float] | None:
    """The middle of what was named, in seconds, and its sigma; None for a date that does not exist."""
    month, day = mention.month, mention.day
    try:
        start = datetime(year, month or 1, day if month and day else 1, tzinfo=UTC).timestamp()
        if month and day:
            return start + _DAY_S / 2, _SIGMA.day_sigma_d * _DAY_S
        after = (
            datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
            if month
            else datetime(year + 1, 1, 1, tzinfo=UTC)
        )
    except ValueError:
        return None
    sigma_d = _SIGMA.month_sigma_d if month else _SIGMA.year_sigma_d
    return (start + after.timestamp()) / 2, sigma_d * _DAY_S
