"""Services as deployments of Ray Serve: replicas that follow the load, are probed, and are replaced without a gap.

Serve's HTTP proxy is not started: orders come through handles only. What it costs: 4 to 6 ms a call, so orders go in
batches, and a replica that dies takes its batch along, which is sent again because orders change nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

# read when Ray is imported; see `ray_runtime`
os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # Serve imports gRPC, which else writes a line for every fork

from ray import serve
from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, RayServeException

from qraf import __version__
from qraf.actors.batcher import Batcher
from qraf.actors.replica import EncodeReplica, GenerateReplica, Replica
from qraf.actors.replies import raised
from qraf.actors.services import InlineServices, Queue, Services, ServiceStatus, Work, make_queue
from qraf.errors import LimitExceeded, NodeDown, QrafError
from qraf.network.topology import ServiceSpec
from qraf.service_orders import ServiceAnswer, ServiceOrder
from qraf.settings import EncoderSettings, GeneratorSettings, Settings
from qraf.text.generator import Endpoint

if TYPE_CHECKING:
    from qraf.text.encoder import Encoder
    from qraf.text.engine import EmbeddedEngine

__all__ = ["RayServices"]

_log = logging.getLogger(__name__)

_TRIES = 4  # of a batch whose replica died; the pauses between are 0.2, 0.4 and 0.8 s
_PAUSE_S = 0.2
_IN_FLIGHT = 2  # batches for each replica: one works, one waits
_STOP_S = 20.0  # for the batch that works, when a replica goes
_STREAMS_STOP_S = 300.0  # for the answers that stream


class RayServices:
    """The services that a topology names, on Ray Serve; the others by `rest`. Ray must run before `start`.

    Args:
        specs: names and bounds of the replicas.
        settings: queues, delays, time-outs, and the namespace, which the names of the applications begin with.
        rest: the services that are not named, closed with this; default: in threads of this process.
        work: does the work in a replica, must be importable there; default: the operations.
        encoder: which encoder `encode` has; default: the settings'.
        load: makes it, in a replica; default: the one that is named.
        engine: makes the engine of `generate` in a replica; default: the embedded one.
        version: what `deploy` rolls out; default: this program's.
    """

    def __init__(
        self,
        specs: Sequence[ServiceSpec],
        settings: Settings,
        *,
        rest: Services | None = None,
        work: Work | None = None,
        encoder: EncoderSettings | None = None,
        load: Callable[[], Encoder] | None = None,
        engine: Callable[[GeneratorSettings], EmbeddedEngine] | None = None,
        version: str = __version__,
    ) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._settings, self._work, self._version = settings, work, version
        self._rest = rest or InlineServices(settings.services, work)
        self._encoder, self._load, self._engine = encoder or settings.encoder, load, engine
        self._leases = 0
        self._encodes: dict[bool, Batcher[list[str], NDArray[np.float32]]] = {}
        self._handles: dict[str, Any] = {}
        self._queues: dict[str, Queue] = {}
        self._done: dict[str, int] = {}
        self._calls = ThreadPoolExecutor(2, thread_name_prefix="serve")  # Serve's own calls block
        self._is_closed = False
        self.phase = "new"

    async def start(self) -> None:
        """Start Serve without its proxy, and every named service; returns when all are ready.

        Raises:
            NodeDown: a service did not start; all are stopped again, but for those of a cluster, which go on.
        """
        self.phase = "starting services"
        try:
            await self._blocking(_start_serve)
            await self.deploy()
            self.phase = "ready"
        except BaseException as error:
            await self.close()
            if isinstance(error, RayError | RayServeException | RuntimeError):
                raise NodeDown("services", str(error)) from None
            raise

    async def deploy(self, version: str | None = None) -> None:
        """Roll out the services, again if they run: replicas are replaced one after the other, calls go on.

        Raises:
            RuntimeError: a replica did not start; the old ones go on.
        """
        self._version = version or self._version
        targets = [self._target(spec) for spec in self._specs.values()]
        handles = await self._blocking(serve.run_many, targets)
        for spec, handle in zip(self._specs.values(), handles, strict=True):
            if spec.name in self._handles:
                continue  # the handle that is there follows the update by itself
            await self._blocking(handle.options)  # starts its router, which else the first call does, on the event loop
            self._handles[spec.name] = handle
            if spec.name == "encode":
                self._make_encodes(spec)
            elif spec.name != "generate":
                send = partial(self._send, spec.name)
                inflight = _IN_FLIGHT * spec.max_replicas
                self._queues[spec.name] = make_queue(spec.name, send, self._settings.services, inflight)

    async def close(self, stop: bool | None = None) -> None:
        """Give up what waits and delete the services; on a cluster they stay, unless `stop`. Twice does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        await self._rest.close()
        for queue in self._queues.values():
            await queue.close()
        for lane in self._encodes.values():
            await lane.close()
        if stop if stop is not None else not self._settings.runtime.address:
            for name in self._specs:
                try:
                    await self._blocking(serve.delete, self._app(name))
                except (RayError, RayServeException) as error:
                    _log.warning("service '%s' was not deleted: %s", name, error)
        for handle in self._handles.values():  # their threads would call a Ray that has been shut down
            await self._blocking(handle.shutdown)
        self._calls.shutdown(wait=False)

    async def call(self, service: str, order: ServiceOrder, *, alone: bool = False) -> ServiceAnswer:
        """The answer to an order."""
        queue = self._queues.get(service)
        if queue is None:
            return await self._rest.call(service, order, alone=alone)
        return await queue.call(order, self._settings.services.max_batch if alone else 1)

    @property
    def encodes(self) -> bool:
        """Whether `encode` is among the services."""
        return "encode" in self._specs

    async def encode(self, texts: Sequence[str], *, urgent: bool = True) -> NDArray[np.float32]:
        """Amplitudes of texts, (n, d) float32 unit rows; prompts (`urgent`) go before what is written.

        Raises:
            LimitExceeded: too many texts wait. NodeDown: no replica answers.
        """
        return await self._encodes[urgent].call(list(texts), max(1, len(texts)))

    @property
    def streams(self) -> int:
        """How many answers `generate` may stream at once; 0 where it is not among the services."""
        spec = self._specs.get("generate")
        return 0 if spec is None else spec.max_replicas * self._settings.generator.slots

    @asynccontextmanager
    async def lease(self) -> AsyncGenerator[Endpoint]:
        """Where an engine with room listens, for the length of one answer.

        Raises:
            NodeDown: no replica answers.
        """
        handle = self._handles["generate"].options(stream=True, method_name="lease")
        held = None
        self._leases += 1
        try:
            try:
                held = handle.remote()
                endpoint: Endpoint = await anext(held)
            except (RayError, RayServeException, StopAsyncIteration) as error:
                raise NodeDown("service generate", type(error).__name__) from None
            yield endpoint
        finally:
            if held is not None:
                held.cancel()

    async def status(self) -> list[ServiceStatus]:
        """Every service as it is now; the replicas are those that run."""
        running = await self._blocking(self._running)
        on_serve = [
            ServiceStatus(
                name,
                "serve",
                running.get(name, 0),
                queue.waiting,
                queue.sent,
                self._done.get(name, 0),
            )
            for name, queue in self._queues.items()
        ]
        if self._encodes:
            waiting, sent = (sum(getattr(one, name) for one in self._encodes.values()) for name in ("waiting", "sent"))
            replicas, done = running.get("encode", 0), self._done.get("encode", 0)
            on_serve.append(ServiceStatus("encode", "serve", replicas, waiting, sent, done))
        if self.streams:
            replicas = running.get("generate", 0)
            on_serve.append(ServiceStatus("generate", "serve", replicas, 0, self._leases, self._leases))
        return on_serve + await self._rest.status()

    # ------------------------------------------------------------------------------------------------ how it is done
    def _app(self, service: str) -> str:
        return f"{self._settings.runtime.namespace}-{service}"

    def _target(self, spec: ServiceSpec) -> Any:
        limits = self._settings.services
        options: dict[str, Any] = {
            "name": spec.name,
            "max_ongoing_requests": _IN_FLIGHT,
            "max_queued_requests": -1,  # our own queue is the bounded one
            "ray_actor_options": {"num_cpus": 0},
            "health_check_period_s": 2.0,
            "health_check_timeout_s": 10.0,
            "graceful_shutdown_wait_loop_s": 0.2,
            "graceful_shutdown_timeout_s": _STOP_S,
        }
        if spec.min_replicas == spec.max_replicas:
            options["num_replicas"] = spec.max_replicas
        else:
            options["autoscaling_config"] = {
                "min_replicas": spec.min_replicas,
                "max_replicas": spec.max_replicas,
                "target_ongoing_requests": 1,
                "upscale_delay_s": limits.upscale_delay_s,
                "downscale_delay_s": limits.downscale_delay_s,
                "metrics_interval_s": 0.5,
                "look_back_period_s": 2.0,
            }
        kind: Any = {"encode": EncodeReplica, "generate": GenerateReplica}.get(spec.name, Replica)
        arguments: tuple[Any, ...] = (limits.replica_threads, limits.call_timeout_s, self._work)
        if kind is EncodeReplica:
            arguments = (self._encoder, limits.call_timeout_s, self._load)
        elif kind is GenerateReplica:
            arguments = (self._settings.generator, self._engine)
            slots = self._settings.generator.slots
            options |= {"max_ongoing_requests": slots, "graceful_shutdown_timeout_s": _STREAMS_STOP_S}
            if "autoscaling_config" in options:
                options["autoscaling_config"]["target_ongoing_requests"] = max(1, slots // 2)
        deployment: Any = serve.deployment(kind).options(**options)
        bound = deployment.bind(self._version, *arguments)
        return serve.RunTarget(target=bound, name=self._app(spec.name), route_prefix=None)

    def _make_encodes(self, spec: ServiceSpec) -> None:
        for urgent in (True, False):
            if urgent not in self._encodes:
                self._encodes[urgent] = Batcher(
                    "service 'encode'",
                    partial(self._send_texts, urgent),
                    window_ms=0.0,
                    max_weight=self._encoder.max_batch,
                    max_waiting=self._settings.runtime.max_waiting,
                    max_inflight=_IN_FLIGHT * spec.max_replicas,
                )

    async def _send_texts(self, urgent: bool, batch: list[list[str]]) -> list[NDArray[np.float32]]:
        rows: NDArray[np.float32] = raised(
            await self._ask("encode", [text for texts in batch for text in texts], urgent)
        )
        self._done["encode"] = self._done.get("encode", 0) + len(rows)
        return np.split(rows, np.cumsum([len(texts) for texts in batch])[:-1])

    async def _send(self, service: str, orders: list[ServiceOrder]) -> Sequence[ServiceAnswer | QrafError]:
        answers: list[ServiceAnswer | QrafError] = await self._ask(service, orders)
        self._done[service] = self._done.get(service, 0) + len(orders)
        return answers

    async def _ask(self, service: str, *args: Any) -> Any:
        """One call of a replica; when that one dies, of another."""
        limits = self._settings.services
        for attempt in range(_TRIES):
            try:
                async with asyncio.timeout(limits.call_timeout_s):
                    return await self._handles[service].remote(*args)
            except TimeoutError:
                raise NodeDown(f"service {service}", f"no answer in {limits.call_timeout_s:g} s") from None
            except BackPressureError:
                raise LimitExceeded(
                    f"orders that wait for service '{service}'", limits.max_waiting, None, 500
                ) from None
            except RayTaskError as error:  # what works raises nothing, so this is a bug: no other replica does better
                raise RuntimeError(f"service '{service}' failed") from error
            except TaskCancelledError:
                raise NodeDown(f"service {service}", "the call was cancelled") from None
            except (RayError, RayServeException) as error:
                if attempt == _TRIES - 1:
                    raise NodeDown(f"service {service}", type(error).__name__) from None
                _log.warning("service '%s' lost a replica (%s); its batch is sent again", service, type(error).__name__)
                await asyncio.sleep(_PAUSE_S * 2**attempt)
        raise AssertionError("unreachable")

    def _running(self) -> dict[str, int]:
        apps = serve.status().applications
        found = {}
        for name in self._handles:
            app = apps.get(self._app(name))
            states = app.deployments[name].replica_states if app and name in app.deployments else {}
            found[name] = int(states.get("RUNNING", 0))
        return found

    async def _blocking(self, call: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._calls, partial(call, *args))


def _start_serve() -> None:
    for name in ("ray.serve", "ray.serve._private.api"):
        logging.getLogger(name).setLevel(logging.ERROR)  # it tells of every step on standard error
    serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
