"""On a cluster hosts outlive the gateway, and the next gateway finds them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from qraf.errors import NodeDown
from qraf.storage.journal import Journal
from tests.actors import samples
from tests.actors.samples import FACTS, commit, visit

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def test_hosts_outlive_their_gateway_and_are_fenced_from_it(ray_cluster: None, tmp_path: Path) -> None:
    from qraf.actors.ray_runtime import RayRuntime

    settings = samples.settings(tmp_path, spare_hosts=0, address="auto")
    journal = Journal.open(settings.journal())
    first = RayRuntime(samples.topology(), settings, encoder=samples.encoder)
    await first.start()
    await first.absorb("desk", "s/ann", await asyncio.to_thread(commit, journal, "s/ann", list(FACTS)))
    pids = {name: report.pid for name, report in first._reports.items()}
    highest = max(first._epochs.values())
    actors, epochs = dict(first._actors), dict(first._epochs)
    await first.close()
    assert all(is_running(pid) for pid in pids.values())

    second = RayRuntime(samples.topology(), settings, encoder=samples.encoder)
    await second.start()
    assert {name: report.pid for name, report in second._reports.items()} == pids
    assert min(second._epochs.values()) > highest
    answers = [one async for one in second.recall([visit("desk", "s/ann", "parrot")])]
    assert [(one.error, one.items_scanned) for one in answers] == [("", len(FACTS))]

    # the gateway that was before, should it wake up, is refused by the hosts themselves
    refusal = await actors["front"].call.options(concurrency_group="read").remote("sketches", epochs["front"])
    assert isinstance(refusal, NodeDown)
    assert "stale epoch" in refusal.reason

    await second.close(stop_hosts=True)
    while any(is_running(pid) for pid in pids.values()):
        await asyncio.sleep(0.05)
    journal.close()
