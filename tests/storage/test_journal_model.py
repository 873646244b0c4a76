"""The journal against a model of it in dictionaries."""

import contextlib

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from qraf.clock import FakeClock
from qraf.storage.journal import Draft, Journal
from tests import postgres
from tests.examples import examples

pytestmark = pytest.mark.slow  # all of them together

MEMORIES = ("s/a", "s/b", "c/a")
memories = st.sampled_from(MEMORIES)
drafts = st.lists(
    st.builds(
        Draft,
        item_id=st.sampled_from("pqrstu"),
        text=st.text(max_size=20),
        speaker=st.sampled_from([None, "Ada", "Bo"]),
        metadata=st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3) | st.none(), max_size=2),
        expires_at=st.sampled_from([None, None, 1_700_000_005.0]),
    ),
    max_size=4,
)


class JournalMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.journal = self.open()
        self.rows: dict[int, tuple[str, Draft]] = {}  # what is not forgotten
        self.codes: dict[int, bytes] = {}
        self.highest = 0

    def open(self) -> Journal:
        return Journal.open("sqlite:///:memory:", self.clock)

    def teardown(self) -> None:
        self.journal.close()

    def live(self, memory: str) -> dict[int, Draft]:
        now = self.clock.now()
        kept = {seq: draft for seq, (where, draft) in self.rows.items() if where == memory}
        return {seq: draft for seq, draft in kept.items() if draft.expires_at is None or draft.expires_at > now}

    @rule(groups=st.lists(st.tuples(memories, drafts), max_size=3))
    def commit(self, groups):
        before = {memory: {draft.item_id: seq for seq, draft in self.live(memory).items()} for memory in MEMORIES}
        for (memory, wanted), answer in zip(groups, self.journal.commit_many(groups), strict=True):
            known = before[memory]
            for draft, one in zip(wanted, answer, strict=True):
                assert one.is_duplicate == (draft.item_id in known)
                if one.is_duplicate:
                    assert one.seq == known[draft.item_id]
                else:
                    assert one.seq > self.highest
                    for seq, (where, old) in list(self.rows.items()):  # a new item buries an expired one of its id
                        if (where, old.item_id) == (memory, draft.item_id):
                            del self.rows[seq]
                    self.rows[one.seq] = memory, draft
                    known[draft.item_id] = one.seq
        self.highest = max([self.highest, *self.rows])

    @rule(memory=memories, seqs=st.sets(st.integers(1, 12), max_size=5))
    def forget(self, memory, seqs):
        found = [seq for seq in seqs if seq in self.rows and self.rows[seq][0] == memory]
        assert self.journal.tombstone(memory, sorted(seqs)) == len(found)
        for seq in found:
            del self.rows[seq]

    @rule(memory=memories)
    def drop(self, memory):
        mine = [seq for seq, (where, _) in self.rows.items() if where == memory]
        assert self.journal.drop_memory(memory) == len(mine)
        for seq in mine:
            del self.rows[seq]

    @rule(codes=st.dictionaries(st.integers(1, 12), st.binary(max_size=4), max_size=4))
    def code(self, codes):
        self.journal.put_codes(codes, "k")
        self.codes.update({seq: code for seq, code in codes.items() if seq in self.rows})

    @rule(seconds=st.integers(1, 4))
    def wait(self, seconds):
        self.clock.advance(seconds)

    @invariant()
    def agrees(self):
        for memory in MEMORIES:
            live = self.live(memory)
            items = self.journal.items(memory)
            assert [item.seq for item in items] == sorted(live)
            for item in items:
                draft = live[item.seq]
                assert {name: getattr(item, name) for name in draft.__struct_fields__} == {
                    name: getattr(draft, name) for name in draft.__struct_fields__
                }
                assert item.codes == self.codes.get(item.seq)
            assert self.journal.count(memory) == len(live)
            assert self.journal.speakers(memory) == tuple(sorted({d.speaker for d in live.values()} - {None}))
        assert self.journal.memories() == sorted(memory for memory in MEMORIES if self.live(memory))


TestJournal = JournalMachine.TestCase
TestJournal.settings = settings(max_examples=examples(12), stateful_step_count=15, deadline=None)


class PostgresMachine(JournalMachine):
    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        super().__init__()

    def open(self) -> Journal:
        return Journal.open(self._stack.enter_context(postgres.schema()), self.clock)

    def teardown(self) -> None:
        super().teardown()
        self._stack.close()


TestJournalOnPostgres = pytest.mark.slow(PostgresMachine.TestCase)
TestJournalOnPostgres.settings = settings(max_examples=5, stateful_step_count=15, deadline=None)
