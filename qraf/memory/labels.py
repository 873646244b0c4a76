"""Prompts with known evidence, for tuning: read from JSON lines, or made from a memory's own text.

A line is one memory:

    {"session": "kitchen", "items": [{"item_id": "t1", "text": "I am allergic to nuts.", "speaker": "Ana"}],
     "prompts": [{"prompt": "What can Ana not eat?", "evidence": ["t1"]}]}

`items` are those of `qraf write`; `session` or `collection` (optional) says which nodes the line is for; a document is
cut into passages, and evidence that names it is found with any of them. Lines that are items themselves, as
`qraf write` takes them, make up one memory without prompts.

Without prompts a memory asks itself: an item is left out, its text is the prompt, and the items that stood beside it
(turns in one stretch of conversation, passages of one source) are the evidence. What that can and cannot tell:
docs/tuning.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from qraf.clock import FakeClock
from qraf.errors import InvalidRequest
from qraf.frames import WireItem
from qraf.memory.memory import Memory
from qraf.records import Item, Prompt, RecallQuery, RecallSettings
from qraf.text.passages import passages
from qraf.text.prepare import prepare, prompt_text
from qraf.times import parse_time

__all__ = ["LabelledMemory", "LabelledPrompt", "Sample", "Spec", "read_labels", "sample_of"]

Encode = Callable[[list[str]], NDArray[np.float32]]

_BATCH = 64  # texts between two reports of progress
_LEAST_WORDS = 5  # a shorter turn says too little to ask with
_MOST_PROMPTS = 200  # that one memory asks itself
_STEP_S = 1.0  # between items without a time


class LabelledPrompt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A prompt and the ids of the items that answer it; `at` is when it was asked, by default after the last item."""

    prompt: str
    evidence: tuple[str, ...]
    at: str | float | None = None


class LabelledMemory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One memory's items in order, and prompts about them."""

    items: tuple[WireItem, ...]
    prompts: tuple[LabelledPrompt, ...] = ()
    session: str | None = None
    collection: str | None = None


@dataclass(frozen=True, slots=True)
class Spec:
    """How a node keeps and reads its memories."""

    settings: RecallSettings
    bits: int = 4
    rank: int = 32
    half_life_s: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """A memory, queries to it, and for each query its evidence: groups of rows, of which any one is enough."""

    memory: Memory
    queries: tuple[RecallQuery, ...]
    gold: tuple[tuple[tuple[int, ...], ...], ...]
    left_out: tuple[tuple[int, ...], ...]
    is_labelled: bool


def read_labels(path: Path | str) -> list[LabelledMemory]:
    """The memories of a file of JSON lines.

    Raises:
        InvalidRequest: the file cannot be read, a line is neither a memory nor an item, or evidence is not among a
            memory's items; by file and line.
    """
    found: list[LabelledMemory] = []
    loose: list[WireItem] = []
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"'{path}' cannot be read: {error}") from None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            head = msgspec.json.decode(line)
            if isinstance(head, dict) and ("items" in head or "prompts" in head):
                memory = msgspec.convert(head, LabelledMemory)
                _check(memory)
                found.append(memory)
            else:
                item = msgspec.convert(head, WireItem | str)
                loose.append(WireItem(text=item) if isinstance(item, str) else item)
        except (msgspec.DecodeError, InvalidRequest) as error:
            raise InvalidRequest(f"{path}:{number}: {error}") from None
    if loose:
        found.append(LabelledMemory(items=tuple(loose)))
    if not any(memory.items for memory in found):
        raise InvalidRequest(f"'{path}' has no items")
    return found


def sample_of(
    given: LabelledMemory,
    spec: Spec,
    encode: Encode,
    dim: int,
    *,
    use_labels: bool = True,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Sample:
    """Encode a memory's items and prompts and put them together as a node would; `progress` hears of encoded texts.

    Raises:
        InvalidRequest: an item has a time or amplitudes that do not fit.
    """
    items, vectors, groups = _items(given.items, dim)
    texts = [index for index, vector in enumerate(vectors) if vector is None]
    coded = _encoded([items[index].text for index in texts], encode, dim, progress)
    amplitudes = np.zeros((len(items), dim), np.float32)
    amplitudes[texts] = coded
    for index, vector in enumerate(vectors):
        if vector is not None:
            amplitudes[index] = vector
    end = max((item.at for item in items), default=0.0)
    memory = Memory(
        "s/tune",
        dim,
        spec.settings,
        bits=spec.bits,
        rank=spec.rank,
        half_life_s=spec.half_life_s,
        clock=FakeClock(end),
    )
    memory.absorb(items, amplitudes)
    speakers = tuple(dict.fromkeys(item.speaker for item in items if item.speaker))
    if use_labels:
        asked = [(each.prompt, None if each.at is None else parse_time(each.at)) for each in given.prompts]
        gold = [tuple(groups[name] for name in dict.fromkeys(each.evidence)) for each in given.prompts]
        left_out: list[tuple[int, ...]] = [()] * len(asked)
    else:
        chosen, gold = _own_prompts(items, spec.settings.episode_gap_s, seed)
        asked = [(items[index].text, None) for index in chosen]
        left_out = [(index,) for index in chosen]
    prompts = _prompts([text for text, _ in asked], speakers, encode, dim, progress)
    queries = [RecallQuery(prompt, as_of=at) for prompt, (_, at) in zip(prompts, asked, strict=True)]
    return Sample(memory, tuple(queries), tuple(gold), tuple(left_out), use_labels)


def _check(memory: LabelledMemory) -> None:
    if memory.session is not None and memory.collection is not None:
        raise InvalidRequest("a memory is a session or a collection, but both are named")
    known = {item.item_id for item in memory.items if item.item_id is not None}
    for number, each in enumerate(memory.prompts):
        if not each.prompt.strip():
            raise InvalidRequest("a prompt must not be empty", f"/prompts/{number}/prompt")
        if not each.evidence:
            raise InvalidRequest("a prompt needs evidence", f"/prompts/{number}/evidence")
        for name in each.evidence:
            if name not in known:
                raise InvalidRequest(f"no item has the id '{name}'", f"/prompts/{number}/evidence")


def _items(
    given: Sequence[WireItem], dim: int
) -> tuple[list[Item], list[tuple[float, ...] | None], dict[str, tuple[int, ...]]]:
    """Items as a memory takes them, their amplitudes where they came along, and the rows of each item's id."""
    items: list[Item] = []
    vectors: list[tuple[float, ...] | None] = []
    groups: dict[str, tuple[int, ...]] = {}
    at = 0.0
    for number, wire in enumerate(given):
        at = at + _STEP_S if wire.at is None else parse_time(wire.at, f"/items/{number}/at")
        if wire.role == "recalled":
            raise InvalidRequest("recalled text is no item of a memory", f"/items/{number}/role")
        if wire.text is None and wire.amplitudes is None:
            raise InvalidRequest("an item needs `text` or `amplitudes`", f"/items/{number}")
        if wire.amplitudes is not None and len(wire.amplitudes) != dim:
            raise InvalidRequest(
                f"amplitudes must have {dim} numbers, but have {len(wire.amplitudes)}", f"/items/{number}/amplitudes"
            )
        whole = wire.text or ""
        parts = passages(whole) or [whole] if wire.role == "document" and wire.amplitudes is None else [whole]
        name = wire.item_id if wire.item_id is not None else f"#{number}"
        if name in groups:
            raise InvalidRequest(f"two items have the id '{name}'", f"/items/{number}/item_id")
        groups[name] = tuple(range(len(items), len(items) + len(parts)))
        for part in parts:
            source = (
                wire.metadata if "source" in wire.metadata or len(parts) == 1 else {**wire.metadata, "source": name}
            )
            items.append(
                Item(
                    seq=len(items) + 1,
                    item_id=name,
                    text=part,
                    speaker=wire.speaker,
                    role=wire.role,
                    at=at,
                    metadata=source,
                    pin=wire.pin,
                )
            )
            vectors.append(wire.amplitudes)
    return items, vectors, groups


def _own_prompts(items: Sequence[Item], gap_s: float, seed: int) -> tuple[list[int], list[tuple[tuple[int, ...], ...]]]:
    """Rows that ask with their own text, and the rows beside each."""
    able = [index for index, item in enumerate(items) if item.text and len(item.text.split()) >= _LEAST_WORDS]
    beside = {
        index: tuple((other,) for other in (index - 1, index + 1) if _are_beside(items, index, other, gap_s))
        for index in able
    }
    able = [index for index in able if beside[index]]
    if len(able) > _MOST_PROMPTS:
        chosen = np.random.default_rng(seed).choice(len(able), _MOST_PROMPTS, replace=False)
        able = [able[index] for index in sorted(chosen.tolist())]
    return able, [beside[index] for index in able]


def _are_beside(items: Sequence[Item], one: int, other: int, gap_s: float) -> bool:
    if not 0 <= other < len(items) or not items[other].text:
        return False
    a, b = items[one], items[other]
    if "document" in (a.role, b.role):
        return a.role == b.role and "source" in a.metadata and a.metadata["source"] == b.metadata.get("source")
    return abs(a.at - b.at) <= gap_s


def _prompts(
    texts: Sequence[str],
    speakers: Sequence[str],
    encode: Encode,
    dim: int,
    progress: Callable[[int], None] | None,
) -> list[Prompt]:
    coded = _encoded([prompt_text(text, speakers) for text in texts], encode, dim, progress)
    return [prepare(text, speakers, row) for text, row in zip(texts, coded, strict=True)]


def _encoded(
    texts: Iterable[str], encode: Encode, dim: int, progress: Callable[[int], None] | None
) -> NDArray[np.float32]:
    every = list(texts)
    parts = [np.zeros((0, dim), np.float32)]
    for start in range(0, len(every), _BATCH):
        parts.append(encode(every[start : start + _BATCH]))
        if progress is not None:
            progress(len(parts[-1]))
    return np.concatenate(parts)
