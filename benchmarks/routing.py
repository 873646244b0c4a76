"""How much recall does routing keep? One node for each session of every conversation, all of them asked at once.

Every question goes to the real router with the nodes' real advertisements; recall is measured over the
evidence of the visited nodes, merged by score, and compared with visiting all of them. Beside it the plain centroid, as
in an inverted-file index: the nodes whose mean state has the largest cosine with the question.

    python -m benchmarks.routing --data locomo.json [--json OUT]

Settings and share of the parts were chosen on locomo-dev; read other files for a fair figure.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import print_table, write_json
from benchmarks.locomo import Conversation, Encode, Question, Tally, load, measure
from qraf.clock import SystemClock
from qraf.memory.memory import Memory
from qraf.network.loader import loads
from qraf.network.router import Router
from qraf.records import Advertisement, Item, Prompt, RecallQuery, collection_memory
from qraf.text.lexicon import words
from qraf.text.prepare import prepare, prompt_text

__all__ = ["Network", "build", "main", "run"]

_VISITS = (4, 8, 16)
_CENTROID_VISITS = (8, 16)
_K = 20  # evidence kept of each node: as many as the longest fixed prefix that is measured


@dataclass(frozen=True, slots=True)
class Network:
    """The nodes' memories, what they advertise, and which turn each item is."""

    memories: dict[str, Memory]
    advertisements: list[Advertisement]
    turn: dict[int, str]
    num_words: dict[str, int]
    router: Router


def build(conversations: Sequence[Conversation], encode: Encode) -> Network:
    """Make one node a session, let it take in its turns, and tell the router."""
    amplitudes = encode([turn.text for talk in conversations for turn in talk.turns])
    held: dict[str, list[Item]] = {}
    turn_of: dict[int, str] = {}
    num_words: dict[str, int] = {}
    for talk in conversations:
        for turn in talk.turns:
            seq = len(turn_of) + 1
            turn_of[seq] = _id(talk, turn.id)
            num_words[turn_of[seq]] = words(turn.text)
            item = Item(seq=seq, item_id=turn.id, text=turn.text, speaker=turn.speaker, at=turn.at)
            held.setdefault(f"{talk.id}.{turn.session}", []).append(item)
    memories: dict[str, Memory] = {}
    for node, items in held.items():
        memories[node] = Memory(collection_memory(node), amplitudes.shape[1])
        memories[node].absorb(items, amplitudes[[item.seq - 1 for item in items]])
    advertisements = [memory.advertisement(node) for node, memory in memories.items()]
    router = Router(loads(_topology(list(memories)), file="benchmark"), SystemClock())
    router.advertise(advertisements)
    pooled = next(iter(memories.values())).sketch.copy()
    for memory in list(memories.values())[1:]:
        pooled.merge(memory.sketch)
    router.pooled(pooled.to_bytes())
    return Network(memories, advertisements, turn_of, num_words, router)


def run(conversations: Sequence[Conversation], encode: Encode) -> dict[str, object]:
    """Ask every question; give the result as `--json` has it."""
    network = build(conversations, encode)
    nodes = list(network.memories)
    asked = [(talk, question) for talk in conversations for question in talk.questions]
    speakers = tuple(dict.fromkeys(name for talk in conversations for name in talk.speakers))
    amplitudes = encode([prompt_text(question.text, speakers) for _, question in asked])
    prompts = [prepare(question.text, speakers, row) for (_, question), row in zip(asked, amplitudes, strict=True)]
    answers = _answers(network, prompts)
    centroid = _centroid_order(network, prompts)
    memories = {node: (collection_memory(node),) for node in nodes}
    tally = Tally()
    for at, (talk, question) in enumerate(asked):
        for visits in _VISITS:
            route = network.router.route(prompts[at], memories, max_visits=visits)
            visited = [hop.node for hop in route.hops if hop.measured]
            tally.add(f"route {visits}", _measured(network, answers[at], visited, talk, question))
        for visits in _CENTROID_VISITS:
            visited = [nodes[row] for row in centroid[at][:visits]]
            tally.add(f"centroid {visits}", _measured(network, answers[at], visited, talk, question))
        tally.add("all", _measured(network, answers[at], nodes, talk, question))
    means = tally.means()
    return {
        "nodes": len(nodes),
        "questions": len(asked),
        "items": len(network.turn),
        "visits": {str(visits): means[f"route {visits}"] for visits in _VISITS} | {"all": means["all"]},
        "centroid": {str(visits): means[f"centroid {visits}"] for visits in _CENTROID_VISITS},
        "bytes_per_node": _bytes(network.advertisements[0]),
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="FILE", help="a file in LoCoMo's format")
    parser.add_argument("--json", metavar="OUT", help="write the result here, too")
    options = parser.parse_args()
    from qraf.settings import EncoderSettings
    from qraf.text.encoder import load_encoder

    result = run(load(options.data), load_encoder(EncoderSettings()).encode)
    _print(result)
    if options.json:
        write_json(options.json, result)


def _topology(nodes: Sequence[str]) -> str:
    """Give a star in YAML: a desk, every node one link away from it and from the writer."""
    all_nodes = ", ".join(nodes)
    lines = ["version: 1", "name: routing-benchmark", "nodes:", "  desk: {role: memory, holds: sessions}"]
    lines += [f"  {node}: {{role: memory, holds: [{node}]}}" for node in nodes]
    lines += ["  writer: {role: generator}", "links:", f"  - {{source: desk, target: [{all_nodes}, writer]}}"]
    lines += [f"  - {{source: [{all_nodes}], target: writer}}", "ingress: desk"]
    return "\n".join(lines) + "\n"


def _answers(network: Network, prompts: Sequence[Prompt]) -> list[dict[str, list[tuple[float, int]]]]:
    """Measure every node for every prompt: (score, seq) by node, prompt by prompt."""
    queries = [RecallQuery(prompt, k=_K) for prompt in prompts]
    answers: list[dict[str, list[tuple[float, int]]]] = [{} for _ in prompts]
    for node, memory in network.memories.items():
        for answer, found in zip(answers, memory.recall(queries), strict=True):
            answer[node] = [(evidence.score, evidence.seq) for evidence in found.evidence]
    return answers


def _centroid_order(network: Network, prompts: Sequence[Prompt]) -> NDArray[np.int64]:
    """Order the nodes for each prompt by the cosine with their plain mean state, as advertised."""
    means = np.stack([np.frombuffer(each.centroid, np.int8).astype(np.float32) for each in network.advertisements])
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    cosines = np.stack([prompt.amplitudes for prompt in prompts]) @ means.T
    return np.argsort(-cosines, axis=1, kind="stable")


def _measured(
    network: Network,
    answer: dict[str, list[tuple[float, int]]],
    visited: Sequence[str],
    talk: Conversation,
    question: Question,
) -> tuple[float, ...]:
    """Merge what the visited nodes answered, by score, and measure the ranking."""
    merged = sorted((pair for node in visited for pair in answer[node]), key=lambda pair: (-pair[0], pair[1]))
    gold = [_id(talk, turn) for turn in question.evidence]
    return measure([network.turn[seq] for _, seq in merged], gold, network.num_words)


def _bytes(advertisement: Advertisement) -> int:
    """Bytes that routing needs: bitmap, mean state, its scale as float32, two times as float64."""
    return len(advertisement.bitmap) + len(advertisement.centroid) + 4 + 2 * 8


def _id(talk: Conversation, turn: str) -> str:
    return f"{talk.id}/{turn}"


def _print(result: dict[str, object]) -> None:
    visits, centroid = result["visits"], result["centroid"]
    assert isinstance(visits, dict)
    assert isinstance(centroid, dict)
    columns = ["visited", "R@1", "R@5", "R@10", "R@20", "R@10 less than all"]
    named = [(f"{count} by the router" if count != "all" else "all", row) for count, row in visits.items()]
    named += [(f"{count} by plain centroid", row) for count, row in centroid.items()]
    rows = [
        [name, *(row[each] for each in columns[1:-1]), round(visits["all"]["R@10"] - row["R@10"], 2)]
        for name, row in named
    ]
    title = (
        f"{result['nodes']} nodes, {result['items']} turns, {result['questions']} questions; "
        f"{result['bytes_per_node']} bytes advertised a node"
    )
    print_table(title, columns, rows)


if __name__ == "__main__":
    main()
