from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.budget import SHARES, evaluate
from benchmarks.locomo import load
from tests.encoders import HashEncoder

pytestmark = pytest.mark.slow  # all of them together


@pytest.fixture
def file(tmp_path: Path) -> Path:
    turns = [
        {"speaker": ("Ann", "Bob")[n % 2], "dia_id": f"D1:{n}", "text": f"Thing{n} is beside thing{n + 1}."}
        for n in range(240)
    ]
    talk = {"session_1_date_time": "1:56 pm on 8 May, 2023", "session_1": turns}
    asked = [
        {"question": f"What is thing{n} beside?", "answer": "x", "evidence": [f"D1:{n}"], "category": 1}
        for n in (1, 170, 238)
    ]
    path = tmp_path / "talk.json"
    path.write_text(json.dumps([{"sample_id": "conv-1", "conversation": talk, "qa": asked}]))
    return path


def test_budgets_are_kept_and_what_left_is_not_found(file: Path) -> None:
    result = evaluate(load(file), HashEncoder(384).encode)
    methods = result["methods"]
    assert list(methods) == ["4 bit", "2 bit", "1 bit", *(f"budget {share:.0%}" for share in SHARES)]
    assert (result["questions"], result["items"]) == (3, 240)
    whole = methods["4 bit"]
    assert methods["budget 100%"] == whole
    for share in SHARES:
        one = methods[f"budget {share:.0%}"]
        assert one["bytes"] <= share * whole["bytes"]
        assert sum(one["tiers"].values()) == 240
    assert whole["R@10"] == 100
    assert methods["budget 25%"]["tiers"]["evicted"] > 1
    assert methods["budget 25%"]["R@10"] == pytest.approx(200 / 3, abs=0.01)  # the oldest of three answers has left
    assert whole["fidelity"] > methods["2 bit"]["fidelity"] > methods["1 bit"]["fidelity"]
