"""The nodes as a gateway on Ray sees them: the supervisor says who is up, the hosts are called directly."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

# read when Ray is imported: without it Ray takes SIGTERM from the process that serves, with a stack trace
os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")

import ray
from ray.exceptions import ActorDiedError, RayError

from qraf.actors.health import NodeHealth, Process
from qraf.actors.hosted import HostedRuntime
from qraf.actors.messages import HostReport, Spell
from qraf.actors.ray_actors import kill, named_actors
from qraf.actors.ray_supervisor import HOLD_S, SupervisorActor
from qraf.actors.replies import ping, raised, reply
from qraf.actors.standing import ENGINE, SUPERVISOR, Charter, Joined, Post, Standing
from qraf.clock import Clock
from qraf.errors import InvalidRequest, NodeDown, NotReady, QrafError
from qraf.network.topology import Topology
from qraf.settings import Settings
from qraf.text.generator import Endpoint

if TYPE_CHECKING:
    from qraf.text.encoder import Encoder

__all__ = ["RayRuntime"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_START_TIMEOUT_S = 150.0
_JOIN_TIMEOUT_S = 15.0
_STOP_TIMEOUT_S = 15.0
_LEAVE_TIMEOUT_S = 1.0
_MOST_JOINS = 12  # in a row, over some seconds; then it is not the dead one's name that is in the way
_AGAIN_S = 5.0
_GROUP_OF = {  # of a host's threads, see `ray_actors`
    "absorb": "write",
    "forget": "write",
    "drop": "write",
    "recode": "write",
    "states": "states",
    "work": "work",
    "snapshot": "snapshots",
}

_SupervisorActor: Any = ray.remote(SupervisorActor)


def _is_news(record: logging.LogRecord) -> bool:
    """Ray warns that it sets no SIGTERM handler outside of the main thread: that is as it should be, it is not ours."""
    return "SIGTERM handler" not in record.getMessage()


class RayRuntime(HostedRuntime):
    """Every host an actor; starts a Ray of its own, or joins the cluster at `settings.runtime.address`.

    Which hosts there are and under which epoch they are called is the supervisor's word (`ray_supervisor`), itself an
    actor: the first gateway of a namespace makes it, and so does the first one that misses it. While there is none,
    calls go on to the hosts that are known. A host's death is seen by the call that meets it, 20 ms later.

    With a Ray of its own everything ends with this process. On a cluster supervisor and hosts stay, for other gateways
    and for the next one; `close` leaves them running there unless told otherwise.

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
        if ":memory:" in settings.journal():
            raise InvalidRequest("hosts are other processes: they need a journal in a file or on a server")
        self._has_engine = self._needs_engine and not any(one.name == "generate" for one in topology.services)
        self._charter = Charter(
            spell=Spell("", 0, topology, settings.states, settings.quotas, snapshots=settings.snapshots_here()),
            journal_url=settings.journal(),
            encoder=self._encoder_settings(),
            runtime=settings.runtime,
            generator=settings.generator if self._has_engine else None,
            masters=(settings.seal, settings.master_key_file()),
            load=encoder,
        )
        self._gateway = secrets.token_hex(8)
        self._supervisor: Any = None
        self._standing: Standing | None = None
        self._posts: dict[str, Post] = {}
        self._news = asyncio.Event()
        self._actors: dict[str, Any] = {}
        self._gone: dict[str, asyncio.Future[None]] = {}  # done when the host of that name is given up
        self._buried: dict[str, int] = {}  # epochs that this gateway saw end, whatever the supervisor still believes
        self._tasks: set[asyncio.Task[Any]] = set()
        self._owns_ray = False
        # processes of an embedded Ray die with the thread that started them, so this one lives as long as the runtime
        self._ray_thread = ThreadPoolExecutor(1, thread_name_prefix="ray")
        self._lookups = ThreadPoolExecutor(4, thread_name_prefix="ray-lookup")  # GCS calls block: never on the loop

    # ------------------------------------------------------------------------------------------------ life
    async def start(self) -> None:
        """Join Ray and the supervisor, or start them; returns when all hosts and the engine answer.

        Raises:
            NodeDown: something did not start; what this gateway started is stopped again.
            InvalidRequest: other gateways are served in this namespace, with another topology or journal.
        """
        joined: Joined | None = None
        self.phase = "starting Ray"
        try:
            await asyncio.get_running_loop().run_in_executor(self._ray_thread, self._connect)
            self.phase = "starting hosts"
            async with asyncio.timeout(_START_TIMEOUT_S):
                joined = await self._enlist()
                self._own(self._follow(), "follow the supervisor")
                while not self._is_complete():
                    await self._news.wait()
        except BaseException as error:
            is_ours = joined == "first" and not (self._standing is not None and self._standing.has_found)
            await self.close(stop_hosts=True if is_ours else None)
            if isinstance(error, TimeoutError):
                raise NodeDown(SUPERVISOR, "start timed out") from None
            raise
        self.phase = "ready"

    async def close(self, stop_hosts: bool | None = None) -> None:
        """Stop what was started; on a cluster the hosts stay, unless `stop_hosts`. Twice does nothing."""
        if self.phase == "closed":
            return
        self.phase = "closed"
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._close_batchers()
        if stop_hosts if stop_hosts is not None else not self.settings.runtime.address:
            await self._stop_all()
        elif self._supervisor is not None:
            with contextlib.suppress(RayError, TimeoutError):
                await reply(self._supervisor.leave.remote(self._gateway), _LEAVE_TIMEOUT_S)
        for host in list(self._epochs):
            self._host_down(host)
        self._actors.clear()
        # Ray ends the process when it is called after its shutdown, so look-ups that were given up come first
        await asyncio.to_thread(self._lookups.shutdown, cancel_futures=True)
        if self._owns_ray:
            await asyncio.get_running_loop().run_in_executor(self._ray_thread, ray.shutdown)
        self._ray_thread.shutdown(wait=False)

    def processes(self) -> list[Process]:
        """This process, the supervisor's, and those of the hosts and the engine that are up."""
        found = super().processes()
        if self._standing is not None:
            found.append(Process(SUPERVISOR, self._standing.pid, self._standing.machine, 0))
        for post in self._posts.values():
            if post.pid and post.epoch != self._buried.get(post.name):
                what = post.name if post.name == ENGINE else f"host {post.name}"
                found.append(Process(what, post.pid, post.machine, post.epoch))
        return found

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

    async def _stop_all(self) -> None:
        """End hosts, engine and supervisor; without a supervisor what is there is killed."""
        if self._supervisor is not None:
            with contextlib.suppress(RayError, TimeoutError):
                await reply(self._supervisor.stop.remote(), _STOP_TIMEOUT_S)
        if not ray.is_initialized():
            return
        with contextlib.suppress(RayError):
            left = await self._blocking(named_actors, self.settings.runtime.namespace)
            await asyncio.gather(*(self._blocking(kill, actor) for actor in left.values()))

    # ------------------------------------------------------------------------------------------------ the supervisor
    async def _enlist(self) -> Joined:
        """Join the supervisor of the namespace. When there is none it is made; of several who try, one does.

        Raises:
            InvalidRequest: it keeps another network, for other gateways.
            NodeDown: none could be made.
        """
        pause_s, reason = 0.02, ""
        charter = replace(self._charter, epoch=max((post.epoch for post in self._posts.values()), default=0))
        for _ in range(_MOST_JOINS):
            supervisor = None
            try:
                supervisor = await self._blocking(partial(self._get_supervisor, charter))
                joined: Joined = raised(await reply(supervisor.join.remote(self._gateway, charter), _JOIN_TIMEOUT_S))
                if joined == "tolerated":
                    _log.warning("hosts keep the bounds of the gateways that are there; ours differ, and do not count")
                if joined != "replace":
                    self._supervisor = supervisor
                    return joined
                _log.warning("another network has this namespace, and nobody uses it any more: it is replaced")
                await reply(supervisor.stop.remote(), _STOP_TIMEOUT_S)
                await self._blocking(kill, supervisor)
            except TimeoutError:
                reason = "it hangs"
                await self._blocking(kill, supervisor)
            except (RayError, NotReady) as error:  # the dead keep their names for a moment
                reason = str(error)
            await asyncio.sleep(pause_s)
            pause_s = min(1.0, 2 * pause_s)
        raise NodeDown(SUPERVISOR, reason)

    def _get_supervisor(self, charter: Charter) -> Any:
        """Blocks. Ray registers one actor of a name; who comes later gets a handle to it."""
        options = _SupervisorActor.options(
            name=SUPERVISOR,
            namespace=self.settings.runtime.namespace,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=0,  # gateways then hear of its death in 20 ms
            max_task_retries=0,
        )
        try:
            return options.remote(charter)
        except ValueError as error:  # the dead one that had the name was gone when Ray looked for it
            raise NotReady("waiting for its supervisor's name") from error

    async def _follow(self) -> None:
        """Hear what the supervisor says, for ever; one that died or hangs is replaced."""
        term, version, missed = "", 0, 0
        wait_s = HOLD_S + self.settings.runtime.probe_timeout_s
        while True:
            try:
                standing = await reply(self._supervisor.standing.remote(self._gateway, term, version), wait_s)
                missed = 0
                if standing is not None:
                    self._apply(standing)
                    term, version = standing.term, standing.version
            except TimeoutError:
                missed += 1
                if missed >= 2:
                    _log.warning("the supervisor hangs; another one takes over")
                    await self._blocking(kill, self._supervisor)
                    await self._enlist_again()
            except RayError as error:
                _log.warning("the supervisor is gone (%s); another one takes over", type(error).__name__)
                await self._enlist_again()

    async def _enlist_again(self) -> None:
        while True:
            try:
                await self._enlist()
                return
            except QrafError as error:
                _log.error("no supervisor; calls go on to the hosts that are known, none is replaced: %s", error)
                await asyncio.sleep(_AGAIN_S)

    def _apply(self, standing: Standing) -> None:
        """What is the supervisor's word from now on."""
        last, self._standing = self._standing, standing
        if last is None:
            is_new = standing.has_found or standing.departures > 0
        else:
            is_new = (last.term, last.departures) != (standing.term, standing.departures)
        if is_new:
            self._reread()
        for post in standing.posts:
            name, before = post.name, self._posts.get(post.name)
            is_up = post.phase == "up" and post.epoch != self._buried.get(name)
            if name in self._actors and (not is_up or before is None or before.epoch != post.epoch):
                self._drop(name, post.reason or "replaced")
            self._posts[name], self.restarts[name] = post, post.restarts
            if is_up and name not in self._actors:
                self._actors[name], self._gone[name] = post.actor, asyncio.get_running_loop().create_future()
                if post.report is not None:
                    self._host_up(post.report)
            elif is_up and post.report is not None:
                self._note(post.report)
        self._mark_generators()
        if self.phase.startswith("starting"):
            self.phase = f"starting hosts ({len(self._epochs)} of {len(self.topology.hosts)})"
        self._news.set()

    def _is_complete(self) -> bool:
        """Whether everything is up; to be asked after each news.

        Raises:
            NodeDown: something does not start.
        """
        self._news.clear()
        for post in self._posts.values():
            if post.has_failed:
                raise NodeDown(post.name, post.reason)
        return self._standing is not None and len(self._actors) == len(self._charter.names)

    def _drop(self, name: str, reason: str) -> None:
        """The process is dead to us: nothing it still says counts."""
        _log.warning("'%s' is down (epoch %d): %s", name, self._posts[name].epoch, reason)
        self._gone.pop(name).set_result(None)
        del self._actors[name]
        if name == ENGINE:
            self._mark_generators()
        else:
            self._host_down(name)

    def _mark_generators(self) -> None:
        for spec in self.topology.generators():
            own = bool(spec.url or self.settings.generator.url) or not self._has_engine
            epoch = 1 if own else self._posts[ENGINE].epoch
            self.health[spec.name] = NodeHealth(up=own or ENGINE in self._actors, epoch=epoch)

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
            self._report(host, epoch, error)
            raise NodeDown(host, type(error).__name__) from None
        finally:
            answer.cancel()

    def _report(self, host: str, epoch: int, error: RayError) -> None:
        """Tell the supervisor of a host that died, or that cannot be reached from here: then it looks for itself."""
        if not isinstance(error, ActorDiedError):
            _log.warning("a call to host '%s' failed: %s", host, error)
            self._own(self._say("suspect", host, epoch), "report")
        elif self._epochs.get(host) == epoch:
            self._buried[host] = epoch
            self._drop(host, type(error).__name__)
            self._own(self._say("lost", host, epoch, type(error).__name__), "report")

    async def _say(self, method: str, *args: Any) -> None:
        with contextlib.suppress(RayError, TimeoutError):  # a supervisor that died will see it for itself
            await reply(getattr(self._supervisor, method).remote(*args), self.settings.runtime.probe_timeout_s)

    def _why_down(self, host: str) -> str:
        post = self._posts.get(host)
        return "not up" if post is None else post.reason or ("died" if post.phase == "up" else post.phase)

    async def _ping(self, host: str) -> HostReport:
        actor = self._actors.get(host)
        if actor is None:
            raise NodeDown(host, self._why_down(host))
        try:
            report = await ping(actor, self.settings.runtime.probe_timeout_s)
        except (RayError, TimeoutError) as error:
            raise NodeDown(host, type(error).__name__) from None
        if report.epoch == self._epochs.get(host):
            self._note(report)
        return report

    def _engine_endpoint(self, node: str) -> Endpoint:
        post = self._posts.get(ENGINE)
        if post is None or post.endpoint is None or ENGINE not in self._actors:
            raise NodeDown(node, "the embedded engine does not run")
        return post.endpoint

    # ------------------------------------------------------------------------------------------------ tasks, threads
    async def _blocking(self, call: Callable[..., _T], *args: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._lookups, partial(call, *args))

    def _own(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("task %s failed", task.get_name(), exc_info=error)
