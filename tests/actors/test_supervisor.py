from __future__ import annotations

import subprocess
import sys

from qraf.actors.supervisor import Attendance, Supervisor
from qraf.clock import FakeClock


def started(clock: FakeClock, *names: str) -> Supervisor:
    supervisor = Supervisor(names, clock)
    for name in supervisor.due():
        assert supervisor.arrived(name, supervisor.begin(name))
    return supervisor


def test_everything_is_due_at_first_and_nothing_once_it_is_up() -> None:
    supervisor = Supervisor(["a", "b"], FakeClock())
    assert supervisor.due() == ["a", "b"]
    epochs = [supervisor.begin(name) for name in supervisor.due()]
    assert epochs == [1, 2]
    assert supervisor.due() == []
    assert supervisor.arrived("a", 1)
    assert supervisor.charges["a"].phase == "up"
    assert supervisor.charges["b"].phase == "starting"


def test_a_death_is_due_at_once_under_a_higher_epoch() -> None:
    supervisor = started(FakeClock(), "a", "b")
    assert supervisor.lost("a", 1, "killed")
    assert supervisor.due() == ["a"]
    assert supervisor.begin("a") == 3
    assert supervisor.charges["a"].restarts == 1
    assert supervisor.charges["b"].restarts == 0


def test_news_of_a_passed_epoch_changes_nothing() -> None:
    supervisor = started(FakeClock(), "a")
    supervisor.lost("a", 1, "hangs")
    epoch = supervisor.begin("a")
    assert not supervisor.arrived("a", 1)
    assert not supervisor.lost("a", 1, "late news")
    assert not supervisor.missed("a", 1)
    assert supervisor.charges["a"].phase == "starting"
    assert supervisor.arrived("a", epoch)


def test_the_same_death_told_twice_is_one_restart() -> None:
    supervisor = started(FakeClock(), "a")
    assert supervisor.lost("a", 1, "by a call")
    assert not supervisor.lost("a", 1, "by a probe")
    assert supervisor.charges["a"].failures == 1


def test_two_missed_probes_in_a_row_are_a_hang_and_an_answer_between_them_is_not() -> None:
    supervisor = started(FakeClock(), "a")
    assert not supervisor.missed("a", 1)
    supervisor.answered("a", 1)
    assert not supervisor.missed("a", 1)
    assert supervisor.missed("a", 1)
    assert supervisor.charges["a"].phase == "down"
    assert "2 probes" in supervisor.charges["a"].reason


def test_failing_again_and_again_waits_longer_and_calm_forgives() -> None:
    clock = FakeClock()
    supervisor = Supervisor(["a"], clock)
    pauses = []
    for _ in range(9):
        assert supervisor.due() == ["a"]
        supervisor.lost("a", supervisor.begin("a"), "no")
        pauses.append(supervisor.charges["a"].retry_at - clock.monotonic())
        clock.advance(pauses[-1])
    assert pauses == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    epoch = supervisor.begin("a")
    supervisor.arrived("a", epoch)
    clock.advance(30)
    supervisor.lost("a", epoch, "killed")
    assert supervisor.due() == ["a"]


def test_epochs_go_on_above_one_that_was_found() -> None:
    supervisor = Supervisor(["a"], FakeClock())
    supervisor.observe(41)
    supervisor.observe(7)
    assert supervisor.begin("a") == 42


def test_what_an_earlier_supervisor_started_goes_on_in_its_epoch() -> None:
    supervisor = Supervisor(["a", "b"], FakeClock())
    supervisor.found("a", 7)
    assert (supervisor.charges["a"].phase, supervisor.charges["a"].epoch) == ("up", 7)
    assert supervisor.due() == ["b"]
    assert supervisor.begin("b") == 8
    assert supervisor.lost("a", 7, "killed")
    assert supervisor.begin("a") == 9
    assert supervisor.charges["a"].restarts == 1


def test_it_tells_how_long_until_something_is_due() -> None:
    clock = FakeClock()
    supervisor = started(clock, "a", "b")
    assert supervisor.due_in_s() == float("inf")
    for _ in range(2):
        supervisor.lost("a", supervisor.charges["a"].epoch, "killed")
        assert supervisor.due_in_s() == supervisor.charges["a"].retry_at - clock.monotonic()
        clock.advance(supervisor.due_in_s())
        supervisor.begin("a")
    assert supervisor.due_in_s() == float("inf")


def test_what_never_came_up_has_failed_and_what_died_has_not() -> None:
    supervisor = Supervisor(["a", "b"], FakeClock())
    supervisor.lost("a", supervisor.begin("a"), "no encoder")
    supervisor.arrived("b", supervisor.begin("b"))
    supervisor.lost("b", 2, "killed")
    assert [supervisor.charges[name].has_failed for name in ("a", "b")] == [True, False]


def test_a_gateway_that_is_silent_has_departed_and_one_that_says_goodbye_has_not() -> None:
    clock = FakeClock()
    attendance = Attendance(clock)
    for gateway in ("a", "b", "c"):
        attendance.saw(gateway)
    attendance.left("b")
    clock.advance(3)
    attendance.saw("a")
    assert not attendance.sweep()
    clock.advance(1)
    assert attendance.sweep()
    assert (attendance.departures, attendance.sweep()) == (1, False)
    assert not attendance.others("a")
    assert attendance.others("d")
    assert not attendance.others("d", since=clock.monotonic())


def test_the_process_of_the_supervisor_is_a_light_one() -> None:
    heavy = ("torch", "transformers", "sqlalchemy", "scipy", "fastapi")
    code = f"import sys, qraf.actors.ray_supervisor; print([name for name in {heavy} if name in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
