"""A node's memories under a byte budget, and coded anew with other bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from qraf.actors.node import Node
from qraf.memory.memory import code_bytes
from qraf.records import Filter, Item
from qraf.storage.journal import Journal
from qraf.storage.records import Draft, SessionRecord
from tests.actors.samples import DIM, commit, query
from tests.actors.test_node import Encode, make

TEXTS = [f"Entry {n} of the log says word{n % 7} and word{n % 11} about thing{n}." for n in range(150)]
BUDGET = 8192


def session(journal: Journal, bits: int | None = None, budget_bytes: int | None = None, name: str = "ann") -> None:
    journal.put_session(SessionRecord(id=name, created_at=1.0, bits=bits, budget_bytes=budget_bytes))


def grown(journal: Journal, encode: Encode | None = None, size: int = 25, **changes: object) -> tuple[Node, list[Item]]:
    node = make(journal, encode=encode, **changes)
    items = commit(journal, "s/ann", TEXTS)
    for start in range(0, len(items), size):
        figures = node.absorb("s/ann", items[start : start + size])
        if figures.budget_bytes:
            assert node._held["s/ann"].memory.nbytes <= figures.budget_bytes
    return node, items


def shown(node: Node) -> object:
    return msgspec.structs.replace(node.figures("s/ann"), version=0)


def test_a_fresh_process_holds_the_same_items_on_the_same_rungs(journal: Journal) -> None:
    node, items = grown(journal, budget_bytes=BUDGET)
    tiers = node.figures("s/ann").tiers
    assert tiers["evicted"] > 0
    assert sum(tiers.values()) == len(items)
    encode = Encode()
    fresh = make(journal, encode=encode, budget_bytes=BUDGET)
    assert shown(fresh) == shown(node)
    prompts = [query(text, k=9) for text in (TEXTS[140], "word3 about thing12")]
    assert fresh.recall("s/ann", prompts) == node.recall("s/ann", prompts)
    assert encode.texts == []


def test_the_journal_keeps_full_codes_of_what_left(journal: Journal) -> None:
    node, items = grown(journal, budget_bytes=BUDGET)
    stored = journal.items("s/ann", code=node.code)
    assert [item.seq for item in stored] == [item.seq for item in items]
    assert {len(item.codes or b"") for item in stored} == {code_bytes(DIM)}


def test_what_left_is_found_by_a_filter_and_only_so(journal: Journal) -> None:
    node = make(journal, budget_bytes=BUDGET)
    drafts = [
        Draft(item_id=str(n), text=text, speaker="Zoe" if n in (0, 3) else "Ann", at=1000.0 + n, metadata={"n": n})
        for n, text in enumerate(TEXTS)
    ]
    seqs = [one.seq for one in journal.commit("s/ann", drafts)]
    items = journal.fetch(seqs)
    node.absorb("s/ann", [items[seq] for seq in seqs])
    prompt = query("what does thing3 say", k=5)
    [plain] = node.recall("s/ann", [prompt])
    assert seqs[3] not in {one.seq for one in plain.evidence}
    by_speaker = replace(prompt, filter=Filter(field="speaker", eq="Zoe"))
    by_number = replace(prompt, filter=Filter(field="metadata.n", lt=130), k=200)
    unfiltered, zoe, numbered = node.recall("s/ann", [prompt, by_speaker, by_number])
    assert unfiltered == plain
    assert [one.seq for one in zoe.evidence] == [seqs[3], seqs[0]]
    assert {one.node for one in zoe.evidence} == {"desk"}
    assert zoe.items_scanned == 2
    assert sum(one.probability for one in zoe.evidence) == pytest.approx(1)
    assert numbered.items_scanned == 130  # those in memory and those that left, each once
    assert len({one.seq for one in numbered.evidence}) == len(numbered.evidence)


def test_pinned_items_stay(journal: Journal) -> None:
    drafts = [Draft(item_id=str(n), text=text, pin=n < 3, at=1000.0 + n) for n, text in enumerate(TEXTS)]
    seqs = [one.seq for one in journal.commit("s/ann", drafts)]
    items = journal.fetch(seqs)
    node = make(journal, budget_bytes=BUDGET)
    figures = node.absorb("s/ann", [items[seq] for seq in seqs])
    assert figures.tiers["4"] == 3
    assert figures.tiers["evicted"] > 0
    assert set(seqs[:3]) <= set(node._held["s/ann"].memory.seqs)


def test_forgetting_lets_others_step_up_again_from_the_journal(journal: Journal) -> None:
    node, items = grown(journal, budget_bytes=BUDGET)
    gone = [item.seq for item in items[10:140]]
    journal.tombstone("s/ann", gone)
    receipt = node.forget("s/ann", gone)
    assert receipt.forgotten == len(gone)
    assert receipt.after.tiers == {"4": 20, "2": 0, "1": 0, "evicted": 0}
    assert receipt.after.version > receipt.before.version
    assert receipt.after.fidelity > receipt.before.fidelity
    assert shown(make(journal, budget_bytes=BUDGET)) == shown(node)


def test_items_that_come_late_are_counted_and_repeats_are_not(journal: Journal) -> None:
    node = make(journal, budget_bytes=4096)
    items = commit(journal, "s/ann", TEXTS)
    figures = node.absorb("s/ann", items[:3] + items[5:])
    assert figures.tiers["evicted"]
    late = node.absorb("s/ann", items[3:5])  # a write that was overtaken
    assert sum(late.tiers.values()) == len(items)
    held = node._held["s/ann"].memory
    assert shown(make(journal, budget_bytes=4096)) == shown(node)
    for _ in range(2):  # a client that sends all of it again
        again = node.absorb("s/ann", items)
        assert again == late
    assert node._held["s/ann"].memory is held  # without making it anew


def test_a_session_has_bits_and_a_budget_of_its_own(journal: Journal) -> None:
    session(journal, bits=8, budget_bytes=16_384)
    node, items = grown(journal, budget_bytes=BUDGET)
    figures = node.figures("s/ann")
    assert (figures.bits, figures.budget_bytes) == (8, 16_384)
    assert set(figures.tiers) == {"8", "4", "2", "1", "evicted"}
    assert {len(item.codes or b"") for item in journal.items("s/ann", code="hash/int8/64")} == {code_bytes(DIM, 8)}
    assert len(items) == sum(figures.tiers.values())
    session(journal, bits=2, name="bo")
    assert (node.figures("s/bo").bits, node.figures("s/bo").budget_bytes) == (2, BUDGET)


def texts_encoded(journal: Journal, node: Node, encode: Encode, bits: int | None) -> tuple[int, Sequence[int]]:
    session(journal, bits)
    before = len(encode.texts)
    figures = node.recode("s/ann")
    assert figures.bits == (bits or 4)
    assert figures.tiers[str(figures.bits)] == len(TEXTS)
    found = node.recall("s/ann", [query(TEXTS[17], k=3)])[0].evidence
    assert shown(make(journal)) == shown(node)  # and so in a fresh process
    return len(encode.texts) - before, [one.seq for one in found]


def test_coding_anew_goes_down_from_the_codes_and_up_from_the_text(journal: Journal) -> None:
    encode = Encode()
    node, items = grown(journal, encode)
    exact = node.figures("s/ann")
    assert texts_encoded(journal, node, encode, 2)[0] == 0
    assert node.figures("s/ann").bytes < exact.bytes - 15 * len(items)  # 34 bytes a row become 18
    assert node.figures("s/ann").fidelity < 0.95
    assert texts_encoded(journal, node, encode, 1)[0] == 0
    encoded, found = texts_encoded(journal, node, encode, None)  # the journal still has four bits
    assert (encoded, found[0]) == (0, items[17].seq)
    assert msgspec.structs.replace(node.figures("s/ann"), version=0) == msgspec.structs.replace(exact, version=0)
    assert texts_encoded(journal, node, encode, 8)[0] == len(TEXTS)
    assert node.figures("s/ann").fidelity > 0.9999
    assert texts_encoded(journal, node, encode, 4)[0] == 0
    assert node.figures("s/ann").version > exact.version


def test_a_session_that_starts_low_is_encoded_again_to_go_up(journal: Journal) -> None:
    session(journal, bits=1)
    encode = Encode()
    node, _ = grown(journal, encode)
    assert {len(item.codes or b"") for item in journal.items("s/ann", code="hash/sign1")} == {code_bytes(DIM, 1)}
    assert texts_encoded(journal, node, encode, 2)[0] == len(TEXTS)


def test_what_was_written_meanwhile_is_in_the_memory_that_was_coded_anew(journal: Journal) -> None:
    node, items = grown(journal)
    held = node._held["s/ann"]
    late = commit(journal, "s/ann", ["One thing more."], prefix="late")
    original = node._catch_up

    def catch_up(memory: str, one: object) -> None:
        original(memory, one)  # type: ignore[arg-type]
        if one is not held and "s/ann" in node._held and node._held["s/ann"] is held:
            node._catch_up = original  # type: ignore[method-assign]
            node.absorb("s/ann", late)  # while the new one is being made

    session(journal, bits=2)
    node._catch_up = catch_up  # type: ignore[method-assign]
    assert node.recode("s/ann").items == len(items) + 1


def test_damaged_low_codes_are_made_again(journal: Journal) -> None:
    session(journal, bits=2)
    node, items = grown(journal)
    stored = {item.seq: item.codes or b"" for item in journal.items("s/ann", code="hash/lloyd2")}
    spoilt = stored[items[4].seq]
    journal.put_codes({items[4].seq: spoilt[:-4] + np.float16(9.0).tobytes() + spoilt[-2:]}, "hash/lloyd2")
    fresh = make(journal)
    assert shown(fresh) == shown(node)
    assert fresh.stats().corrected == 1


def test_a_full_node_asks_no_more_than_the_budget(journal: Journal) -> None:
    node = make(journal, budget_bytes=4096, capacity_bytes=6000)
    items = commit(journal, "s/ann", TEXTS)
    for start in range(0, len(items), 10):
        node.absorb("s/ann", items[start : start + 10])
    assert node.stats().bytes <= 4096
