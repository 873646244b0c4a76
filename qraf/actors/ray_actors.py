"""Actors of a network on Ray: made, asked who they are, stored away and killed. What Ray's head answers blocks."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import ray
from ray.exceptions import ActorAlreadyExistsError, RayError

from qraf.actors.processes import EngineActor, HostActor, Identity
from qraf.actors.replies import raised, reply
from qraf.actors.standing import SUPERVISOR, Charter
from qraf.network.topology import HostSpec

__all__ = ["START_TIMEOUT_S", "Actors", "kill", "named_actors"]

_T = TypeVar("_T")

START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 10.0
# threads: reading never waits behind writing, states or services, a probe behind none of them
_GROUPS = {"read": 12, "write": 8, "states": 4, "work": 1, "snapshots": 1, "control": 2}

_HostActor: Any = ray.remote(concurrency_groups=_GROUPS)(HostActor)
_EngineActor: Any = ray.remote(max_concurrency=4)(EngineActor)


def named_actors(namespace: str) -> dict[str, Any]:
    """The actors of a network that Ray knows by name, the supervisor too. Blocks."""
    found = {}
    for one in ray.util.list_named_actors(all_namespaces=True):
        name = one["name"]
        if one["namespace"] == namespace and (name == SUPERVISOR or name.startswith(("host/", "engine"))):
            with contextlib.suppress(ValueError):  # it died meanwhile
                found[name] = ray.get_actor(name, namespace=namespace)
    return found


def kill(actor: Any) -> None:
    """Kill an actor's process; one that is stopped or hangs is killed by its raylet 5 s later. Blocks."""
    with contextlib.suppress(RayError, ValueError):
        ray.kill(actor)


class Actors:
    """Makes and ends the processes of one charter, all of them detached. Its methods leave the event loop free."""

    def __init__(self, charter: Charter) -> None:
        self._charter, self.mark = charter, charter.mark()
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="gcs")

    async def engine(self) -> Any:
        """A new process for the embedded engine, which has not started yet."""
        return await self._create("engine", _EngineActor, self._charter.generator, self.mark)

    async def _create(self, name: str, kind: Any, *args: Any, gpus: float = 0.0) -> Any:
        options: dict[str, Any] = {
            "num_cpus": 0,
            "num_gpus": gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
            "namespace": self._charter.runtime.namespace,
            "lifetime": "detached",
        }

        def create() -> Any:
            try:
                return kind.options(name=name, **options).remote(*args)
            except ActorAlreadyExistsError:  # the dead keep their names for a moment
                return kind.options(name=f"{name}~{secrets.token_hex(4)}", **options).remote(*args)

        return await self.blocking(create)

    async def host(self, spec: HostSpec | None) -> Any:
        """A new host process whose encoder is loaded; without a spec, a spare."""
        charter = self._charter
        gpus = spec.gpus if spec else 0.0
        wants_gpu = spec is not None and spec.device != "cpu" and gpus > 0
        made_with = charter.journal_url, charter.encoder, wants_gpu, charter.load, charter.masters, self.mark
        name = f"host/{spec.name}" if spec else "host/spare"
        return await self.ready(await self._create(name, _HostActor, *made_with, gpus=gpus))

    async def ready(self, actor: Any) -> Any:
        """The host, once its encoder is loaded; killed when it cannot be."""
        try:
            ready = actor.ready.options(concurrency_group="read").remote
            raised(await reply(ready(), START_TIMEOUT_S))
        except BaseException:
            await self.kill(actor)
            raise
        return actor

    async def identity(self, name: str, actor: Any) -> Identity | None:
        """Who that is; None: it does not answer in the time that a probe and another one have."""
        limits = self._charter.runtime
        try:
            ask = actor.identity if name.startswith("engine") else actor.identity.options(concurrency_group="control")
            identity: Identity = await reply(ask.remote(), 2 * limits.probe_timeout_s)
            return identity
        except (RayError, TimeoutError, AttributeError):  # whatever it is, it is none of ours
            return None

    async def stop(self, actor: Any) -> None:
        """Let an actor store what waits, then kill it."""
        with contextlib.suppress(RayError, TimeoutError):
            await reply(actor.stop.remote(), _STOP_TIMEOUT_S)
        await self.kill(actor)

    async def kill(self, actor: Any) -> None:
        """Kill an actor's process, if there is one."""
        if actor is not None:
            await self.blocking(kill, actor)

    async def blocking(self, call: Callable[..., _T], *args: Any) -> _T:
        """What a call returns that waits for Ray's head."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(call, *args))
