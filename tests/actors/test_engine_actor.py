"""The embedded engine in its actor: it answers, and is back after it was killed."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from qraf.errors import NodeDown
from qraf.text.generator import Endpoint, Generator
from tests.actors import samples

pytestmark = [pytest.mark.ray, pytest.mark.model, pytest.mark.timeout(180)]


async def answer(endpoint: Endpoint, settings: object) -> str:
    generator = Generator(lambda: endpoint, settings)  # type: ignore[arg-type]
    text = ""
    async for piece in generator.stream([{"role": "user", "content": "Say hello."}], max_tokens=4, temperature=0.0):
        text += piece.text
    await generator.aclose()
    return text


async def test_the_engine_answers_and_a_killed_one_is_replaced(ray_cluster: None, tmp_path: Path) -> None:
    import ray

    from qraf.actors.ray_runtime import RayRuntime
    from qraf.actors.standing import ENGINE

    network = samples.topology()
    writer = replace(network.nodes["writer"], url="", model="smollm2-135m")
    network = replace(network, nodes={**network.nodes, "writer": writer})
    settings = samples.settings(tmp_path, spare_hosts=0, probe_every_s=0.2)
    runtime = RayRuntime(network, settings, encoder=samples.encoder)
    await runtime.start()
    first = runtime.endpoint("writer")
    said = await answer(first, settings.generator)
    assert said

    ray.kill(runtime._actors[ENGINE])
    while runtime.health["writer"].up:
        await asyncio.sleep(0.02)
    with pytest.raises(NodeDown):
        runtime.endpoint("writer")
    while not runtime.health["writer"].up:
        await asyncio.sleep(0.02)
    second = runtime.endpoint("writer")
    assert second != first
    assert await answer(second, settings.generator) == said
    assert runtime.restarts[ENGINE] == 1

    supervisor = next(one.pid for one in runtime.processes() if one.what == "supervisor")
    os.kill(supervisor, signal.SIGKILL)  # the engine runs on
    while supervisor in (one.pid for one in runtime.processes()):
        await asyncio.sleep(0.02)
    assert (runtime.endpoint("writer"), runtime.restarts[ENGINE]) == (second, 1)
    await runtime.close()
