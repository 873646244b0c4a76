"""The supervisor is killed or frozen: what runs goes on, and somebody looks after it again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from sqlalchemy import text

from qraf.storage.journal import Journal
from tests.actors import samples
from tests.actors.samples import FACTS, commit, visit

if TYPE_CHECKING:
    from qraf.actors.ray_runtime import RayRuntime

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runtime(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RayRuntime]:
    from qraf.actors.ray_runtime import RayRuntime

    settings = samples.settings(tmp_path_factory.mktemp("supervisor"), probe_every_s=0.2, probe_timeout_s=1.0)
    runtime = RayRuntime(samples.topology(), settings, encoder=samples.encoder)
    await runtime.start()
    yield runtime
    await runtime.close()


@pytest.fixture(scope="module")
def journal(runtime: RayRuntime) -> Journal:
    return Journal.open(runtime.settings.journal())


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.02)


def pid(runtime: RayRuntime, what: str) -> int:
    return {one.what: one.pid for one in runtime.processes()}.get(what, 0)


def is_served(runtime: RayRuntime, *not_by: int) -> bool:
    """Whether a supervisor that is none of these has been heard of, and every host is up."""
    return pid(runtime, "supervisor") not in (0, *not_by) and len(runtime._epochs) == 2


async def count(runtime: RayRuntime, memory: str) -> int:
    [answer] = [one async for one in runtime.recall([visit("desk", memory, "parrot")])]
    assert not answer.error
    return answer.items_scanned


async def test_nothing_fails_while_there_is_no_supervisor(runtime: RayRuntime, journal: Journal) -> None:
    old, hosts, restarts = pid(runtime, "supervisor"), dict(runtime._epochs), dict(runtime.restarts)
    written = 0
    stop = asyncio.Event()

    async def write(name: str) -> None:
        nonlocal written
        number = 0
        while not stop.is_set():
            number += 1
            items = await asyncio.to_thread(commit, journal, f"s/{name}", [f"fact {number}"], f"{number}-")
            await runtime.absorb("desk", f"s/{name}", items)
            written += 1
            assert await count(runtime, f"s/{name}") == number

    writers = [asyncio.create_task(write(name)) for name in ("ann", "bob")]
    await until(lambda: written >= 10)
    os.kill(old, signal.SIGKILL)
    await until(lambda: is_served(runtime, old))
    at = written
    await until(lambda: written >= at + 10)
    stop.set()
    await asyncio.gather(*writers)
    assert (runtime._epochs, runtime.restarts) == (hosts, restarts)  # the same processes, with all they hold

    killed = pid(runtime, "host front")
    os.kill(killed, signal.SIGKILL)
    await until(lambda: pid(runtime, "host front") not in (0, killed))
    assert runtime._epochs["front"] > max(hosts.values())
    assert runtime.restarts == {"front": restarts["front"] + 1, "back": restarts["back"]}
    assert await count(runtime, "s/ann") + await count(runtime, "s/bob") == written


async def test_a_host_that_dies_with_the_supervisor_comes_back(runtime: RayRuntime, journal: Journal) -> None:
    await runtime.absorb("desk", "s/cid", await asyncio.to_thread(commit, journal, "s/cid", list(FACTS)))
    supervisor, front, back = (pid(runtime, what) for what in ("supervisor", "host front", "host back"))
    epochs, restarts = dict(runtime._epochs), runtime.restarts["front"]
    os.kill(supervisor, signal.SIGKILL)
    os.kill(front, signal.SIGKILL)
    await until(lambda: is_served(runtime, supervisor) and runtime._epochs["front"] != epochs["front"])
    assert runtime._epochs["front"] > max(epochs.values())
    assert (pid(runtime, "host back"), runtime._epochs["back"]) == (back, epochs["back"])
    assert runtime.restarts["front"] == restarts + 1
    assert await count(runtime, "s/cid") == len(FACTS)


async def test_a_frozen_supervisor_is_replaced_and_decides_nothing_when_it_wakes(
    runtime: RayRuntime, journal: Journal
) -> None:
    old, hosts, front = pid(runtime, "supervisor"), dict(runtime._epochs), pid(runtime, "host front")
    os.kill(old, signal.SIGSTOP)
    try:
        await until(lambda: is_served(runtime, old))
        os.kill(front, signal.SIGKILL)  # when it wakes, both want to start another one
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(old, signal.SIGCONT)
    await until(lambda: not Path(f"/proc/{old}").exists())
    await until(lambda: pid(runtime, "host front") not in (0, front))
    await asyncio.sleep(0.5)
    assert runtime._epochs["back"] == hosts["back"]
    assert runtime._epochs["front"] > max(hosts.values())
    with journal._read("look") as connection:  # the one that woke was given no epoch
        [given] = connection.execute(text("SELECT epoch FROM runs WHERE epoch > 0")).scalars()
    assert given == runtime._epochs["front"]


async def test_a_name_that_its_dead_bearer_has_just_left_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qraf.actors import ray_runtime

    answers: list[Exception | str] = [ValueError("Failed to look up actor"), "joined"]  # as Ray's `get_if_exists` does

    def make(charter: object) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        joined: Future[str] = Future()
        joined.set_result(answer)
        ref = SimpleNamespace(future=lambda: joined)
        return SimpleNamespace(join=SimpleNamespace(remote=lambda *_: ref))

    monkeypatch.setattr(
        ray_runtime, "_SupervisorActor", SimpleNamespace(options=lambda **_: SimpleNamespace(remote=make))
    )
    alone = ray_runtime.RayRuntime(samples.topology(), samples.settings(tmp_path), encoder=samples.encoder)
    assert await alone._enlist() == "joined"
    assert answers == []
