"""Services on Ray Serve: the same answers, replicas that follow the load, updates without a failed request."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qraf.actors.runtime import LocalRuntime
from qraf.actors.services import Work
from qraf.errors import InvalidRequest, NodeDown
from qraf.network.topology import ServiceSpec
from qraf.service_orders import Dequantized, Nearest, NearestStates
from qraf.settings import GeneratorSettings, ServiceSettings
from qraf.storage.journal import Journal
from qraf.text.generator import Generator
from tests.actors import samples, service_work
from tests.actors.service_work import BAD, ORDER
from tests.encoders import HashEncoder
from tests.openai_server import OpenAIServer, Script

pytestmark = [pytest.mark.ray, pytest.mark.timeout(90)]


@asynccontextmanager
async def running(folder: Path, *specs: ServiceSpec, work: Work | None = None, **limits: Any) -> AsyncIterator[Any]:
    from qraf.actors.ray_services import RayServices

    generator = limits.pop("generator", GeneratorSettings())
    changes = {"services": ServiceSettings(**limits), "generator": generator}
    settings = samples.settings(folder).model_copy(update=changes)
    engine: Any = service_work.ScriptedEngine
    services = RayServices(specs, settings, work=work, load=samples.encoder, engine=engine)
    await services.start()
    try:
        yield services
    finally:
        await services.close()


@asynccontextmanager
async def load(call: Callable[[], Awaitable[Any]], tasks: int) -> AsyncIterator[list[Any]]:
    """Meanwhile calls, from several tasks at once. Yields the answers so far, and what was raised instead."""
    results: list[Any] = []
    done = False

    async def keep_calling() -> None:
        while not done:
            try:
                results.append(await call())
            except Exception as error:
                results.append(error)

    async with asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(keep_calling())
        try:
            yield results
        finally:
            done = True


async def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 40
    while not holds():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.05)


async def replicas(services: Any) -> int:
    return next(one.replicas for one in await services.status() if one.place == "serve")


def processes(results: list[Any]) -> set[int]:
    return {one.n for one in results if isinstance(one, Dequantized)}


def models(model: OpenAIServer, since: int = 0) -> set[str]:
    return {request["model"] for request in model.requests[since:]}


async def test_a_service_answers_as_inline_and_its_proxy_is_not_there(ray_cluster: None, tmp_path: Path) -> None:
    async with running(tmp_path, ServiceSpec("optimization")) as services:
        order = Nearest(matrices=([1.25, 0.0], [0.0, -0.25]))
        answer = await services.call("optimization", order)
        assert isinstance(answer, NearestStates)
        assert answer == await services.call("correction", order)  # not in the topology: inline
        with pytest.raises(InvalidRequest) as fault:
            await services.call("optimization", Nearest(matrices=([1.0, 2.0],)))
        assert fault.value.pointer == "/matrices"
        assert {one.name: one.place for one in await services.status()} == {
            "optimization": "serve",
            "correction": "inline",
        }
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", 8000)) != 0


async def test_replicas_follow_the_load_up_and_back(ray_cluster: None, tmp_path: Path) -> None:
    spec = ServiceSpec("optimization", 1, 3)
    work = partial(service_work.tell, version=1, seconds=0.1)
    limits = {"max_batch": 1, "upscale_delay_s": 0.5, "downscale_delay_s": 1.0}
    async with running(tmp_path, spec, work=work, **limits) as services:
        assert await replicas(services) == 1
        async with load(lambda: services.call("optimization", ORDER), tasks=12) as results:
            await until(lambda: len(processes(results)) == 3, "three processes answer")
            assert await replicas(services) == 3
        assert all(isinstance(one, Dequantized) for one in results)
        deadline = time.monotonic() + 30
        while await replicas(services) > 1:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)


async def test_a_rolling_update_fails_no_request(ray_cluster: None, tmp_path: Path) -> None:
    spec = ServiceSpec("correction", 2, 2)
    work = partial(service_work.tell, version=1, seconds=0.05)
    async with running(tmp_path, spec, work=work, max_batch=4) as services:
        async with load(lambda: services.call("correction", ORDER), tasks=8) as results:
            await until(lambda: len(processes(results)) == 2, "both processes answer")
            services._work = partial(service_work.tell, version=2, seconds=0.05)
            await services.deploy("2")
            await until(lambda: {getattr(one, "d", 0) for one in results[-40:]} == {2}, "the new version answers")
        assert all(isinstance(one, Dequantized) for one in results), [
            one for one in results if isinstance(one, Exception)
        ][:3]
        versions = [one.d for one in results]
        assert set(versions) == {1, 2}
        assert versions[-1] == 2


async def test_a_batch_whose_replica_dies_is_sent_again(ray_cluster: None, tmp_path: Path) -> None:
    spec = ServiceSpec("correction")
    work = partial(service_work.die_once, mark=str(tmp_path / "died"))
    async with running(tmp_path, spec, work=work) as services:
        results = await asyncio.gather(*(services.call("correction", ORDER) for _ in range(5)))
        assert all(isinstance(one, Dequantized) for one in results)
        assert (tmp_path / "died").exists()
        with pytest.raises(InvalidRequest):
            await services.call("correction", BAD)


async def test_texts_are_encoded_by_replicas_and_what_is_written_is_recalled(ray_cluster: None, tmp_path: Path) -> None:
    async with running(tmp_path, ServiceSpec("encode", 2, 2)) as services:
        texts = [[f"text {n}", f"and {n}"][: 1 + n % 2] for n in range(30)]
        rows = await asyncio.gather(*(services.encode(one, urgent=n % 3 > 0) for n, one in enumerate(texts)))
        for one, found in zip(texts, rows, strict=True):
            assert np.array_equal(found, HashEncoder(samples.DIM).encode(one))
        [status] = await services.status()
        assert (status.name, status.replicas, status.orders) == ("encode", 2, 45)

        journal = Journal.open(f"sqlite:///{tmp_path / 'journal.db'}")
        runtime = LocalRuntime(samples.topology(), samples.settings(tmp_path), journal, encoder=samples.encoder)
        await runtime.start()
        items = await asyncio.to_thread(samples.commit, journal, "s/ann", samples.FACTS)
        alone = await runtime.absorb("desk", "s/ann", items)
        runtime.encoder = services.encode
        again = await asyncio.to_thread(samples.commit, journal, "s/bob", samples.FACTS, "b")
        before = (await services.status())[0].orders
        figures = await runtime.absorb("desk", "s/bob", again)
        assert (await services.status())[0].orders == before + len(samples.FACTS)
        assert figures.entropy_bits == pytest.approx(alone.entropy_bits, abs=1e-6)
        prompt = await runtime.encode(["what is the parrot called"])
        assert np.array_equal(prompt, HashEncoder(samples.DIM).encode(["what is the parrot called"]))

        async def gone(texts: Any, *, urgent: bool) -> Any:
            raise NodeDown("service encode", "gone")

        runtime.encoder = gone  # the host does it then
        late = await asyncio.to_thread(samples.commit, journal, "s/eve", samples.FACTS, "e")
        assert (await runtime.absorb("desk", "s/eve", late)).items == len(samples.FACTS)
        assert np.array_equal(await runtime.encode(["what is the parrot called"]), prompt)
        await runtime.close()
        journal.close()


async def test_answers_stream_from_replicas_that_follow_the_load_and_are_replaced(
    ray_cluster: None, tmp_path: Path
) -> None:
    script = Script(num_tokens=10, tokens_per_s=20)
    with OpenAIServer(script) as model:
        settings = GeneratorSettings(url=model.url, slots=2)
        limits: dict[str, Any] = {"generator": settings, "upscale_delay_s": 0.5, "downscale_delay_s": 1.0}
        async with running(tmp_path, ServiceSpec("generate", 1, 2), **limits) as services:
            assert services.streams == 4
            generator = Generator(lambda: model.endpoint, settings, lease=services.lease, slots=services.streams)

            async def answer() -> str:
                pieces = [piece async for piece in generator.stream([{"role": "user", "content": "?"}])]
                return "".join(piece.text for piece in pieces)

            async with load(answer, tasks=4) as results:
                await until(lambda: len(models(model)) == 2, "both replicas have answers")
                before = models(model)
                await services.deploy("2")
                asked = len(model.requests) + 4
                await until(lambda: len(model.requests) >= asked + 8, "more is asked for")
                assert not before & models(model, asked)
            assert results == [script.text(10)] * len(results)
            deadline = time.monotonic() + 20
            while await replicas(services) > 1:  # leases that ended are no load
                assert time.monotonic() < deadline
                await asyncio.sleep(0.2)
            await generator.aclose()


async def test_a_service_that_cannot_start_says_so_and_leaves_nothing(ray_cluster: None, tmp_path: Path) -> None:
    from ray import serve

    from qraf.actors.ray_services import RayServices

    settings = samples.settings(tmp_path)
    services = RayServices([ServiceSpec("encode")], settings, load=service_work.no_encoder)
    with pytest.raises(NodeDown, match="services"):
        await services.start()
    assert not [name for name in serve.status().applications if name.startswith(settings.runtime.namespace)]
    await services.close()
