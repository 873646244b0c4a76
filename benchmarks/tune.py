"""What does tuning give, on conversations that it never saw?

    python -m benchmarks.tune --data FILE [--json OUT] [--cache FILE] [--train 3]

FILE is in LoCoMo's format (benchmarks/locomo.py). The constants are tuned on the first conversations, with their
questions as labels or with the conversations' own text, and measured on the questions of the others. They begin at the
defaults, or at constants that were spoilt on purpose: without what turns, speakers and dates say, or with nearly all
weight on one register. The defaults themselves were found on all five conversations of locomo-dev, so that there the
comparison with them is biased in their favour.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import device_line, print_table, write_json
from benchmarks.locomo import Conversation, Encode, load
from benchmarks.recipe import cached
from qraf.frames import WireItem
from qraf.memory.labels import LabelledMemory, LabelledPrompt, Sample, Spec, sample_of
from qraf.memory.tune import Measured, measure, tune
from qraf.records import RecallSettings
from qraf.settings import EncoderSettings
from qraf.text.encoder import load_encoder

__all__ = ["evaluate", "main"]

NONE = (0.0, 0.0, 0.0)
STARTS = {
    "defaults": RecallSettings(),
    "text alone": RecallSettings(
        previous=NONE, following=NONE, speaker_gain=0.0, question_loss=0.0, date_gain=0.0, k1=1.2, b=0.75
    ),
    "alpha 0.9": RecallSettings(alpha=0.9),
    "alpha 0.1": RecallSettings(alpha=0.1),
}


def evaluate(conversations: Sequence[Conversation], encode: Encode, dim: int, train: int) -> list[dict[str, Any]]:
    """A row for each start and each kind of data."""
    given = [labelled(conversation) for conversation in conversations]
    rows = []
    for name, start in STARTS.items():

        def made(part: Sequence[LabelledMemory], use_labels: bool, start: RecallSettings = start) -> list[Sample]:
            return [sample_of(each, Spec(start), encode, dim, use_labels=use_labels) for each in part]

        unseen = made(given[train:], True)
        before = measure(unseen, start)
        for use_labels in (True, False):
            samples = made(given[:train], use_labels)
            began = time.perf_counter()
            tuning = tune(samples, start)
            seconds = time.perf_counter() - began
            rows.append(
                {
                    "start": name,
                    "data": "labels" if use_labels else "own text",
                    "prompts": tuning.prompts,
                    "changed": tuning.is_better,
                    "reason": tuning.reason,
                    "constants": tuning.changed(start),
                    "held_out": {"before": percent(tuning.before), "after": percent(tuning.after)},
                    "unseen": {"before": percent(before), "after": percent(measure(unseen, tuning.settings))},
                    "seconds": round(seconds, 1),
                }
            )
    return rows


def labelled(conversation: Conversation) -> LabelledMemory:
    """A conversation as a line of labels."""
    items = tuple(
        WireItem(item_id=turn.id, text=turn.text, speaker=turn.speaker, at=turn.at) for turn in conversation.turns
    )
    prompts = tuple(LabelledPrompt(prompt=asked.text, evidence=asked.evidence) for asked in conversation.questions)
    return LabelledMemory(session=None, items=items, prompts=prompts)


def percent(measured: Measured) -> dict[str, float]:
    """R@10 and MRR in percent."""
    return {"R@10": round(100 * measured.recall_at_10, 2), "MRR": round(100 * measured.mrr, 2)}


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a file in LoCoMo's format")
    parser.add_argument("--json", help="write the result here")
    parser.add_argument("--cache", type=Path, help="an .npz file that keeps encodings between runs")
    parser.add_argument("--train", type=int, default=3, help="conversations to tune on; the others are unseen")
    args = parser.parse_args(argv)
    encoder = load_encoder(EncoderSettings(name="minilm"))
    encode: Encode = cached(encoder.encode, args.cache, encoder.name) if args.cache else encoder.encode
    rows = evaluate(load(args.data), encode, encoder.dim, args.train)
    print_table(
        "tuned on the first conversations, percent",
        ("start", "data", "prompts", "held out R@10", "MRR", "unseen R@10", "MRR", "verdict", "s"),
        [
            (
                row["start"],
                row["data"],
                row["prompts"],
                *(_move(row[part], name) for part in ("held_out", "unseen") for name in ("R@10", "MRR")),
                "changed" if row["changed"] else "kept",
                row["seconds"],
            )
            for row in rows
        ],
    )
    print(device_line())
    if args.json:
        write_json(args.json, {"rows": rows})


def _move(part: dict[str, dict[str, float]], name: str) -> str:
    return f"{part['before'][name]:.1f} -> {part['after'][name]:.1f}"


if __name__ == "__main__":
    main()
