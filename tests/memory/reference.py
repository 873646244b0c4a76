"""The recipe written the slow way, one item at a time, from RECIPE's formulas; compared with the fast one in tests."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from qraf.records import DateMention, Item, Prompt, RecallSettings
from qraf.text.lexicon import stems, term_id, words

DAY_S = 86400.0


def scores(
    items: Sequence[Item],
    decoded: NDArray[np.float32],
    prompt: Prompt,
    s: RecallSettings,
    now: float = 0.0,
    half_life_s: float | None = None,
) -> dict[int, float]:
    """The score of every item, by seq. `decoded` are the amplitudes as coded, in the order of `items`."""
    p, order = {}, sorted((item for item in items if item.role != "document"), key=lambda item: (item.at, item.seq))
    lexical = bm25_amplitudes(items, prompt, s)
    for item, psi in zip(items, decoded, strict=True):
        dense = float(np.dot(prompt.amplitudes.astype(np.float64), psi.astype(np.float64)))
        p[item.seq] = max(s.alpha * dense + (1 - s.alpha) * lexical[item.seq], 0.0) ** 2
    out = dict(p)
    for place, item in enumerate(order):
        for share, step in [*zip(s.previous, (-1, -2, -3), strict=True), *zip(s.following, (1, 2, 3), strict=True)]:
            other = place + step
            if 0 <= other < len(order) and is_one_stretch(order[min(place, other) : max(place, other) + 1], s):
                out[item.seq] += share * p[order[other].seq]
    everyone = {item.speaker.casefold() for item in items if item.speaker is not None}
    for item in items:
        is_named = item.speaker is not None and item.speaker.casefold() in prompt.named
        if is_named and not everyone <= set(prompt.named):
            out[item.seq] *= 1 + s.speaker_gain
        if item.text.endswith("?") and words(item.text) < s.question_words:
            out[item.seq] *= 1 - s.question_loss
        out[item.seq] *= clock(item.at, prompt.dates, [one.at for one in items], s)
        if half_life_s is not None and not item.pin:
            out[item.seq] *= 2 ** (-max(0.0, now - item.at) / half_life_s)
    return out


def bm25_amplitudes(items: Sequence[Item], prompt: Prompt, s: RecallSettings) -> dict[int, float]:
    docs = [
        Counter(map(term_id, stems(f"{item.speaker}: {item.text}" if item.speaker else item.text)))
        if item.text
        else Counter()
        for item in items
    ]
    n, lengths = len(docs), [doc.total() for doc in docs]
    mean_length = sum(lengths) / n

    def idf(term: int) -> float:
        df = sum(term in doc for doc in docs)
        return math.log(1 + (n - df + 0.5) / (df + 0.5))

    states = [
        {
            term: math.sqrt(idf(term)) * tf * (s.k1 + 1) / (tf + s.k1 * (1 - s.b + s.b * length / mean_length))
            for term, tf in doc.items()
        }
        for doc, length in zip(docs, lengths, strict=True)
    ]
    mean_norm = sum(math.sqrt(sum(v * v for v in state.values())) for state in states) / n
    asked = {
        int(term): math.sqrt(idf(int(term))) * float(count)
        for term, count in zip(prompt.terms, prompt.counts, strict=True)
    }
    norm = math.sqrt(sum(v * v for v in asked.values())) * mean_norm
    return {
        item.seq: sum(v * state.get(term, 0.0) for term, v in asked.items()) / norm if norm else 0.0
        for item, state in zip(items, states, strict=True)
    }


def is_one_stretch(turns: Sequence[Item], s: RecallSettings) -> bool:
    return all(b.at - a.at <= s.episode_gap_s for a, b in itertools.pairwise(turns))


def clock(at: float, dates: Sequence[DateMention], all_times: Sequence[float], s: RecallSettings) -> float:
    best = 0.0
    for mention in dates:
        years = [mention.year] if mention.year else {datetime.fromtimestamp(t, UTC).year for t in all_times}
        for year in years:
            try:
                start = datetime(year, mention.month or 1, mention.day or 1, tzinfo=UTC)
            except ValueError:
                continue
            if mention.day:
                end, sigma = start.timestamp() + DAY_S, s.day_sigma_d
            elif mention.month:
                following = datetime(year + mention.month // 12, mention.month % 12 + 1, 1, tzinfo=UTC)
                end, sigma = following.timestamp(), s.month_sigma_d
            else:
                end, sigma = datetime(year + 1, 1, 1, tzinfo=UTC).timestamp(), s.year_sigma_d
            away = (at - (start.timestamp() + end) / 2) / (sigma * DAY_S)
            best = max(best, math.exp(-away * away / 2))
    return 1 + s.date_gain * best
