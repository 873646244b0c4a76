"""Who is up, under which epoch, and what to start next: the decisions of the supervisor, without the acts.

Every start gets a new epoch, higher than any before. What was reported about an earlier epoch is ignored, so late
news of a process that was given up changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from qraf.clock import Clock

__all__ = ["Attendance", "Charge", "Supervisor"]

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_CALM_S = 30.0  # up for so long: the next failure counts as the first again
_AWAY_S = 4.0  # a gateway asks every second; one that was silent for so long has vanished


@dataclass(slots=True)
class Charge:
    """One process in the supervisor's care."""

    name: str
    phase: Literal["down", "starting", "up"] = "down"
    epoch: int = 0
    restarts: int = 0
    failures: int = 0  # in a row
    missed: int = 0  # probes in a row
    retry_at: float = 0.0
    up_since: float = 0.0
    was_up: bool = False
    reason: str = ""

    @property
    def has_failed(self) -> bool:
        """Whether its very first start failed: then another one will hardly do better."""
        return self.failures > 0 and not self.was_up


class Supervisor:
    """Keeps the books of processes by name. Plain: its caller starts, probes and kills, and tells what came of it.

    A process that dies is started again at once; one that keeps failing waits 0.5, 1, 2 .. 30 s. `max_missed` probes
    without an answer mean that it hangs.
    """

    def __init__(self, names: Iterable[str], clock: Clock, max_missed: int = 2) -> None:
        self._clock, self._max_missed = clock, max_missed
        self._epoch = 0
        self.charges: dict[str, Charge] = {name: Charge(name) for name in names}

    @property
    def epoch(self) -> int:
        """The highest epoch so far."""
        return self._epoch

    def observe(self, epoch: int) -> None:
        """Start above an epoch that was found in use."""
        self._epoch = max(self._epoch, epoch)

    def found(self, name: str, epoch: int) -> None:
        """A process was found that an earlier supervisor had started; it goes on in its epoch."""
        self.observe(epoch)
        charge = self.charges[name]
        charge.phase, charge.epoch, charge.was_up, charge.up_since = "up", epoch, True, self._clock.monotonic()

    def due(self) -> list[str]:
        """What should be started now."""
        now = self._clock.monotonic()
        return [one.name for one in self.charges.values() if one.phase == "down" and one.retry_at <= now]

    def due_in_s(self) -> float:
        """How long until something is to be started; infinite while everything is up or on its way."""
        waiting = [one.retry_at for one in self.charges.values() if one.phase == "down"]
        return max(0.0, min(waiting, default=float("inf")) - self._clock.monotonic())

    def begin(self, name: str) -> int:
        """A start begins; the number that it goes by until it is given an epoch."""
        self._epoch += 1
        charge = self.charges[name]
        charge.restarts += charge.epoch > 0
        charge.phase, charge.epoch, charge.missed = "starting", self._epoch, 0
        return self._epoch

    def numbered(self, name: str, begun: int, epoch: int) -> None:
        """A start is given its epoch, which is not lower than the number that it went by."""
        self.observe(epoch)
        if self._is_current(self.charges[name], begun):
            self.charges[name].epoch = epoch

    def arrived(self, name: str, epoch: int) -> bool:
        """A start succeeded; False when it was given up meanwhile and must be stopped."""
        charge = self.charges[name]
        if not self._is_current(charge, epoch) or charge.phase != "starting":
            return False
        charge.phase, charge.was_up, charge.up_since, charge.reason = "up", True, self._clock.monotonic(), ""
        return True

    def answered(self, name: str, epoch: int) -> None:
        """A probe was answered."""
        charge = self.charges[name]
        if self._is_current(charge, epoch):
            charge.missed = 0

    def missed(self, name: str, epoch: int) -> bool:
        """A probe was not answered in time; True when the process is given up now."""
        charge = self.charges[name]
        if not self._is_current(charge, epoch) or charge.phase != "up":
            return False
        charge.missed += 1
        return charge.missed >= self._max_missed and self.lost(name, epoch, f"no answer to {charge.missed} probes")

    def lost(self, name: str, epoch: int, reason: str) -> bool:
        """The process died, hangs, or did not start; True when that is news."""
        charge = self.charges[name]
        if not self._is_current(charge, epoch) or charge.phase == "down":
            return False
        now = self._clock.monotonic()
        if charge.phase == "up" and now - charge.up_since >= _CALM_S:
            charge.failures = 0
        pause = 0.0 if not charge.failures else min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (charge.failures - 1))
        charge.failures += 1
        charge.phase, charge.reason, charge.retry_at = "down", reason, now + pause
        return True

    @staticmethod
    def _is_current(charge: Charge, epoch: int) -> bool:
        return charge.epoch == epoch and epoch > 0


class Attendance:
    """Which gateways are there. Plain: its caller tells when one asks, and when one says goodbye."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[str, float] = {}
        self.departures = 0  # of those that vanished without a word

    def saw(self, gateway: str) -> None:
        """It asks."""
        self._seen[gateway] = self._clock.monotonic()

    def left(self, gateway: str) -> None:
        """It said goodbye: everything that it had begun has ended."""
        self._seen.pop(gateway, None)

    def sweep(self) -> bool:
        """Strike off those that have vanished; True when there are such."""
        gone = [one for one, at in self._seen.items() if self._clock.monotonic() - at >= _AWAY_S]
        for one in gone:
            del self._seen[one]
        self.departures += len(gone)
        return bool(gone)

    def others(self, gateway: str, since: float = 0.0) -> bool:
        """Whether another gateway is there, or was seen after a moment on the clock."""
        return any(one != gateway and at >= since for one, at in self._seen.items())
