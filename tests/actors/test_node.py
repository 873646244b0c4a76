from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from qraf.actors.held import Held
from qraf.actors.node import Node
from qraf.errors import InvalidRequest, LimitExceeded, NotFound
from qraf.network.placement import item_node
from qraf.states.sketch import Sketch
from qraf.storage.journal import Journal
from qraf.storage.records import Draft
from tests.actors.samples import DIM, FACTS, commit, query, topology
from tests.encoders import HashEncoder


class Encode:
    def __init__(self) -> None:
        self._encoder = HashEncoder(DIM)
        self.name, self.dim = "hash", DIM
        self.texts: list[str] = []

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.texts.extend(texts)
        return self._encoder.encode(list(texts))


def make(journal: Journal, name: str = "desk", encode: Encode | None = None, **changes: object) -> Node:
    network = topology()
    return Node(replace(network.nodes[name], **changes), network, encode or Encode(), journal)  # type: ignore[arg-type]


def test_what_is_absorbed_is_recalled_by_its_node(journal: Journal) -> None:
    node = make(journal)
    figures = node.absorb("s/ann", commit(journal, "s/ann", FACTS))
    assert figures.items == len(FACTS)
    answer = node.recall("s/ann", [query("what is the parrot called")])[0]
    assert journal.fetch([answer.evidence[0].seq])[answer.evidence[0].seq].text == FACTS[0]
    assert {one.node for one in answer.evidence} == {"desk"}
    assert answer.items_scanned == len(FACTS)


def test_a_fresh_process_answers_bit_for_bit_as_the_old_one_and_encodes_nothing(journal: Journal) -> None:
    old = make(journal)
    for n, text in enumerate(FACTS):
        old.absorb("s/ann", commit(journal, "s/ann", [text], prefix=str(n)))
    encode = Encode()
    fresh = make(journal, encode=encode)
    prompts = [query(text, k=6) for text in ("parrot", "capital of Germany", "sister violin")]
    assert fresh.recall("s/ann", prompts) == old.recall("s/ann", prompts)
    assert fresh.figures("s/ann") == old.figures("s/ann")
    assert encode.texts == []


def test_items_committed_but_never_absorbed_come_back_with_the_rebuild_and_their_codes_are_stored(
    journal: Journal,
) -> None:
    items = commit(journal, "s/ann", FACTS)
    make(journal).absorb("s/ann", items[:2])
    make(Journal.open(str(journal._engine.url)))  # a process that only looks
    fresh = make(journal)
    assert fresh.figures("s/ann").items == len(FACTS)
    stored = journal.items("s/ann", code=fresh.code)
    assert all(item.codes for item in stored)


def test_absorbing_twice_changes_nothing_and_encodes_nothing(journal: Journal) -> None:
    encode = Encode()
    node = make(journal, encode=encode)
    items = commit(journal, "s/ann", FACTS)
    first = node.absorb("s/ann", items)
    count = len(encode.texts)
    assert node.absorb("s/ann", [*items, *items]) == first
    assert len(encode.texts) == count == len(FACTS)


def test_an_unknown_memory_is_empty_and_asking_costs_nothing(journal: Journal) -> None:
    node = make(journal)
    answer = node.recall("s/nobody", [query("parrot")])[0]
    assert (answer.evidence, answer.mass, answer.items_scanned) == ((), 0.0, 0)
    assert node.figures("s/nobody").items == 0
    assert node.forget("s/nobody", [1]).forgotten == 0
    assert node.recall("c/elsewhere", [query("parrot")])[0].items_scanned == 0
    assert node.stats().memories == 0


def test_a_collection_is_shared_out_and_each_node_rebuilds_its_own_share(journal: Journal) -> None:
    network = topology()
    items = commit(journal, "c/notes", FACTS * 4)
    shares = {
        name: {i.seq for i in items if item_node(network, "notes", i.item_id) == name} for name in ("shelf", "attic")
    }
    for name, share in shares.items():
        assert share
        node = make(journal, name)
        node.warm()
        answer = node.recall("c/notes", [query("parrot capital water sister bicycle tomatoes", k=100)])[0]
        assert {one.seq for one in answer.evidence} <= share
        assert answer.items_scanned == len(share)


def test_a_node_refuses_to_write_what_it_does_not_hold(journal: Journal) -> None:
    items = commit(journal, "c/other", FACTS)
    with pytest.raises(NotFound, match="other"):
        make(journal, "shelf").absorb("c/other", items)
    with pytest.raises(InvalidRequest, match="no sessions"):
        make(journal, "shelf").absorb("s/ann", items)


def test_given_amplitudes_are_used_as_they_came_and_bad_ones_are_refused_whole(journal: Journal) -> None:
    encode = Encode()
    node = make(journal, encode=encode)
    row = HashEncoder(DIM).encode(["the parrot"])[0] * 3
    seqs = [
        one.seq
        for one in journal.commit(
            "s/ann",
            [
                Draft(item_id="good", text="", amplitudes=row.tobytes()),
                Draft(item_id="bad", amplitudes=b"1234", text=""),
            ],
        )
    ]
    good, bad = (journal.fetch(seqs)[seq] for seq in seqs)
    with pytest.raises(InvalidRequest, match="64 finite numbers"):
        node.absorb("s/ann", [good, bad])
    node.absorb("s/ann", [good])
    assert encode.texts == []
    assert node.recall("s/ann", [query("the parrot")])[0].evidence[0].seq == good.seq
    assert make(journal).figures("s/ann").items == 1  # the bad one does not stop the others after a restart


def test_recalled_text_is_never_absorbed(journal: Journal) -> None:
    journal.commit("s/ann", [Draft(item_id="r", text="The parrot again.", role="recalled")])
    node = make(journal)
    assert node.absorb("s/ann", journal.items("s/ann")).items == 0
    assert make(journal).figures("s/ann").items == 0


def test_a_full_node_refuses_and_its_state_is_unchanged(journal: Journal) -> None:
    node = make(journal, capacity_bytes=64 * 1024)
    node.absorb("s/ann", commit(journal, "s/ann", FACTS))
    before = node.figures("s/ann"), node.stats()
    many = commit(journal, "s/ann", [f"fact number {n}" for n in range(2000)], prefix="many")
    with pytest.raises(LimitExceeded) as refused:
        node.absorb("s/ann", many)
    assert refused.value.allowed == 64 * 1024
    assert refused.value.retry_after_ms is None
    after = node.stats()
    assert node.figures("s/ann") == before[0]
    assert (after.items, after.bytes, after.written) == (before[1].items, before[1].bytes, before[1].written)


def test_idle_sessions_make_room_and_come_back_as_they_were(journal: Journal) -> None:
    one = make(journal)
    one.absorb("s/0", commit(journal, "s/0", FACTS))
    node = make(journal, capacity_bytes=int(one.stats().bytes * 3.5))
    for n in range(8):
        node.absorb(f"s/{n}", commit(journal, f"s/{n}", FACTS))
    assert 1 <= node.stats().memories < 8
    assert node.stats().bytes <= node.spec.capacity_bytes  # type: ignore[operator]
    for n in range(8):
        assert node.recall(f"s/{n}", [query("parrot")])[0].items_scanned == len(FACTS)


def test_forgotten_items_are_gone_here_and_after_a_restart(journal: Journal) -> None:
    node = make(journal)
    items = commit(journal, "s/ann", FACTS)
    node.absorb("s/ann", items)
    journal.tombstone("s/ann", [items[0].seq])
    receipt = node.forget("s/ann", [items[0].seq, 10**9])
    assert (receipt.forgotten, receipt.before.items, receipt.after.items) == (1, 6, 5)
    for one in (node, make(journal)):
        seqs = {evidence.seq for evidence in one.recall("s/ann", [query("parrot Pixel", k=10)])[0].evidence}
        assert items[0].seq not in seqs


def test_a_refreshing_recall_sees_what_another_wrote(journal: Journal) -> None:
    node = make(journal)
    node.absorb("s/ann", commit(journal, "s/ann", FACTS[:2]))
    commit(journal, "s/ann", ["The parrot moved to the attic."], prefix="late")
    assert node.recall("s/ann", [query("parrot")])[0].items_scanned == 2
    assert node.recall("s/ann", [query("parrot")], refresh=True)[0].items_scanned == 3


def test_a_refreshing_recall_drops_what_nobody_told_the_node_to_forget(journal: Journal) -> None:
    node = make(journal)
    items = commit(journal, "s/ann", FACTS)
    node.absorb("s/ann", items)
    journal.tombstone("s/ann", [items[0].seq, items[2].seq])
    assert node.recall("s/ann", [query("parrot")], refresh=True)[0].items_scanned == len(FACTS) - 2
    assert node.figures("s/ann") == msgspec.structs.replace(make(journal).figures("s/ann"), version=len(FACTS) + 2)


def test_an_absorb_that_comes_after_the_forget_brings_nothing_back(journal: Journal) -> None:
    node = make(journal)
    items = commit(journal, "s/ann", FACTS)
    node.absorb("s/ann", items[1:])
    journal.tombstone("s/ann", [items[0].seq])
    node.forget("s/ann", [items[0].seq])  # another thread's, which was quicker
    assert node.absorb("s/ann", items[:1]).items == len(FACTS) - 1


def test_what_is_forgotten_while_a_memory_is_made_anew_does_not_come_back_with_it(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make(journal)
    items = commit(journal, "s/ann", FACTS)
    node.absorb("s/ann", items)
    catch_up = node._catch_up

    def slow(memory: str, held: Held) -> None:
        catch_up(memory, held)
        monkeypatch.undo()
        journal.tombstone("s/ann", [items[0].seq])
        assert node.forget("s/ann", [items[0].seq]).forgotten == 1  # from the old one, which answers meanwhile

    monkeypatch.setattr(node, "_catch_up", slow)
    assert node.recode("s/ann").items == len(FACTS) - 1


def test_dropping_lets_go_and_the_journal_decides_what_comes_back(journal: Journal) -> None:
    node = make(journal)
    node.absorb("s/ann", commit(journal, "s/ann", FACTS))
    node.drop("s/ann")
    assert node.stats().memories == 0
    assert node.figures("s/ann").items == len(FACTS)
    node.drop("s/ann")
    journal.drop_memory("s/ann")
    assert node.figures("s/ann").items == 0


def test_advertisements_tell_only_what_changed(journal: Journal) -> None:
    node = make(journal)
    node.absorb("s/ann", commit(journal, "s/ann", FACTS))
    node.absorb("s/bob", commit(journal, "s/bob", FACTS))
    first, revision = node.advertisements()
    assert {ad.memory for ad in first} == {"s/ann", "s/bob"}
    assert {len(ad.bitmap) for ad in first} == {256}
    assert node.advertisements(revision) == ([], revision)
    node.absorb("s/bob", commit(journal, "s/bob", ["New."], prefix="new"))
    assert [ad.memory for ad in node.advertisements(revision)[0]] == ["s/bob"]


def test_many_threads_lose_nothing(journal: Journal) -> None:
    node = make(journal)
    batches = [commit(journal, "s/ann", [f"fact {n} of {k}" for n in range(5)], prefix=f"{k}-") for k in range(8)]
    faults: list[BaseException] = []

    def work(batch: Sequence[object]) -> None:
        try:
            node.absorb("s/ann", batch)  # type: ignore[arg-type]
            node.recall("s/ann", [query("fact")])
            node.advertisements()
            node.stats()
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(batch,)) for batch in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert node.figures("s/ann") == make(journal).figures("s/ann")
    assert node.figures("s/ann").items == 40


def test_the_sketch_of_a_memory_is_handed_out_as_a_packet(journal: Journal) -> None:
    node = make(journal)
    figures = node.absorb("s/ann", commit(journal, "s/ann", FACTS))
    assert Sketch.from_bytes(node.sketch("s/ann")).rows == figures.items == len(FACTS)
    assert node.sketch("s/nobody") == b""
    assert node.sketch("c/notes") == b""  # not this node's
