"""Who is dead, and since when that is known: by a file that is not locked any more, or by silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from qraf.clock import FakeClock
from qraf.errors import RunsElsewhere
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
