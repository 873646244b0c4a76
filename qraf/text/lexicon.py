"""The lexical register of a text: Snowball stems as stable 28-bit ids with their counts.

Words of the Latin script are stemmed as English; other scripts keep their words whole, and scripts that are written
without spaces (Chinese, Japanese kana, Thai, Lao, Khmer, Burmese) give one term for each character.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from hashlib import blake2b
from threading import Lock

import numpy as np
import snowballstemmer
from numpy.typing import NDArray

__all__ = ["ID_BITS", "STOP_WORDS", "TOKENS_PER_WORD", "stems", "term_id", "term_ids", "words"]

ID_BITS = 28  # leaves four bits for the count in a packed uint32
TOKENS_PER_WORD = 1.3  # of a language model, on average; what a token budget is counted with

_STOP_LIST = """
a an and are as at be but by for if in into is it no not of on or such that the their then there these they this
to was will with i you he she we me my your his her our us him them its do does did has have had what when where
which who whom how why am were been being s t m re ve ll d
"""
STOP_WORDS = frozenset(_STOP_LIST.split())

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_RUN = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_LONG_RUN = 16
_MAX_TERM = 64  # characters; longer runs are data, not words, and are cut so that an index stays an index

_stemmer = snowballstemmer.stemmer("english")
_stemmer_lock = Lock()  # a stemmer keeps its state between calls


def stems(text: str) -> list[str]:
    """The stems of a text in order, stop words left out.

    >>> stems("The skis were running down Zürich's hills")
    ['ski', 'run', 'down', 'zürich', 'hill']
    >>> stems("我喜欢猫 и собак")
    ['我', '喜', '欢', '猫', 'и', 'собак']
    """
    folded = unicodedata.normalize("NFKC", text).lower()
    return [_stem(word[:_MAX_TERM]) for word in _TOKEN.findall(folded) if word not in STOP_WORDS]


def term_ids(text: str) -> tuple[NDArray[np.uint32], NDArray[np.uint16], int]:
    """The stems of a text as a sparse register.

    Returns:
        Ids (28 bits, ascending, each once), how often each occurs (at most 65535), and the number of all stems.

    >>> ids, counts, length = term_ids("tea, tea and coffee")
    >>> len(ids), sorted(counts.tolist()), length
    (2, [1, 2], 3)
    """
    counted: Counter[int] = Counter(map(term_id, stems(text)))
    length = counted.total()
    ordered = sorted(counted.items())
    ids = np.array([term for term, _ in ordered], np.uint32)
    counts = np.array([min(count, 65535) for _, count in ordered], np.uint16)
    return ids, counts, length


@lru_cache(maxsize=65536)
def term_id(stem: str) -> int:
    """The id of a stem: 28 bits of BLAKE2b, the same on every machine and in every version.

    >>> term_id("tea") == term_id("tea") < 2**28
    True
    """
    return int.from_bytes(blake2b(stem.encode(), digest_size=4).digest(), "little") & ((1 << ID_BITS) - 1)


def words(text: str) -> int:
    """How many words a text has: runs between spaces; characters in scripts written without spaces.

    Addresses, keys and compounds are many tokens to a language model: beyond 16 bytes every four are a word.

    >>> words("I'm here, at last."), words("我喜欢猫"), words(""), words("https://example.com/a?b=c"), words("x" * 116)
    (4, 4, 0, 4, 26)
    """
    return sum(1 + max(0, len(run.encode(errors="replace")) - _LONG_RUN + 3) // 4 for run in _RUN.findall(text))


@lru_cache(maxsize=65536)
def _stem(word: str) -> str:
    with _stemmer_lock:
        return str(_stemmer.stemWord(word))
