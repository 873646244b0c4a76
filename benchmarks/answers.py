"""Does the evidence enhance the answer? How far it brings a language model towards the right one.

    python -m benchmarks.answers --data FILE [FILE ...] [--questions N] [--json OUT]

FILE is in LoCoMo's format. A server is started, the turns are written, and every question is asked with `recall`; the
evidence is put before the question as the service itself does. Measured is how surprised SmolLM2-135M-Instruct is by
the gold answer (bits per token, exact, see benchmarks/scoring.py; a model of this size is too small to grade what it
writes by itself), with as evidence

- `closed`: nothing;
- `random`: ten turns of the conversation, at random: what dates and names alone bring;
- `dense10`: the ten turns nearest by MiniLM cosine, as a vector index finds them;
- `qraf`: the service's ranking, what `enhance` would take of it and fits the tokens that `dense10` took;
- `gold`: the turns that the answer is in.

The N questions are drawn so that each kind has the share that it has among all: see `_sample`. `found` is how many
percent of the gold turns are in the prompt, of the questions `asked` and of `all`.

Bits per token are the mean over the questions, each counting once; `pooled` counts every token once, so that long
answers weigh more. gap = (closed - x) / (closed - gold), the share of the way to the gold evidence. choice8 = how often
the gold answer gains most, per token, over `closed` among eight: seven are answers to other questions of its
conversation, of its category first (chance: 12.5 percent). Intervals are 95 percent, by bootstrap over the questions.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

import qraf
from benchmarks.harness import device_line, print_table, write_json
from benchmarks.locomo import Conversation, Question, load
from benchmarks.recall import TOPOLOGY
from benchmarks.serving import serving
from qraf.frames import EvidenceChoice
from qraf.records import Evidence
from qraf.settings import EncoderSettings
from qraf.text.encoder import load_encoder
from qraf.text.prompt import build_messages, evidence_line
from qraf.text.weights import find_weights

if TYPE_CHECKING:
    from benchmarks.scoring import Scorer

CONTEXTS = ("closed", "random", "dense10", "qraf", "gold")
_BY_EVIDENCE = CONTEXTS[1:4]
_At = tuple[str, int]  # a question: its conversation, its row there
_ANSWER = "Answer:"  # opens the assistant's turn, so that the model does not spend bits on how to begin
_MAX_ANSWER_TOKENS = 16
_NUM_TURNS = 10
_DEEP = 40  # ranks of the service that the tokens of ten turns can need
_NUM_CHOICES = 8
_RESAMPLES = 2000


def run(paths: Sequence[str], num_questions: int, threads: int, seed: int = 0) -> dict[str, Any]:
    """Measure `num_questions` of the files' questions under every context; `seed` draws turns and wrong answers."""
    from benchmarks.scoring import Scorer  # transformers take seconds to import: not for those who ask for --help

    rng = random.Random(seed)
    conversations = {one.id: one for path in paths for one in load(path)}
    with Progress(transient=True) as progress:
        served = asyncio.run(_ask_service(conversations, progress))
        nearest = _dense(conversations)
        scorer = Scorer(find_weights(None), threads)
        known = {name: _Notes(scorer, one) for name, one in conversations.items()}
        evidence = {at: known[at[0]].within(served[at], nearest[at]) for at in served}
        asked = _sample(conversations, evidence, num_questions)
        bar = progress.add_task("answers", total=len(asked))
        measured = []
        for name, row in asked:
            question = conversations[name].questions[row]
            choices = _candidates(conversations[name], question, rng)
            measured.append(_measure(scorer, known[name], question, evidence[name, row], choices, rng))
            progress.advance(bar)
    result = _result(measured)
    result["found"] = {
        context: {"asked": _mean_found(conversations, evidence, asked, context)}
        | {"all": _mean_found(conversations, evidence, list(evidence), context)}
        for context in ("dense10", "qraf")
    }
    return result


class _Notes:
    """A conversation's turns as evidence, and the tokens of each as a line of the prompt."""

    def __init__(self, scorer: Scorer, conversation: Conversation) -> None:
        self.items = {
            turn.id: Evidence(
                seq=seq,
                memory="s/x",
                node="x",
                score=0.0,
                text=turn.text,
                speaker=turn.speaker,
                at=turn.at,
                item_id=turn.id,
            )
            for seq, turn in enumerate(conversation.turns)
        }
        self.cost = {turn: len(scorer.tokens(evidence_line(item) + "\n")) for turn, item in self.items.items()}

    def within(self, ranking: Sequence[str], nearest: Sequence[str]) -> dict[str, list[str]]:
        """What goes into the prompt: the nearest turns, and as much of the ranking as fits their tokens."""
        budget = sum(self.cost[turn] for turn in nearest)
        return {"dense10": list(nearest), "qraf": _within(ranking, self.cost, budget)}


def _sample(
    conversations: Mapping[str, Conversation], evidence: Mapping[_At, Mapping[str, Sequence[str]]], num: int
) -> list[_At]:
    """Questions that stand for all of them: each kind has the share among the few that it has among all.

    The kinds: categories, in them what part of the gold evidence each ranking brings, conversations. How far a question
    comes depends on these above all, and they are known of every question before any is measured (proportionate
    stratification by systematic sampling: Cochran, *Sampling Techniques*, 3rd ed., sections 5.1, 8.1).
    """

    def kind(at: _At) -> tuple[float | str, ...]:
        question = conversations[at[0]].questions[at[1]]
        return (question.category, *(_found(question, evidence[at][context]) for context in ("qraf", "dense10")), *at)

    pool = sorted((at for at in evidence if conversations[at[0]].questions[at[1]].answer), key=kind)
    num = min(num, len(pool))
    return sorted(pool[(2 * pick + 1) * len(pool) // (2 * num)] for pick in range(num))


def _found(question: Question, turns: Sequence[str]) -> float:
    return sum(turn in turns for turn in question.evidence) / len(question.evidence)


def _mean_found(
    conversations: Mapping[str, Conversation],
    evidence: Mapping[_At, Mapping[str, Sequence[str]]],
    asked: Sequence[_At],
    context: str,
) -> float:
    shares = [_found(conversations[name].questions[row], evidence[name, row][context]) for name, row in asked]
    return round(100 * float(np.mean(shares)), 1)


async def _ask_service(conversations: Mapping[str, Conversation], progress: Progress) -> dict[_At, list[str]]:
    """The running service's ranking for every question, as turn ids, as far down as `enhance` takes it."""
    found, share = {}, EvidenceChoice().min_share
    writing = progress.add_task("writing turns", total=sum(len(one.turns) for one in conversations.values()))
    asking = progress.add_task("recalling", total=sum(len(one.questions) for one in conversations.values()))
    async with serving(TOPOLOGY) as url, qraf.connect(url) as q:
        for number, (name, one) in enumerate(conversations.items()):
            session = f"conversation-{number}"
            await q.open_session(session)
            turns = [
                {"item_id": turn.id, "text": turn.text, "speaker": turn.speaker, "at": turn.at} for turn in one.turns
            ]
            await q.write(turns, session=session, progress=lambda n: progress.advance(writing, n))
            for row, question in enumerate(one.questions):
                answer = await q.recall(question.text, session=session, k=_DEEP)
                least = share * max((item.probability for item in answer.evidence), default=0.0)
                found[name, row] = [item.item_id for item in answer.evidence if item.probability >= least]
                progress.advance(asking)
    return found


def _dense(conversations: Mapping[str, Conversation]) -> dict[_At, list[str]]:
    """The turns nearest to every question, as `dense_flat` of benchmarks.locomo ranks them."""
    encoder = load_encoder(EncoderSettings())
    nearest = {}
    for name, one in conversations.items():
        turns = encoder.encode([f"{turn.speaker}: {turn.text}" for turn in one.turns])
        questions = encoder.encode([question.text for question in one.questions])
        for row, scores in enumerate(questions @ turns.T):
            best = np.argsort(-scores, kind="stable")[:_NUM_TURNS]
            nearest[name, row] = [one.turns[turn].id for turn in best]
    return nearest


def _measure(
    scorer: Scorer,
    notes: _Notes,
    question: Question,
    evidence: Mapping[str, list[str]],
    choices: Sequence[str],
    rng: random.Random,
) -> dict[str, Any]:
    """Bits per token of the eight candidates, the gold one first, and the tokens of evidence, under each context."""
    chosen = {
        "closed": [],
        "random": rng.sample(list(notes.items), min(_NUM_TURNS, len(notes.items))),
        **evidence,
        "gold": list(question.evidence),
    }
    answers = [scorer.tokens(f" {text}")[:_MAX_ANSWER_TOKENS] for text in choices]
    bits = {}
    for context, turns in chosen.items():
        messages = build_messages(question.text, [notes.items[turn] for turn in turns])
        bits[context] = np.array(scorer.bits(scorer.chat(messages, _ANSWER), answers))
    lengths = np.array([len(answer) for answer in answers])
    return {
        "bits": bits,
        "lengths": lengths,
        "tokens": {context: sum(notes.cost[turn] for turn in turns) for context, turns in chosen.items()},
    }


def _within(ranking: Sequence[str], cost: Mapping[str, int], budget: int) -> list[str]:
    """The best of the ranking that fit the budget together: as in the service, one that does not fit is passed over."""
    taken, spent = [], 0
    for turn in ranking:
        if spent + cost[turn] <= budget:
            taken.append(turn)
            spent += cost[turn]
    return taken


def _candidates(conversation: Conversation, question: Question, rng: random.Random) -> list[str]:
    """The gold answer, then seven others, no two alike."""
    others = [one for one in conversation.questions if one.answer]
    rng.shuffle(others)
    others.sort(key=lambda one: one.category != question.category)
    distinct = {question.answer.strip().lower(): question.answer}
    for one in others:
        if len(distinct) == _NUM_CHOICES:
            break
        distinct.setdefault(one.answer.strip().lower(), one.answer)
    return list(distinct.values())


def _result(measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the questions, and their intervals; `pooled`: all answers' bits over all their tokens."""
    gold = {context: np.array([one["bits"][context][0] for one in measured]) for context in CONTEXTS}
    lengths = np.array([one["lengths"][0] for one in measured])
    hits = {
        context: np.array(
            [np.argmax((one["bits"]["closed"] - one["bits"][context]) / one["lengths"]) == 0 for one in measured], float
        )
        for context in CONTEXTS[1:]
    }
    every = np.arange(len(measured))[None]
    draws = np.random.default_rng(0).integers(0, len(measured), (_RESAMPLES, len(measured)))
    bits, resampled = (
        {context: (values / lengths)[rows].mean(axis=1) for context, values in gold.items()} for rows in (every, draws)
    )
    pooled, pools = (
        {context: values[rows].sum(axis=1) / lengths[rows].sum(axis=1) for context, values in gold.items()}
        for rows in (every, draws)
    )
    gap, gaps, pooled_gap, pooled_gaps = (
        {context: _gap(one, context) for context in _BY_EVIDENCE} for one in (bits, resampled, pooled, pools)
    )
    return {
        "questions": len(measured),
        "bits": {context: round(float(values[0]), 3) for context, values in bits.items()},
        "gap": {context: round(float(values[0]), 3) for context, values in gap.items()},
        "choice8": {context: round(100 * float(values.mean()), 1) for context, values in hits.items()},
        "pooled": {
            "bits": {context: round(float(values[0]), 3) for context, values in pooled.items()},
            "gap": {context: round(float(values[0]), 3) for context, values in pooled_gap.items()},
            "gap_intervals": {context: _interval(values) for context, values in pooled_gaps.items()},
        },
        "evidence_tokens": {
            context: round(float(np.mean([one["tokens"][context] for one in measured])), 1) for context in CONTEXTS
        },
        "intervals": {
            "bits": {context: _interval(values) for context, values in resampled.items()},
            "gap": {context: _interval(values) for context, values in gaps.items()},
            "choice8": {context: _interval(100 * values[draws].mean(axis=1)) for context, values in hits.items()},
            "gap_qraf_minus_dense10": _interval(gaps["qraf"] - gaps["dense10"]),
        },
    }


def _gap(bits: Mapping[str, NDArray[np.float64]], context: str) -> NDArray[np.float64]:
    gap: NDArray[np.float64] = (bits["closed"] - bits[context]) / (bits["closed"] - bits["gold"])
    return gap


def _interval(values: NDArray[np.float64]) -> list[float]:
    return [round(float(value), 3) for value in np.quantile(values, (0.025, 0.975))]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE")
    parser.add_argument("--questions", type=int, default=100, metavar="N")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", metavar="OUT")
    args = parser.parse_args()
    result = run(args.data, args.questions, args.threads)
    intervals = result["intervals"]
    print_table(
        f"the gold answer's bits per token, SmolLM2-135M-Instruct, {result['questions']} questions",
        ("evidence", "tokens", "bits", "gap closed", "", "choice of 8", ""),
        [
            (
                context,
                f"{result['evidence_tokens'][context]:.0f}",
                f"{result['bits'][context]:.2f}",
                *_with_interval(result["gap"], intervals["gap"], context, ".2f"),
                *_with_interval(result["choice8"], intervals["choice8"], context, ".0f"),
            )
            for context in CONTEXTS
        ],
    )
    low, high = intervals["gap_qraf_minus_dense10"]
    print(f"gap of qraf over dense10: {low:+.2f} to {high:+.2f}; {device_line()}")
    pooled = result["pooled"]["gap"]
    print(f"with every token counting once: gap of qraf {pooled['qraf']:.2f}, of dense10 {pooled['dense10']:.2f}")
    found = ", ".join(
        f"{context} {share['asked']:.0f} (of all {share['all']:.0f})" for context, share in result["found"].items()
    )
    print(f"percent of the gold turns in the prompt: {found}")
    if args.json:
        write_json(args.json, result)


def _with_interval(values: Mapping[str, float], intervals: Mapping[str, Any], name: str, form: str) -> tuple[str, str]:
    if name not in values:
        return "", ""
    low, high = intervals[name]
    return f"{values[name]:{form}}", f"{low:{form}} to {high:{form}}"


if __name__ == "__main__":
    main()
