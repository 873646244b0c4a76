"""Two servers on one Ray cluster share hosts and sessions; either may be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

import qraf
from qraf.errors import ServerError
from qraf.frames import ResponseDelta
from tests.cutting_proxy import cutting
from tests.end_to_end.serving import TOPOLOGY, Served, served
from tests.openai_server import OpenAIServer, Script

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

NAMESPACE = "two-gateways"


@pytest.fixture
def cluster(ray_cluster: None) -> Iterator[dict[str, str]]:
    """The settings of a server that joins the cluster; what it leaves there is killed afterwards."""
    import ray

    from qraf.actors.ray_actors import kill, named_actors

    address = ray.get_runtime_context().gcs_address
    yield {"QRAF_RUNTIME__ADDRESS": address, "QRAF_RUNTIME__NAMESPACE": NAMESPACE, "RAY_AUTH_MODE": "disabled"}
    for actor in named_actors(NAMESPACE).values():
        kill(actor)


def processes(server: Served) -> dict[str, int]:
    report = httpx.get(f"{server.url}/health", headers={"Authorization": server.bearer}).json()
    return {one["what"]: one["pid"] for one in report["processes"]}


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def until(true: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(true):
            await asyncio.sleep(0.1)


async def recalled(server: Served, text: str, **where: object) -> list[str]:
    """What is found, as soon as the nodes answer."""
    async with asyncio.timeout(30), qraf.connect(server.url) as q:
        while True:
            try:
                found = await q.recall(text, k=5, **where)  # type: ignore[arg-type]
                return [one.text for one in found.evidence]
            except ServerError as error:
                if not error.can_retry:
                    raise
                await asyncio.sleep(0.1)


async def goes_on_at(first: Served, second: Served, model: OpenAIServer) -> None:
    """A client whose socket moves while its response streams sees one text, and most of it while it is made."""
    plain, model.script = model.script, Script(num_tokens=200, tokens_per_s=50)
    async with cutting(first.url) as proxy, qraf.connect(proxy.url, api_key=first.bearer.split()[1]) as q:
        response = q.enhance("oil for the pump", collections=["manuals"], generate={"max_tokens": 200})
        seqs, pieces = [], 0
        async for frame in response:
            seqs.append(frame.seq)
            pieces += bool(q.reconnects) and isinstance(frame, ResponseDelta)
            if len(response.text) > 40 and not proxy.cuts:
                proxy.lead_to(second.url)
                proxy.cut()
        assert response.done is not None
        assert (response.done.status, response.text) == ("incomplete", model.script.text(200))
        assert (seqs, response.gaps) == (list(range(1, len(seqs) + 1)), 0)
        assert pieces > 1
    model.script = plain


async def test_one_server_goes_on_where_the_other_was_killed(
    tmp_path: Path, cluster: dict[str, str], model: OpenAIServer
) -> None:
    def serve() -> object:
        return served(tmp_path, model.endpoint.url, runtime="ray", settings=cluster)

    with serve() as first, serve() as second:  # type: ignore[attr-defined]
        assert processes(first)["gateway"] != processes(second)["gateway"]
        shared = {"supervisor", "host front"}
        assert {processes(first)[one] for one in shared} == {processes(second)[one] for one in shared}

        async with qraf.connect(first.url) as q:
            await q.open_session("ann")
            await q.write([{"item_id": "1", "text": "The parrot is called Pixel."}], session="ann")
            await q.write([{"item_id": "2", "text": "The pump needs oil every spring."}], collection="manuals")
        assert await recalled(second, "what is the parrot called", session="ann", collections=[]) == [
            "The parrot is called Pixel."
        ]
        await asyncio.sleep(0.6)  # what nodes advertise is asked for twice a second
        assert await recalled(second, "oil for the pump", collections=["manuals"]) == [
            "The pump needs oil every spring."
        ]

        async with httpx.AsyncClient(headers={"Authorization": first.bearer}) as http:
            changed = await http.patch(f"{first.url}/v1/sessions/ann", json={"bits": 1})
            assert changed.status_code == 200
            await asyncio.sleep(1.0)  # what is known of a session may be so old
            assert (await http.get(f"{second.url}/v1/sessions/ann")).json()["bits"] == 1
        async with qraf.connect(second.url) as q:
            assert (await q.open_session("ann")).state.bits == 1

        await goes_on_at(first, second, model)

        strange = tmp_path / "strange.yaml"
        strange.write_text(TOPOLOGY.format(url=model.endpoint.url).replace("end-to-end", "strange"))
        refused = await asyncio.to_thread(
            subprocess.run,
            [
                *(sys.executable, "-m", "qraf.cli", "serve", "--port", "0"),
                *("--topology", str(strange), "--data", str(tmp_path / "data")),
            ],
            env={**os.environ, **cluster},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert refused.returncode != 0
        assert "'end-to-end' there, 'strange' here" in " ".join(refused.stderr.split())

        first.kill()  # it started the supervisor, which started the hosts
        assert await recalled(second, "what is the parrot called", session="ann", collections=[])
        for _ in range(2):  # the spare takes over, then one that is made now
            killed = processes(second)["host front"]
            os.kill(killed, signal.SIGKILL)
            await until(lambda killed=killed: processes(second).get("host front", killed) != killed)  # type: ignore[misc]
            assert await recalled(second, "what is the parrot called", session="ann", collections=[])
        supervisor = processes(second)["supervisor"]
        os.kill(supervisor, signal.SIGKILL)
        await until(lambda: processes(second)["supervisor"] != supervisor)
        async with qraf.connect(second.url) as q:
            done = await q.write([{"item_id": "3", "text": "The parrot is green."}], session="ann")
            assert done.state.items == 2


async def test_a_server_that_is_killed_takes_its_own_ray_along(tmp_path: Path, model: OpenAIServer) -> None:
    with served(tmp_path, model.endpoint.url, runtime="ray") as server:
        told = processes(server)
        raylet = psutil.Process(told["host front"]).parent()
        assert raylet is not None
        assert {"supervisor", "host front"} <= set(told)
        server.kill()
        # what Ray has just begun to start, and two agents of its own, end a minute later when they find no head
        await until(lambda: not any(map(is_running, (*told.values(), raylet.pid))), 30)
