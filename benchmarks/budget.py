"""How much does recall fall when a memory may hold fewer bytes?

    python -m benchmarks.budget --data FILE [--json OUT] [--cache FILE]

One memory for each conversation of a file in LoCoMo's format (benchmarks/locomo.py), in this process: at 4, 2 and 1
bit, and under byte budgets that are shares of what it takes at 4 bits. Turns come in 32 at a time, as they would in a
stream, so every item has stepped down from 4 bits on its own way.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import device_line, print_table, write_json
from benchmarks.locomo import MEASURES, Conversation, Encode, Tally, load, measure, words_of
from benchmarks.recipe import cached
from qraf.memory.memory import Memory
from qraf.records import Item, RecallQuery, session_memory
from qraf.settings import EncoderSettings
from qraf.text.encoder import load_encoder
from qraf.text.prepare import prepare, prompt_text

__all__ = ["SHARES", "evaluate", "main"]

SHARES = (1.0, 0.75, 0.5, 0.25)
_BATCH = 32


def evaluate(conversations: Sequence[Conversation], encode: Encode) -> dict[str, Any]:
    """Ask every question of every conversation at every precision and under every budget."""
    tally = Tally()
    sums: dict[str, dict[str, float]] = {}
    for conversation in conversations:
        turns = encode([turn.text for turn in conversation.turns])
        asked = encode([prompt_text(question.text, conversation.speakers) for question in conversation.questions])
        memories = {f"{bits} bit": _filled(conversation, turns, bits, None) for bits in (4, 2, 1)}
        whole = memories["4 bit"].nbytes
        for share in SHARES:
            memory = _filled(conversation, turns, 4, int(share * whole))
            memories[f"budget {share:.0%}"] = memory
            assert memory.nbytes <= share * whole
        num_words = words_of(conversation)
        prompts = [
            prepare(question.text, conversation.speakers, amplitudes)
            for question, amplitudes in zip(conversation.questions, asked, strict=True)
        ]
        for name, memory in memories.items():
            for question, prompt in zip(conversation.questions, prompts, strict=True):
                found = memory.recall([RecallQuery(prompt, k=len(memory))])[0].evidence
                ranking = [conversation.turns[one.seq - 1].id for one in found]
                tally.add(name, measure(ranking, question.evidence, num_words))
            figures = memory.figures()
            held = sums.setdefault(name, dict.fromkeys(("bytes", "items", "lost", "4", "2", "1", "evicted"), 0.0))
            held["bytes"] += memory.nbytes
            held["items"] += len(memory)
            held["lost"] += (1 - figures.fidelity) * len(memory)
            for tier, count in figures.tiers.items():
                held[tier] += count
    methods = {
        name: {
            **measures,
            "bytes": int(sums[name]["bytes"]),
            "fidelity": round(1 - sums[name]["lost"] / max(1.0, sums[name]["items"]), 4),
            "tiers": {tier: int(sums[name][tier]) for tier in ("4", "2", "1", "evicted")},
        }
        for name, measures in tally.means().items()
    }
    return {
        "questions": sum(len(one.questions) for one in conversations),
        "items": sum(len(one.turns) for one in conversations),
        "methods": methods,
    }


def _filled(conversation: Conversation, amplitudes: NDArray[np.float32], bits: int, max_bytes: int | None) -> Memory:
    """A memory of all turns; an item's seq is its place in the conversation, from 1."""
    memory = Memory(session_memory(conversation.id), amplitudes.shape[1], bits=bits, max_bytes=max_bytes)
    items = [
        Item(seq=place, item_id=turn.id, text=turn.text, speaker=turn.speaker, at=turn.at)
        for place, turn in enumerate(conversation.turns, 1)
    ]
    for start in range(0, len(items), _BATCH):
        memory.absorb(items[start : start + _BATCH], amplitudes[start : start + _BATCH])
    return memory


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.budget", description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True, help="files in LoCoMo's format")
    parser.add_argument("--json", help="write the result here")
    parser.add_argument("--encoder", default="minilm", choices=("minilm", "wordllama"))
    parser.add_argument("--cache", type=Path, help="an .npz file that keeps encodings between runs")
    args = parser.parse_args(argv)
    encoder = load_encoder(EncoderSettings(name=args.encoder))
    encode: Encode = encoder.encode
    if args.cache:
        encode = cached(encode, args.cache, encoder.name)
    result = evaluate([one for path in args.data for one in load(path)], encode)
    shown = ("R@1", "R@10", "R@20", "R@512t")
    assert set(shown) <= set(MEASURES)
    print_table(
        f"recall of gold evidence, percent: {result['questions']} questions, {result['items']} items",
        ("memory", "bytes an item", *shown, "fidelity", "4 bit", "2 bit", "1 bit", "evicted"),
        [
            (
                name,
                f"{one['bytes'] / max(1, result['items']):.1f}",
                *(f"{one[measure]:.1f}" for measure in shown),
                f"{one['fidelity']:.3f}",
                *(str(one["tiers"][tier]) for tier in ("4", "2", "1", "evicted")),
            )
            for name, one in result["methods"].items()
        ],
    )
    print(device_line())
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    main()
