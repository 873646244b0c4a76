"""Hosts that are killed or frozen in the middle of work."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from sqlalchemy import text

from qraf.errors import NodeDown, QrafError, VersionConflict
from qraf.network.placement import state_host
from qraf.records import NodeAnswer
from qraf.state_orders import Measured, Preparation, StateEvolve, StateMeasure, StatePrepare, StateViews, Step
from qraf.storage.journal import Journal
from tests.actors import samples
from tests.actors.samples import FACTS, commit, visit

if TYPE_CHECKING:
    from qraf.actors.ray_runtime import RayRuntime

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runtime(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RayRuntime]:
    from qraf.actors.ray_runtime import RayRuntime

    settings = samples.settings(tmp_path_factory.mktemp("chaos"), probe_every_s=0.2, probe_timeout_s=1.0)
    runtime = RayRuntime(samples.topology(), settings, encoder=samples.encoder)
    await runtime.start()
    yield runtime
    await runtime.close()


@pytest.fixture(scope="module")
def journal(runtime: RayRuntime) -> Journal:
    return Journal.open(runtime.settings.journal())


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.02)


async def ask(runtime: RayRuntime, memory: str, k: int = 1000) -> NodeAnswer:
    """Recall everything, as often as it takes."""
    while True:
        async for answer in runtime.recall([visit("desk", memory, "fact", k=k)]):
            if not answer.error:
                return answer
        await asyncio.sleep(0.05)


async def persist(call: Callable[[], Awaitable[object]]) -> int:
    """Call until it works; how often it did not."""
    failures = 0
    while True:
        try:
            await call()
            return failures
        except NodeDown:
            failures += 1
            await asyncio.sleep(0.05)


async def test_a_killed_host_loses_nothing_that_was_committed(runtime: RayRuntime, journal: Journal) -> None:
    before, restarts = runtime.health["desk"].epoch, dict(runtime.restarts)
    committed: list[int] = []

    async def write(writer: int) -> int:
        failures = 0
        for n in range(30):
            items = await asyncio.to_thread(commit, journal, "s/ann", [f"fact {n} of {writer}"], f"{writer}-{n}-")
            committed.extend(item.seq for item in items)
            failures += await persist(lambda items=items: runtime.absorb("desk", "s/ann", items))  # type: ignore[misc]
        return failures

    writers = [asyncio.create_task(write(writer)) for writer in range(3)]
    await until(lambda: len(committed) >= 20)
    os.kill(runtime._reports["front"].pid, signal.SIGKILL)
    await asyncio.gather(*writers)
    answer = await ask(runtime, "s/ann")
    assert {one.seq for one in answer.evidence} == set(committed)
    assert answer.items_scanned == len(committed) == 90
    assert runtime.health["desk"].epoch > before
    assert runtime.restarts == {"front": restarts["front"] + 1, "back": restarts["back"]}


async def test_items_whose_absorb_died_with_the_host_are_there_without_another_write(
    runtime: RayRuntime, journal: Journal
) -> None:
    items = await asyncio.to_thread(commit, journal, "s/bob", list(FACTS))
    os.kill(runtime._reports["front"].pid, signal.SIGKILL)
    with contextlib.suppress(QrafError):
        await runtime.absorb("desk", "s/bob", items)
    answer = await ask(runtime, "s/bob")
    assert answer.items_scanned == len(FACTS)


async def test_a_frozen_host_is_given_up_and_its_successor_answers(runtime: RayRuntime, journal: Journal) -> None:
    items = await asyncio.to_thread(commit, journal, "s/cid", list(FACTS))
    await runtime.absorb("desk", "s/cid", items)
    old = runtime._reports["front"]
    os.kill(old.pid, signal.SIGSTOP)
    late = asyncio.create_task(runtime.figures("desk", "s/cid"))
    try:
        await until(lambda: runtime.health["desk"].epoch > old.epoch and runtime.health["desk"].up)
        with pytest.raises(NodeDown):
            await late
        answer = await ask(runtime, "s/cid")
        assert answer.items_scanned == len(FACTS)
        assert runtime._reports["front"].pid != old.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(old.pid, signal.SIGCONT)


async def test_a_host_frozen_under_load_that_goes_on_loses_and_doubles_nothing(
    runtime: RayRuntime, journal: Journal
) -> None:
    committed: list[int] = []

    async def write(writer: int) -> None:
        for n in range(20):
            items = await asyncio.to_thread(commit, journal, "s/eva", [f"fact {n} of {writer}"], f"{writer}-{n}-")
            committed.extend(item.seq for item in items)
            await persist(lambda items=items: runtime.absorb("desk", "s/eva", items))  # type: ignore[misc]

    writers = [asyncio.create_task(write(writer)) for writer in range(3)]
    await until(lambda: len(committed) >= 15)
    old = runtime._reports["front"]
    with journal._write("hold the pen"):  # so that it waits to write, and holds up nobody
        os.kill(old.pid, signal.SIGSTOP)
    try:
        await until(lambda: runtime.health["desk"].epoch > old.epoch and runtime.health["desk"].up)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(old.pid, signal.SIGCONT)
    await asyncio.gather(*writers)
    answer = await ask(runtime, "s/eva")
    assert {one.seq for one in answer.evidence} == set(committed)
    assert answer.items_scanned == len(committed) == 60
    with journal._read("look") as connection:
        writes = connection.execute(text("SELECT epoch FROM fences WHERE host = 'front'")).scalar_one()
    assert old.epoch < writes == runtime.health["desk"].epoch


async def test_when_every_host_is_killed_again_and_again_it_comes_back(runtime: RayRuntime, journal: Journal) -> None:
    items = await asyncio.to_thread(commit, journal, "s/dan", list(FACTS))
    await runtime.absorb("desk", "s/dan", items)
    restarts = dict(runtime.restarts)
    for _ in range(2):
        epochs = {host: report.epoch for host, report in runtime._reports.items()}
        for report in list(runtime._reports.values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(report.pid, signal.SIGKILL)
        await until(lambda epochs=epochs: all(runtime._epochs.get(host, 0) > epochs[host] for host in epochs))  # type: ignore[misc]
        assert (await ask(runtime, "s/dan")).items_scanned == len(FACTS)
        assert len(await runtime.encode(["prompt"])) == 1
    assert runtime.restarts == {host: count + 2 for host, count in restarts.items()}


async def test_a_killed_host_loses_no_change_of_a_state_and_makes_none_twice(
    runtime: RayRuntime, journal: Journal
) -> None:
    made = await runtime.states(StatePrepare(states=(Preparation(named="plus:1"),) * 4))
    assert isinstance(made, StateViews)
    ids = [view.id for view in made.states]
    flip = Step(channel="pauli", probabilities={"Z": 0.01})
    acknowledged: dict[str, int] = dict.fromkeys(ids, 1)

    async def change(state: str) -> None:
        while acknowledged[state] < 41:
            order = StateEvolve(ids=(state,), steps=(flip,), versions=(acknowledged[state],))
            try:
                answer = await runtime.states(order)
                assert isinstance(answer, StateViews)
                assert answer.states[0].version == acknowledged[state] + 1
                acknowledged[state] += 1
            except NodeDown:  # it may have been made
                await asyncio.sleep(0.05)
            except VersionConflict as conflict:  # so it was
                acknowledged[state] = conflict.now

    changes = [asyncio.create_task(change(state)) for state in ids]
    await until(lambda: sum(acknowledged.values()) >= 12)
    os.kill(runtime._reports[state_host(runtime.topology.hosts, ids[0])].pid, signal.SIGKILL)
    assert sum(acknowledged.values()) < 4 * 41
    seen = await runtime.states(StateMeasure(ids=(ids[0],), basis="X"))  # another host answers meanwhile
    assert isinstance(seen, Measured)
    await asyncio.gather(*changes)
    assert set(journal.states.versions(ids).values()) == {41}
    found = await runtime.states(StateMeasure(ids=tuple(ids), paulis={"X": 1.0}))
    assert isinstance(found, Measured)
    assert [one.mean for one in found.results] == pytest.approx([0.98**40] * 4, abs=1e-12)
