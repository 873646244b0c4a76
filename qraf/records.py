"""Frozen records that cross a floor or a process: no behaviour, no torch.

Arrays are NumPy, so that a record travels through Ray without a copy. What goes over the wire is in `frames`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MIN_BUDGET_BYTES",
    "Advertisement",
    "DateMention",
    "Evidence",
    "Figures",
    "Filter",
    "ForgetReceipt",
    "Item",
    "NodeAnswer",
    "NodeStats",
    "Prompt",
    "RecallQuery",
    "RecallSettings",
    "Role",
    "Terms",
    "Visit",
    "collection_memory",
    "empty_advertisement",
    "session_memory",
]

MIN_BUDGET_BYTES = 4096
"""The least that a memory may be allowed to hold."""

Role = Literal["user", "assistant", "tool", "document", "recalled"]


def session_memory(session: str) -> str:
    """The memory key of a session."""
    return f"s/{session}"


def collection_memory(collection: str) -> str:
    """The memory key of a collection."""
    return f"c/{collection}"


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What a memory's state measures, with the sketch's certificates as intervals.

    `entropy_bits` S(rho), `coherence_bits` H(p) - S(rho) (relative entropy of coherence of the Gram state),
    `purity` Tr rho^2, `effective_rank` 2^S, `compression_ratio` = bytes of the float32 amplitudes that came in / bytes
    held, `fidelity` = mean squared overlap of coded with exact amplitudes, measured on write; `fidelity_bound` is
    guaranteed. `tiers` counts the items at each precision, best first, and those that a byte budget has moved out of
    memory: {"4": 80, "2": 20, "1": 0, "evicted": 0}; fidelities are means over what is held. `budget_bytes` is that
    budget, if there is one. An empty memory has zero items and all figures zero, fidelity 1.
    """

    version: int = 0
    items: int = 0
    bytes: int = 0
    rank: int = 0
    bits: int = 4
    entropy_bits: float = 0.0
    entropy_interval: tuple[float, float] = (0.0, 0.0)
    coherence_bits: float = 0.0
    purity: float = 0.0
    effective_rank: float = 0.0
    compression_ratio: float = 0.0
    fidelity: float = 1.0
    fidelity_bound: float = 1.0
    tiers: dict[str, int] = {}
    budget_bytes: int | None = None


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """How one item's score came about.

    `dense + lexical + interference` = (alpha A_d)^2 + ((1-alpha) A_l)^2 + 2 alpha (1-alpha) A_d A_l, the item's own
    Born weight; `neighbours` is what the items around it add; the last four are factors (1 = no effect).
    score = (dense + lexical + interference + neighbours) * speaker * question * clock * decay.
    """

    dense: float = 0.0
    lexical: float = 0.0
    interference: float = 0.0
    neighbours: float = 0.0
    speaker: float = 1.0
    question: float = 1.0
    clock: float = 1.0
    decay: float = 1.0


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """An item with its probability.

    `score` is the unnormalised Born weight and compares across memories; `probability` is its share of the score of
    everything that was measured for this prompt. A host leaves the text fields empty; they are joined from the journal.
    """

    seq: int
    memory: str
    node: str
    score: float
    probability: float = 0.0
    words: int = 0
    terms: Terms | None = None
    item_id: str = ""
    text: str = ""
    speaker: str | None = None
    role: str = "user"
    at: float = 0.0
    metadata: dict[str, Any] = {}


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One remembered piece (a turn, a passage) as the journal holds it.

    `seq` is the journal's number: positive, unique in the whole journal, rising in commit order. `at` is seconds since
    1970. `amplitudes` (float32 bytes, d values) only where the client sent them instead of text; `codes` are the coded
    amplitudes once a host has made them, so that a memory rebuilds without encoding again; `code` names what their
    bytes mean.
    """

    seq: int
    item_id: str
    text: str = ""
    speaker: str | None = None
    role: str = "user"
    at: float = 0.0
    metadata: dict[str, Any] = {}
    pin: bool = False
    expires_at: float | None = None
    amplitudes: bytes | None = None
    codes: bytes | None = None
    code: str | None = None


class Filter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A tree of conditions. Either one of AND, OR, NOT, or a condition `{"field": .., "eq": ..}`.

    Fields: `speaker`, `role`, `at` (RFC 3339 or seconds), `item_id`, `pin`, and `metadata.KEY`.
    """

    AND: tuple[Filter, ...] | None = None
    OR: tuple[Filter, ...] | None = None
    NOT: Filter | None = None
    field: str | None = None
    eq: Any = msgspec.UNSET
    ne: Any = msgspec.UNSET
    in_: Any = msgspec.field(name="in", default=msgspec.UNSET)
    gt: Any = msgspec.UNSET
    gte: Any = msgspec.UNSET
    lt: Any = msgspec.UNSET
    lte: Any = msgspec.UNSET
    contains: Any = msgspec.UNSET


class DateMention(msgspec.Struct, frozen=True):
    """A date named in a prompt; what is not named is None. A missing year means the best over the years present."""

    year: int | None = None
    month: int | None = None
    day: int | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt prepared as a state: dense amplitudes (d,) float32, unit norm; lexical register as stem ids and counts.

    `amplitudes` come from the text without the names of the participants, `terms` (uint32) from the whole text.
    `named` are the participants that the text names, casefolded; empty when it names none.
    """

    amplitudes: NDArray[np.float32]
    terms: NDArray[np.uint32]
    counts: NDArray[np.float32]
    named: tuple[str, ...] = ()
    dates: tuple[DateMention, ...] = ()


@dataclass(frozen=True, slots=True)
class RecallQuery:
    """One measurement of one memory."""

    prompt: Prompt
    k: int = 10
    filter: Filter | None = None
    as_of: float | None = None
    explain: bool = False


@dataclass(frozen=True, slots=True)
class Visit:
    """Ask one node about one memory."""

    node: str
    memory: str
    query: RecallQuery


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    """What one node answered. `mass` is the summed score over every item that was measured."""

    node: str
    host: str
    memory: str
    evidence: tuple[Evidence, ...]
    mass: float
    items_scanned: int
    figures: Figures
    ms: float
    error: str = ""
    fault: Exception | None = None  # the error, where trying again would not help


@dataclass(frozen=True, slots=True)
class Advertisement:
    """What a memory tells the router: a 2048-bit lexical bitmap, the int8 mean state, two times: 660 bytes at d = 384.

    `bitmap` (256 bytes) has bit `term_id % 2048` set for every stem; `centroid` is int8 (d,), times `scale` the mean of
    the item amplitudes. `items` and `version` are bookkeeping beside it. `first_at`, `last_at` are the times of the
    oldest and the newest item, for prompts that name a date; both 0 where they are not told. `items` is -1 where what
    was told before is not true any more and nothing else is known yet.
    """

    node: str
    memory: str
    bitmap: bytes
    centroid: bytes
    scale: float
    items: int = 0
    version: int = 0
    first_at: float = 0.0
    last_at: float = 0.0


def empty_advertisement(node: str, memory: str, dim: int, items: int = 0) -> Advertisement:
    """What a memory tells in which there is nothing any more; with `items` -1, that it tells nothing any more."""
    return Advertisement(node=node, memory=memory, bitmap=bytes(256), centroid=bytes(dim), scale=0.0, items=items)


@dataclass(frozen=True, slots=True)
class ForgetReceipt:
    """What was forgotten: how many, and the figures before and after."""

    memory: str
    forgotten: int
    before: Figures
    after: Figures


@dataclass(frozen=True, slots=True)
class NodeStats:
    """Counters of one node since its host started; they add up over nodes and time."""

    node: str
    host: str
    epoch: int = 0
    memories: int = 0
    items: int = 0
    bytes: int = 0
    written: int = 0
    recalled: int = 0
    busy_s: float = 0.0
    figures: Figures = field(default_factory=Figures)
    corrected: int = 0  # items whose stored codes came back damaged and were coded anew
    stopped: int = 0  # memories that answer no more, because rows of theirs do not open


@dataclass(frozen=True, slots=True)
class RecallSettings:
    """The constants of recall; frozen after tuning, overridable per node in the topology.

    `alpha` weighs the dense against the lexical amplitude; `k1`, `b` are BM25's; `previous`, `following` are the shares
    of the neighbours in the mixed state of the context; the gains are those of the speaker, question and clock
    registers; `episode_gap_s` is the silence that parts two stretches of conversation.
    """

    alpha: float = 0.5
    whiten: bool = False
    whiten_eps: float = 0.5
    whiten_power: float = 0.5
    k1: float = 0.4
    b: float = 0.0
    previous: tuple[float, ...] = (0.4, 0.2, 0.1)
    following: tuple[float, ...] = (0.25, 0.125, 0.0625)
    speaker_gain: float = 1.5
    question_loss: float = 0.4
    question_words: int = 25
    date_gain: float = 6.0
    day_sigma_d: float = 4.0
    month_sigma_d: float = 15.0
    year_sigma_d: float = 150.0
    episode_gap_s: float = 6 * 3600.0
