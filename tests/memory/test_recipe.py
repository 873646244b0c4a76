"""The vectorised recipe against the slow one of `reference`."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qraf.memory.memory import Memory
from qraf.records import DateMention, Item, Prompt, RecallQuery, RecallSettings
from qraf.states import quantize
from qraf.text.lexicon import term_ids
from tests.examples import examples
from tests.memory import reference
from tests.memory.conftest import MAY

DIM = 8
WORDS = ["kite", "red", "Ann", "shop", "flies", "the", "station", "lamp"]
TEXT = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)
DATE = st.builds(
    DateMention,
    st.sampled_from([None, 2022, 2023, 2024]),
    st.sampled_from([2, 5, 12]),
    st.sampled_from([None, 1, 7, 29]),
) | st.just(DateMention(year=2023))


@st.composite
def items(draw: st.DrawFn) -> list[Item]:
    seqs = draw(st.lists(st.integers(1, 500), min_size=1, max_size=14, unique=True))
    gap = st.sampled_from([0.0, 10.0, 5 * 3600.0, 7 * 3600.0, 40 * 86400.0])
    at, out = MAY, []
    for seq in seqs:
        at += draw(gap)
        out.append(
            Item(
                seq=seq,
                item_id=str(seq),
                text=draw(TEXT) + draw(st.sampled_from(["", ".", "?"])),
                speaker=draw(st.sampled_from([None, "Ann", "Bob Lee", "Cleo"])),
                role=draw(st.sampled_from(["user", "assistant", "tool", "document"])),
                at=at,
                pin=draw(st.booleans()),
            )
        )
    return out


SETTINGS = st.sampled_from(
    [
        RecallSettings(),
        RecallSettings(k1=1.2, b=0.75, alpha=0.3, question_words=3),
        RecallSettings(previous=(0.5, 0.0, 0.2), following=(0.0, 0.3, 0.1), episode_gap_s=3600.0, date_gain=2.0),
    ]
)


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    found=items(),
    asked=TEXT,
    named=st.sets(st.sampled_from(["ann", "bob lee", "cleo"])),
    dates=st.lists(DATE, max_size=2),
    recipe=SETTINGS,
    half_life_s=st.sampled_from([None, 86400.0 * 30]),
    seed=st.integers(0, 2**16),
)
def test_vectorised_recipe_equals_the_plain_one(
    found: list[Item],
    asked: str,
    named: set[str],
    dates: list[DateMention],
    recipe: RecallSettings,
    half_life_s: float | None,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((len(found) + 1, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids, counts, _ = term_ids(asked)
    prompt = Prompt(vectors[-1], ids, counts.astype(np.float32), tuple(sorted(named)), tuple(dates))
    now = max(item.at for item in found) + 3600
    memory = Memory("s/x", DIM, recipe, half_life_s=half_life_s)
    memory.absorb(found, vectors[:-1])
    [answer] = memory.recall([RecallQuery(prompt, k=99, as_of=now)])
    decoded = quantize.decode(quantize.encode(vectors[:-1]), DIM)
    expected = reference.scores(found, decoded, prompt, recipe, now, half_life_s)
    measured = {one.seq: one.score for one in answer.evidence}
    for seq, score in expected.items():
        assert measured.get(seq, 0.0) == pytest.approx(score, rel=1e-4, abs=1e-6)
    assert answer.mass == pytest.approx(sum(expected.values()), rel=1e-4, abs=1e-6)
    ranked = [one.score for one in answer.evidence]
    assert ranked == sorted(ranked, reverse=True)
