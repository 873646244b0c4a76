"""Recall scores as differentiable functions of the recall constants and of the prompts' amplitudes.

The scores are those of `Memory.recall` (`scoring`, `lexical`), written once more in torch. They come in chunks of
items; `Scores.reduce` adds up a function of the scores over all chunks and computes each chunk again when gradients
are asked for, so that what a gradient needs does not grow with the number of items (the checkpointing of Griewank and
Walther, ACM TOMS 26, 19 (2000), with one level).

    scores = Scores(memory, queries)
    theta = constants(memory.settings)                       # tensors that ask for gradients
    mass = scores.reduce(lambda p, rows: p.sum(1), theta)    # (m,): summed score of each query
    mass.sum().backward()                                    # theta["alpha"].grad, ...

Kinks (a Born amplitude that is 0, two dates equally near) have a subgradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from qraf.errors import InvalidState
from qraf.memory.memory import Memory
from qraf.memory.pieces import Chunk, Pieces
from qraf.memory.scoring import DAY_S
from qraf.records import RecallQuery, RecallSettings
from qraf.states.gradients import root

__all__ = ["CONSTANTS", "Scores", "constants", "with_constants"]

CONSTANTS = (
    "alpha",
    "k1",
    "b",
    "previous",
    "following",
    "speaker_gain",
    "question_loss",
    "date_gain",
    "day_sigma_d",
    "month_sigma_d",
    "year_sigma_d",
)
"""The constants of `RecallSettings` in which scores are differentiable."""

Constants = Mapping[str, Tensor]
Reduction = Callable[..., Tensor]
"""Scores (m, c), the `rows` (c,) of their items and what else was given, to a tensor; summed over the chunks."""

_PAIRS = 1 << 18  # of a query and an item in one chunk: its widest tensors are 2 MiB
_LEAST, _MOST = 128, 4096


def constants(settings: RecallSettings, requires_grad: bool = True) -> dict[str, Tensor]:
    """The differentiable constants as float64 tensors; `previous` and `following` are vectors."""
    return {
        name: torch.tensor(getattr(settings, name), dtype=torch.float64, requires_grad=requires_grad)
        for name in CONSTANTS
    }


def with_constants(settings: RecallSettings, values: Constants) -> RecallSettings:
    """The settings with the constants that `values` has."""
    known = {each.name for each in fields(settings)}
    changed: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise InvalidState("constants", f"be some of {', '.join(CONSTANTS)}", f"have '{name}'")
        plain = value.detach().tolist()
        changed[name] = tuple(plain) if isinstance(plain, list) else plain
    return replace(settings, **changed)


class Scores:
    """The scores of all items of a memory for some queries, as the memory is now; it must not change meanwhile.

    Args:
        memory: the memory; its settings say what is not differentiated (the whitening, the words of a question).
        queries: filters, `as_of` and dates work as in `Memory.recall`; `k` and `explain` are not read.
        left_out: for each query, rows that are treated as if they were not there.
        chunk: items in a chunk; by default so many that a chunk has about 2^18 pairs of a query and an item.
        keep_bytes: so much of what the chunks are computed from is kept from one call to the next.

    Beside a few numbers for each item (order, place in time) nothing here grows with the memory.
    """

    def __init__(
        self,
        memory: Memory,
        queries: Sequence[RecallQuery],
        *,
        left_out: Sequence[Sequence[int]] | None = None,
        chunk: int = 0,
        keep_bytes: int = 64 << 20,
    ) -> None:
        for query in queries:
            if query.prompt.amplitudes.shape != (memory.dim,):
                raise InvalidState("amplitudes", f"have shape ({memory.dim},)", f"has {query.prompt.amplitudes.shape}")
        if left_out is not None and len(left_out) != len(queries):
            raise InvalidState("left_out", f"have {len(queries)} entries", f"has {len(left_out)}")
        if not queries:
            raise InvalidState("queries", "be at least one", "is none")
        self._memory, self._queries = memory, tuple(queries)
        self._reach = max(len(memory.settings.previous), len(memory.settings.following))
        size = chunk or min(_MOST, max(_LEAST, _PAIRS // len(queries)))
        self._pieces = Pieces(memory, queries, left_out, size, keep_bytes)

    @property
    def amplitudes(self) -> Tensor:
        """The prompts' amplitudes, (m, d) float32: copy them, let them ask for gradients, and give them back."""
        return torch.from_numpy(np.stack([query.prompt.amplitudes for query in self._queries]).astype(np.float32))

    def reduce(
        self, f: Reduction, values: Constants, amplitudes: Tensor | None = None, also: Sequence[Tensor] = ()
    ) -> Tensor:
        """The sum over all chunks of f(scores, rows, *also), with gradients for the tensors given here, and no others.

        Args:
            f: called with scores (m, c) float64 and the rows (c,) they belong to; every item comes in one chunk.
                It is called again when gradients are computed and must give the same.
            values: all of `constants(...)`.
            amplitudes: (m, d) in place of the prompts' own.
            also: what else f depends on.
        """
        norm = self._mean_norm(self._checked(values))

        def work(number: int, *tensors: Tensor) -> Tensor:
            given = dict(zip(CONSTANTS, tensors, strict=False))
            norm, *rest = tensors[len(CONSTANTS) :]
            prompts = None if amplitudes is None else rest.pop(0)
            rows, scores = self._scores(number, given, norm, prompts)
            return f(scores, rows, *rest)

        queries = [] if amplitudes is None else [amplitudes]
        return _summed(work, len(self), [*(values[name] for name in CONSTANTS), norm, *queries, *also])

    def chunks(self, values: Constants, amplitudes: Tensor | None = None) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Rows (c,) and scores (m, c) chunk by chunk; gradients flow, and what is kept of them lies with the caller."""
        norm = self._mean_norm(self._checked(values))
        for number in range(len(self)):
            yield self._scores(number, values, norm, amplitudes)

    def __len__(self) -> int:
        """The number of chunks."""
        return len(self._pieces)

    # ------------------------------------------------------------------------------------------------ how it is done
    def _checked(self, values: Constants) -> Constants:
        missing = [name for name in CONSTANTS if name not in values]
        if missing:
            raise InvalidState("values", "have every constant", f"lacks {', '.join(missing)}")
        far = max(len(values["previous"]), len(values["following"]))
        if far > self._reach:
            raise InvalidState("values", f"reach {self._reach} neighbours, as the memory's settings do", f"reach {far}")
        return values

    def _scores(
        self, number: int, v: Constants, mean_norm: Tensor, amplitudes: Tensor | None
    ) -> tuple[NDArray[np.int64], Tensor]:
        chunk = self._pieces.chunk(number)
        m, h = len(self._queries), len(chunk.around)
        dense = chunk.dense if amplitudes is None else self._dense(amplitudes, chunk)
        saturated = _saturated(chunk.tf, chunk.relative, v["k1"], v["b"])
        shared = torch.zeros(m * h, dtype=torch.float64).index_add(0, chunk.hit, chunk.weight * saturated)
        lexical = shared.reshape(m, h) / mean_norm
        amplitude = v["alpha"] * dense + (1 - v["alpha"]) * lexical
        p = amplitude.clamp(min=0).square() * chunk.live
        score = (p + _neighbours(p, chunk.stretch, v["previous"], v["following"]))[:, chunk.inner]
        score = score * (1 + v["speaker_gain"] * chunk.named) * (1 - v["question_loss"] * chunk.asking)
        nearness = self._nearness(chunk.at, v)
        if nearness is not None:
            score = score * (1 + v["date_gain"] * nearness)
        return chunk.rows, score * chunk.decay * chunk.candidate

    def _nearness(self, at: Tensor, v: Constants) -> Tensor | None:
        """How near each item's time is to the dates of each query, (m, c); None where no query names one."""
        if not any(self._pieces.moments):
            return None
        zero = torch.zeros(len(at), dtype=torch.float64)
        near = []
        for found in self._pieces.moments:
            best = zero
            for t_q, sigma in found:
                best = torch.maximum(best, torch.exp(-(((at - t_q) / (v[sigma] * DAY_S)) ** 2) / 2))
            near.append(best)
        return torch.stack(near)

    def _dense(self, amplitudes: Tensor, chunk: Chunk) -> Tensor:
        memory = self._memory
        rows = memory.items.amplitudes(chunk.around)
        return (self._whitened(amplitudes) @ torch.from_numpy(rows).to(amplitudes.dtype).mT).double()

    def _whitened(self, q: Tensor) -> Tensor:
        whitening = self._memory.whitening()
        if whitening is None:
            return q
        vectors = torch.from_numpy(whitening.vectors).to(q.dtype)
        extra = torch.from_numpy(whitening.extra).to(q.dtype)
        turned = whitening.flat * q + ((q @ vectors.mT) * extra) @ vectors
        norm = root((turned * q).sum(-1, keepdim=True).clamp(min=0)) * whitening.mean_norm
        whitened: Tensor = turned / torch.where(norm > 0, norm, torch.ones_like(norm))
        return whitened

    def _mean_norm(self, v: Constants) -> Tensor:
        """mean_k ||l_k||: the one number of the lexical register that needs all items; 1 where all are empty."""
        pieces = self._pieces

        def work(number: int, k1: Tensor, b: Tensor) -> Tensor:
            items, item, rarity, tf, relative = pieces.block(number)
            square = rarity * _saturated(tf, relative, k1, b).square()
            return root(torch.zeros(items, dtype=torch.float64).index_add(0, item, square)).sum()

        if not pieces.num_blocks:
            return torch.ones((), dtype=torch.float64)
        return _summed(work, pieces.num_blocks, [v["k1"], v["b"]]) / len(self._memory)


def _saturated(tf: Tensor, relative: Tensor, k1: Tensor, b: Tensor) -> Tensor:
    return tf * (k1 + 1) / (tf + k1 * (1 - b + b * relative))


def _neighbours(p: Tensor, stretch: Tensor, previous: Tensor, following: Tensor) -> Tensor:
    """What the items around each one add to it, (m, h); see `scoring.Context`."""
    added = torch.zeros_like(p)
    for distance in range(1, min(max(len(previous), len(following)), p.shape[1] - 1) + 1):
        together = (stretch[distance:] == stretch[:-distance]).to(p.dtype)
        pad = torch.nn.functional.pad
        if distance <= len(previous):
            added = added + previous[distance - 1] * pad(p[:, :-distance] * together, (distance, 0))
        if distance <= len(following):
            added = added + following[distance - 1] * pad(p[:, distance:] * together, (0, distance))
    return added


def _summed(work: Callable[..., Tensor], number: int, inputs: list[Tensor]) -> Tensor:
    """sum_k work(k, *inputs) for k < number; graphs of more than one k are never held at once."""
    if number == 0:
        return torch.zeros((), dtype=torch.float64)
    if number == 1:
        return work(0, *inputs)
    total: Tensor = _Summed.apply(work, number, *inputs)  # type: ignore[no-untyped-call]
    return total


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: Callable[..., Tensor], number: int, *inputs: Tensor) -> Tensor:
        ctx.work, ctx.number = work, number
        ctx.save_for_backward(*inputs)
        total = work(0, *inputs)
        for each in range(1, number):
            total = total + work(each, *inputs)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        needed = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_(need) for x, need in zip(ctx.saved_tensors, needed, strict=True)]
            wanted = [x for x in inputs if x.requires_grad]
            sums = [torch.zeros_like(x) for x in wanted]
            for each in range(ctx.number):
                value = ctx.work(each, *inputs)
                found = torch.autograd.grad(value, wanted, grad, allow_unused=True)
                for total, part in zip(sums, found, strict=True):
                    if part is not None:
                        total += part
        given = iter(sums)
        return (None, None, *(next(given) if need else None for need in needed))
