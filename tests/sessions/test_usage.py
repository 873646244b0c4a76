"""The ledger: tokens are in the journal before they are shown, and nothing stops while the journal is away."""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio

from qraf.clock import FakeClock
from qraf.errors import QuotaExceeded, StorageFailed
from qraf.sessions import usage
from qraf.sessions.usage import Ledger
from qraf.storage.journal import Journal
from qraf.storage.usage import DAY_S, Counts, Payer, Spend

ALL = (0, 10**6)


def payer(key: str = "k1", tokens: int = 10**9) -> Payer:
    return Payer(tenant="acme", key=key, of_tenant=(0, 0, 10**9), of_key=(0, 0, tokens))


@pytest.fixture
def journal():
    journal = Journal.open("sqlite:///:memory:", FakeClock())
    yield journal
    journal.close()


@pytest_asyncio.fixture
async def ledger(journal):
    ledger = Ledger(journal.usage, journal._clock)
    ledger.start()
    yield ledger
    await ledger.close()


def generated(journal: Journal) -> int:
    return journal.usage.total("acme", None, ALL).generated_tokens


async def test_what_was_spent_is_in_the_journal_before_it_is_shown(journal, ledger) -> None:
    for count in range(1, 20):
        await ledger.spend(Spend(payer(), 3))
        assert generated(journal) == 3 * count


async def test_many_responses_share_a_transaction(journal, ledger, monkeypatch) -> None:
    calls, note = [], journal.usage.note
    monkeypatch.setattr(journal.usage, "note", lambda *args: calls.append(len(args[1])) or note(*args))
    await asyncio.gather(*(ledger.spend(Spend(payer(f"k{n % 7}"), 2)) for n in range(300)))
    assert (generated(journal), sum(calls)) == (600, 300)
    assert len(calls) <= 5


async def test_of_many_at_once_as_many_pass_as_the_quota_has(journal, ledger) -> None:
    one = payer(tokens=50)
    answers = await asyncio.gather(*(ledger.spend(Spend(one, 3)) for _ in range(40)), return_exceptions=True)
    assert sum(isinstance(one, QuotaExceeded) for one in answers) == 40 - 16
    assert generated(journal) == 48


async def test_counts_are_written_within_a_second_and_at_the_end(journal, ledger, monkeypatch) -> None:
    monkeypatch.setattr(usage, "_EVERY_S", 0.05)
    ledger.count(payer(), Counts(requests=2))
    await ledger.spend(Spend(payer(), 0))  # whatever is written takes the rest along
    assert journal.usage.total("acme", "k1", ALL).requests == 2
    ledger.count(payer(), Counts(frames=5))
    journal._clock.advance(DAY_S)
    ledger.count(payer(), Counts(frames=7))
    assert ledger.waiting(payer()).frames == 7
    await ledger.close()
    rows, _ = journal.usage.page("acme", "k1", ALL)
    assert [row.frames for row in rows] == [7, 5]


async def test_while_the_journal_is_away_text_goes_on_and_is_counted_later(journal, ledger, monkeypatch) -> None:
    monkeypatch.setattr(usage, "_EVERY_S", 0.05)
    note = journal.usage.note

    def away(*_: object) -> None:
        raise StorageFailed("write usage", "away", 1000)

    monkeypatch.setattr(journal.usage, "note", away)
    async with asyncio.timeout(2):
        for _ in range(50):
            await ledger.spend(Spend(payer(), 2, 1))
    ledger.count(payer(), Counts(frames=3))
    assert generated(journal) == 0
    monkeypatch.setattr(journal.usage, "note", note)
    async with asyncio.timeout(2):
        while generated(journal) < 100:
            await asyncio.sleep(0.02)
    await ledger.flush()
    total = journal.usage.total("acme", "k1", ALL)
    assert (total.generated_tokens, total.prompt_tokens, total.frames) == (100, 50, 3)


async def test_a_batch_whose_answer_was_lost_is_counted_once(journal, ledger, monkeypatch) -> None:
    """Every second write is made, and its answer lost."""
    monkeypatch.setattr(usage, "_EVERY_S", 0.01)
    note, calls = journal.usage.note, 0

    def lost(*args):
        nonlocal calls
        calls += 1
        answers = note(*args)
        if calls % 2:
            raise StorageFailed("write usage", "the connection is lost", 1000)
        return answers

    monkeypatch.setattr(journal.usage, "note", lost)
    for _ in range(20):
        await ledger.spend(Spend(payer(), 2))
        ledger.count(payer(), Counts(frames=1))
        await asyncio.sleep(0.01)
    monkeypatch.setattr(journal.usage, "note", note)
    for _ in range(3):
        await ledger.flush()
    total = journal.usage.total("acme", "k1", ALL)
    assert (total.generated_tokens, total.frames) == (40, 20)
    assert calls > 10


async def test_whoever_waits_for_a_flush_and_goes_away_stops_nobody(journal, ledger, monkeypatch) -> None:
    import threading

    gate, note = threading.Event(), journal.usage.note
    monkeypatch.setattr(journal.usage, "note", lambda *args: gate.wait(5) and note(*args))
    spending = [asyncio.create_task(ledger.spend(Spend(payer(), 1))) for _ in range(5)]
    await asyncio.sleep(0)
    impatient = asyncio.create_task(ledger.flush())
    await asyncio.sleep(0.05)
    impatient.cancel()
    gate.set()
    await asyncio.gather(*spending)
    assert generated(journal) == 5


async def test_a_journal_that_hangs_keeps_nobody_for_long(journal, ledger, monkeypatch) -> None:
    import threading

    monkeypatch.setattr(usage, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(usage, "_EVERY_S", 0.05)
    gate, note = threading.Event(), journal.usage.note
    monkeypatch.setattr(journal.usage, "note", lambda *args: gate.wait(5) and note(*args))
    async with asyncio.timeout(1):
        for _ in range(20):
            await ledger.spend(Spend(payer(), 1))
    gate.set()
    await ledger.close()
    assert generated(journal) == 20


async def test_tokens_that_were_refused_in_a_write_whose_answer_was_lost_are_counted_when_they_are_shown(
    journal, ledger, monkeypatch
) -> None:
    note = journal.usage.note

    def lost(*args):
        note(*args)
        raise StorageFailed("write usage", "the connection is lost", 1000)

    monkeypatch.setattr(journal.usage, "note", lost)
    narrow = payer(tokens=10)
    await asyncio.gather(ledger.spend(Spend(narrow, 8)), ledger.spend(Spend(narrow, 5, 3)))  # both are shown
    assert generated(journal) == 8
    journal._clock.advance(DAY_S)  # and are of the day on which they were
    monkeypatch.setattr(journal.usage, "note", note)
    await ledger.flush()
    await ledger.flush()
    rows, _ = journal.usage.page("acme", "k1", ALL)
    assert [(row.generated_tokens, row.prompt_tokens) for row in rows] == [(13, 3)]


async def test_what_waits_for_a_journal_that_is_away_takes_no_more_room_with_every_token(
    journal, ledger, monkeypatch
) -> None:
    def away(*_: object) -> None:
        raise StorageFailed("write usage", "away", 1000)

    note = journal.usage.note
    monkeypatch.setattr(journal.usage, "note", away)
    for _ in range(200):
        await ledger.spend(Spend(payer(), 1))
    await ledger.flush()
    assert len(ledger._spends) + len(ledger._counts) <= 2
    monkeypatch.setattr(journal.usage, "note", note)
    await ledger.close()
    assert generated(journal) == 200


@pytest.mark.parametrize("where", ["waits", "is written", "is refused"])
async def test_what_a_cancelled_response_was_charged_is_given_back_to_the_token(
    journal, ledger, monkeypatch, where
) -> None:
    """As `Bill` does: a piece that was charged and not shown is taken off again."""
    import threading

    gate, entered, note = threading.Event(), threading.Event(), journal.usage.note
    narrow = payer(tokens=10)
    await ledger.spend(Spend(narrow, 9 if where == "is refused" else 2))

    def slowly(*args):
        entered.set()
        gate.wait(5)
        return note(*args)

    monkeypatch.setattr(journal.usage, "note", slowly)
    before = generated(journal)
    if where == "waits":
        other = asyncio.create_task(ledger.spend(Spend(payer("k2"), 0)))
        await asyncio.to_thread(entered.wait, 5)
    spending = asyncio.create_task(ledger.spend(Spend(narrow, 3)))
    await asyncio.sleep(0)
    if where != "waits":
        await asyncio.to_thread(entered.wait, 5)
    spending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await spending
    gate.set()
    ledger.count(narrow, Counts(generated_tokens=-3))
    if where == "waits":
        await other
    await ledger.close()
    assert generated(journal) == before


async def test_a_cancel_that_meets_the_refusal_counts_what_will_be_given_back(journal, ledger, monkeypatch) -> None:
    write = Ledger._write

    async def cancelling(*args):
        done = await write(*args)
        asked.cancel()  # the answer is there, and was not taken yet
        return done

    monkeypatch.setattr(Ledger, "_write", cancelling)
    asked = asyncio.create_task(ledger.spend(Spend(payer(tokens=0), 5)))
    with pytest.raises(asyncio.CancelledError):
        await asked
    await ledger.flush()
    assert generated(journal) == 5
