from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from qraf.actors.encoding import EncodeQueue
from qraf.actors.host import CodeWriter, Host
from qraf.actors.messages import Absorb, Spell
from qraf.errors import InvalidRequest, NodeDown, StorageFailed
from qraf.records import Figures
from qraf.states.sketch import Sketch
from qraf.storage.journal import Journal
from qraf.storage.records import Draft
from tests.actors.samples import DIM, FACTS, commit, topology, visit
from tests.encoders import HashEncoder

NOTHING_STALE: frozenset[tuple[str, str]] = frozenset()


@pytest.fixture
def host(encoding: EncodeQueue, journal: Journal) -> Iterator[Host]:
    host = Host(encoding, journal)
    host.adopt(Spell("front", 3, topology()))
    yield host
    host.close()


def test_a_fresh_host_has_no_epoch_and_refuses_work(encoding: EncodeQueue, journal: Journal) -> None:
    host = Host(encoding, journal)
    assert host.ping().epoch == 0
    for epoch in (0, 1):
        with pytest.raises(NodeDown, match="stale epoch"):
            host.encode(epoch, ["text"])
    host.close()


@pytest.mark.parametrize("epoch", [0, 2, 4])
def test_calls_from_another_epoch_are_refused(host: Host, epoch: int) -> None:
    with pytest.raises(NodeDown, match="stale epoch"):
        host.recall(epoch, [visit("desk", "s/ann", "parrot")], NOTHING_STALE)
    with pytest.raises(NodeDown, match="stale epoch"):
        host.absorb(epoch, [])


def test_a_lower_epoch_or_another_name_cannot_be_adopted_and_the_same_one_changes_nothing(host: Host) -> None:
    with pytest.raises(NodeDown, match="stale epoch 2"):
        host.adopt(Spell("front", 2, topology()))
    with pytest.raises(NodeDown, match="this is 'front'"):
        host.adopt(Spell("back", 9, topology()))
    nodes = host.nodes
    assert host.adopt(Spell("front", 3, topology())).epoch == 3
    assert host.nodes is nodes


def test_a_new_epoch_starts_over_and_the_journal_brings_everything_back(host: Host, journal: Journal) -> None:
    host.absorb(3, [Absorb("desk", "s/ann", tuple(commit(journal, "s/ann", FACTS)))])
    before = host.recall(3, [visit("desk", "s/ann", "parrot")], NOTHING_STALE)[0]
    host.adopt(Spell("front", 4, topology()))
    after = host.recall(4, [visit("desk", "s/ann", "parrot")], NOTHING_STALE)[0]
    assert after.evidence == before.evidence
    assert after.figures == before.figures


def test_visits_are_answered_in_order_and_a_fault_stays_with_its_visit(host: Host, journal: Journal) -> None:
    host.absorb(3, [Absorb("desk", "s/ann", tuple(commit(journal, "s/ann", FACTS)))])
    visits = [visit("desk", "s/ann", "parrot"), visit("nowhere", "s/ann", "parrot"), visit("desk", "s/none", "parrot")]
    good, fault, empty = host.recall(3, visits, NOTHING_STALE)
    assert (good.node, good.host, good.items_scanned, good.error) == ("desk", "front", 6, "")
    assert "nowhere" in fault.error
    assert (empty.memory, empty.evidence, empty.error) == ("s/none", (), "")


def test_writes_of_one_call_are_encoded_together_and_a_bad_one_fails_alone(
    encoding: EncodeQueue, host: Host, journal: Journal
) -> None:
    encoding.encoder()
    items = commit(journal, "s/ann", FACTS)
    host.absorb(3, [Absorb("desk", "s/bob", tuple(commit(journal, "s/bob", ["Open."])))])
    batches = encoding.batches
    host.figures(3, "desk", "s/ann")  # rebuilt now, so that the writes below have nothing left to encode
    assert encoding.batches == batches + 1
    seq = journal.commit("s/bob", [Draft(item_id="bad", amplitudes=b"1234")])[0].seq
    writes = [
        Absorb("desk", "s/ann", tuple(items[:3])),
        Absorb("desk", "s/bob", (journal.fetch([seq])[seq],)),
        Absorb("desk", "s/ann", tuple(items[3:])),
        Absorb("desk", "s/bob", tuple(commit(journal, "s/bob", ["Shut."], prefix="more"))),
    ]
    one, bad, two, more = host.absorb(3, writes)
    assert isinstance(bad, InvalidRequest)
    assert isinstance(one, Figures)
    assert isinstance(two, Figures)
    assert isinstance(more, Figures)
    assert (two.items, more.items) == (6, 2)


def test_a_recall_does_not_wait_for_the_encoder(journal: Journal) -> None:
    class Slow(HashEncoder):
        gate = threading.Event()

        def encode(self, texts: list[str]) -> NDArray[np.float32]:
            if "slow" in texts:
                assert self.gate.wait(10)
            return super().encode(texts)

    queue = EncodeQueue(lambda: Slow(DIM))
    host = Host(queue, journal)
    host.adopt(Spell("front", 1, topology()))
    host.absorb(1, [Absorb("desk", "s/ann", tuple(commit(journal, "s/ann", FACTS)))])
    slow = Absorb("desk", "s/ann", tuple(commit(journal, "s/ann", ["slow"], prefix="slow")))
    writing = threading.Thread(target=host.absorb, args=(1, [slow]))
    writing.start()
    answer = host.recall(1, [visit("desk", "s/ann", "parrot")], NOTHING_STALE)[0]
    assert answer.items_scanned == len(FACTS)
    assert writing.is_alive()
    Slow.gate.set()
    writing.join(10)
    host.close()
    queue.close()


def test_sketches_pool_into_one_state_of_everything(host: Host, journal: Journal) -> None:
    assert host.pool(3, []) == b""
    for n in range(3):
        host.absorb(3, [Absorb("desk", f"s/{n}", tuple(commit(journal, f"s/{n}", FACTS)))])
    others = host.sketches(3)
    assert len(others) == 3
    pooled = Sketch.from_bytes(host.pool(3, others))
    assert pooled.mass == pytest.approx(2 * sum(Sketch.from_bytes(one).mass for one in others))


def test_ping_counts_what_was_done(host: Host, journal: Journal) -> None:
    host.absorb(3, [Absorb("desk", "s/ann", tuple(commit(journal, "s/ann", FACTS)))])
    host.recall(3, [visit("desk", "s/ann", "parrot")] * 2, NOTHING_STALE)
    report = host.ping()
    stats = report.stats[0]
    assert (report.name, report.epoch, report.load) == ("front", 3, 0)
    assert (stats.items, stats.written, stats.recalled, stats.memories) == (6, 6, 2, 1)
    assert stats.bytes > 0


def test_codes_are_stored_behind_the_answer_and_all_of_them_by_close(encoding: EncodeQueue, journal: Journal) -> None:
    host = Host(encoding, journal)
    host.adopt(Spell("front", 1, topology()))
    host.absorb(1, [Absorb("desk", "s/ann", tuple(commit(journal, "s/ann", FACTS)))])
    host.close()
    assert all(item.codes for item in journal.items("s/ann"))
    with pytest.raises(NodeDown, match="closed"):
        host.figures(1, "desk", "s/ann")
    host.close()


def test_codes_that_cannot_be_stored_are_counted_and_stop_nothing(tmp_path: Path) -> None:
    class Broken(Journal):
        def __init__(self) -> None:
            pass

        def put_codes(self, codes: object, code: str, fence: object = None) -> None:
            raise StorageFailed("write codes", "disk full")

    writer = CodeWriter(Broken())
    writer({1: b"x", 2: b"y"}, "hash/int4/64")
    writer({3: b"z"}, "hash/int4/64")
    writer.close()
    assert writer.failed == 3
