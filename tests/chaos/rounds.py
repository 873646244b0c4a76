"""Round after round: kill one thing, wait until every client has begun something new that worked, go on."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.chaos.lab import Lab
from tests.chaos.load import TOKENS, Found, Load, verify
from tests.openai_server import OpenAIServer, Script

KINDS = ("host", "supervisor", "gateway", "postgres")
TOKENS_PER_S = 40.0
WITHIN_S = 90.0


@dataclass
class Round:
    """What one kill cost."""

    number: int
    kind: str
    killed: str
    write_s: float = 0.0
    """Until the first write was acknowledged that was begun after the kill."""
    answer_s: float = 0.0
    """Until the first text of a response came that was begun after the kill."""
    all_s: float = 0.0
    """Until every client had begun something new that worked."""
    writes: int = 0
    ends: Counter[str] = field(default_factory=Counter)

    def row(self) -> tuple[str, ...]:
        times = (f"{self.write_s:.2f}", f"{self.answer_s:.2f}", f"{self.all_s:.2f}")
        ends = ", ".join(f"{count} {status}" for status, count in sorted(self.ends.items()))
        return (str(self.number), self.kind, self.killed, *times, str(self.writes), ends)


HEAD = ("round", "killed", "pid", "write s", "answer s", "all s", "items", "responses ended")
WIDTHS = (5, 10, 14, 7, 8, 7, 6, 0)


def line(cells: Sequence[str]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


@dataclass
class Report:
    """All rounds, and what was found at the end."""

    rounds: list[Round]
    load: Load
    found: Found

    @property
    def is_good(self) -> bool:
        return not (self.load.faults or self.found.lost or self.found.doubled)

    def text(self) -> str:
        found, load = self.found, self.load
        kinds = {kind: [one for one in self.rounds if one.kind == kind] for kind in KINDS}
        told = [
            f"items acknowledged {load.acknowledged}, listed {found.listed}, of them recalled {found.recalled}; "
            f"lost {len(found.lost)}, doubled {len(found.doubled)}",
            f"responses {len(load.ends)}: {', '.join(f'{n} {status}' for status, n in sorted(load.ended().items()))}",
            f"reconnects {load.reconnects}; faults {len(load.faults)}",
        ]
        for kind, rounds in kinds.items():
            if rounds:
                times = sorted(one.all_s for one in rounds)
                told.append(
                    f"{kind}: all clients went on after {times[len(times) // 2]:.2f} s (most {times[-1]:.2f} s)"
                )
        return "\n".join([*told, *load.faults[:20], *found.lost[:20], *found.doubled[:20]])


async def run(
    lab: Lab, model: OpenAIServer, kinds: Sequence[str], *, rest_s: float, recalls: int, say: Callable[[str], None]
) -> Report:
    """A round for each of `kinds`, then the look for what was written. Raises what made a client give up."""
    model.script = Script(tokens_per_s=TOKENS_PER_S)
    load = Load(lab.url, model.script.text(TOKENS))
    rounds: list[Round] = []
    say(line(HEAD))
    loading = asyncio.create_task(load.run())
    try:
        await _all_worked(load, loading, time.monotonic())
        for number, kind in enumerate(kinds, 1):
            writes, ends = load.acknowledged, len(load.ends)
            killed = await asyncio.to_thread(lab.kill, kind)
            at = time.monotonic()
            one = Round(number, kind, killed)
            one.all_s = await _all_worked(load, loading, at) - at
            new = [success for success in load.successes if success.begun > at]
            one.write_s = min(success.done for success in new if success.client.startswith("writer")) - at
            one.answer_s = min(success.done for success in new if success.client.startswith("streamer")) - at
            await asyncio.sleep(rest_s)
            one.writes = load.acknowledged - writes
            one.ends = Counter(end.status for end in load.ends[ends:])
            rounds.append(one)
            say(line(one.row()))
        load.stop()
        async with asyncio.timeout(WITHIN_S):
            await loading
    finally:
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
    return Report(rounds, load, await verify(lab.url, load.written, recalls))


async def _all_worked(load: Load, loading: asyncio.Task[None], since: float) -> float:
    """When every client had begun something after `since` that worked."""
    until = time.monotonic() + WITHIN_S
    while True:
        first: dict[str, float] = {}
        for success in load.successes:
            if success.begun > since:
                first.setdefault(success.client, success.done)
        if len(first) == len(load.clients):
            return max(first.values())
        if loading.done():
            await loading
            raise RuntimeError("the clients ended")
        if time.monotonic() > until:
            raise TimeoutError(f"nothing new worked for {sorted(set(load.clients) - first.keys())}")
        await asyncio.sleep(0.02)
