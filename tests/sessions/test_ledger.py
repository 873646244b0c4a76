"""Who is dead, and since when that is known: by a file that is not locked any more, or by silence."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from qraf.clock import FakeClock
from qraf.errors import ReplayGone, RunsElsewhere
from qraf.sessions.following import WISH_S
from qraf.sessions.ledger import LEASE_S, Ledger
from qraf.sessions.lives import Life, is_over
from qraf.sessions.response import Response
from qraf.sessions.responses import Responses
from qraf.settings import LimitSettings
from qraf.storage.journal import Journal


def ledger(journal: Journal, clock: FakeClock, folder: Path | None = None) -> Ledger:
    return Ledger(journal.responses, Responses(clock, LimitSettings()), clock, 120.0, folder)


async def begun(one: Ledger, name: str = "1") -> Response:
    response = one._responses.create(name, "acme/me", key=f"acme\0{name}")
    one.note(response)
    await one._flush()
    return response


async def lives(one: Ledger, clock: FakeClock, seconds: float) -> None:
    for _ in range(round(seconds)):
        clock.advance(1)
        await one._beat()


async def test_a_gateway_that_is_silent_for_longer_than_its_lease_is_dead(journal: Journal, clock: FakeClock) -> None:
    one, other = ledger(journal, clock), ledger(journal, clock)
    await one._beat()
    await other._beat()
    response = await begun(one)
    await lives(other, clock, LEASE_S)
    with pytest.raises(RunsElsewhere, match=one.name):
        await other.find(response.id, "acme")
    assert await other.find(response.id, "bolt") is None
    await lives(other, clock, 1)
    found = await other.find(response.id, "acme", after_seq=7)
    assert found is not None
    assert (found.status, found.seq, found.owner) == ("failed", 8, "acme/elsewhere")
    assert found.error is not None
    assert found.error.retryable
    response.end("completed")
    one.note(response)
    await one._flush()  # it was not dead after all: what others were told stays
    assert journal.responses.find("acme", response.id).status == "failed"  # type: ignore[union-attr]


async def test_who_was_cut_off_itself_takes_nobody_for_dead(journal: Journal, clock: FakeClock) -> None:
    one, other = ledger(journal, clock), ledger(journal, clock)
    await one._beat()
    response = await begun(one)
    clock.advance(2 * LEASE_S)  # the journal was away for both
    await other._beat()
    with pytest.raises(RunsElsewhere):
        await other.find(response.id, "acme")
    await lives(other, clock, LEASE_S)  # and buries it
    assert [one.epoch for one in journal.responses.gateways()] == [other.epoch]
    assert (await other.find("", "acme", key="acme\0001")).status == "failed"  # type: ignore[union-attr]


async def test_the_end_of_a_process_is_seen_at_once_by_its_file(
    journal: Journal, clock: FakeClock, tmp_path: Path
) -> None:
    one, other = ledger(journal, clock, tmp_path), ledger(journal, clock, tmp_path)
    assert one._life is not None
    one._life.begin()
    response = await begun(one)
    with pytest.raises(RunsElsewhere):
        await other.find(response.id, "acme")
    one._life.end()
    (tmp_path / one.epoch).touch()  # the file as a kill -9 leaves it
    assert (await other.find(response.id, "acme")).status == "failed"  # type: ignore[union-attr]


def test_a_life_is_over_when_nobody_holds_its_file(tmp_path: Path) -> None:
    assert not is_over(tmp_path, "e1")
    life = Life(tmp_path, "e1")
    life.begin()
    assert not is_over(tmp_path, "e1")
    life.end()
    assert not is_over(tmp_path, "e1")
    (tmp_path / "e1").touch()
    assert is_over(tmp_path, "e1")
    assert list(tmp_path.iterdir()) == []


def test_a_life_whose_end_the_journal_was_not_told_ends_as_a_death(tmp_path: Path) -> None:
    life = Life(tmp_path, "e1")
    life.begin()
    life.end(is_told=False)
    assert is_over(tmp_path, "e1")


async def test_responses_of_a_gateway_that_died_before_it_said_that_it_lives_end(
    journal: Journal, clock: FakeClock
) -> None:
    one, other = ledger(journal, clock), ledger(journal, clock)
    response = await begun(one)  # and no `_beat` of its
    await lives(other, clock, LEASE_S + 1)
    assert journal.responses.find("acme", response.id).status == "failed"  # type: ignore[union-attr]


async def test_an_end_that_never_got_to_the_journal_is_an_end_for_others_all_the_same(
    journal: Journal, clock: FakeClock
) -> None:
    one = ledger(journal, clock)
    await one._beat()
    responses = [await begun(one, name) for name in "123"]
    for response in responses:
        response.end("completed")
        response.attach().detach()
    clock.advance(121)
    one._responses.sweep()
    one.note(responses[1])  # that of the second one still waits
    one._leaving = {responses[2].id: responses[2]}
    await one._beat()
    found = [journal.responses.find("acme", response.id) for response in responses]
    assert [one.status for one in found if one is not None] == ["failed", "running", "running"]
    one._leaving = {}
    await one._flush()
    assert journal.responses.find("acme", responses[1].id).status == "completed"  # type: ignore[union-attr]


async def test_of_two_responses_to_one_command_the_one_that_nobody_reads_stops(
    journal: Journal, clock: FakeClock
) -> None:
    """The client sent it to one gateway, lost it, and sent it to the other before the first had noted it."""
    one, other = ledger(journal, clock), ledger(journal, clock)
    first = one._responses.create("1", "acme/me", key="acme\0k")
    second = other._responses.create("1", "acme/me", key="acme\0k")
    reader = second.attach()
    for where, response in ((other, second), (one, first)):  # the one that is read is noted first
        where.note(response)
        await where._flush()
    for where in (one, other, one, other):
        await where._look()
    assert not second.has_ended
    reader.detach()  # and its client may go and come back as ever
    await other._look()
    assert not second.has_ended
    third = one._responses.create("2", "acme/me", key="acme\0l")
    await begun(other, "l")
    one.note(third)
    await one._flush()
    await other._look()
    assert other._responses.of_key("acme\0l").status == "cancelled"  # type: ignore[union-attr]


async def test_what_is_written_for_others_is_bounded_and_takes_turns(
    journal: Journal, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qraf.sessions.ledger._MOST_TOLD", 1000)
    one = ledger(journal, clock)
    responses = [await begun(one, str(n)) for n in range(4)]
    for response in responses:
        response.delta("x" * 200, 1)  # 200 of text and about as much of frames
    journal.responses.wish([response.id for response in responses], "read")
    for told in (2, 4):
        await one._look()
        clock.advance(1)
        found = [journal.responses.find("acme", response.id) for response in responses]
        assert sum(bool(one and one.seq) for one in found) == told
    put, calls = journal.responses.put, []
    monkeypatch.setattr(journal.responses, "put", lambda records: calls.append(records) or put(records))
    await one._look()
    assert calls == []  # nothing is new
    clock.advance(WISH_S)
    responses[0].delta("y", 1)
    await one._look()
    assert calls == []  # nobody wants it any more


async def test_an_end_comes_after_all_that_its_reader_is_known_to_have_seen(journal: Journal, clock: FakeClock) -> None:
    """Its gateway told up to 3, went on with a reader of its own, and died."""
    one, other = ledger(journal, clock), ledger(journal, clock)
    await one._beat()
    response = await begun(one)
    for text in "abc":
        response.delta(text, 1)
        response.stamp_all()
    response.is_followed = True
    one.note(response)
    await one._flush()
    await other._beat()
    followed = other._following.begin(journal.responses.find("acme", response.id), one.name, "")  # type: ignore[arg-type]
    await other._following.work()
    assert followed is not None
    assert (followed.seq, followed.text, other._responses.find(response.id)) == (3, "abc", followed)
    waiting = asyncio.create_task(other.find(response.id, "acme", after_seq=20, known=followed))
    await asyncio.sleep(0)
    journal.responses.bury([one.epoch])
    await other._following.work()
    assert await waiting is followed
    assert (followed.seq, followed.status) == (21, "failed")
    assert [frame.seq async for frame in followed.attach(20).frames()] == [21]
    assert other._following._all == {}


async def test_one_that_cannot_be_continued_is_told_to_its_reader(journal: Journal, clock: FakeClock) -> None:
    one, other = ledger(journal, clock), ledger(journal, clock)
    response = await begun(one)
    response.is_followed = True
    response.delta("a", 1)
    one.note(response)
    await one._flush()
    followed = other._following.begin(journal.responses.find("acme", response.id), one.name, "")  # type: ignore[arg-type]
    await other._following.work()
    assert followed is not None
    frames = followed.attach(0).frames()
    assert (await anext(frames)).seq == 1  # type: ignore[union-attr]
    response.is_followed = False  # it ends, and its frames are not told
    response.delta("b", 1)
    response.end("completed")
    one.note(response)
    await one._flush()
    await other._following.work()
    with pytest.raises(ReplayGone):
        await anext(frames)
    assert other._responses.find(response.id) is None
    found = await other.find(response.id, "acme", after_seq=1)
    assert found is not None
    assert (found.status, found.text, found.attach(1).result) == ("completed", "ab", "gap")


async def test_whoever_asks_for_what_is_followed_gets_no_less_than_the_journal_has(
    journal: Journal, clock: FakeClock
) -> None:
    """Its reader may have come over another gateway, which has sent all that was written until then."""
    one, other = ledger(journal, clock), ledger(journal, clock)
    response = await begun(one)
    response.is_followed = True

    async def told(text: str) -> None:
        response.delta(text, 1)
        await one._tell([response])

    await told("a")
    followed = other._following.begin(journal.responses.find("acme", response.id), one.name, "")  # type: ignore[arg-type]
    await other._following.work()
    assert followed is not None
    before = journal.responses.find("acme", response.id)
    assert before is not None
    await told("b")
    assert await other.find(response.id, "acme", known=followed) is followed
    assert (followed.text, followed.seq) == ("ab", 2)
    journal.responses.put([before])  # late: nothing goes back
    assert followed.take(before)
    found = journal.responses.find("acme", response.id)
    assert found is not None
    assert (followed.text, followed.seq, found.seq) == ("ab", 2, 2)


async def test_what_is_followed_and_has_ended_has_its_end_for_whoever_asks_by_its_key(
    journal: Journal, clock: FakeClock
) -> None:
    """Somebody else has it followed by its id; this reader has seen more of it over its own gateway."""
    one, other = ledger(journal, clock), ledger(journal, clock)
    response = await begun(one)
    response.is_followed = True
    response.delta("a", 1)
    await one._tell([response])
    followed = other._following.begin(journal.responses.find("acme", response.id), one.name, "")  # type: ignore[arg-type]
    await other._following.work()
    for text in "bcd":
        response.delta(text, 1)
        response.stamp_all()
    response.end("completed")
    one.note(response)
    await one._flush()
    found = await other.find("", "acme", key="acme\0001", after_seq=4)
    assert found is followed
    assert found is not None
    assert (found.status, [frame.seq async for frame in found.attach(4).frames()]) == ("completed", [5])
