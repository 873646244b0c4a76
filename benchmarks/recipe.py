"""Does the memory find what a question needs? The recipe in this process, without a service around it.

    python -m benchmarks.recipe --data FILE [--json OUT] [--bits 4] [--cache FILE]

One memory for each conversation of a file in LoCoMo's format (benchmarks/locomo.py); the table is that of
benchmarks.recall, which asks the running service.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import device_line, print_table, write_json
from benchmarks.locomo import MEASURES, Baselines, Conversation, Encode, Tally, encodings, load, measure, words_of
from qraf.memory.memory import Memory
from qraf.records import Item, RecallQuery, session_memory
from qraf.settings import EncoderSettings
from qraf.text.encoder import load_encoder
from qraf.text.prepare import prepare

__all__ = ["evaluate", "main"]


def evaluate(conversations: Sequence[Conversation], encode: Encode, bits: int = 4) -> dict[str, Any]:
    """Ask every question of every conversation, by every method."""
    tally, times_ms, held, num_items = Tally(), list[float](), 0, 0
    for conversation in conversations:
        coded = encodings(conversation, encode)
        memory = filled(conversation, coded["plain"], bits)
        num_words = words_of(conversation)
        baselines = Baselines(conversation, coded["plain"], coded["labelled"])
        for row, question in enumerate(conversation.questions):
            prompt = prepare(question.text, conversation.speakers, coded["nameless"][row])
            start = time.perf_counter()
            memory.recall([RecallQuery(prompt, k=10)])
            times_ms.append(1e3 * (time.perf_counter() - start))
            answer = memory.recall([RecallQuery(prompt, k=len(memory))])[0]
            rankings = {"qraf": [conversation.turns[one.seq - 1].id for one in answer.evidence]}
            rankings |= baselines.rankings(question.text, coded["whole"][row], coded["nameless"][row])
            for method, ranking in rankings.items():
                tally.add(method, measure(ranking, question.evidence, num_words))
        held += memory.nbytes
        num_items += len(memory)
    return {
        "questions": len(times_ms),
        "methods": tally.means(),
        "bytes_per_item": round(held / max(1, num_items), 1),
        "recall_ms_p50": round(statistics.median(times_ms), 3) if times_ms else 0.0,
        "items": num_items,
    }


def filled(conversation: Conversation, amplitudes: NDArray[np.float32], bits: int = 4) -> Memory:
    """A memory of all turns; an item's seq is its place in the conversation, from 1."""
    memory = Memory(session_memory(conversation.id), amplitudes.shape[1], bits=bits)
    items = [
        Item(seq=place, item_id=turn.id, text=turn.text, speaker=turn.speaker, at=turn.at)
        for place, turn in enumerate(conversation.turns, 1)
    ]
    memory.absorb(items, amplitudes)
    return memory


def cached(encode: Encode, path: Path, name: str) -> Encode:
    """Keep encodings in a file between runs; `name` tells encoders apart."""
    known: dict[str, NDArray[np.float32]] = {}
    if path.exists():
        with np.load(path) as data:
            known = dict(zip(data["keys"].tolist(), data["rows"], strict=True))

    def remembered(texts: list[str]) -> NDArray[np.float32]:
        keys = [hashlib.blake2b(f"{name}\0{text}".encode(), digest_size=16).hexdigest() for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if missing:
            known.update(zip(missing, encode(list(missing.values())), strict=True))
            np.savez(path, keys=np.array(list(known)), rows=np.stack(list(known.values())))
        return np.stack([known[key] for key in keys])

    return remembered


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipe", description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True, help="files in LoCoMo's format")
    parser.add_argument("--json", help="write the result here")
    parser.add_argument("--bits", type=int, default=4, choices=(4, 8, 32))
    parser.add_argument("--encoder", default="minilm", choices=("minilm", "wordllama"))
    parser.add_argument("--cache", type=Path, help="an .npz file that keeps encodings between runs")
    args = parser.parse_args(argv)
    encoder = load_encoder(EncoderSettings(name=args.encoder))
    encode: Encode = encoder.encode
    if args.cache:
        encode = cached(encode, args.cache, encoder.name)
    result = evaluate([one for path in args.data for one in load(path)], encode, args.bits)
    print_table(
        f"recall of gold evidence, percent: {result['questions']} questions, {result['items']} items",
        ("method", *MEASURES),
        [(method, *(f"{values[name]:.1f}" for name in MEASURES)) for method, values in result["methods"].items()],
    )
    print(f"{result['bytes_per_item']} bytes an item, {result['recall_ms_p50']} ms a recall (median); {device_line()}")
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    main()
