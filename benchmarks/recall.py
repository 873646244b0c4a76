"""Does the running service find what a question needs?

    python -m benchmarks.recall --data FILE [FILE ...] [--json OUT]

FILE is in LoCoMo's format. A server is started in a process of its own; every turn of a conversation is written to one
session through the client (speaker and time with it), and every question is asked with `recall`. The other methods rank
the same turns with the same encoder in this process (benchmarks/locomo.py tells how). `recall_ms_p50` is the client's
round trip with k = 10, the encoding of the question included; beside it the table has the same without the encoder.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence
from typing import Any

from rich.progress import Progress

import qraf
from benchmarks.harness import device_line, print_table, write_json
from benchmarks.locomo import MEASURES, Baselines, Conversation, Tally, encodings, load, measure, words_of
from benchmarks.serving import serving
from qraf.client.client import Client
from qraf.settings import EncoderSettings
from qraf.text.encoder import load_encoder

TOPOLOGY = """
version: 1
name: bench-recall
hosts: {one: {cpus: 1}}
nodes:
  notes: {role: memory, host: one, holds: sessions}
  writer: {role: generator, url: "http://127.0.0.1:9/v1", model: none}
links: [{source: notes, target: writer}]
ingress: notes
routing: {max_visits: 8, deadline_ms: 10000}
"""
_DEEP = 100  # ranks that R@20, MRR and R@512t can need; what is found below counts as not found


async def ask_service(url: str, conversations: Sequence[Conversation], progress: Progress) -> dict[str, Any]:
    """Write every turn, ask every question; rankings by conversation and question, times, and the states' bytes."""
    rankings: dict[str, list[list[str]]] = {}
    times_ms: list[float] = []
    held = items = 0
    turns = progress.add_task("writing turns", total=sum(len(one.turns) for one in conversations))
    asked = progress.add_task("asking", total=sum(len(one.questions) for one in conversations))
    async with qraf.connect(url) as q:
        for number, conversation in enumerate(conversations):
            session = f"conversation-{number}"
            await q.open_session(session)
            done = await q.write(
                [
                    {"item_id": turn.id, "text": turn.text, "speaker": turn.speaker, "at": turn.at}
                    for turn in conversation.turns
                ],
                session=session,
                progress=lambda n: progress.advance(turns, n),
            )
            assert done.accepted == len(conversation.turns), done
            held, items = held + done.state.bytes, items + done.state.items
            found = rankings[conversation.id] = []
            for question in conversation.questions:
                started = time.perf_counter()
                await q.recall(question.text, session=session, k=10)
                times_ms.append(1e3 * (time.perf_counter() - started))
                answer = await q.recall(question.text, session=session, k=_DEEP)
                found.append([one.item_id for one in answer.evidence])
                progress.advance(asked)
        encoder_ms = await _encoder_ms(q)
    return {"rankings": rankings, "times_ms": times_ms, "encoder_ms": encoder_ms, "bytes": held, "items": items}


async def _encoder_ms(q: Client) -> float:
    """The mean time that the server spent on encoding a question."""
    values = {}
    for line in (await q.metrics()).splitlines():
        for kind in ("sum", "count"):
            if line.startswith(f'qraf_recall_duration_seconds_{kind}{{stage="encode"}}'):
                values[kind] = float(line.split()[-1])
    return 1e3 * values["sum"] / values["count"]


def run(paths: Sequence[str]) -> dict[str, Any]:
    """Every method on every question."""
    conversations = [one for path in paths for one in load(path)]

    async def served() -> dict[str, Any]:
        with Progress(transient=True) as progress:
            async with serving(TOPOLOGY) as url:
                return await ask_service(url, conversations, progress)

    answers = asyncio.run(served())
    encoder, tally = load_encoder(EncoderSettings()), Tally()
    for conversation in conversations:
        coded = encodings(conversation, encoder.encode)
        baselines, num_words = Baselines(conversation, coded["plain"], coded["labelled"]), words_of(conversation)
        for row, question in enumerate(conversation.questions):
            rankings = {"qraf": answers["rankings"][conversation.id][row]}
            rankings |= baselines.rankings(question.text, coded["whole"][row], coded["nameless"][row])
            for method, ranking in rankings.items():
                tally.add(method, measure(ranking, question.evidence, num_words))
    p50 = statistics.median(answers["times_ms"])
    return {
        "questions": len(answers["times_ms"]),
        "methods": tally.means(),
        "bytes_per_item": round(answers["bytes"] / answers["items"], 1),
        "recall_ms_p50": round(p50, 2),
        "encoder_ms_mean": round(answers["encoder_ms"], 2),
        "items": answers["items"],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE")
    parser.add_argument("--json", metavar="OUT")
    args = parser.parse_args()
    result = run(args.data)
    print_table(
        f"recall through the service, percent of gold: {result['questions']} questions, {result['items']} items",
        ("method", *MEASURES),
        [(method, *(f"{values[name]:.1f}" for name in MEASURES)) for method, values in result["methods"].items()],
    )
    print(
        f"{result['bytes_per_item']} bytes an item; recall p50 {result['recall_ms_p50']} ms from the client, "
        f"of which encoding takes {result['encoder_ms_mean']} ms in the mean; {device_line()}"
    )
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    main()
