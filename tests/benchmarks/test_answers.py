"""The answers benchmark: its arithmetic on numbers made by hand, its instrument against the engine it stands for."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from benchmarks.answers import CONTEXTS, _candidates, _mean_found, _result, _sample, _within
from benchmarks.locomo import Conversation, Question
from qraf.settings import GeneratorSettings
from qraf.text.engine import EmbeddedEngine
from qraf.text.prompt import build_messages
from qraf.text.weights import find_weights


def measured(length: int = 2, **gold: float) -> dict[str, Any]:
    """One question: the gold answer's bits under each context; the seven others stay at 5."""
    bits = {context: np.array([gold.get(context, 5.0)] + [5.0] * 7) for context in CONTEXTS}
    return {"bits": bits, "lengths": np.array([length] + [2] * 7), "tokens": dict.fromkeys(CONTEXTS, 10)}


def test_gap_is_the_share_of_the_way_to_the_gold_evidence() -> None:
    result = _result([measured(closed=6, dense10=5, qraf=4, gold=3), measured(closed=5, dense10=4, qraf=2, gold=2)])
    assert result["bits"]["closed"] == 2.75
    assert result["gap"]["dense10"] == pytest.approx(1 / 3, abs=1e-3)
    assert result["gap"]["qraf"] == pytest.approx(2.5 / 3, abs=1e-3)
    low, high = result["intervals"]["gap"]["qraf"]
    assert low <= result["gap"]["qraf"] <= high


def test_every_question_counts_once_and_pooled_every_token() -> None:
    result = _result([measured(closed=8, gold=2, length=2), measured(closed=10, gold=4, length=4)])
    assert (result["bits"]["closed"], result["bits"]["gold"]) == (3.25, 1.0)
    assert (result["pooled"]["bits"]["closed"], result["pooled"]["bits"]["gold"]) == (3.0, 1.0)


def test_choice_counts_the_gold_answer_where_it_gains_most() -> None:
    gains, loses = measured(closed=6, qraf=4, gold=3), measured(closed=5, qraf=5.5, gold=3)
    result = _result([gains, loses])
    assert (result["choice8"]["qraf"], result["choice8"]["gold"]) == (50.0, 100.0)


def test_evidence_stays_within_the_tokens_and_in_rank_order() -> None:
    cost = {"a": 4, "b": 5, "c": 1}
    assert _within(["a", "b", "c"], cost, 9) == ["a", "b"]
    assert _within(["a", "b", "c"], cost, 8) == ["a", "c"]
    assert _within(["b"], cost, 4) == []


def test_a_sample_has_the_kinds_in_the_shares_of_all() -> None:
    def conversation(name: str, num: int) -> Conversation:
        return Conversation(name, (), (), tuple(Question("q", "a", 1 + i % 4, ("D1:1", "D1:2")) for i in range(num)))

    conversations = {name: conversation(name, num) for name, num in (("a", 80), ("b", 160))}
    evidence = {
        (name, row): {"qraf": ["D1:1", "D1:2"] if row // 4 % 2 else ["D1:1"], "dense10": []}
        for name, one in conversations.items()
        for row in range(len(one.questions))
    }
    asked = _sample(conversations, evidence, 48)
    assert asked == sorted(set(asked))
    assert [sum(name == one for name, _ in asked) for one in "ab"] == [16, 32]
    assert Counter((row % 4, row // 4 % 2) for _, row in asked) == dict.fromkeys(
        itertools.product(range(4), range(2)), 6
    )
    assert len(_sample(conversations, evidence, 500)) == 240
    assert _mean_found(conversations, evidence, asked, "qraf") == 75.0


def test_candidates_are_eight_different_answers_of_the_same_kind_first() -> None:
    questions = [Question(f"q{i}", f"answer {i % 20}", 1 + i % 2, ("D1:1",)) for i in range(40)]
    conversation = Conversation("c", ("A", "B"), (), tuple(questions))
    found = _candidates(conversation, questions[3], random.Random(1))
    assert found[0] == "answer 3"
    assert len({text.lower() for text in found}) == 8
    assert all(int(text.split()[1]) % 2 == 1 for text in found)


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(240)  # transformers, a GGUF file read in Python, and two models
@pytest.mark.filterwarnings("ignore")
def test_the_instrument_reads_and_expects_what_the_engine_does() -> None:
    import httpx
    import torch

    from benchmarks.scoring import Scorer

    scorer = Scorer(find_weights(None), threads=1)
    text = "8 May 2023, Melanie: 日本 é isn't 12345  x\n\n y <|im_end|>\n"
    prompt = scorer.chat(build_messages("What is the capital of France?"), "Answer:")
    engine = EmbeddedEngine(GeneratorSettings(slots=1))
    endpoint = engine.start()
    with httpx.Client(base_url=endpoint.url.removesuffix("/v1"), timeout=60) as http:
        http.headers["authorization"] = f"Bearer {endpoint.api_key}"
        body = {"content": text, "parse_special": True}
        assert http.post("/tokenize", json=body).json()["tokens"] == scorer.tokens(text)
        body = {"prompt": prompt, "n_predict": 1, "n_probs": 5, "temperature": 0}
        (told,) = http.post("/completion", json=body).json()["completion_probabilities"]
    engine.stop()
    answers = [[one["id"]] for one in told["top_logprobs"]]
    ours = -np.array(scorer.bits(prompt, answers)) * np.log(2)
    # the engine rounds weights and activations to 8 bits
    assert np.abs(ours - [one["logprob"] for one in told["top_logprobs"]]).max() < 0.5

    long = [scorer.tokens(text) for text in (" Paris", " It is Paris, of course", " London")]
    alone = [scorer.bits(prompt, [answer])[0] for answer in long]
    assert scorer.bits(prompt, long) == pytest.approx(alone, abs=1e-3)
    with torch.inference_mode():
        logits = scorer._model(torch.tensor([prompt + long[1]])).logits[0, len(prompt) - 1 : -1]
        whole = -torch.log_softmax(logits, -1).gather(1, torch.tensor(long[1])[:, None]).sum() / np.log(2)
    assert alone[1] == pytest.approx(float(whole), abs=1e-3)
