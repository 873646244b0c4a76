from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qraf.clock import FakeClock
from qraf.memory.memory import Memory
from qraf.records import Item, RecallQuery, RecallSettings
from qraf.text.prepare import prepare, prompt_text
from tests.encoders import HashEncoder

DIM = 32
MAY = 1_683_460_800.0  # 2023-05-07T12:00:00Z
TALK = [
    ("Ann", "I bought a red kite yesterday."),
    ("Bob", "Where did you buy it?"),
    ("Ann", "In the small shop beside the station."),
    ("Bob", "My sister collects old lamps and kites."),
    ("Ann", "The weather was windy enough to fly."),
]


class Bench:
    """A memory with an encoder beside it, as a node has it."""

    def __init__(self, settings: RecallSettings | None = None, dim: int = DIM, **choices: Any) -> None:
        self.clock = FakeClock(MAY + 3600)
        self.encoder = HashEncoder(dim)
        self.memory = Memory("s/test", dim, settings, clock=self.clock, **choices)
        self.speakers: set[str] = set()

    def amplitudes(self, items: Sequence[Item]) -> NDArray[np.float32]:
        return self.encoder.encode([item.text for item in items])

    def absorb(self, items: Sequence[Item]) -> list[bytes]:
        self.speakers |= {item.speaker for item in items if item.speaker}
        return self.memory.absorb(items, self.amplitudes(items))

    def query(self, text: str, k: int = 10, **choices: Any) -> RecallQuery:
        speakers = sorted(self.speakers)
        [amplitudes] = self.encoder.encode([prompt_text(text, speakers)])
        return RecallQuery(prepare(text, speakers, amplitudes), k=k, **choices)

    def ask(self, text: str, k: int = 10, **choices: Any) -> list[int]:
        return [one.seq for one in self.memory.recall([self.query(text, k, **choices)])[0].evidence]


def talk(
    pairs: Sequence[tuple[str | None, str]] = TALK, first_seq: int = 1, at: float = MAY, **facts: Any
) -> list[Item]:
    return [
        Item(seq=first_seq + n, item_id=f"i{first_seq + n}", text=text, speaker=speaker, at=at + 20 * n, **facts)
        for n, (speaker, text) in enumerate(pairs)
    ]


def many(n: int, seed: int = 0) -> list[Item]:
    rng = np.random.default_rng(seed)
    vocabulary = [f"word{number}" for number in range(60)]
    at = MAY + np.cumsum(rng.choice([30.0, 400.0, 90_000.0], n, p=[0.7, 0.2, 0.1]))
    return [
        Item(
            seq=3 * number + 1,
            item_id=str(number),
            text=" ".join(rng.choice(vocabulary, rng.integers(1, 12))) + rng.choice([".", "?"]),
            speaker=str(rng.choice(["Ann", "Bob", "Cleo"])),
            at=float(at[number]),
        )
        for number in range(n)
    ]


@pytest.fixture
def bench() -> Bench:
    return Bench()
