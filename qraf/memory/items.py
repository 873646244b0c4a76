"""The items of a memory as columns in order of seq: coded amplitudes, registers, times, speakers, flags. No text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from qraf.errors import InvalidState
from qraf.memory.columns import Column
from qraf.memory.lexical import Lexicon, Register
from qraf.memory.tiers import Tiers, composed
from qraf.records import Item
from qraf.text.lexicon import term_ids, words

__all__ = ["ROLES", "Items", "SeqView"]

ROLES = ("user", "assistant", "tool", "document")
_ROLE_BITS = 3  # of the flags; the others are one bit each
_QUESTION, _PINNED = 8, 16
_COLUMNS = ("seq", "infidelity", "guaranteed", "at", "speaker", "flags", "words")
_DICT_ENTRY_BYTES = 104  # what one entry of a dict of small objects costs beside its value


class SeqView(Set[int]):
    """The seqs of a memory, ascending, as they were when it was asked for: a set that costs 4 bytes a seq."""

    def __init__(self, seqs: NDArray[Any]) -> None:
        self._seqs = seqs

    def __contains__(self, seq: object) -> bool:
        if not isinstance(seq, int | np.integer):
            return False
        row = int(np.searchsorted(self._seqs, int(seq)))
        return row < len(self._seqs) and int(self._seqs[row]) == int(seq)

    def __iter__(self) -> Iterator[int]:
        return iter(self._seqs.tolist())

    def __len__(self) -> int:
        return len(self._seqs)

    def __repr__(self) -> str:
        return f"SeqView({len(self)} items)"


class Items:
    """Columns of equal length; row order is the order of seq, whatever order items came in.

    `coded` are the amplitudes; `infidelity` is what coding each item lost, measured when it was coded, and `guaranteed`
    what it lost at most, both float16.
    """

    def __init__(self, dim: int, bits: int) -> None:
        self.coded = Tiers(dim, bits)
        self._seq: Column[Any] = Column(np.uint32, np.int64)
        self._infidelity: Column[Any] = Column(np.float16)
        self._guaranteed: Column[Any] = Column(np.float16)
        self._at: Column[Any] = Column(np.float64)
        self._speaker: Column[Any] = Column(np.uint8, np.uint16, np.uint32)
        self._flags: Column[Any] = Column(np.uint8)
        self._words: Column[Any] = Column(np.uint16, np.uint32)
        self._columns = (
            self._seq,
            self._infidelity,
            self._guaranteed,
            self._at,
            self._speaker,
            self._flags,
            self._words,
        )
        self.lexicon = Lexicon()
        self.speakers: list[str | None] = [None]
        self.metadata: dict[int, bytes] = {}
        self.expires_at: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._seq)

    # ----------------------------------------------------------------------------------------------------- columns
    @property
    def seqs(self) -> SeqView:
        """The seqs, as a set; later changes do not show in it."""
        return SeqView(self._seq.values.copy())

    @property
    def seq(self) -> NDArray[Any]:
        """Seqs, (n,), ascending."""
        return self._seq.values

    @property
    def infidelity(self) -> NDArray[np.float16]:
        """What coding lost, (n,)."""
        values: NDArray[np.float16] = self._infidelity.values
        return values

    @property
    def guaranteed(self) -> NDArray[np.float16]:
        """What coding lost at most, (n,)."""
        values: NDArray[np.float16] = self._guaranteed.values
        return values

    @property
    def at(self) -> NDArray[np.float64]:
        """Times, (n,)."""
        values: NDArray[np.float64] = self._at.values
        return values

    @property
    def speaker(self) -> NDArray[Any]:
        """Index into `speakers`, (n,)."""
        return self._speaker.values

    @property
    def words(self) -> NDArray[Any]:
        """Words, (n,)."""
        return self._words.values

    @property
    def role(self) -> NDArray[np.uint8]:
        """Index into `ROLES`, (n,)."""
        role: NDArray[np.uint8] = np.bitwise_and(self._flags.values, (1 << _ROLE_BITS) - 1)
        return role

    @property
    def is_question(self) -> NDArray[np.bool_]:
        """Whether the text ends with a question mark, (n,)."""
        return (self._flags.values & _QUESTION) > 0

    @property
    def is_pinned(self) -> NDArray[np.bool_]:
        """Whether the item is pinned, (n,)."""
        return (self._flags.values & _PINNED) > 0

    def overlaps(self, q: NDArray[np.float32], rows: slice | NDArray[np.int64] = slice(None)) -> NDArray[np.float32]:
        """The estimate of <q|psi> for every query (m, d) and every one of `rows`, (m, k)."""
        overlaps: NDArray[np.float32] = self.coded.scan(q, rows)
        gain = self.gain(rows)
        return overlaps if gain is None else overlaps * gain.astype(np.float32)

    def amplitudes(self, rows: slice | NDArray[np.int64] = slice(None)) -> NDArray[np.float32]:
        """The amplitudes of `rows`, (k, d), whose overlaps are those of `overlaps`."""
        decoded: NDArray[np.float32] = self.coded.decoded(rows)
        gain = self.gain(rows)
        return decoded if gain is None else decoded * gain[:, None].astype(np.float32)

    def gain(self, rows: slice | NDArray[np.int64] = slice(None)) -> NDArray[np.float64] | None:
        """What <q|psi'> is to be multiplied by, (k,); None where nothing is.

        A code of 2 bits or 1 is a projection: it shrinks every overlap, by |psi'| sqrt F on average, as its error is
        orthogonal to a query that knows nothing of it. Undone, so that scores of items on different rungs compare (as
        in RaBitQ, Gao & Long 2024).
        """
        lengths = self.coded.lengths(rows)
        if lengths is None:
            return None
        shrunk = lengths * np.sqrt(1 - self.infidelity[rows].astype(np.float64))
        gain: NDArray[np.float64] = np.divide(1.0, shrunk, out=np.ones(len(shrunk)), where=shrunk > 0)
        return gain

    @property
    def nbytes(self) -> int:
        """Bytes allocated: columns, registers, names, metadata and what holds them."""
        columns = self.coded.nbytes + sum(column.nbytes for column in self._columns)
        return columns + self.lexicon.nbytes + _loose_bytes(self.speakers, self.metadata, self.expires_at)

    def nbytes_beside(self, rows: NDArray[np.int64]) -> int:
        """What `rows`, ascending, would take without the others and without their coded amplitudes."""
        seqs = self.seq[rows].tolist()
        columns = sum(column.size_of(column.values[rows]) for column in self._columns)
        names = [self.speakers[one] for one in np.unique(self.speaker[rows]).tolist()]
        notes = {seq: self.metadata[seq] for seq in seqs if seq in self.metadata} if self.metadata else {}
        ends = {seq: 0.0 for seq in seqs if seq in self.expires_at} if self.expires_at else {}
        return columns + self.lexicon.size_of(rows) + _loose_bytes(names, notes, ends)

    def find(self, seqs: Sequence[int]) -> NDArray[np.int64]:
        """The rows of those `seqs` that are here, ascending, each once."""
        wanted = np.unique(np.array([seq for seq in seqs if 0 <= seq < 1 << 63], np.int64))
        rows: NDArray[np.int64] = np.searchsorted(self.seq, wanted)
        inside = rows < len(self)
        is_here = np.zeros(len(wanted), bool)
        is_here[inside] = self.seq[rows[inside]] == wanted[inside]
        return rows[is_here]

    # ------------------------------------------------------------------------------------------------------ changes
    def add(
        self,
        items: Sequence[Item],
        rows: NDArray[np.uint8],
        infidelity: NDArray[np.float16],
        guaranteed: NDArray[np.float16],
    ) -> int:
        """Take in items with ascending seqs that are not here yet; the first row that holds one of them."""
        n, before = len(items), len(self)
        seq = np.array([item.seq for item in items], np.int64)
        first = int(np.searchsorted(self.seq, seq[0])) if n else before
        registers = [_register(item) for item in items]  # all that can fail comes before the first column grows
        notes = {item.seq: msgspec.msgpack.encode(item.metadata) for item in items if item.metadata}
        added = (
            (self._seq, seq),
            (self._infidelity, infidelity),
            (self._guaranteed, guaranteed),
            (self._at, np.array([item.at for item in items], np.float64)),
            (self._flags, np.array([_flags(item) for item in items], np.int64)),
            (self._words, np.array([words(item.text) for item in items], np.int64)),
            (self._speaker, np.array([self._speaker_index(item.speaker) for item in items], np.int64)),
        )
        self.lexicon.append(registers)
        self.coded.append(rows)
        for column, values in added:
            column.append(values)
        self.metadata.update(notes)
        self.expires_at.update({item.seq: item.expires_at for item in items if item.expires_at is not None})
        if first < before:
            self._take(np.argsort(self.seq, kind="stable"))
        return first

    def remove(self, rows: NDArray[np.int64]) -> None:
        """Let `rows` go: zeroed where they are, then closed up."""
        gone = self.seq[rows].tolist()
        self.coded.zero(rows)
        for seq in gone:
            self.metadata.pop(seq, None)
            self.expires_at.pop(seq, None)
        kept = np.ones(len(self), bool)
        kept[rows] = False
        self._take(np.flatnonzero(kept))
        used, index = np.unique(np.concatenate(([0], self.speaker)), return_inverse=True)
        self.speakers = [self.speakers[one] for one in used.tolist()]
        self._speaker.replace(index[1:])

    def lower(self, rows: NDArray[np.int64], level: int) -> None:
        """Bring `rows`, ascending, from the rung above down to `level`."""
        fidelity = self.coded.lower(rows, level)
        lost = composed(self.infidelity[rows], self.guaranteed[rows], fidelity)
        self.infidelity[rows], self.guaranteed[rows] = lost

    # ------------------------------------------------------------------------------------------------------ snapshots
    def parts(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What is held, to be put elsewhere: facts, and copies of the columns."""
        facts = {"speakers": list(self.speakers), "metadata": dict(self.metadata), "expires_at": dict(self.expires_at)}
        columns = {name: column.values.copy() for name, column in zip(_COLUMNS, self._columns, strict=True)}
        return facts, {**columns, **self.coded.parts(), **self.lexicon.parts()}

    def put(self, facts: Mapping[str, Any], parts: Mapping[str, NDArray[Any]]) -> None:
        """Hold what `parts` gave, in place of what is here.

        Raises:
            InvalidState: the parts do not belong together.
        """
        seq, speakers = parts["seq"], list(facts["speakers"])
        for name in (*_COLUMNS, "level", "lengths"):
            if parts[name].shape != seq.shape:
                raise InvalidState(name, f"have shape {seq.shape}", f"has {parts[name].shape}")
        if len(seq) > 1 and not bool((seq[1:] > seq[:-1]).all()):
            raise InvalidState("seq", "rise", "does not")
        if len(seq) and int(parts["speaker"].max()) >= len(speakers):
            raise InvalidState("speaker", f"be below {len(speakers)}", f"goes up to {int(parts['speaker'].max())}")
        self.coded.put(parts)
        self.lexicon.put(parts)
        for name, column in zip(_COLUMNS, self._columns, strict=True):
            column.replace(parts[name])
        self.speakers, self.metadata, self.expires_at = speakers, dict(facts["metadata"]), dict(facts["expires_at"])

    def _take(self, rows: NDArray[np.int64]) -> None:
        self.coded.take(rows)
        for column in self._columns:
            column.replace(column.values[rows])
        self.lexicon.take(rows)

    def _speaker_index(self, name: str | None) -> int:
        if name is None:
            return 0
        try:
            return self.speakers.index(name)
        except ValueError:
            self.speakers.append(name)
            return len(self.speakers) - 1


def _loose_bytes(names: Sequence[str | None], notes: dict[int, bytes], ends: dict[int, float]) -> int:
    """Bytes of what is kept in dicts and lists: of speakers' names, of metadata, of times of expiry."""
    named = sum(_DICT_ENTRY_BYTES + len(name.encode()) for name in names if name is not None)
    noted = sum(_DICT_ENTRY_BYTES + len(note) for note in notes.values())
    return named + noted + _DICT_ENTRY_BYTES * len(ends)


def _register(item: Item) -> Register:
    """Stems of the text with the speaker; none where there is no text."""
    if not item.text:
        return np.zeros(0, np.uint32), np.zeros(0, np.uint16)
    ids, counts, _ = term_ids(f"{item.speaker}: {item.text}" if item.speaker else item.text)
    return ids, counts


def _flags(item: Item) -> int:
    ends = item.text.rstrip().rstrip("\"'”’)").endswith(("?", "？", "؟"))
    return ROLES.index(item.role) | (_QUESTION if ends else 0) | (_PINNED if item.pin else 0)
