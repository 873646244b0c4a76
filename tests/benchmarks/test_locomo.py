from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.locomo import MEASURES, Baselines, Tally, encodings, load, measure, words_of
from benchmarks.recipe import cached, evaluate
from qraf.errors import InvalidRequest
from tests.encoders import HashEncoder

TALK = {
    "sample_id": "conv-1",
    "conversation": {
        "speaker_a": "Ann",
        "speaker_b": "Bob",
        "session_2_date_time": "1:56 pm on 8 May, 2023",
        "session_2": [{"speaker": "Bob", "dia_id": "D2:1", "text": "My lamp broke.", "blip_caption": "a green lamp"}],
        "session_1_date_time": "12:05 am on 7 May, 2023",
        "session_1": [
            {"speaker": "Ann", "dia_id": "D1:1", "text": "I bought a red kite."},
            {"speaker": "Bob", "dia_id": "D1:2", "text": "Where did you find it?"},
        ],
        "session_3_date_time": "a session without turns",
    },
    "qa": [
        {"question": "What did Ann buy?", "answer": "a kite", "evidence": ["D1:1; D01:2", "D9:9"], "category": 1},
        {"question": "What broke?", "answer": 1, "evidence": ["D:2:1"], "category": 4},
        {"question": "Not answerable?", "evidence": ["D1:1"], "category": 5},
        {"question": "No evidence?", "answer": "x", "evidence": ["D9:9"], "category": 2},
    ],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "talk.json"
    path.write_text(json.dumps([TALK]))
    return path


def test_a_file_becomes_turns_in_order_and_questions_with_gold(file: Path) -> None:
    [conversation] = load(file)
    assert [turn.id for turn in conversation.turns] == ["D1:1", "D1:2", "D2:1"]
    assert [turn.at for turn in conversation.turns] == [1683417900.0, 1683417910.0, 1683554160.0]
    assert conversation.turns[2].text == "My lamp broke. [shares a photo: a green lamp]"
    assert [question.evidence for question in conversation.questions] == [("D1:1", "D1:2"), ("D2:1",)]
    assert conversation.speakers == ("Ann", "Bob")


def test_measures_are_those_computed_by_hand() -> None:
    ranking, num_words = list("abcdefg"), dict.fromkeys("abcdefg", 100)
    assert measure(ranking, ["c", "f"], num_words) == (0.0, 0.5, 1.0, 1.0, pytest.approx(1 / 3), 0.5)  # 3 turns fit 512
    assert measure([], ["c"], {}) == (0.0,) * 6
    tally = Tally()
    tally.add("m", (1.0,) * 6)
    tally.add("m", (0.0,) * 6)
    assert tally.means() == {"m": dict.fromkeys(MEASURES, 50.0)}


def test_every_method_finds_what_is_said_in_the_same_words(file: Path) -> None:
    [conversation] = load(file)
    encoder = HashEncoder(64)
    coded = encodings(conversation, encoder.encode)
    rankings = Baselines(conversation, coded["plain"], coded["labelled"]).rankings(
        "Which red kite?", *encoder.encode(["Which red kite?", "Which red kite?"])
    )
    assert {name: ranking[0] for name, ranking in rankings.items()} == dict.fromkeys(
        ("dense_flat", "bm25", "hybrid"), "D1:1"
    )
    result = evaluate([conversation], encoder.encode)
    assert (result["questions"], result["items"]) == (2, 3)
    assert set(result["methods"]) == {"qraf", "dense_flat", "bm25", "hybrid"}
    assert result["methods"]["qraf"]["R@20"] == 100
    assert words_of(conversation)["D1:2"] == 5


def test_encodings_are_kept_between_runs(tmp_path: Path) -> None:
    encoder = HashEncoder(8)
    first = cached(encoder.encode, tmp_path / "e.npz", "hash")(["a", "b", "a"])
    again = cached(encoder.encode, tmp_path / "e.npz", "hash")(["b", "a", "c"])
    assert encoder.encoded == 3
    assert np.array_equal(first[[1, 0]], again[:2])


@pytest.mark.parametrize("text", ["{", "[{}]", '[{"conversation": {}}]', "[3]"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match="LoCoMo"):
        load(path)
