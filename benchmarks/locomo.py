"""LoCoMo files: conversations, questions with gold evidence, the usual baselines, and the measures of recall.

A file is a list of conversations with `conversation` (speakers, sessions with a date, turns) and `qa`. What counts:
- a turn's text carries the caption of the picture that it shares, for every method alike;
- a turn's time is its session's date (read as UTC) and 10 s for each turn before it;
- questions of category 5 (not answerable) and questions without an evidence id that exists are left out;
- recall = share of a question's gold turns that are found, averaged over the questions.

Baselines, on the same turns:
- `dense_flat`: cosine of "speaker: text" with the question, as a vector index does by default;
- `bm25`: BM25 with its usual constants (k1 = 1.2, b = 0.75), stems, text with the speaker;
- `hybrid`: both, each scaled to 0..1 per question, half and half, tuned on locomo-dev as far as it goes: k1 = 0.4,
  b = 0, the dense part as in QRAF (text without the speaker, question without the participants' names).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qraf.errors import InvalidRequest
from qraf.text.lexicon import TOKENS_PER_WORD, stems, words
from qraf.text.prepare import prompt_text

__all__ = [
    "MEASURES",
    "Baselines",
    "Conversation",
    "Encode",
    "Question",
    "Tally",
    "Turn",
    "encodings",
    "load",
    "measure",
    "words_of",
]

MEASURES = ("R@1", "R@5", "R@10", "R@20", "MRR", "R@512t")
TURN_S = 10.0
_UNANSWERABLE = 5
_TOKENS = 512
_DATE_FORMAT = "%I:%M %p on %d %B, %Y"
_GOLD = re.compile(r"D:?(\d+):(\d+)")

Encode = Callable[[list[str]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker said; `id` is the file's, as "D3:14"."""

    id: str
    session: int
    speaker: str
    text: str
    at: float


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the ids of the turns that answer it."""

    text: str
    answer: str
    category: int
    evidence: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """The turns of two speakers over many sessions, and the questions about them."""

    id: str
    speakers: tuple[str, ...]
    turns: tuple[Turn, ...]
    questions: tuple[Question, ...]


def load(path: str | Path) -> list[Conversation]:
    """Read a file in LoCoMo's format.

    Raises:
        InvalidRequest: the file is not in that format; what is missing, and where.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        return [_conversation(entry, number) for number, entry in enumerate(data)]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InvalidRequest(f"'{path}' is not in LoCoMo's format: {type(error).__name__}: {error}") from error


def measure(ranking: Sequence[str], gold: Iterable[str], num_words: Mapping[str, int]) -> tuple[float, ...]:
    """The `MEASURES` of one ranking, each 0 to 1.

    R@512t counts the longest prefix of the ranking that fits 512 tokens.

    >>> measure(["b", "a"], ["a"], {"a": 3, "b": 400})
    (0.0, 1.0, 1.0, 1.0, 0.5, 0.0)
    """
    rank = {turn: number for number, turn in enumerate(ranking)}
    found = [rank[turn] for turn in gold if turn in rank]
    num_gold = len(set(gold))
    spent, fits = 0.0, 0
    for turn in ranking:
        spent += num_words[turn] * TOKENS_PER_WORD
        if spent > _TOKENS:
            break
        fits += 1
    at = [sum(one < k for one in found) / num_gold for k in (1, 5, 10, 20, fits)]
    return (*at[:4], 1 / (1 + min(found)) if found else 0.0, at[4])


class Tally:
    """Adds measures up, method by method, and gives their means in percent."""

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, method: str, measures: Sequence[float]) -> None:
        """Count one question."""
        self._sums[method] = self._sums.get(method, np.zeros(len(MEASURES))) + np.asarray(measures)
        self._counts[method] += 1

    def means(self) -> dict[str, dict[str, float]]:
        """Give `{method: {measure: percent}}`."""
        return {
            method: dict(zip(MEASURES, (100 * sums / self._counts[method]).round(2).tolist(), strict=True))
            for method, sums in self._sums.items()
        }


class Baselines:
    """The other methods on one conversation's turns.

    Args:
        conversation: the turns.
        plain: encodings of the turns' texts, (n, d).
        labelled: encodings of "speaker: text", (n, d).
    """

    def __init__(self, conversation: Conversation, plain: NDArray[np.float32], labelled: NDArray[np.float32]) -> None:
        self._ids = [turn.id for turn in conversation.turns]
        self._plain, self._labelled = plain, labelled
        docs = [stems(f"{turn.speaker}: {turn.text}") for turn in conversation.turns]
        self._usual, self._tuned = _Bm25(docs, 1.2, 0.75), _Bm25(docs, 0.4, 0.0)

    def rankings(
        self, question: str, whole: NDArray[np.float32], nameless: NDArray[np.float32]
    ) -> dict[str, list[str]]:
        """Rank all turns.

        Args:
            question: the question's text.
            whole: its encoding, (d,).
            nameless: the encoding of the question without the participants' names, (d,).
        """
        asked = stems(question)
        dense, lexical = self._plain @ nameless, self._tuned(asked)
        scores = {
            "dense_flat": self._labelled @ whole,
            "bm25": self._usual(asked),
            "hybrid": 0.5 * _scaled(dense) + 0.5 * _scaled(lexical),
        }
        return {name: [self._ids[row] for row in np.argsort(-score, kind="stable")] for name, score in scores.items()}


def encodings(conversation: Conversation, encode: Encode) -> dict[str, NDArray[np.float32]]:
    """Encode all that the methods need: turns `plain` and `labelled`, questions `whole` and `nameless`."""
    asked = [question.text for question in conversation.questions]
    texts = {
        "plain": [turn.text for turn in conversation.turns],
        "labelled": [f"{turn.speaker}: {turn.text}" for turn in conversation.turns],
        "whole": asked,
        "nameless": [prompt_text(text, conversation.speakers) for text in asked],
    }
    return {name: encode(batch) for name, batch in texts.items()}


def words_of(conversation: Conversation) -> dict[str, int]:
    """The length of each turn, for the token budget."""
    return {turn.id: words(turn.text) for turn in conversation.turns}


class _Bm25:
    def __init__(self, docs: Sequence[Sequence[str]], k1: float, b: float) -> None:
        self._n = len(docs)
        lengths = np.array([len(doc) for doc in docs], np.float64)
        mean = lengths.mean() if lengths.sum() else 1.0
        df = Counter(stem for doc in docs for stem in set(doc))
        self._postings: dict[str, list[tuple[int, float]]] = {}
        for row, doc in enumerate(docs):
            for stem, tf in Counter(doc).items():
                idf = np.log1p((self._n - df[stem] + 0.5) / (df[stem] + 0.5))
                weight = idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * lengths[row] / mean))
                self._postings.setdefault(stem, []).append((row, float(weight)))

    def __call__(self, query: Sequence[str]) -> NDArray[np.float64]:
        score = np.zeros(self._n)
        for stem in query:
            for row, weight in self._postings.get(stem, ()):
                score[row] += weight
        return score


def _scaled(score: NDArray[Any]) -> NDArray[Any]:
    spread = float(score.max() - score.min()) if len(score) else 0.0
    return (score - score.min()) / spread if spread > 0 else np.zeros_like(score)


def _conversation(entry: Mapping[str, Any], number: int) -> Conversation:
    talk = entry["conversation"]
    sessions = sorted(int(key[8:]) for key in talk if re.fullmatch(r"session_\d+", key))
    turns: list[Turn] = []
    for session in sessions:
        began = datetime.strptime(talk[f"session_{session}_date_time"], _DATE_FORMAT).replace(tzinfo=UTC).timestamp()
        for place, turn in enumerate(talk[f"session_{session}"]):
            text = str(turn["text"])
            if turn.get("blip_caption"):
                text = f"{text} [shares a photo: {turn['blip_caption']}]"
            turns.append(Turn(turn["dia_id"], session, turn["speaker"], text, began + TURN_S * place))
    known = {turn.id for turn in turns}
    questions = []
    for asked in entry["qa"]:
        gold = tuple(dict.fromkeys(turn for turn in _ids(asked.get("evidence", [])) if turn in known))
        if asked["category"] != _UNANSWERABLE and gold:
            questions.append(Question(asked["question"], str(asked.get("answer", "")), asked["category"], gold))
    speakers = tuple(dict.fromkeys(turn.speaker for turn in turns))
    return Conversation(str(entry.get("sample_id", number)), speakers, tuple(turns), tuple(questions))


def _ids(evidence: Sequence[str]) -> list[str]:
    """Gold ids; some entries hold several, as "D8:6; D9:17", or leading zeros."""
    return [f"D{int(s)}:{int(t)}" for entry in evidence for s, t in _GOLD.findall(entry)]
