from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qraf.errors import InvalidRequest
from qraf.frames import WireItem
from qraf.memory.gradient import constants
from qraf.memory.labels import LabelledMemory, LabelledPrompt, Sample, Spec, read_labels, sample_of
from qraf.memory.tune import LEAST_PROMPTS, measure, tune
from qraf.records import RecallQuery, RecallSettings
from tests.encoders import HashEncoder
from tests.memory.conftest import MAY

pytestmark = pytest.mark.slow  # all of them together

DIM = 32
QUICK: dict[str, Any] = {"folds": 3, "steps": 25}
SPOILT = RecallSettings(alpha=0.95)


def noise(texts: Sequence[str]) -> np.ndarray[Any, Any]:
    """An encoder that says nothing: amplitudes by chance."""
    seeds = [zlib.crc32(text.encode()) for text in texts]
    rows = np.stack([np.random.default_rng(seed).standard_normal(DIM) for seed in seeds] or [np.zeros(DIM)])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)[: len(texts)]


def puzzle(seed: int, n: int = 60, by_chance: bool = False) -> LabelledMemory:
    """Items of random words; a prompt asks with two words of one item, which is its evidence (or any, by chance)."""
    rng = np.random.default_rng(seed)
    words = [f"word{number}" for number in range(80)]
    said = [rng.choice(words, 8, replace=False).tolist() for _ in range(n)]
    items = [
        WireItem(item_id=f"t{number}", text=" ".join(each) + ".", at=MAY + 30_000 * number, speaker="Ann")
        for number, each in enumerate(said)
    ]
    prompts = [
        LabelledPrompt(prompt=" ".join(rng.choice(said[number], 2)), evidence=(f"t{evidence}",))
        for number in range(n)
        for evidence in [int(rng.integers(n)) if by_chance else number]
    ]
    return LabelledMemory(items=tuple(items), prompts=tuple(prompts))


def sample(given: LabelledMemory, settings: RecallSettings = SPOILT, **choices: Any) -> Sample:
    return sample_of(given, Spec(settings), noise, DIM, **choices)


@pytest.mark.timeout(180)
def test_spoilt_constants_are_mended_also_for_a_memory_that_was_never_seen() -> None:
    told: list[tuple[int, int]] = []
    tuning = tune([sample(puzzle(1))], SPOILT, **QUICK, progress=lambda done, total: told.append((done, total)))
    assert tuning.is_better, tuning.reason
    assert tuning.gain > tuning.noise > 0
    assert tuning.settings.alpha < 0.8
    assert told == [(step, 100) for step in range(1, 101)]
    unseen = [sample(puzzle(2))]
    before, after = measure(unseen, SPOILT), measure(unseen, tuning.settings)
    assert after.recall_at_10 > before.recall_at_10 + 0.2
    assert after.mrr > before.mrr + 0.2


def test_constants_of_which_the_prompts_say_nothing_stay_exactly() -> None:
    tuning = tune([sample(puzzle(1))], SPOILT, **QUICK)
    for name in ("speaker_gain", "question_loss", "date_gain", "day_sigma_d", "month_sigma_d", "year_sigma_d"):
        assert getattr(tuning.settings, name) == getattr(SPOILT, name)
    changed = tuning.changed(SPOILT)
    assert "alpha" in changed
    assert replace(SPOILT, **changed) == tuning.settings  # type: ignore[arg-type]
    assert all(float(f"{value:.3g}") == value for value in changed.values() if isinstance(value, float))


@pytest.mark.parametrize("seed", range(4))
def test_labels_by_chance_change_nothing(seed: int) -> None:
    tuning = tune([sample(puzzle(seed, by_chance=True), RecallSettings())], RecallSettings(), **QUICK)
    assert not tuning.is_better
    assert tuning.settings == RecallSettings()
    assert tuning.reason


def test_the_same_seed_gives_the_same_constants() -> None:
    one, other = (tune([sample(puzzle(1))], SPOILT, **QUICK, seed=3) for _ in range(2))
    assert one == other


def test_few_prompts_prove_nothing() -> None:
    given = puzzle(1)
    few = LabelledMemory(items=given.items, prompts=given.prompts[: LEAST_PROMPTS - 1])
    tuning = tune([sample(few)], SPOILT, **QUICK)
    assert not tuning.is_better
    assert f"{LEAST_PROMPTS} are needed" in tuning.reason


def test_measures_are_those_of_recall() -> None:
    given = puzzle(5, 40)
    doubled = tuple(LabelledPrompt(prompt=each.prompt, evidence=(*each.evidence, "t0")) for each in given.prompts[:12])
    one = sample(LabelledMemory(items=given.items, prompts=doubled), RecallSettings())
    answers = one.memory.recall([RecallQuery(query.prompt, k=40) for query in one.queries])
    recall, reciprocal = [], []
    for answer, groups in zip(answers, one.gold, strict=True):
        place = {evidence.seq - 1: number for number, evidence in enumerate(answer.evidence)}
        ranks = [min((place[row] for row in group if row in place), default=np.inf) for group in groups]
        recall.append(np.mean([rank < 10 for rank in ranks]))
        reciprocal.append(1 / (1 + min(ranks)))
    found = measure([one], RecallSettings())
    assert found.recall_at_10 == pytest.approx(np.mean(recall))
    assert found.mrr == pytest.approx(np.mean(reciprocal))


def test_large_memories_are_read_in_chunks() -> None:
    from qraf.memory import tune as module
    from qraf.memory.gradient import Scores

    one = sample(puzzle(1))
    batch = module._Batch(one, 0)
    values = constants(SPOILT)
    sharpness = constants(SPOILT)["k1"]
    whole = batch.loss(values, sharpness)
    batch._scores = Scores(one.memory, one.queries, chunk=7)
    cut = batch.loss(values, sharpness)
    assert np.allclose(whole.detach(), cut.detach())
    whole.sum().backward()
    first = values["alpha"].grad
    assert first is not None
    values["alpha"].grad = None
    cut.sum().backward()
    assert values["alpha"].grad is not None
    assert float(values["alpha"].grad) == pytest.approx(float(first), rel=1e-4)


def test_a_memory_asks_itself_without_looking_in_the_mirror() -> None:
    given = LabelledMemory(
        items=(
            *(WireItem(text=f"a turn of some words, number {number}", at=MAY + 60 * number) for number in range(4)),
            WireItem(text="much later somebody said something else", at=MAY + 86400),
            WireItem(text="too short", at=MAY + 86460),
            WireItem(text="passage one of the long manual", role="document", metadata={"source": "a"}),
            WireItem(text="passage two of the long manual", role="document", metadata={"source": "a"}),
            WireItem(text="passage one of the other manual", role="document", metadata={"source": "b"}),
        )
    )
    own = sample_of(given, Spec(RecallSettings()), HashEncoder(DIM).encode, DIM, use_labels=False)
    assert own.left_out == ((0,), (1,), (2,), (3,), (4,), (6,), (7,))
    assert own.gold[0] == ((1,),)
    assert own.gold[1] == ((0,), (2,))
    assert own.gold[4] == ((5,),)
    assert own.gold[5:] == (((7,),), ((6,),))
    assert not own.is_labelled
    found = measure([own], RecallSettings())
    assert 0 < found.mrr < 1


def test_own_text_moves_alpha_alone() -> None:
    rng = np.random.default_rng(0)
    topics = [[f"topic{t}word{w}" for w in range(12)] for t in range(30)]
    turns = [" ".join(rng.choice(topics[number // 3], 7)) for number in range(90)]
    given = LabelledMemory(items=tuple(WireItem(text=text, at=MAY + 60 * n) for n, text in enumerate(turns)))
    own = sample_of(given, Spec(SPOILT), noise, DIM, use_labels=False)
    tuning = tune([own], SPOILT, **QUICK)
    assert tuning.is_better, tuning.reason
    assert set(tuning.changed(SPOILT)) == {"alpha"}
    assert tuning.settings.alpha < SPOILT.alpha


def test_a_document_is_found_with_any_of_its_passages() -> None:
    long = "Manual\n\n" + "\n\n".join(f"Sentence {number} says a few words about things." for number in range(60))
    given = LabelledMemory(
        items=(WireItem(item_id="m", text=long, role="document"), WireItem(item_id="t", text="a turn")),
        prompts=(LabelledPrompt(prompt="sentence 50", evidence=("m", "m")),),
    )
    one = sample_of(given, Spec(RecallSettings()), HashEncoder(DIM).encode, DIM)
    [[rows]] = one.gold
    assert len(rows) == len(one.memory) - 1 > 2


def test_files_are_read_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    memory = {
        "session": "s",
        "items": [{"item_id": "a", "text": "x"}],
        "prompts": [{"prompt": "?x", "evidence": ["a"]}],
    }
    file.write_text(f'{json.dumps(memory)}\n\n{{"text": "loose", "speaker": "Ann"}}\n"plain"\n')
    first, loose = read_labels(file)
    assert (first.session, first.prompts[0].evidence) == ("s", ("a",))
    assert [item.text for item in loose.items] == ["loose", "plain"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "labels.jsonl:2"),
        ('{"items": 3}', r"labels.jsonl:2: .*items"),
        ('{"itmes": []}', r"labels.jsonl:2: .*itmes"),
        ('{"items": [], "prompts": [{"prompt": "x", "evidence": ["a"]}]}', "no item has the id 'a'"),
        ('{"items": [{"item_id": "a", "text": "x"}], "prompts": [{"prompt": "x", "evidence": []}]}', "needs evidence"),
        ('{"items": [{"item_id": "a", "text": "x"}], "prompts": [{"prompt": " ", "evidence": ["a"]}]}', "empty"),
        ('{"items": [], "session": "a", "collection": "b"}', "both are named"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text(f'"fine"\n{line}\n')
    with pytest.raises(InvalidRequest, match=said):
        read_labels(file)


def test_files_without_items_or_without_a_file(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InvalidRequest, match="has no items"):
        read_labels(tmp_path / "empty.jsonl")
    with pytest.raises(InvalidRequest, match="cannot be read"):
        read_labels(tmp_path / "nothing.jsonl")


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (WireItem(), "needs `text` or `amplitudes`"),
        (WireItem(text="x", role="recalled"), "recalled"),
        (WireItem(amplitudes=(1.0, 0.0)), "must have 32 numbers, but have 2"),
        (WireItem(text="x", at="yesterday"), "RFC 3339"),
    ],
)
def test_items_that_do_not_fit_are_named(item: WireItem, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        sample(LabelledMemory(items=(item,)))
    twice = LabelledMemory(items=(WireItem(item_id="a", text="x"), WireItem(item_id="a", text="y")))
    with pytest.raises(InvalidRequest, match="two items have the id 'a'"):
        sample(twice)


def test_what_cannot_be_tuned_is_named() -> None:
    with pytest.raises(InvalidRequest, match="no prompt"):
        tune([sample(LabelledMemory(items=(WireItem(text="x"),)))], SPOILT)
    mixed = [sample(puzzle(1)), sample(puzzle(1), use_labels=False)]
    with pytest.raises(InvalidRequest, match="with labels"):
        tune(mixed, SPOILT)
    with pytest.raises(InvalidRequest, match="folds"):
        tune([sample(puzzle(1))], SPOILT, folds=1)
