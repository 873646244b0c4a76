"""Fit the recall constants to prompts with known evidence, and keep them only where they help unseen prompts.

Loss of a prompt, for each of its evidence: -ln(w / (w + sum of w over all items that are no evidence)), with
w = (P + eps)^s: the cross-entropy of a softmax over s ln P, P the scores of recall, s fitted along. Gradients come from
`gradient`; Adam (Kingma and Ba, 2015) takes the steps, in units in which each constant varies by about 1, with a pull
of |u|^2 / 2 nat in all towards where it began: constants that the prompts say nothing about stay exactly as they were.

Prompts are cut into folds. For each fold the constants are fitted to the other folds and measured on it (R@10 and the
reciprocal rank of the first evidence); so every prompt is judged by constants that did not see it. The constants that
are given out are then fitted to all prompts, if the mean gain of the held-out prompts is more than twice its standard
error and neither measure fell. Otherwise the constants stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qraf.errors import InvalidRequest
from qraf.memory.gradient import CONSTANTS, Scores, constants, with_constants
from qraf.memory.labels import Sample
from qraf.records import RecallSettings

__all__ = ["LEAST_PROMPTS", "OWN_TEXT", "Measured", "Tuning", "fit", "measure", "tune"]

LEAST_PROMPTS = 20
OWN_TEXT = ("alpha",)
"""What a memory's own text can tell: it holds no questions, names or dates (docs/tuning.md has the measurement)."""

FOLDS, STEPS = 5, 60
_SHARPNESS = 3.0  # s at the start
_FLOOR = 1e-4  # eps: an item that shares nothing with the prompt
_RATE = 0.5
_TOP = 10
_PROMPTS = 128  # in one pass over a memory
_KEEP_BYTES = 512 << 20
_DIGITS = 3

_RANGES: Mapping[str, tuple[float, float]] = {
    "alpha": (0, 1), "k1": (0, 10), "b": (0, 1), "previous": (0, 1), "following": (0, 1), "speaker_gain": (0, 50),
    "question_loss": (0, 1), "date_gain": (0, 100), "day_sigma_d": (0.5, 365), "month_sigma_d": (2, 3650),
    "year_sigma_d": (20, 36500),
}  # fmt: skip
_UNITS: Mapping[str, float] = {
    "alpha": 0.1, "k1": 0.5, "b": 0.3, "previous": 0.1, "following": 0.1, "speaker_gain": 1.0, "question_loss": 0.2,
    "date_gain": 3.0, "day_sigma_d": 2.0, "month_sigma_d": 8.0, "year_sigma_d": 75.0,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measured:
    """Means over prompts, 0 to 1: share of the evidence in the first ten, reciprocal rank of the first evidence."""

    recall_at_10: float
    mrr: float


@dataclass(frozen=True, slots=True)
class Tuning:
    """What came of it.

    `settings` are the fitted ones if `is_better`, else those it began with. `before` and `after` are of held-out
    prompts; `gain` is the mean of both measures' differences, `noise` twice its standard error.
    """

    settings: RecallSettings
    is_better: bool
    prompts: int
    is_labelled: bool
    before: Measured
    after: Measured
    gain: float
    noise: float
    reason: str

    def changed(self, base: RecallSettings) -> dict[str, float | tuple[float, ...]]:
        """The constants that differ from `base`."""
        pairs = ((each.name, getattr(self.settings, each.name)) for each in fields(RecallSettings))
        return {name: value for name, value in pairs if value != getattr(base, name)}


def tune(
    samples: Sequence[Sample],
    base: RecallSettings,
    *,
    folds: int = FOLDS,
    steps: int = STEPS,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Tuning:
    """Fit `base` to the samples' prompts; see the head of this file.

    Args:
        samples: memories whose settings are `base`; all with labels, or all without.
        base: where to begin, and what must be beaten.
        folds: parts of the prompts; whole memories where there are as many.
        steps: of Adam, for each fit.
        seed: of the folds.
        progress: hears how many of how many steps are done.

    Raises:
        InvalidRequest: there is no prompt, samples with and without labels are mixed, or `folds` is below 2.
    """
    prompts = sum(len(sample.queries) for sample in samples)
    if not prompts:
        raise InvalidRequest("there is no prompt to tune with")
    if len({sample.is_labelled for sample in samples}) > 1:
        raise InvalidRequest("memories with labels and memories without cannot be tuned together")
    if folds < 2:
        raise InvalidRequest(f"folds must be at least 2, but is {folds}")
    names = CONSTANTS if samples[0].is_labelled else OWN_TEXT
    batches = [_Batch(sample, start) for sample in samples for start in range(0, len(sample.queries), _PROMPTS)]
    for batch in batches:
        batch.keep(_KEEP_BYTES // len(batches))
    before = _measures(batches, base)
    if prompts < LEAST_PROMPTS:
        mean = _means(before)
        reason = f"{prompts} prompts are too few to tell a gain from chance; {LEAST_PROMPTS} are needed"
        return Tuning(base, False, prompts, samples[0].is_labelled, mean, mean, 0.0, 0.0, reason)
    fold = _folds(samples, min(folds, prompts), seed)
    used = sorted(set(fold.tolist()))
    total, done = steps * (len(used) + 1), 0

    def told() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    after = np.zeros_like(before)
    for one in used:
        held_out = fold == one
        fitted = fit(batches, base, names, ~held_out, steps, told)
        after[held_out] = _measures(batches, fitted)[held_out]
    tuned = fit(batches, base, names, np.ones(prompts, bool), steps, told)
    return _judged(base, tuned, before, after, samples[0].is_labelled)


def measure(samples: Sequence[Sample], settings: RecallSettings) -> Measured:
    """The measures of all prompts under some settings."""
    return _means(_measures([_Batch(sample, start) for sample in samples
                             for start in range(0, len(sample.queries), _PROMPTS)], settings))  # fmt: skip


def fit(
    batches: Sequence[_Batch],
    base: RecallSettings,
    names: Sequence[str],
    chosen: NDArray[np.bool_],
    steps: int,
    told: Callable[[], None],
) -> RecallSettings:
    """The constants `names` fitted to the chosen prompts, rounded to what a file would hold."""
    start = constants(base, requires_grad=False)
    u = {name: torch.zeros_like(start[name], requires_grad=True) for name in names}
    sharpness = torch.tensor(math.log(_SHARPNESS), dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([*u.values(), sharpness], lr=_RATE)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    weights = torch.from_numpy(chosen.astype(np.float64))
    for _ in range(steps):
        adam.zero_grad()
        values = {**start, **{name: start[name] + _UNITS[name] * u[name] for name in names}}
        pull = torch.stack([each.square().sum() for each in u.values()]).sum() / 2
        torch.autograd.backward(pull / weights.sum())
        at = 0
        for batch in batches:
            part = weights[at : at + len(batch)]
            at += len(batch)
            if bool(part.any()):
                torch.autograd.backward(batch.loss(values, sharpness.exp()) @ part / weights.sum(), retain_graph=True)
        adam.step()
        slower.step()
        with torch.no_grad():
            for name in names:
                low, high = _RANGES[name]
                u[name].copy_((start[name] + _UNITS[name] * u[name]).clamp(low, high).sub(start[name]) / _UNITS[name])
        told()
    ended = {name: _rounded(start[name] + _UNITS[name] * u[name].detach(), start[name]) for name in names}
    return with_constants(base, ended)


class _Batch:
    """Some prompts of one memory, with their evidence as flat pairs."""

    def __init__(self, sample: Sample, start: int) -> None:
        part = slice(start, start + _PROMPTS)
        self._sample, self._queries, self._left_out = sample, sample.queries[part], sample.left_out[part]
        pairs = [
            (query, number, row)
            for number, (query, group) in enumerate(
                (query, group) for query, groups in enumerate(sample.gold[part]) for group in groups
            )
            for row in group
        ]
        self._query, self._group, self._row = np.array(pairs, np.int64).reshape(-1, 3).T
        self._asks = np.zeros(int(self._group.max()) + 1, np.int64)  # the query of each group
        self._asks[self._group] = self._query
        first = np.unique(np.stack((self._query, self._row)), axis=1, return_index=True)[1]
        self._is_first = np.zeros(len(self._row), bool)
        self._is_first[first] = True
        self.keep(0)

    def __len__(self) -> int:
        return len(self._queries)

    def keep(self, nbytes: int) -> None:
        self._scores = Scores(self._sample.memory, self._queries, left_out=self._left_out, keep_bytes=nbytes)

    def loss(self, values: Mapping[str, Tensor], sharpness: Tensor) -> Tensor:
        """The loss of each prompt, (m,)."""
        m, num_groups = len(self), len(self._asks)

        def weights(p: Tensor, rows: NDArray[np.int64], sharpness: Tensor) -> Tensor:
            w = (p + _FLOOR) ** sharpness
            pair, place = self._here(rows)
            gold = w[self._query[pair], place]
            found = torch.zeros(num_groups, dtype=w.dtype).index_add(0, torch.from_numpy(self._group[pair]), gold)
            once = torch.from_numpy(self._is_first[pair])
            own = torch.zeros(m, dtype=w.dtype).index_add(0, torch.from_numpy(self._query[pair]), gold * once)
            return torch.cat((w.sum(1) - own, found))

        sums = self._scores.reduce(weights, values, also=[sharpness])
        asks = torch.from_numpy(self._asks)
        others, found = sums[:m].clamp(min=1e-30), sums[m:]
        each = torch.nn.functional.softplus(others[asks].log() - found.log())
        share = torch.zeros(m, dtype=each.dtype).index_add(0, asks, torch.ones_like(each))
        return torch.zeros(m, dtype=each.dtype).index_add(0, asks, each) / share

    def measures(self, values: Mapping[str, Tensor]) -> NDArray[np.float64]:
        """R@10 and reciprocal rank of each prompt, (m, 2); items that score the same count as ranked before."""
        best = np.full(len(self._asks), -1.0)
        before = np.zeros(len(self._asks))
        with torch.no_grad():
            for rows, p in self._scores.chunks(values):
                pair, place = self._here(rows)
                np.maximum.at(best, self._group[pair], p.numpy()[self._query[pair], place])
            for _, p in self._scores.chunks(values):
                before += (p.numpy()[self._asks] >= best[:, None]).sum(1)
        rank = np.where(best > 0, before, np.inf)  # from 1
        out = np.zeros((len(self), 2))
        np.add.at(out[:, 0], self._asks, rank <= _TOP)
        out[:, 0] /= np.bincount(self._asks, minlength=len(self))
        np.maximum.at(out[:, 1], self._asks, 1 / rank)
        return out

    def _here(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which pairs have their row among `rows`, and where."""
        order = np.argsort(rows, kind="stable")
        place = np.searchsorted(rows, self._row, sorter=order)
        inside = place < len(rows)
        inside[inside] = rows[order[place[inside]]] == self._row[inside]
        return np.flatnonzero(inside), order[place[inside]]


def _measures(batches: Sequence[_Batch], settings: RecallSettings) -> NDArray[np.float64]:
    values = constants(settings, requires_grad=False)
    return np.concatenate([batch.measures(values) for batch in batches])


def _means(measures: NDArray[np.float64]) -> Measured:
    recall, mrr = measures.mean(0).tolist()
    return Measured(recall, mrr)


def _folds(samples: Sequence[Sample], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each prompt: that of its memory where there are enough of them."""
    rng = np.random.default_rng(seed)
    counts = [len(sample.queries) for sample in samples]
    if sum(count > 0 for count in counts) >= folds:
        return np.repeat(rng.permutation(len(samples)) % folds, counts)
    return rng.permutation(sum(counts)) % folds


def _judged(
    base: RecallSettings,
    tuned: RecallSettings,
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    is_labelled: bool,
) -> Tuning:
    difference = (after - before).mean(1)
    gain, n = float(difference.mean()), len(difference)
    noise = 2 * float(difference.std(ddof=1)) / math.sqrt(n)
    fell = [name for name, change in zip(("R@10", "MRR"), (after - before).mean(0), strict=True) if change < 0]
    if tuned == base:
        reason = "the fit ended where it began"
    elif fell:
        reason = f"{' and '.join(fell)} of held-out prompts fell"
    elif gain <= noise:
        reason = "the gain of held-out prompts is within the noise"
    else:
        reason = ""
    is_better = not reason
    return Tuning(
        settings=tuned if is_better else base,
        is_better=is_better,
        prompts=n,
        is_labelled=is_labelled,
        before=_means(before),
        after=_means(after),
        gain=gain,
        noise=noise,
        reason=reason or "held-out prompts gained more than the noise",
    )


def _rounded(value: Tensor, start: Tensor) -> Tensor:
    """To three significant digits; what did not move stays as it was, digit by digit."""
    pairs = zip(value.reshape(-1).tolist(), start.reshape(-1).tolist(), strict=True)
    plain = [old if new == old else float(f"{new:.{_DIGITS}g}") for new, old in pairs]
    return torch.tensor(plain, dtype=torch.float64).reshape(value.shape)
