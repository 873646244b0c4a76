"""The recipe that turns amplitudes into probabilities: pure functions on arrays in the memory's row order.

    A = alpha A_d + (1 - alpha) A_l            direct sum of the dense and the lexical register
    p(i) = max(A(i), 0)^2                      Born rule
    P(i) = sum_j c_j p(i + j)                  mixed state of the context: first squared, then summed
    P(i) *= speaker * question * clock * decay

The constants and what each step is worth: docs/states.md.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from qraf.records import DateMention, RecallSettings

__all__ = ["DAY_S", "Context", "born", "clock_factor", "decay_factor", "moments", "question_factor", "speaker_factor"]

DAY_S = 86400.0


class Context:
    """Who stands beside whom: the turns in time order, parted into stretches by silence.

    Documents stand alone: they neither give to neighbours nor take from them.
    """

    def __init__(self, at: NDArray[np.float64], is_document: NDArray[np.bool_], gap_s: float) -> None:
        turns = np.flatnonzero(~is_document)
        times = at[turns]
        if len(times) > 1 and (np.diff(times) < 0).any():
            order = np.argsort(times, kind="stable")  # rows come in order of seq, which breaks ties
            turns, times = turns[order], times[order]
        self.turns = turns
        """rows of the turns, in time order"""
        self.stretch = np.concatenate(([0], np.cumsum(np.diff(times) > gap_s))) if len(times) else np.zeros(0, int)

    def neighbours(
        self, p: NDArray[np.float64], previous: Sequence[float], following: Sequence[float]
    ) -> NDArray[np.float64]:
        """What the turns around each item add to it, (n,)."""
        mine, stretch = p[self.turns], self.stretch
        added = np.zeros(len(mine))
        for distance, (before, after) in enumerate(_pairs(previous, following), 1):
            if distance >= len(mine):
                break
            together = stretch[distance:] == stretch[:-distance]
            added[distance:] += before * mine[:-distance] * together
            added[:-distance] += after * mine[distance:] * together
        out = np.zeros(len(p))
        out[self.turns] = added
        return out


def born(
    dense: NDArray[np.float64], lexical: NDArray[np.float64], alpha: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The Born weight split exactly into its dense, lexical and interference parts; all zero where A <= 0."""
    a, b = alpha * dense, (1 - alpha) * lexical
    is_open = a + b > 0
    return np.where(is_open, a * a, 0.0), np.where(is_open, b * b, 0.0), np.where(is_open, 2 * a * b, 0.0)


def speaker_factor(
    speaker: NDArray[np.integer], names: Sequence[str | None], named: Collection[str], gain: float
) -> NDArray[np.float64]:
    """1 + gain for items whose speaker the prompt names, unless it names every speaker.

    Args:
        speaker: index into `names` for each item.
        names: the speakers of the memory; None stands for no speaker.
        named: casefolded names from the prompt.
        gain: what a named speaker's items gain.
    """
    folded = [None if name is None else name.strip().casefold() for name in names]
    speakers = {name for name in folded if name is not None}
    if not speakers & set(named) or speakers <= set(named):
        return np.ones(len(speaker))
    table = np.array([1 + gain if name is not None and name in named else 1.0 for name in folded])
    factor: NDArray[np.float64] = table[speaker]
    return factor


def question_factor(
    is_question: NDArray[np.bool_], words: NDArray[np.integer], settings: RecallSettings
) -> NDArray[np.float64]:
    """1 - loss for short turns that only ask."""
    is_asking = (is_question & (words < settings.question_words)).astype(np.float64)
    return 1.0 - settings.question_loss * is_asking


def clock_factor(
    dates: Sequence[DateMention], at: NDArray[np.float64], settings: RecallSettings
) -> NDArray[np.float64]:
    """1 + gain exp(-(t_i - t_q)^2 / 2 sigma^2), the best over the named dates and, where no year is named, over years.

    t_q is the middle of the day, month or year in UTC; sigma goes with what was named.
    """
    best = np.zeros(len(at))
    for t_q, sigma in moments(dates, at):
        away = (at - t_q) / (getattr(settings, sigma) * DAY_S)
        np.maximum(best, np.exp(-(away**2) / 2), out=best)
    return 1 + settings.date_gain * best


def moments(dates: Sequence[DateMention], at: NDArray[np.float64]) -> list[tuple[float, str]]:
    """The middle of everything that the dates may mean, in seconds, each with the name of its sigma."""
    if not len(dates) or not len(at):
        return []
    years = np.unique(at.astype("datetime64[s]").astype("datetime64[Y]").astype(np.int64) + 1970).tolist()
    found = [
        _moment(year, mention) for mention in dates for year in ([mention.year] if mention.year is not None else years)
    ]
    return [moment for moment in found if moment is not None]


def decay_factor(
    at: NDArray[np.float64], is_pinned: NDArray[np.bool_], now: float, half_life_s: float | None
) -> NDArray[np.float64]:
    """2^(-age / half life); 1 for pinned items, for the future, and without a half-life."""
    if half_life_s is None:
        return np.ones(len(at))
    age = np.maximum(now - at, 0.0)
    return np.where(is_pinned, 1.0, np.exp2(-age / half_life_s))


def _moment(year: int, mention: DateMention) -> tuple[float, str] | None:
    """The middle of what was named, in seconds, and which sigma it has; None for a day that this year does not have."""
    if mention.month is None:
        start, end, sigma = _start(year, 1), _start(year + 1, 1), "year_sigma_d"
    else:
        start, sigma = _start(year, mention.month), "month_sigma_d"
        end = _start(year + mention.month // 12, mention.month % 12 + 1)
        if mention.day is not None:
            first, sigma = start, "day_sigma_d"
            start = first + (mention.day - 1) * DAY_S
            if start >= end:
                return None
            end = start + DAY_S
    return (start + end) / 2, sigma


def _start(year: int, month: int) -> float:
    return float(np.datetime64(f"{year:04d}-{month:02d}-01", "s").astype(np.int64))


def _pairs(previous: Sequence[float], following: Sequence[float]) -> list[tuple[float, float]]:
    reach = max(len(previous), len(following))
    pad = (0.0,) * reach
    return list(zip([*previous, *pad][:reach], [*following, *pad][:reach], strict=True))
