from concurrent.futures import ThreadPoolExecutor

import pytest

from qraf.errors import InvalidRequest, StorageFailed
from qraf.records import Filter
from qraf.storage.journal import Committed, Draft, Journal, SessionRecord


def drafts(*ids: str, **fields) -> list[Draft]:
    return [Draft(item_id=name, text=f"text of {name}", **fields) for name in ids]


def ids(items) -> list[str]:
    return [item.item_id for item in items]


def test_what_was_committed_comes_back_whole(journal):
    draft = Draft(
        item_id="a",
        text="one",
        speaker="Ada",
        role="tool",
        at=12.5,
        metadata={"n": [1, {"x": None}]},
        pin=True,
        expires_at=9e9,
        amplitudes=b"\0\1\2",
    )
    [one] = journal.commit("s/1", [draft])
    [item] = journal.items("s/1")
    assert (item.seq, item.codes) == (one.seq, None)
    for name in draft.__struct_fields__:
        assert getattr(item, name) == getattr(draft, name), name


@pytest.mark.parametrize(
    "text", ["", "a\0b", "\0", "🦉" * 10, "नमस्ते 你好 שלום", "e\u0301", "\ufeff\u2028", "x" * 1_000_000]
)
def test_texts_round_trip(journal, text):
    [one] = journal.commit("s/1", [Draft(item_id="a", text=text, metadata={"t": text[:100]})])
    assert journal.fetch([one.seq])[one.seq].text == text
    assert journal.find("s/1", "a").metadata == {"t": text[:100]}


@pytest.mark.parametrize(
    "bad",
    [
        Draft(item_id="a", text="\ud83d"),
        Draft(item_id="\udc00", text="x"),
        Draft(item_id="a", speaker="\ud800"),
        Draft(item_id="a", metadata={"k": "\ud800"}),
        Draft(item_id="a", metadata={"k": object()}),
        Draft(item_id=""),
        Draft(item_id="a\0"),
        Draft(item_id="a" * 513),
    ],
)
def test_what_no_column_holds_is_refused_and_nothing_of_the_call_is_written(journal, bad):
    with pytest.raises(InvalidRequest):
        journal.commit_many([("s/1", drafts("good")), ("s/2", [bad])])
    assert journal.memories() == []


def test_numbers_rise_in_the_order_of_the_drafts(journal):
    first = journal.commit("s/1", drafts(*"edcba"))
    second = journal.commit("s/2", drafts("z"))
    seqs = [one.seq for one in first + second]
    assert seqs == sorted(seqs)
    assert ids(journal.items("s/1")) == list("edcba")


def test_the_same_id_again_changes_nothing(journal):
    [[old]] = journal.commit_many([("s/1", drafts("a"))])
    again, new, twin = journal.commit("s/1", [Draft(item_id="a", text="other"), *drafts("b", "b")])
    assert again == Committed(old.seq, "a", True)
    assert (new.is_duplicate, twin) == (False, Committed(new.seq, "b", True))
    assert journal.find("s/1", "a").text == "text of a"
    assert journal.commit("s/2", drafts("a"))[0].is_duplicate is False


def test_one_call_writes_several_memories(journal):
    groups = [("s/1", drafts("a")), ("c/x", drafts("a", "b")), ("s/1", drafts("a", "c")), ("s/3", [])]
    answers = journal.commit_many(groups)
    assert [[one.is_duplicate for one in answer] for answer in answers] == [[False], [False, False], [True, False], []]
    assert (journal.count("s/1"), journal.count("c/x"), journal.memories()) == (2, 2, ["c/x", "s/1"])
    assert journal.memories("s/") == ["s/1"]


def test_items_are_read_in_pages_after_a_number(journal):
    seqs = [one.seq for one in journal.commit("s/1", drafts(*"abcdefg"))]
    journal.commit("s/2", drafts("other"))
    assert ids(journal.items("s/1", after_seq=seqs[2], limit=2)) == ["d", "e"]


def test_more_drafts_and_numbers_than_one_statement_takes(journal):
    many = [Draft(item_id=f"i{n}") for n in range(1700)]
    seqs = [one.seq for one in journal.commit("s/1", many)]
    assert len(set(seqs)) == 1700
    assert all(one.is_duplicate for one in journal.commit("s/1", many))
    assert list(journal.fetch(seqs)) == seqs
    journal.put_codes(dict.fromkeys(seqs, b"c"), "k")
    assert journal.tombstone("s/1", seqs) == 1700


def test_codes_belong_to_the_newest_code_and_to_live_items(journal):
    a, b = (one.seq for one in journal.commit("s/1", drafts("a", "b")))
    journal.put_codes({a: b"old", b: b"gone"}, "int4")
    journal.put_codes({a: b"new"}, "int8")
    journal.tombstone("s/1", [b])
    journal.put_codes({b: b"late", 999: b"unknown"}, "int8")
    assert [item.codes for item in journal.items("s/1")] == [b"new"]
    assert journal.items("s/1", code="int8")[0].codes == b"new"
    assert journal.items("s/1", code="int4")[0].codes is None
    journal.put_codes({}, "int8")


def test_a_forgotten_item_is_gone_and_its_id_is_free(journal):
    a, b = (one.seq for one in journal.commit("s/1", drafts("a", "b", speaker="Ada")))
    journal.commit("s/2", drafts("a"))
    assert journal.tombstone("s/1", [a, a, 999]) == 1
    assert journal.tombstone("s/1", [a]) == 0
    assert journal.tombstone("s/2", [b]) == 0  # another memory's
    assert (journal.find("s/1", "a"), ids(journal.items("s/1")), journal.fetch([a])) == (None, ["b"], {})
    [new] = journal.commit("s/1", drafts("a"))
    assert new.seq > b
    assert not new.is_duplicate


def test_a_number_is_never_given_again(journal):
    [last] = journal.commit("s/1", drafts("a"))
    journal.tombstone("s/1", [last.seq])
    journal.drop_memory("s/1")
    assert journal.commit("s/1", drafts("a"))[0].seq > last.seq


def test_a_dropped_memory_is_empty_and_others_stay(journal):
    journal.commit_many([("s/1", drafts("a", "b")), ("s/10", drafts("a"))])
    assert journal.drop_memory("s/1") == 2
    assert journal.drop_memory("s/1") == 0
    assert (journal.count("s/1"), journal.memories()) == (0, ["s/10"])


def test_forgotten_text_is_in_no_file(tmp_path, clock):
    journal = Journal.open(f"sqlite:///{tmp_path / 'j.db'}", clock)
    secret = "the-combination-is-7341"
    spoken = Draft(
        item_id="a", text=secret * 500, speaker=f"who-{secret}", metadata={"s": secret}, amplitudes=secret.encode()
    )
    [one, _] = journal.commit("s/1", [spoken, *drafts("b")])
    journal.put_codes({one.seq: secret.encode()}, "k")
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert secret.encode() in held
    journal.tombstone("s/1", [one.seq])
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert secret.encode() not in held
    assert b"text of b" in held
    journal.close()


def test_an_item_ends_when_its_time_is_over(journal, clock):
    [one, _] = journal.commit("s/1", [*drafts("a", expires_at=clock.now() + 10, speaker="Ada"), *drafts("b")])
    assert journal.commit("s/1", drafts("a"))[0].is_duplicate
    assert journal.expired() == []
    clock.advance(10)
    assert (ids(journal.items("s/1")), journal.count("s/1"), journal.speakers("s/1")) == (["b"], 1, ())
    assert (journal.find("s/1", "a"), journal.fetch([one.seq])) == (None, {})
    assert journal.expired() == [("s/1", one.seq)]
    [new] = journal.commit("s/1", drafts("a"))
    assert (new.is_duplicate, new.seq > one.seq, journal.expired()) == (False, True, [])


def test_pages_follow_each_other_without_gap_or_repeat(journal):
    journal.commit("s/1", drafts(*(f"i{n}" for n in range(10))))
    seen, cursor = [], None
    while True:
        page, cursor = journal.page("s/1", cursor, 3)
        seen += ids(page)
        journal.tombstone("s/1", [page[-1].seq])  # a page's end may vanish
        if cursor is None:
            break
    assert seen == [f"i{n}" for n in range(10)]


def test_a_page_through_a_filter(journal):
    journal.commit("s/1", [Draft(item_id=f"i{n}", metadata={"odd": n % 2 == 1}) for n in range(1203)])
    odd = Filter(field="metadata.odd", eq=True)
    page, cursor = journal.page("s/1", None, 200, odd)
    assert ids(page) == [f"i{n}" for n in range(1, 401, 2)]
    rest = []
    while cursor is not None:
        page, cursor = journal.page("s/1", cursor, 200, odd)
        rest += page
    assert len(rest) == 401
    assert journal.page("s/1", None, 5, Filter(field="speaker", eq="nobody")) == ([], None)


@pytest.mark.parametrize("limit", [0, -1, 201])
def test_a_page_size_out_of_bounds_is_refused(journal, limit):
    for call in (lambda: journal.page("s/1", None, limit), lambda: journal.list_sessions(None, limit)):
        with pytest.raises(InvalidRequest) as caught:
            call()
        assert caught.value.pointer == "/limit"


def test_a_foreign_cursor_is_refused(journal):
    journal.commit_many([("s/1", drafts("a", "b")), ("s/2", drafts("a", "b"))])
    cursor = journal.page("s/1", None, 1)[1]
    for memory, bad in (
        ("s/2", cursor),
        ("s/1", "x"),
        ("s/1", "é"),
        ("s/1", ""),
        ("s/1", cursor[:-3]),
        ("s/1", "WzFd"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            journal.page(memory, bad, 1)
        assert caught.value.pointer == "/cursor"


def test_speakers_are_those_of_live_items(journal):
    journal.commit("s/1", [*drafts("a", speaker="Bo"), *drafts("b", "c", speaker="Ada"), *drafts("d")])
    assert journal.speakers("s/1") == ("Ada", "Bo")
    journal.tombstone("s/1", [journal.find("s/1", "a").seq])
    assert journal.speakers("s/1") == ("Ada",)


def test_sessions_are_made_once_found_changed_and_deleted(journal):
    record = SessionRecord(id="ses", created_at=1.0, metadata={"a": 1}, ttl_s=5.0, expires_at=6.0, node_hint="n")
    assert journal.create_session(record)
    assert not journal.create_session(SessionRecord(id="ses", created_at=2.0))
    assert journal.get_session("ses") == record
    paused = SessionRecord(id="ses", created_at=1.0, state="paused")
    assert journal.update_session(paused)
    assert journal.get_session("ses") == paused
    assert not journal.update_session(SessionRecord(id="none", created_at=1.0))
    assert journal.delete_session("ses")
    assert not journal.delete_session("ses")
    assert journal.get_session("ses") is None
    journal.put_session(record)
    journal.put_session(paused)
    assert journal.get_session("ses") == paused


def test_sessions_are_listed_by_age(journal):
    for name, created_at in (("b", 1.0), ("a", 1.0), ("d", 0.5), ("c", 3.0)):
        journal.put_session(SessionRecord(id=name, created_at=created_at))
    first, cursor = journal.list_sessions(None, 2)
    second, end = journal.list_sessions(cursor, 2)
    assert [record.id for record in first + second] == ["d", "a", "b", "c"]
    assert end is None


def test_sessions_expire(journal, clock):
    journal.put_session(SessionRecord(id="a", created_at=0, expires_at=clock.now() + 5))
    journal.put_session(SessionRecord(id="b", created_at=0))
    assert journal.expired_sessions() == []
    clock.advance(5)
    assert [record.id for record in journal.expired_sessions()] == ["a"]


def test_nothing_is_written_to_a_session_that_is_gone(journal):
    journal.put_session(SessionRecord(id="here", created_at=0))
    groups = [("s/here", drafts("a")), ("s/gone", drafts("a")), ("c/x", drafts("a"))]
    here, gone, other = journal.commit_many(groups, sessions={"here", "gone"})
    assert (len(here), gone, len(other)) == (1, [], 1)
    assert journal.count("s/gone") == 0


def test_many_threads_write_and_read_at_once(journal):
    def work(who: int) -> list[int]:
        seqs = []
        for n in range(10):
            [one] = journal.commit("s/all", drafts(f"{who}-{n}"))
            seqs.append(one.seq)
            assert journal.find("s/all", f"{who}-{n}").seq == one.seq
        return seqs

    with ThreadPoolExecutor(6) as pool:
        seqs = [seq for seqs in pool.map(work, range(6)) for seq in seqs]
    assert len(set(seqs)) == 60
    assert journal.count("s/all") == 60


def test_a_fault_of_the_disk_is_named(tmp_path):
    (tmp_path / "journal.db").write_bytes(b"this is no database, it is a letter to a friend " * 100)
    with pytest.raises(StorageFailed, match="not a database"):
        Journal.open(f"sqlite:///{tmp_path / 'journal.db'}")
    with pytest.raises(StorageFailed):
        Journal.open(f"sqlite:///{tmp_path}")
    with pytest.raises(StorageFailed, match="URL"):
        Journal.open("no url at all")


def test_newest_gives_what_passes_from_the_end_with_codes_of_any_of_the_names(journal):
    drafts = [Draft(item_id=str(n), text=f"item {n}", speaker="Ann" if n % 3 else "Bo") for n in range(1200)]
    seqs = [one.seq for one in journal.commit("s/1", drafts)]
    journal.commit("s/2", [Draft(item_id="other", speaker="Bo")])
    journal.put_codes({seqs[0]: b"a", seqs[3]: b"b"}, "x/8")
    journal.put_codes({seqs[6]: b"c"}, "x/4")
    journal.put_codes({seqs[9]: b"d"}, "y/4")
    by_bo = Filter(field="speaker", eq="Bo")
    found = journal.newest("s/1", seqs[1150], by_bo, 3, ["x/8", "x/4"])
    assert [item.item_id for item in found] == ["1149", "1146", "1143"]
    everything = journal.newest("s/1", seqs[-1], by_bo, 10_000, ["x/8", "x/4"])
    assert [item.item_id for item in everything] == [str(n) for n in range(1197, -1, -3)]
    assert [(item.codes, item.code) for item in everything[-4:]] == [
        (None, None),
        (b"c", "x/4"),
        (b"b", "x/8"),
        (b"a", "x/8"),
    ]
    few = journal.newest("s/1", seqs[-1], by_bo, 10_000, [], most_read=500)
    assert len(few) == 166


def test_a_session_keeps_what_it_says_of_its_memory(journal):
    record = SessionRecord(id="low", created_at=1.0, bits=2, budget_bytes=1 << 33)
    journal.put_session(record)
    assert journal.get_session("low") == record
