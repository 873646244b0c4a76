"""A prompt prepared as a state: what the encoder sees, and what the other registers read from the text."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from qraf.errors import InvalidState
from qraf.records import Prompt
from qraf.text.lexicon import term_ids
from qraf.text.mentions import dates, named, without_names

__all__ = ["prepare", "prompt_text"]

_WORD = re.compile(r"\w")


def prompt_text(text: str, speakers: Iterable[str]) -> str:
    """The text to encode: without the participants' names, unless nothing else is there.

    A name pulls the dense amplitude towards every turn that says it; the speaker register knows the name better.

    >>> prompt_text("What does Bob drink?", ["Bob"]), prompt_text("Bob?", ["Bob"])
    ('What does drink?', 'Bob?')
    """
    cut = without_names(text, speakers)
    return cut if _WORD.search(cut) else text


def prepare(text: str, speakers: Iterable[str], amplitudes: NDArray[np.float32]) -> Prompt:
    """Join a prompt's registers.

    Args:
        text: the whole prompt.
        speakers: the participants of the memories that it is asked of.
        amplitudes: the encoding of `prompt_text(text, speakers)`, (d,), finite; scaled here to unit norm.

    Raises:
        InvalidState: `amplitudes` is no finite vector.
    """
    psi = np.asarray(amplitudes, np.float32)
    if psi.ndim != 1 or not np.isfinite(psi).all():
        raise InvalidState("amplitudes", "be a finite vector (d,)", f"has shape {psi.shape}" if psi.ndim != 1 else "")
    norm = float(np.linalg.norm(psi.astype(np.float64)))
    if norm > 0 and abs(norm - 1) > 1e-6:
        psi = (psi / norm).astype(np.float32)
    ids, counts, _ = term_ids(text)
    return Prompt(psi, ids, counts.astype(np.float32), named(text, speakers), dates(text))
