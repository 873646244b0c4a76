"""Whether the server can do its work: the state of its life, which nodes are down, and what else is degraded."""

from __future__ import annotations

from typing import Any

from qraf.actors.runtime import Runtime
from qraf.clock import Clock
from qraf.network.topology import Topology
from qraf.sessions.rates import Rates
from qraf.storage.journal import Journal

__all__ = ["Health"]


class Health:
    """What is degraded, and since when. `see` often enough for times that are right; `enter` is the service's alone."""

    def __init__(self, topology: Topology, runtime: Runtime, journal: Journal, rates: Rates, clock: Clock) -> None:
        self._topology, self._runtime, self._journal = topology, runtime, journal
        self._rates, self._clock = rates, clock
        self._down_since: dict[str, float] = {}
        self.enter("new")

    @property
    def state(self) -> str:
        """`new`, `starting`, `ready`, `draining`, `closing` or `closed`."""
        return self._state

    def enter(self, state: str) -> None:
        """From now on the server's life is in this state."""
        self._state, self._state_since = state, self._clock.now()

    def see(self) -> None:
        """Note which nodes are down now."""
        now = self._clock.now()
        for node, health in self._runtime.health.items():
            if health.up:
                self._down_since.pop(node, None)
            else:
                self._down_since.setdefault(node, now)

    def report(self) -> dict[str, Any]:
        """`ready`, `state`, `degraded` (what, since when, why), and the `processes` that run."""
        self.see()
        degraded: list[dict[str, Any]] = []

        def tell(what: str, since: float, detail: str) -> None:
            degraded.append({"what": what, "since": since, "detail": detail})

        if self._state != "ready":
            tell("server", self._state_since, self._state)
        is_needed = False
        for node, since in sorted(self._down_since.items()):
            needed = self._is_needed(node)
            is_needed |= needed
            tell(
                f"node {node}",
                since,
                "down; it is being restarted" if needed else "down; others do its work meanwhile",
            )
        ready = self._state == "ready" and not is_needed
        if (away := self._journal.away) is not None:  # recall works without it, so prompts may still be sent here
            tell("journal", away.since, f"writes are refused: {away.reason}")
        if (alone := self._rates.away) is not None:
            detail = "rates, sockets and responses are counted by this gateway alone: Redis does not answer"
            tell("rates", alone[0], f"{detail}: {alone[1]}")
        broken = self._journal.broken
        if stopped := max(len(broken), sum(view.stopped for view in self._runtime.views())):
            since = min(broken.values(), default=self._clock.now())
            tell("seals", since, f"{stopped} memories are stopped: rows of theirs do not open; the log names them")
        if failing := [one for _, one in self._runtime.snapshots().values() if one.failing_since]:
            first = min(failing, key=lambda one: one.failing_since)
            detail = f"snapshots cannot be made, a restart takes longer: {first.reason}"
            tell("snapshots", first.failing_since, detail)
        return {"ready": ready, "state": self._state, "degraded": degraded, "processes": self._runtime.processes()}

    def _is_needed(self, node: str) -> bool:
        """Whether work is left undone while this node is down: another generator can stand in, nothing else can."""
        spec = self._topology.node(node)
        if spec.role != "generator":
            return True
        others = (one.name for one in self._topology.generators() if one.name != node)
        return all(other in self._down_since for other in others)
