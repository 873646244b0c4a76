from __future__ import annotations

from benchmarks import tune
from benchmarks.locomo import Conversation, Question, Turn
from tests.encoders import HashEncoder


def test_every_start_is_measured_on_what_was_not_tuned_on() -> None:
    talks = [
        Conversation(
            str(number),
            ("Ann", "Bob"),
            tuple(Turn(f"D1:{n}", 1, "Ann", f"word{n} word{number} and three more", 60.0 * n) for n in range(6)),
            (Question("What of word3?", "", 1, ("D1:3",)),),
        )
        for number in range(2)
    ]
    encoder = HashEncoder(32)
    rows = tune.evaluate(talks, encoder.encode, encoder.dim, train=1)
    assert [(row["start"], row["data"]) for row in rows[:2]] == [("defaults", "labels"), ("defaults", "own text")]
    assert len(rows) == 2 * len(tune.STARTS)
    assert all(row["unseen"]["after"] == row["unseen"]["before"] for row in rows)  # too few prompts: kept
    assert rows[0]["unseen"]["before"] == {"R@10": 100.0, "MRR": 100.0}
