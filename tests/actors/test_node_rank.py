"""A node's memory whose session has a rank of its own: at once, and after a restart."""

from __future__ import annotations

from qraf.actors.node import Node
from qraf.states.sketch import Sketch
from qraf.storage.journal import Journal
from qraf.storage.records import SessionRecord
from tests.actors.samples import commit, query
from tests.actors.test_node import make

TEXTS = [f"Entry {n} of the log says word{n % 7} and word{n % 11} about thing{n}." for n in range(60)]


def rank(journal: Journal, rank: int | None) -> None:
    journal.put_session(SessionRecord(id="ann", created_at=1.0, rank=rank))


def sketch(node: Node) -> Sketch:
    return Sketch.from_bytes(node.sketch("s/ann"))


def test_the_rank_of_a_session_changes_live_and_lasts(journal: Journal) -> None:
    rank(journal, None)
    node = make(journal)
    items = commit(journal, "s/ann", TEXTS)
    node.absorb("s/ann", items)
    assert sketch(node).rank == node.spec.rank
    before = node.figures("s/ann")
    rank(journal, 4)
    assert node.recode("s/ann").version > before.version
    assert (sketch(node).rank, sketch(node).rows, len(sketch(node).factor)) == (4, len(items), 4)
    assert sketch(node).trace_loss > 0.1
    assert sketch(make(journal)).to_bytes() == sketch(node).to_bytes()  # in a fresh process
    prompt = query(TEXTS[17], k=3)
    found = node.recall("s/ann", [prompt])[0].evidence
    assert found[0].seq == items[17].seq  # items are what is recalled, not the sketch
    rank(journal, None)
    node.recode("s/ann")
    assert sketch(node).rank == node.spec.rank
