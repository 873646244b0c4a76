"""Several gateways on one set of hosts: what one writes the others recall, and hosts outlive them all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from qraf.actors.replies import reply
from qraf.actors.standing import Charter
from qraf.errors import InvalidRequest, NodeDown
from qraf.settings import Settings
from qraf.storage.journal import Journal
from tests.actors import samples
from tests.actors.samples import FACTS, commit, visit

if TYPE_CHECKING:
    from qraf.actors.ray_runtime import RayRuntime

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def gateway(settings: Settings, name: str = "lab") -> RayRuntime:
    from qraf.actors.ray_runtime import RayRuntime

    return RayRuntime(replace(samples.topology(), name=name), settings, encoder=samples.encoder)


async def count(runtime: RayRuntime, memory: str) -> int:
    [answer] = [one async for one in runtime.recall([visit("desk", memory, "parrot")])]
    assert not answer.error
    return answer.items_scanned


@pytest.fixture(scope="module")
def settings(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return samples.settings(tmp_path_factory.mktemp("attach"), spare_hosts=0, address="auto")


@pytest.fixture(scope="module")
def journal(settings: Settings) -> Journal:
    return Journal.open(settings.journal())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(settings: Settings) -> AsyncIterator[tuple[RayRuntime, RayRuntime]]:
    """Two that start at once: one of them makes the supervisor."""
    runtimes = gateway(settings), gateway(settings)
    await asyncio.gather(*(runtime.start() for runtime in runtimes))
    yield runtimes
    for runtime in runtimes:
        await runtime.close()


@pytest.fixture
def first(pair: tuple[RayRuntime, RayRuntime]) -> RayRuntime:
    return pair[0]


def pids(runtime: RayRuntime) -> dict[str, int]:
    return {one.what: one.pid for one in runtime.processes()}


async def test_two_gateways_serve_the_same_memories(pair: tuple[RayRuntime, RayRuntime], journal: Journal) -> None:
    first, second = pair
    assert set(pids(second)) == {"gateway", "supervisor", "host front", "host back"}
    assert pids(second) == pids(first)
    await first.absorb("desk", "s/ann", await asyncio.to_thread(commit, journal, "s/ann", list(FACTS[:3])))
    await second.absorb("desk", "s/ann", await asyncio.to_thread(commit, journal, "s/ann", list(FACTS[3:]), "b"))
    assert (await count(first, "s/ann"), await count(second, "s/ann")) == (6, 6)
    assert {(ad.memory, ad.items) for ad in await second.advertisements()} == {("s/ann", 6)}


async def test_of_two_that_miss_the_supervisor_one_makes_another(pair: tuple[RayRuntime, RayRuntime]) -> None:
    first, second = pair
    before, held = pids(first), dict(first._epochs)
    os.kill(before["supervisor"], signal.SIGKILL)
    async with asyncio.timeout(30):
        while before["supervisor"] in (pids(first)["supervisor"], pids(second)["supervisor"]):
            await asyncio.sleep(0.05)
    assert pids(first) == pids(second)
    assert (first._epochs, second._epochs) == (held, held)
    await second.close()
    assert await count(first, "s/ann") == 6


async def test_another_topology_is_refused_while_somebody_is_served(first: RayRuntime, settings: Settings) -> None:
    other = gateway(settings, "other")
    with pytest.raises(InvalidRequest, match=r"'lab' there, 'other' here.*QRAF_RUNTIME__NAMESPACE"):
        await other.start()
    elsewhere = settings.model_copy(update={"journal_url": "sqlite:////tmp/elsewhere.db"})
    with pytest.raises(InvalidRequest, match="another configuration: journal"):
        await gateway(elsewhere).start()
    assert len(await first.encode(["still there"])) == 1


async def test_another_topology_that_wins_a_dead_supervisor_s_name_is_refused_all_the_same(
    first: RayRuntime, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.exceptions import RayError

    before, held = pids(first), dict(first._epochs)
    made: asyncio.Queue[Any] = asyncio.Queue()
    usual = first._enlist_again

    async def late() -> None:  # it misses its supervisor when the other one has made its own, and has asked it
        while True:
            supervisor = await made.get()
            await asyncio.sleep(0.2)
            with contextlib.suppress(RayError):  # the dead one keeps its name for a moment
                await reply(supervisor.leave.remote("nobody"))
                break
        await usual()

    monkeypatch.setattr(first, "_enlist_again", late)
    os.kill(before["supervisor"], signal.SIGKILL)
    other = gateway(settings, "other")
    make = other._get_supervisor

    def tell(charter: Charter) -> Any:
        supervisor = make(charter)
        loop.call_soon_threadsafe(made.put_nowait, supervisor)
        return supervisor

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(other, "_get_supervisor", tell)
    with pytest.raises(InvalidRequest, match=r"'lab' there, 'other' here.*QRAF_RUNTIME__NAMESPACE"):
        await other.start()
    async with asyncio.timeout(30):
        while pids(first)["supervisor"] == before["supervisor"]:
            await asyncio.sleep(0.05)
    assert (pids(first) | {"supervisor": 0}, first._epochs) == (before | {"supervisor": 0}, held)
    assert await count(first, "s/ann") == 6


async def test_a_gateway_that_vanished_leaves_no_item_unrecalled(
    first: RayRuntime, settings: Settings, journal: Journal
) -> None:
    vanishing = gateway(settings)
    await vanishing.start()
    await vanishing.absorb("desk", "s/bob", await asyncio.to_thread(commit, journal, "s/bob", list(FACTS[:2])))
    assert await count(first, "s/bob") == 2
    await asyncio.to_thread(commit, journal, "s/bob", ["it is committed, and absorbed by nobody"], "late")
    for task in tuple(vanishing._tasks):  # as if its process were killed: it asks no more, and says nothing
        task.cancel()
    async with asyncio.timeout(15):
        while await count(first, "s/bob") < 3:
            await asyncio.sleep(0.2)


async def test_hosts_outlive_their_gateways_and_the_next_one_may_replace_the_network(
    first: RayRuntime, settings: Settings
) -> None:
    before, held = pids(first), dict(first._epochs)
    await first.close()
    assert all(is_running(pid) for what, pid in before.items())
    second = gateway(settings)
    await second.start()
    assert (pids(second), second._epochs) == (before, held)
    assert await count(second, "s/ann") == 6
    await second.close()

    third = gateway(settings, "other")  # nobody is served any more
    await third.start()
    assert not set(pids(third).values()) & set(before.values()) - {before["gateway"]}
    assert min(third._epochs.values()) > max(held.values())
    assert await count(third, "s/ann") == 6
    after = pids(third)
    await third.close(stop_hosts=True)
    with pytest.raises(NodeDown):
        await third.encode(["late"])
    async with asyncio.timeout(10):
        while any(is_running(pid) for what, pid in (*before.items(), *after.items()) if what != "gateway"):
            await asyncio.sleep(0.05)
