from __future__ import annotations

import logging

import numpy as np
import pytest

from qraf.storage.journal import Journal
from tests.actors.samples import FACTS, commit, query
from tests.actors.test_node import Encode, make


def test_damaged_codes_are_refused_at_the_rebuild_and_made_again_from_the_text(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    old = make(journal)
    items = commit(journal, "s/ann", FACTS)
    old.absorb("s/ann", items)
    stored = {item.seq: item.codes for item in journal.items("s/ann", code=old.code)}
    spoilt = [items[1].seq, items[3].seq]
    for seq, scale in zip(spoilt, (np.nan, 40.0), strict=True):
        codes = stored[seq]
        assert codes is not None
        journal.put_codes({seq: codes[:-4] + np.float16(scale).tobytes() + codes[-2:]}, old.code)

    encode = Encode()
    fresh = make(journal, encode=encode)
    with caplog.at_level(logging.WARNING):
        assert fresh.recall("s/ann", [query("parrot", k=6)]) == old.recall("s/ann", [query("parrot", k=6)])
    assert encode.texts == [FACTS[1], FACTS[3]]
    assert "codes of 2 items are damaged" in caplog.text
    assert fresh.stats().corrected == 2
    assert old.stats().corrected == 0
    assert {item.seq: item.codes for item in journal.items("s/ann", code=old.code)} == stored  # healed in the journal
    again = make(journal)
    again.figures("s/ann")
    assert again.stats().corrected == 0
