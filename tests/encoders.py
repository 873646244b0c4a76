"""A small deterministic encoder for tests that need no model: a signed hash of words, unit norm."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


class HashEncoder:
    """Texts that share words have overlapping states; nothing is learnt."""

    name = "hash"

    def __init__(self, dim: int = 64) -> None:
        self.dim = dim
        self.encoded = 0

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        out = np.zeros((len(texts), self.dim), np.float32)
        for row, text in enumerate(texts):
            self.encoded += 1
            for word in re.findall(r"\w+", text.lower()):
                out[row] += _amplitudes(word, self.dim)
            if not out[row].any():
                out[row, 0] = 1.0
        norms: NDArray[np.float32] = np.linalg.norm(out, axis=1, keepdims=True)
        return (out / norms).astype(np.float32)


@lru_cache(10_000)
def _amplitudes(word: str, dim: int) -> NDArray[np.float32]:
    digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little")).standard_normal(dim).astype(np.float32)
