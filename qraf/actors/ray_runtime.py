"""Hosts and the embedded engine as Ray actors, and the shell that keeps them running; the supervisor decides."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

# read when Ray is imported: without it Ray takes SIGTERM from the process that serves, with a stack trace
os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")

import ray
from ray.exceptions import RayError

from qraf.actors.hosted import HostedRuntime, NodeHealth
from qraf.actors.messages import HostReport, Spell
from qraf.actors.processes import EngineActor, HostActor
from qraf.actors.replies import ping, raised, reply
from qraf.actors.spare import Spare
from qraf.actors.supervisor import Supervisor
from qraf.clock import Clock
from qraf.errors import InvalidRequest, NodeDown, QrafError
from qraf.network.topology import HostSpec, Topology
from qraf.settings import Settings
from qraf.text.generator import Endpoint

if TYPE_CHECKING:
    from qraf.text.encoder import Encoder

__all__ = ["RayRuntime"]

_log = logging.getLogger(__name__)

_ENGINE = "embedded engine"  # its name in the supervisor's books; no host can be called so
_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 10.0
# threads: reading never waits behind writing, states or services, a probe behind none of them
_GROUPS = {"read": 12, "write": 8, "states": 4, "work": 1, "control": 2}
_GROUP_OF = {
    "absorb": "write",
    "forget": "write",
    "drop": "write",
    "recode": "write",
    "states": "states",
    "work": "work",
    "adopt": "control",
}

_HostActor: Any = ray.remote(concurrency_groups=_GROUPS)(HostActor)
_EngineActor: Any = ray.remote(max_concurrency=4)(EngineActor)


def _is_news(record: logging.LogRecord) -> bool:
    """Ray warns that it sets no SIGTERM handler outside of the main thread: that is as it should be, it is not ours."""
    return "SIGTERM handler" not in record.getMessage()


class RayRuntime(HostedRuntime):
    """Every host an actor; starts a Ray of its own, or joins the cluster at `settings.runtime.address`.

    Actors have `max_restarts=0`: Ray then tells of a death in 20 ms instead of 1.4 s, and a successor has its epoch
    before it starts. A spare process with a loaded encoder takes over, because importing torch alone takes seconds.
    On a cluster the actors are detached and found again; `close` leaves them running there unless told otherwise.

    Args:
        encoder: makes the encoder inside each host; must be importable there. Default: what the settings name.
    """

    _is_far = True

    def __init__(
        self,
        topology: Topology,
        settings: Settings,
        *,
        clock: Clock | None = None,
        encoder: Callable[[], Encoder] | None = None,
    ) -> None:
        super().__init__(topology, settings, clock=clock, window_ms=settings.runtime.batch_window_ms)
        self._url = settings.journal()
        self._masters = settings.seal, settings.master_key_file()
        if ":memory:" in self._url:
            raise InvalidRequest("hosts are other processes: they need a journal in a file or on a server")
        self._load = encoder
        self._has_engine = self._needs_engine and not any(one.name == "generate" for one in topology.services)
        names = [*topology.hosts, *([_ENGINE] if self._has_engine else [])]
        self.supervisor = Supervisor(names, self._clock)
        self._actors: dict[str, Any] = {}
        self._gone: dict[str, asyncio.Future[None]] = {}  # done when the host of that name is given up
        self._engine_at: Endpoint | None = None
        self._spare: Spare[Any] = Spare(lambda: self._create_host(None), self._clock)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._wake = asyncio.Event()
        self._owns_ray = False
        # processes of an embedded Ray die with the thread that started them, so this one lives as long as the runtime
        self._ray_thread = ThreadPoolExecutor(1, thread_name_prefix="ray")
        self._lookups = ThreadPoolExecutor(4, thread_name_prefix="ray-lookup")  # GCS calls block: never on the loop

    # ------------------------------------------------------------------------------------------------ life
    async def start(self) -> None:
        """Start Ray, then hosts and engine at once; returns when all answer.

        Raises:
            NodeDown: something did not start; everything is stopped again.
        """
        self.phase = "starting Ray"
        try:
            await asyncio.get_running_loop().run_in_executor(self._ray_thread, self._connect)
            self.phase = "starting hosts"
            await self._attach()
            async with asyncio.TaskGroup() as group:
                for name in self.supervisor.due():
                    group.create_task(self._bring_up(name))
            for charge in self.supervisor.charges.values():
                if charge.phase != "up":
                    raise NodeDown(charge.name, charge.reason)
        except BaseException as error:
            await self.close()
            raise error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error from None
        self._mark_generators()
        self.phase = "ready"
        self._own(self._watch())

    async def close(self, stop_hosts: bool | None = None) -> None:
        """Stop what was started; on a cluster the hosts stay, unless `stop_hosts`. Twice does nothing."""
        if self.phase == "closed":
            return
        self.phase = "closed"
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        spare = await self._spare.close()
        await self._close_batchers()
        if stop_hosts if stop_hosts is not None else not self.settings.runtime.address:
            actors = [*self._actors.values(), *([spare] if spare is not None else [])]
            await asyncio.gather(*(self._stop(actor) for actor in actors))
        for host in list(self._epochs):
            self._host_down(host)
        self._actors.clear()
        # Ray ends the process when it is called after its shutdown, so look-ups that were given up come first
        await asyncio.to_thread(self._lookups.shutdown, cancel_futures=True)
        if self._owns_ray:
            await asyncio.get_running_loop().run_in_executor(self._ray_thread, ray.shutdown)
        self._ray_thread.shutdown(wait=False)

    def _connect(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")
        if ray.is_initialized():
            return
        limits = self.settings.runtime
        self._owns_ray = True
        options: dict[str, Any] = {"address": limits.address}
        if not limits.address:
            options = {
                "num_cpus": max(4, len(self.topology.hosts) + 2),  # logical; the actors ask for none
                "include_dashboard": False,
                "object_store_memory": limits.object_store_bytes,
            }
        logger = logging.getLogger("ray._private.worker")
        logger.addFilter(_is_news)
        try:
            ray.init(configure_logging=False, log_to_driver=False, namespace=limits.namespace, **options)
        finally:
            logger.removeFilter(_is_news)

    # ------------------------------------------------------------------------------------------------ starting
    async def _bring_up(self, name: str) -> None:
        """Start or replace one process; on failure the supervisor decides when to try again."""
        epoch = self.supervisor.begin(name)
        actor = None
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                if name == _ENGINE:
                    actor = await self._create("engine", _EngineActor, self.settings.generator)
                    self._engine_at = raised(await reply(actor.start.remote()))
                    report = None
                else:
                    spec = self.topology.hosts[name]
                    actor = await self._take_spare(spec) or await self._create_host(spec)
                    adopt = actor.call.options(concurrency_group="control").remote
                    report = raised(await reply(adopt("adopt", self._spell(name, epoch))))
        except (TimeoutError, RayError, QrafError) as error:
            self.supervisor.lost(name, epoch, str(error) or "start timed out")
            _log.warning("'%s' did not start (epoch %d): %s", name, epoch, error)
            await self._kill(actor)
            return
        except BaseException:
            await self._kill(actor)
            raise
        if not self.supervisor.arrived(name, epoch):
            await self._kill(actor)
            return
        self._actors[name] = actor
        self._gone[name] = asyncio.get_running_loop().create_future()
        self.restarts[name] = self.supervisor.charges[name].restarts
        if report is not None:
            self._host_up(report)
            up = len(self._epochs)
            if self.phase.startswith("starting"):
                self.phase = f"starting hosts ({up} of {len(self.topology.hosts)})"
        else:
            self._mark_generators()

    def _spell(self, name: str, epoch: int) -> Spell:
        return Spell(name, epoch, self.topology, self.settings.states)

    async def _create(self, name: str, kind: Any, *args: Any, gpus: float = 0.0) -> Any:
        options: dict[str, Any] = {
            "num_cpus": 0,
            "num_gpus": gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
            "namespace": self.settings.runtime.namespace,
        }
        if self.settings.runtime.address:
            options["lifetime"] = "detached"

        def create() -> Any:
            try:
                return kind.options(name=name, **options).remote(*args)
            except ray.exceptions.ActorAlreadyExistsError:  # the dead keep their names for a moment
                return kind.options(name=f"{name}~{secrets.token_hex(4)}", **options).remote(*args)

        return await asyncio.get_running_loop().run_in_executor(self._lookups, create)

    async def _create_host(self, spec: HostSpec | None) -> Any:
        """A new host process whose encoder is loaded; without a spec, a spare."""
        gpus = spec.gpus if spec else 0.0
        wants_gpu = spec is not None and spec.device != "cpu" and gpus > 0
        name = f"host/{spec.name}" if spec else "host/spare"
        actor = await self._create(
            name, _HostActor, self._url, self._encoder_settings(), wants_gpu, self._load, self._masters, gpus=gpus
        )
        try:
            ready = actor.ready.options(concurrency_group="read").remote
            raised(await reply(ready(), _START_TIMEOUT_S))
        except BaseException:
            await self._kill(actor)
            raise
        return actor

    async def _take_spare(self, spec: HostSpec) -> Any:
        """The spare, if it fits and still answers."""
        actor = None if spec.gpus else await self._spare.take()
        if actor is not None:
            try:
                await ping(actor, self.settings.runtime.probe_timeout_s)
            except (RayError, TimeoutError):
                await self._kill(actor)
                return None
        return actor

    async def _attach(self) -> None:
        """On a cluster: take over the hosts that an earlier gateway left, with their memories."""
        space = self.settings.runtime.namespace
        if not self.settings.runtime.address:
            return

        def find() -> list[Any]:
            named = ray.util.list_named_actors(all_namespaces=True)
            names = [one["name"] for one in named if one["namespace"] == space and one["name"].startswith("host/")]
            return [ray.get_actor(name, namespace=space) for name in names]

        for actor in await asyncio.get_running_loop().run_in_executor(self._lookups, find):
            try:
                report = await ping(actor, self.settings.runtime.probe_timeout_s)
            except (RayError, TimeoutError):
                await self._kill(actor)
                continue
            self.supervisor.observe(report.epoch)
            if report.name in self.topology.hosts and report.name not in self._actors:
                self._actors[report.name] = actor
            else:
                await self._kill(actor)  # a spare, or a host of another topology
        for name, actor in list(self._actors.items()):
            epoch = self.supervisor.begin(name)
            try:
                adopt = actor.call.options(concurrency_group="control").remote
                report = raised(await reply(adopt("adopt", self._spell(name, epoch)), 10.0))
            except (RayError, TimeoutError, QrafError) as error:
                del self._actors[name]
                self.supervisor.lost(name, epoch, str(error))
                await self._kill(actor)
                continue
            self.supervisor.arrived(name, epoch)
            self._gone[name] = asyncio.get_running_loop().create_future()
            self._host_up(report)

    # ------------------------------------------------------------------------------------------------ watching
    async def _watch(self) -> None:
        """Probe, start what is due, keep a spare; wakes at once when something dies."""
        limits = self.settings.runtime
        while True:
            self._wake.clear()
            for name in self.supervisor.due():
                self._own(self._bring_up(name))
            for charge in list(self.supervisor.charges.values()):
                if charge.phase == "up" and not self._is_probing(charge.name):
                    self._own(self._probe(charge.name, charge.epoch), f"probe {charge.name}")
            if limits.spare_hosts and all(one.phase == "up" for one in self.supervisor.charges.values()):
                self._spare.keep()  # only then: it must not slow down what is needed
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), limits.probe_every_s)

    async def _probe(self, name: str, epoch: int) -> None:
        actor = self._actors[name]
        try:
            if name == _ENGINE:
                if not await reply(actor.alive.remote(), self.settings.runtime.probe_timeout_s):
                    self._lost(name, epoch, "the engine stopped")
            else:
                report = await ping(actor, self.settings.runtime.probe_timeout_s)
                if report.epoch == epoch == self._epochs.get(name):
                    self._note(report)
            self.supervisor.answered(name, epoch)
        except TimeoutError:
            if self.supervisor.missed(name, epoch):
                self._given_up(name, epoch, "hangs")
        except RayError as error:
            self._lost(name, epoch, type(error).__name__)

    def _lost(self, name: str, epoch: int, reason: str) -> None:
        if self.supervisor.lost(name, epoch, reason):
            self._given_up(name, epoch, reason)

    def _given_up(self, name: str, epoch: int, reason: str) -> None:
        """The process is dead to us: nothing it still says counts, and its successor may start."""
        _log.warning("'%s' is down (epoch %d): %s", name, epoch, reason)
        gone = self._gone.pop(name, None)
        if gone is not None:
            gone.set_result(None)
        actor = self._actors.pop(name, None)
        if actor is not None:
            self._own(self._kill(actor))
        if name == _ENGINE:
            self._engine_at = None
            self._mark_generators()
        else:
            self._host_down(name)
        self._wake.set()

    def _mark_generators(self) -> None:
        for spec in self.topology.generators():
            own = bool(spec.url or self.settings.generator.url) or not self._has_engine
            up = own or self._engine_at is not None
            epoch = 1 if own else self.supervisor.charges[_ENGINE].epoch
            self.health[spec.name] = NodeHealth(up=up, epoch=epoch)

    # ------------------------------------------------------------------------------------------------ asking
    async def _call(self, host: str, epoch: int, method: str, args: tuple[Any, ...], timeout_s: float) -> Any:
        call = self._actors[host].call.options(concurrency_group=_GROUP_OF.get(method, "read")).remote
        answer: asyncio.Task[Any] = asyncio.ensure_future(reply(call(method, epoch, *args)))
        gone = self._gone[host]
        try:
            await asyncio.wait({answer, gone}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            raise TimeoutError if not gone.done() else NodeDown(host, "given up")
        except RayError as error:
            self._lost(host, epoch, type(error).__name__)
            raise NodeDown(host, type(error).__name__) from None
        finally:
            answer.cancel()

    def _why_down(self, host: str) -> str:
        charge = self.supervisor.charges[host]
        return charge.reason or charge.phase

    async def _ping(self, host: str) -> HostReport:
        actor = self._actors.get(host)
        if actor is None:
            raise NodeDown(host, self.supervisor.charges[host].phase)
        try:
            report = await ping(actor, self.settings.runtime.probe_timeout_s)
        except (RayError, TimeoutError) as error:
            raise NodeDown(host, type(error).__name__) from None
        if report.epoch == self._epochs.get(host):
            self._note(report)
        return report

    def _engine_endpoint(self, node: str) -> Endpoint:
        if self._engine_at is None:
            raise NodeDown(node, "the embedded engine does not run")
        return self._engine_at

    # ------------------------------------------------------------------------------------------------ stopping
    async def _stop(self, actor: Any) -> None:
        """Let an actor store what waits, then kill it."""
        with contextlib.suppress(RayError, TimeoutError):
            await reply(actor.stop.remote(), _STOP_TIMEOUT_S)
        await self._kill(actor)

    async def _kill(self, actor: Any) -> None:
        """Kill an actor's process; one that is stopped or hangs is killed by its raylet 5 s later."""
        if actor is not None:
            with contextlib.suppress(RayError, ValueError):
                await asyncio.get_running_loop().run_in_executor(self._lookups, partial(ray.kill, actor))

    def _own(self, work: Coroutine[Any, Any, Any], name: str | None = None) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("task %s failed", task.get_name(), exc_info=error)

    def _is_probing(self, name: str) -> bool:
        return any(task.get_name() == f"probe {name}" for task in self._tasks)
