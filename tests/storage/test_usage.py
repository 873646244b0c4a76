"""What is held and used: exact over writes that are refused, forgotten, repeated or come to two gateways at once."""

from __future__ import annotations

import contextlib
import threading

import pytest
from sqlalchemy import text

from qraf.errors import QuotaExceeded
from qraf.settings import Allowance, QuotaSettings
from qraf.storage import database
from qraf.storage.journal import Draft, Journal
from qraf.storage.keys import AuditRecord
from qraf.storage.records import StateRecord
from qraf.storage.usage import DAY_S, Counts, Held, Payer, Spend, day_of
from tests import postgres

ALL = (0, 10**6)


@pytest.fixture(params=["memory", pytest.param("postgresql", marks=pytest.mark.slow)])
def journal(request, clock):
    """What is counted is the same sealed or not."""
    with contextlib.ExitStack() as stack:
        url = "sqlite:///:memory:" if request.param == "memory" else stack.enter_context(postgres.schema())
        journal = Journal.open(url, clock)
        stack.callback(journal.close)
        yield journal


WIDE = (10**9, 10**12, 10**9)


def payer(items=10**9, size=10**12, tokens=10**9, *, key="k1", of_tenant=WIDE) -> Payer:
    return Payer(tenant="acme", key=key, of_tenant=of_tenant, of_key=(items, size, tokens))


def drafts(*ids: str, words="word") -> list[Draft]:
    return [Draft(item_id=one, text=words) for one in ids]


def test_items_are_held_until_they_are_forgotten_and_used_for_good(journal):
    one = payer()
    [a, _] = journal.commit("s/acme/x", drafts("a", "b", words="vier"), one)
    weight = len("vier") + len("{}")
    assert journal.usage.held("acme") == Held(2, 2 * weight)
    journal.commit("s/acme/x", drafts("a"), one)  # a duplicate weighs nothing
    journal.tombstone("s/acme/x", [a.seq])
    assert journal.usage.held("acme", "k1") == Held(1, weight)
    journal.drop_memory("s/acme/x")
    assert journal.usage.held("acme") == Held()
    used = journal.usage.total("acme", "k1", ALL)
    assert (used.items, used.bytes) == (2, 2 * weight)


def test_what_expires_gives_its_room_back(journal, clock):
    journal.commit("s/acme/x", [Draft(item_id="a", expires_at=clock.now() + 5)], payer(items=1))
    clock.advance(6)
    journal.commit("s/acme/x", drafts("a"), payer(items=1))
    assert journal.usage.held("acme", "k1").items == 1


@pytest.mark.parametrize("bound", ["key.items", "key.bytes", "tenant.items", "tenant.bytes"])
def test_a_write_that_does_not_fit_is_refused_whole_and_the_others_are_written(journal, bound):
    scope, what = bound.split(".")
    limits = (3, 10**12, 0) if what == "items" else (10**9, 3 * 6, 0)
    narrow = payer(*limits) if scope == "key" else payer(of_tenant=limits)
    other = payer(key="k2", of_tenant=WIDE)
    groups = [("s/acme/x", drafts("a", "b")), ("s/acme/x", drafts("c", "d")), ("s/acme/y", drafts("e"))]
    first, second, third = journal.commit_many(groups, (), [narrow, narrow, other])
    assert [one.item_id for one in first] == ["a", "b"]
    assert isinstance(second, QuotaExceeded)
    assert (second.limit, second.allowed) == (bound, limits[0 if what == "items" else 1])
    assert [one.item_id for one in third] == ["e"]
    assert [item.item_id for item in journal.items("s/acme/x")] == ["a", "b"]
    assert journal.usage.held("acme").items == 3


def test_a_write_that_shares_an_item_with_one_that_is_refused_is_written_whole(journal):
    none, wide = payer(items=0), payer(key="k2")
    groups = [
        ("s/acme/x", [Draft(item_id="a", text="refused")]),
        ("s/acme/x", drafts("b", "a")),
        ("s/acme/x", drafts("a")),
    ]
    first, second, third = journal.commit_many(groups, (), [none, wide, none])
    assert isinstance(first, QuotaExceeded)
    assert [(one.item_id, one.is_duplicate) for one in second] == [("b", False), ("a", False)]
    assert [one.is_duplicate for one in third] == [True]  # what is there needs no room
    assert [(item.item_id, item.text) for item in journal.items("s/acme/x")] == [("b", "word"), ("a", "word")]
    assert (journal.usage.held("acme", "k1").items, journal.usage.held("acme", "k2").items) == (0, 2)


def test_a_write_that_cannot_pay_for_what_a_refused_one_shares_is_refused_whole(journal):
    none, one = payer(items=0), payer(key="k2", items=1)
    answers = journal.commit_many([("s/acme/x", drafts("a")), ("s/acme/x", drafts("b", "a"))], (), [none, one])
    assert all(isinstance(answer, QuotaExceeded) for answer in answers)
    assert journal.memories() == []
    assert journal.usage.held("acme").items == 0


def test_what_the_server_writes_counts_once_for_the_tenant_and_other_keys_count_too(journal):
    four = payer(of_tenant=(4, 10**12, 0))
    journal.commit("s/acme/z", drafts("z"), payer(key="k2"))
    groups = [("s/acme/x", drafts("a")), ("s/acme/y", drafts("b", "c")), ("s/acme/y", drafts("d"))]
    answers = journal.commit_many(groups, (), [None, four, four])
    assert [isinstance(one, QuotaExceeded) for one in answers] == [False, False, True]
    assert journal.usage.held("acme").items == 4


def test_of_two_gateways_writes_that_fit_alone_only_one_is_written(any_url):
    """Eight writers over two journals; there is room for five."""
    journals = [Journal.open(any_url), Journal.open(any_url)]
    refused: list[str] = []

    def write(number: int) -> None:
        try:
            journals[number % 2].commit(f"s/acme/{number}", drafts("a", "b"), payer(items=11))
        except QuotaExceeded as error:
            refused.append(error.limit)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == ["key.items"] * 3
    assert journals[0].usage.held("acme", "k1").items == 10
    for journal in journals:
        journal.close()


def test_what_a_node_refused_for_good_was_never_used(journal):
    [one] = journal.commit("s/acme/x", drafts("a"), payer())
    journal.tombstone("s/acme/x", [one.seq], undo=True)
    assert journal.usage.held("acme") == Held()
    assert journal.usage.total("acme", None, ALL) == Counts()


def test_states_weigh_their_packets_for_their_tenant(journal):
    quotas = QuotaSettings(tenant=Allowance(bytes=10))
    journal.states.put([StateRecord("acme/st_1", 1, b"{}", b"12345678")], quotas=quotas)
    with pytest.raises(QuotaExceeded, match=r"tenant\.bytes"):
        journal.states.put([StateRecord("acme/st_2", 1, b"{}", b"123")], quotas=quotas)
    journal.states.put([StateRecord("st_2", 1, b"{}", b"123")], quotas=quotas)  # another tenant's
    journal.states.put([StateRecord("acme/st_1", 2, b"{}", b"1234")], quotas=quotas)
    assert journal.usage.held("acme") == Held(0, 4)
    journal.states.delete(["acme/st_1"])
    assert journal.usage.held("acme") == Held()


def test_tokens_are_granted_to_the_last_one_of_the_day(journal, clock):
    mine, ours = payer(tokens=10), payer(key="k2", of_tenant=(0, 0, 15))
    table = journal.usage
    answers = table.note({}, [Spend(mine, 6, 3), Spend(mine, 5), Spend(mine, 4), Spend(ours, 6), Spend(ours, 5)])
    assert [None if one is None else one.limit for one in answers] == [
        None,
        "key.tokens_per_day",
        None,
        "tenant.tokens_per_day",
        None,
    ]
    assert answers[1].retry_after_ms <= 1000 * DAY_S
    assert not answers[1].retryable
    total = table.total("acme", None, ALL)
    assert (total.generated_tokens, total.prompt_tokens) == (15, 3)
    with pytest.raises(QuotaExceeded):
        table.check_tokens(mine)
    clock.advance(DAY_S)
    table.check_tokens(mine)
    assert table.note({}, [Spend(mine, 10)]) == [None]
    rows, _ = table.page("acme", "k1", ALL)
    assert [(row.day, row.generated_tokens) for row in rows] == [
        (day_of(clock.now()), 10),
        (day_of(clock.now()) - 1, 10),
    ]


def test_a_batch_that_comes_again_is_answered_as_it_was(journal):
    """Its commit was made and the answer lost: what was refused then must not be shown now."""
    spends = [Spend(payer(tokens=10), 8, 3), Spend(payer(tokens=10), 5)]
    first = journal.usage.note({}, spends, ("me", 1))
    again = journal.usage.note({}, spends, ("me", 1))
    assert [one and one.limit for one in first] == [one and one.limit for one in again] == [None, "key.tokens_per_day"]
    assert journal.usage.total("acme", "k1", ALL).generated_tokens == 8


def test_pages_of_usage_go_from_the_newest_day_and_miss_nothing(journal):
    counts = {(f"t{n % 2}", f"k{n % 5}", day): Counts(requests=1) for n in range(10) for day in range(3)}
    journal.usage.note(counts, [])
    journal.usage.note(counts, [])
    found, cursor = journal.usage.page(None, None, ALL, None, 7)
    while cursor is not None:
        more, cursor = journal.usage.page(None, None, ALL, cursor, 7)
        found += more
    assert sorted((one.tenant, one.key, one.day) for one in found) == sorted(counts)
    assert [one.day for one in found] == sorted((one.day for one in found), reverse=True)
    assert {one.requests for one in found} == {2}
    assert journal.usage.total("t1", None, (1, 2)).requests == 2 * 2 * 5


# ------------------------------------------------------------------------------------------------- the audit's chain
def line(number: int) -> AuditRecord:
    return AuditRecord(at=1.5 + number, tenant="acme", subject="key:k1", action="GET /", target="", outcome="x")


def tampered(journal: Journal, statement: str) -> int | None:
    with journal._engine.execution_options(write="full").begin() as connection:
        connection.execute(text(statement))
    return journal.keys.check_audit().broken


@pytest.mark.parametrize(
    ("statement", "broken"),
    [
        ("UPDATE audit SET subject = 'key:k2' WHERE seq = 3", 3),
        ("UPDATE audit SET times = 2 WHERE seq = 7", 7),
        ("DELETE FROM audit WHERE seq = 4", 5),
        ("DELETE FROM audit WHERE seq < 3", 3),
        ("UPDATE audit SET chain = NULL WHERE seq = 2", 2),
    ],
)
def test_a_line_that_was_changed_or_removed_shows(url, statement, broken):
    journal = Journal.open(url)
    journal.keys.note([line(number) for number in range(4)])
    journal.keys.note([line(number) for number in range(4, 7)])
    check = journal.keys.check_audit()
    assert (check.broken, check.lines, check.unchained, check.last) == (None, 7, 0, 7)
    assert tampered(journal, statement) == broken
    journal.close()


def test_lines_cut_off_at_the_end_show_against_an_older_head(journal):
    journal.keys.note([line(number) for number in range(3)])
    head = journal.keys.check_audit()
    journal.keys.note([line(3)])
    kept = (head.last, head.head)
    assert journal.keys.check_audit(kept).broken is None
    assert tampered(journal, "DELETE FROM audit WHERE seq > 2") is None
    assert journal.keys.check_audit(kept).broken == 3


def test_lines_of_before_the_chain_are_counted(url):
    journal = Journal.open(url)
    journal.keys.note([line(0), line(1)])
    with journal._engine.execution_options(write="full").begin() as connection:
        connection.execute(text("UPDATE audit SET chain = NULL"))
    journal.keys.note([line(2)])
    assert (journal.keys.check_audit().broken, journal.keys.check_audit().unchained) == (None, 2)
    journal.close()


def test_a_journal_of_before_is_weighed_when_it_is_migrated(any_url):
    from alembic import command
    from alembic.config import Config

    journal = Journal.open(any_url)
    journal.commit("s/acme/x", drafts("a", "b"))
    journal.commit("c/manuals", drafts("c"))
    journal.tombstone("c/manuals", [one.seq for one in journal.commit("c/manuals", drafts("d"))])
    journal.states.put([StateRecord("acme/st_1", 1, b"{}", b"12345")])
    before = [journal.usage.held("acme"), journal.usage.held("default")]
    config = Config()
    config.set_main_option("script_location", "qraf.storage:migrations")
    with journal._engine.execution_options(write="full").begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0007")
    journal.close()
    engine = database.open_engine(any_url)
    database.migrate(engine)
    engine.dispose()
    journal = Journal.open(any_url)
    assert [journal.usage.held("acme"), journal.usage.held("default")] == before == [Held(2, 17), Held(1, 6)]
    journal.drop_memory("s/acme/x")
    assert journal.usage.held("acme") == Held(0, 5)
    journal.close()
