from __future__ import annotations

import numpy as np
import pytest

from qraf.errors import InvalidState
from qraf.records import DateMention
from qraf.text.lexicon import term_id
from qraf.text.prepare import prepare, prompt_text

Q = np.array([3.0, 4.0], np.float32)


def test_a_prompt_has_all_its_registers() -> None:
    prompt = prepare("What did Bob fly, fly in May 2023?", ["Bob", "Ann"], Q)
    assert prompt.amplitudes == pytest.approx([0.6, 0.8])
    counts = dict(zip(prompt.terms.tolist(), prompt.counts.tolist(), strict=True))
    assert counts == {term_id("bob"): 1, term_id("fli"): 2, term_id("may"): 1, term_id("2023"): 1}
    assert (prompt.named, prompt.dates) == (("bob",), (DateMention(2023, 5),))
    assert (prompt.amplitudes.dtype, prompt.terms.dtype, prompt.counts.dtype) == (np.float32, np.uint32, np.float32)


def test_the_encoder_sees_no_names_unless_there_is_nothing_else() -> None:
    assert prompt_text("What did Bob fly?", ["Bob"]) == "What did fly?"
    assert prompt_text("Bob's?", ["Bob"]) == "Bob's?"
    assert prompt_text("", ["Bob"]) == ""


def test_unit_vectors_stay_as_they_are() -> None:
    unit = np.array([0.6, 0.8], np.float32)
    assert (prepare("x", [], unit).amplitudes == unit).all()
    assert (prepare("x", [], np.zeros(2, np.float32)).amplitudes == 0).all()


@pytest.mark.parametrize("amplitudes", [np.ones((1, 2), np.float32), np.array([np.nan, 0], np.float32)])
def test_what_is_no_vector_is_refused(amplitudes: np.ndarray) -> None:
    with pytest.raises(InvalidState, match="amplitudes"):
        prepare("x", [], amplitudes)
