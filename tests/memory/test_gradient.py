"""Differentiable scores against those of recall, against finite differences, and what they cost."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from qraf.clock import FakeClock
from qraf.errors import InvalidState
from qraf.memory.gradient import CONSTANTS, Scores, constants, with_constants
from qraf.memory.memory import Memory
from qraf.records import DateMention, Filter, Item, Prompt, RecallQuery, RecallSettings
from qraf.text.lexicon import term_ids
from tests.examples import examples
from tests.memory.conftest import MAY, Bench, many, talk
from tests.memory.test_recipe import DATE, DIM, SETTINGS, TEXT, items

pytestmark = pytest.mark.slow  # all of them together


def all_scores(memory: Memory, queries: Sequence[RecallQuery], **choices: Any) -> Tensor:
    found = torch.full((len(queries), len(memory)), torch.nan, dtype=torch.float64)
    for rows, scores in Scores(memory, queries, **choices).chunks(constants(memory.settings, False)):
        found[:, rows] = scores
    return found


def recalled(memory: Memory, queries: Sequence[RecallQuery]) -> np.ndarray[Any, Any]:
    """Memory's own scores, put together from the terms that it explains."""
    found = np.zeros((len(queries), len(memory)))
    row = {seq: number for number, seq in enumerate(memory.seqs)}
    for number, answer in enumerate(memory.recall(queries)):
        for one in answer.evidence:
            t = one.terms
            assert t is not None
            own = t.dense + t.lexical + t.interference + t.neighbours
            found[number, row[one.seq]] = own * t.speaker * t.question * t.clock * t.decay
    return found


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    found=items(),
    asked=st.lists(TEXT, min_size=1, max_size=3),
    named=st.sets(st.sampled_from(["ann", "bob lee", "cleo"])),
    dates=st.lists(DATE, max_size=2),
    recipe=SETTINGS,
    whiten=st.booleans(),
    half_life_s=st.sampled_from([None, 86400.0 * 30]),
    only=st.sampled_from([None, Filter(field="speaker", eq="Ann"), Filter(field="role", ne="document")]),
    chunk=st.sampled_from([0, 1, 3, 5]),
    seed=st.integers(0, 2**16),
)
def test_scores_are_those_of_recall(
    found: list[Item],
    asked: list[str],
    named: set[str],
    dates: list[DateMention],
    recipe: RecallSettings,
    whiten: bool,
    half_life_s: float | None,
    only: Filter | None,
    chunk: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((len(found) + len(asked), DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    memory = Memory(
        "s/x",
        DIM,
        with_constants(recipe, {}) if not whiten else RecallSettings(whiten=True),
        rank=4,
        half_life_s=half_life_s,
        clock=FakeClock(max(item.at for item in found) + 3600),
    )
    memory.absorb(found, vectors[: len(found)])
    queries = []
    for number, text in enumerate(asked):
        ids, counts, _ = term_ids(text)
        prompt = Prompt(
            vectors[len(found) + number], ids, counts.astype(np.float32), tuple(sorted(named)), tuple(dates)[:number]
        )
        as_of = None if number else found[len(found) // 2].at
        queries.append(RecallQuery(prompt, k=99, filter=only if number else None, as_of=as_of, explain=True))
    got = all_scores(memory, queries, chunk=chunk).numpy()
    assert np.abs(got - recalled(memory, queries)).max() < 1e-5
    prompts = Scores(memory, queries).amplitudes
    given_back = torch.cat([
        scores[:, np.argsort(rows)]
        for rows, scores in Scores(memory, queries, chunk=len(memory)).chunks(constants(memory.settings), prompts)
    ], 1)  # fmt: skip
    assert np.abs(given_back.detach().numpy() - got).max() < 1e-5


def questions(bench: Bench) -> list[RecallQuery]:
    bench.absorb([*talk(), *talk([("Cleo", "A kite flew."), (None, "Who saw the kite?")], 20, MAY + 40 * 86400)])
    asked = ["What did Ann buy in May 2023?", "kites and lamps", "Where is the station on 7 May?", "What in 2023?"]
    return [bench.query(text) for text in asked]


@pytest.mark.parametrize("chunk", [0, 2])
@pytest.mark.parametrize("name", CONSTANTS)
def test_gradients_of_every_constant(name: str, chunk: int, bench: Bench) -> None:
    queries = questions(bench)
    base = {**constants(bench.memory.settings, False), "b": torch.tensor(0.3, dtype=torch.float64)}
    scores = Scores(bench.memory, queries, chunk=chunk)
    weight = torch.linspace(0.5, 1.5, 4, dtype=torch.float64)[:, None]

    def total(value: Tensor) -> Tensor:
        return scores.reduce(
            lambda p, rows: (weight * (p + 0.1).log() * torch.from_numpy(1.0 + rows)).sum(), {**base, name: value}
        )

    # days away from their sigma make a difference of 1e-6 invisible: so large a step, so small a slope
    scale = 1e-2 if name.endswith("_d") else 1e-6
    assert torch.autograd.gradcheck(total, (base[name].requires_grad_(),), eps=scale, atol=1e-6, rtol=1e-3)
    (grad,) = torch.autograd.grad(total(base[name]), base[name])
    assert bool((grad != 0).all()), "the samples say nothing about this constant"


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("chunk", [0, 2])
def test_gradients_of_the_amplitudes(whiten: bool, chunk: int) -> None:
    bench = Bench(RecallSettings(whiten=whiten), dim=6, rank=3)
    scores = Scores(bench.memory, questions(bench), chunk=chunk)
    values = constants(bench.memory.settings, False)
    q = scores.amplitudes.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: scores.reduce(lambda p, rows: (p * torch.from_numpy(1.0 + rows)).sum(1), values, x), (q,), atol=1e-6
    )


def test_what_is_left_out_gives_and_gets_nothing(bench: Bench) -> None:
    bench.absorb(talk())
    [query] = [bench.query("kites")]
    with_all = all_scores(bench.memory, [query])
    without = all_scores(bench.memory, [query], left_out=[[0]])
    assert float(with_all[0, 0]) > 0
    assert float(without[0, 0]) == 0
    assert float(without[0, 1]) < float(with_all[0, 1])  # the neighbour loses what the first one lent it


def test_constants_there_and_back() -> None:
    recipe = RecallSettings(alpha=0.25, previous=(0.5, 0.1), whiten=True)
    assert with_constants(recipe, constants(recipe)) == recipe
    assert with_constants(recipe, {"k1": torch.tensor(2.0)}).k1 == 2.0
    with pytest.raises(InvalidState, match="'k2'"):
        with_constants(recipe, {"k2": torch.tensor(2.0)})


def test_what_does_not_fit_is_named(bench: Bench) -> None:
    bench.absorb(talk())
    query = bench.query("kites")
    with pytest.raises(InvalidState, match="`queries` must be at least one"):
        Scores(bench.memory, [])
    with pytest.raises(InvalidState, match="`left_out` must have 1 entries"):
        Scores(bench.memory, [query], left_out=[])
    short = Prompt(query.prompt.amplitudes[:3], query.prompt.terms, query.prompt.counts)
    with pytest.raises(InvalidState, match=r"`amplitudes` must have shape \(32,\)"):
        Scores(bench.memory, [RecallQuery(short)])
    scores, values = Scores(bench.memory, [query]), constants(bench.memory.settings)
    with pytest.raises(InvalidState, match="lacks b"):
        scores.reduce(lambda p, rows: p.sum(), {name: values[name] for name in CONSTANTS if name != "b"})
    with pytest.raises(InvalidState, match="reach 3 neighbours"):
        scores.reduce(lambda p, rows: p.sum(), {**values, "previous": torch.zeros(4)})


def test_an_empty_memory_sums_to_nothing() -> None:
    prompt = Prompt(np.zeros(4, np.float32), np.zeros(0, np.uint32), np.zeros(0, np.float32))
    scores = Scores(Memory("s/x", 4), [RecallQuery(prompt)])
    assert float(scores.reduce(lambda p, rows: p.sum(), constants(RecallSettings()))) == 0


class _Held(TorchDispatchMode):
    """Counts the bytes of all tensors that operations made and that are still alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, list | tuple) else [out]:
            if isinstance(each, Tensor):
                storage = each.untyped_storage()
                if storage not in self._known:
                    self._known.add(storage)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage.nbytes())
        self.most = max(self.most, self.now)
        return out

    def _gone(self, nbytes: int) -> None:
        self.now -= nbytes


def peak_bytes(n: int, chunk: int) -> tuple[int, Callable[[], None]]:
    """The most bytes of tensors alive at once over a value and its gradients, and the same work anew."""
    bench = Bench()
    bench.absorb(many(n))
    scores = Scores(
        bench.memory, [bench.query("word1 word7 in May 2023"), bench.query("word3")], chunk=chunk, keep_bytes=0
    )
    values, q = constants(bench.memory.settings), scores.amplitudes.requires_grad_()

    def once() -> None:
        scores.reduce(lambda p, rows: (p + 1e-6).log().sum(), values, q).backward()

    once()  # what torch imports on its first gradient is none of ours
    gc.collect()
    with _Held() as held:
        once()
    assert q.grad is not None
    assert values["k1"].grad is not None
    return held.most, once


def traced_peak(work: Callable[[], None]) -> int:
    """The most bytes alive at once that are no tensors.

    What other threads of the process allocate meanwhile is in it: hence the least of several.
    """
    peaks = []
    for _ in range(3):
        gc.collect()
        tracemalloc.start()
        try:
            work()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return min(peaks)


@pytest.mark.timeout(180)
def test_memory_of_a_gradient_does_not_grow_with_the_items() -> None:
    (small, few), (large, many_more) = peak_bytes(128, 64), peak_bytes(8 * 128, 64)
    assert small > 64 * 32 * 4  # it sees the decoded amplitudes of a chunk
    assert large < 1.1 * small
    assert traced_peak(many_more) - traced_peak(few) < 7 * 128 * 32  # a few numbers for each item, not its amplitudes
    assert peak_bytes(8 * 128, 8 * 128)[0] > 4 * large  # and one chunk for all would show
