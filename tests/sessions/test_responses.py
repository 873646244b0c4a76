from __future__ import annotations

import pytest

from qraf.clock import FakeClock
from qraf.errors import LimitExceeded
from qraf.sessions.responses import Responses
from qraf.settings import LimitSettings


def responses(clock: FakeClock, running: int = 2, kept: int = 2, **more: float) -> Responses:
    limits = LimitSettings(max_running_responses=running, kept_responses=kept, kept_response_s=60, **more)  # type: ignore[arg-type]
    return Responses(clock, limits)


def test_a_response_is_found_by_id_stream_key_and_its_owners_command() -> None:
    table = responses(FakeClock())
    response = table.create("7", "me", key="k1")
    assert table.find(response.id) is response
    assert table.find(response.stream) is response
    assert table.find("k1") is table.of_key("k1") is response
    assert table.of_key("7") is None
    assert table.find("7", "me") is response
    assert table.find("7", "you") is None
    assert table.find("7") is None


def test_running_responses_are_bounded() -> None:
    table = responses(FakeClock())
    first = table.create("1", "me")
    table.create("2", "me")
    with pytest.raises(LimitExceeded, match="max_running_responses"):
        table.create("3", "me")
    first.end("completed")
    table.create("3", "me")


def test_ended_responses_are_let_go_by_number_and_age() -> None:
    clock = FakeClock()
    table = responses(clock, running=10)
    made = [table.create(str(i), "me", key=f"k{i}") for i in range(4)]
    for response in made[:3]:
        response.end("completed")
    table.sweep()
    assert table.find(made[0].id) is None
    assert table.find("0", "me") is None
    assert table.of_key("k0") is None
    assert table.find(made[1].id) is made[1]
    clock.advance(61)
    table.sweep()
    assert table.find(made[1].id) is None
    assert table.find(made[3].id) is made[3]  # still runs


def test_ended_responses_are_let_go_by_the_length_of_their_texts() -> None:
    table = responses(FakeClock(), running=10, kept=10, kept_text_bytes=1024)
    made = [table.create(str(i), "me") for i in range(4)]
    for response in made:
        response.delta("x" * 400, 1)
        response.end("completed")
    table.sweep()
    assert [table.find(response.id) is not None for response in made] == [False, False, True, True]


def test_one_that_is_read_is_not_let_go() -> None:
    clock = FakeClock()
    table = responses(clock)
    response = table.create("1", "me")
    response.end("completed")
    reader = response.attach()
    clock.advance(61)
    table.sweep()
    assert table.find(response.id) is response
    reader.detach()
    table.sweep()
    assert table.find(response.id) is None


def test_one_that_nobody_reads_runs_on_for_its_grace_and_no_longer() -> None:
    clock = FakeClock()
    table = responses(clock, response_grace_s=60)
    response, never_read = table.create("1", "me"), table.create("2", "me")
    reader = response.attach()
    clock.advance(59)
    assert table.reap() == 1
    assert not never_read.has_ended
    clock.advance(2)
    assert table.reap() == 0
    assert (never_read.status, never_read.cancel_reason) == ("cancelled", "disconnected")
    reader.detach()
    clock.advance(59)
    assert table.reap() == 1
    response.attach().detach()  # came back, and went again
    clock.advance(59)
    assert table.reap() == 1
    clock.advance(1)
    assert table.reap() == 0
    assert response.status == "cancelled"


def test_of_too_many_unread_ones_those_left_longest_go() -> None:
    clock = FakeClock()
    table = responses(clock, running=10, max_unread_responses=2)
    made = []
    for number in range(4):
        made.append(table.create(str(number), "me"))
        clock.advance(1)
    assert table.reap() == 2
    assert [response.has_ended for response in made] == [True, True, False, False]


def test_each_life_of_a_gateway_has_an_epoch_of_its_own() -> None:
    assert responses(FakeClock()).epoch != responses(FakeClock()).epoch
    table = responses(FakeClock())
    assert table.create("1", "me").epoch == table.epoch


def test_a_tenant_with_many_ended_responses_pushes_out_its_own() -> None:
    table = responses(FakeClock(), running=100, kept=10)
    few = [table.create(str(i), "acme/me") for i in range(3)]
    many = [table.create(str(i), "bolt/me") for i in range(30)]
    for response in (*few, *many):
        response.end("completed")
    table.sweep()
    assert all(table.find(one.id) is one for one in few)
    assert [table.find(one.id) is one for one in many] == [False] * 23 + [True] * 7
