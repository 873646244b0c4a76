"""The supervisor's process: starts hosts and engine as actors, probes and replaces them, and tells the gateways.

The decisions are in `supervisor`; this is the shell. It holds nothing that is not found again: which processes run is
known by the names of their actors, what they were made for is in Ray's own store, and the journal gives out epochs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import ray
from ray.exceptions import RayError
from ray.experimental import internal_kv

from qraf.actors.messages import HostReport
from qraf.actors.processes import Identity
from qraf.actors.ray_actors import START_TIMEOUT_S, Actors, named_actors
from qraf.actors.replies import ping, raised, reply
from qraf.actors.spare import Spare
from qraf.actors.standing import ENGINE, SUPERVISOR, Charter, Joined, Post, Standing
from qraf.actors.supervisor import Attendance, Supervisor
from qraf.clock import SystemClock
from qraf.errors import InvalidRequest, NodeDown, NotReady, QrafError, StorageFailed
from qraf.network.topology import HostSpec
from qraf.text.generator import Endpoint

if TYPE_CHECKING:
    from qraf.storage.fences import FenceTable

__all__ = ["HOLD_S", "SupervisorActor"]

HOLD_S = 1.0  # how long a question waits for news

_log = logging.getLogger(__name__)
_Stored = tuple[str, int, dict[str, tuple[int, int]], str]  # run, last epoch, epoch and restarts of each, mark

_JOIN_S = 5.0  # how long a gateway that wants another network waits for the last one to be seen no more
_AGAIN_S = 0.5
_RETIRED_S = 30.0
_FROZEN_S = 2.0  # the loop stood still for so long: somebody may have taken over meanwhile


@dataclass(slots=True)
class _Held:
    """A process that is up."""

    actor: Any
    report: HostReport | None = None
    endpoint: Endpoint | None = None
    pid: int = 0
    machine: str = ""


class SupervisorActor:
    """Keeps what its charter says running. Named in the namespace, so there is one; whoever finds none makes one.

    Actors have `max_restarts=0`: Ray then tells of a death in 20 ms instead of 1.4 s, and a successor has its epoch
    before it starts. A spare process with a loaded encoder takes over, because importing torch alone takes seconds.
    All are detached: they go on when this process dies, and the next supervisor takes them over as they are.
    """

    def __init__(self, charter: Charter) -> None:
        self._charter, self._actors = charter, Actors(charter)
        self._fences: FenceTable | None = None
        self._clock = SystemClock()
        self._term = secrets.token_hex(8)
        self._run = secrets.token_hex(8)  # within which epochs rise: that of this Ray, whoever supervises
        self._books = Supervisor(charter.names, self._clock)
        self._books.observe(charter.epoch)
        self._attendance = Attendance(self._clock)
        self._held: dict[str, _Held] = {}
        self._spare: Spare[Any] = Spare(lambda: self._actors.host(None), self._clock)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._wake, self._news = asyncio.Event(), asyncio.Event()
        self._charged = asyncio.Event()  # the journal was asked for charge of the epochs
        self._decided = asyncio.Event()  # whether there is a first gateway, or this supervisor is of no use
        self._version = 0
        self._is_begun = self._is_settled = self._is_retired = self._has_found = False

    # ------------------------------------------------------------------------------------------------ gateways ask
    async def join(self, gateway: str, charter: Charter) -> Joined | QrafError:
        """Take a gateway in, if it wants the network that is kept. An error of ours is the answer.

        `replace`: it wants another one, and nobody else is here; or it wants the one that was kept before this
        supervisor was made for another. This one is then of no use any more, and who asked is to stop and kill it.
        """
        if not self._is_begun:
            last = await self._actors.blocking(self._last_mark) or self._actors.mark
            if charter.mark() != last:
                await self._wait_for_others()
            elif last != self._actors.mark and not self._is_begun and not self._is_retired:
                self._retire()
                return "replace"
        if self._is_retired:
            return NotReady("handing over to another supervisor")
        wanted, kept = charter.marks(), self._charter.marks()
        differing = [name for name in kept if wanted[name] != kept[name]]
        if differing and not await self._is_needed(gateway):
            self._retire()
            return "replace"
        if any(name != "bounds" for name in differing):
            return self._refusal(charter, differing)
        self._attendance.saw(gateway)
        if differing:
            return "tolerated"
        if self._is_begun:
            return "joined"
        self._is_begun = True
        self._decided.set()
        self._own(self._live(), "live")
        return "first"

    async def standing(self, gateway: str, term: str, version: int) -> Standing | None:
        """The network as it is, as soon as that is news to the gateway; after a second in any case.

        None: what runs has not been found yet; the gateway goes on with what it knows.
        """
        self._attendance.saw(gateway)
        if (term, version) == (self._term, self._version) or not self._is_settled:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HOLD_S):
                    await self._news.wait()
        if not self._is_settled:
            return None
        return Standing(
            term=self._term,
            version=self._version,
            departures=self._attendance.departures,
            has_found=self._has_found,
            pid=os.getpid(),
            machine=socket.gethostname(),
            posts=tuple(self._post(name) for name in self._books.charges),
        )

    async def lost(self, name: str, epoch: int, reason: str) -> None:
        """A gateway saw a process die."""
        self._lost(name, epoch, reason)

    async def suspect(self, name: str, epoch: int) -> None:
        """A gateway does not reach a process; it is asked at once."""
        charge = self._books.charges[name]
        if charge.phase == "up" and charge.epoch == epoch and not self._is_probing(name):
            self._own(self._probe(name, epoch), f"probe {name}")

    async def leave(self, gateway: str) -> None:
        """A gateway goes in peace. The network stays."""
        self._attendance.left(gateway)

    async def stop(self) -> None:
        """End every process but this one, which the caller is to kill; what waits is stored before."""
        self._retire()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        spare = await self._spare.close()
        actors = [*(held.actor for held in self._held.values()), *([spare] if spare is not None else [])]
        await asyncio.gather(*(self._actors.stop(actor) for actor in actors))
        if self._is_begun:  # else what is stored is another network's
            for charge in self._books.charges.values():
                charge.epoch = charge.restarts = 0
            with contextlib.suppress(RayError):
                await self._actors.blocking(self._store, "")
        self._held.clear()

    def _retire(self) -> None:
        """Take no gateway any more; who is to kill this process may die first, then it ends itself."""
        self._is_retired = True
        self._decided.set()
        asyncio.get_running_loop().call_later(_RETIRED_S, os._exit, 0)

    async def _wait_for_others(self) -> None:
        """Before the first gateway is taken in: another one has a better right, and may be about to ask."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_JOIN_S):
                await self._decided.wait()

    async def _is_needed(self, gateway: str) -> bool:
        """Whether another gateway is served; one that was here lately may have died, and is given time to ask."""
        since = self._clock.monotonic()
        while self._attendance.others(gateway) and self._clock.monotonic() - since < _JOIN_S:
            if self._attendance.others(gateway, since):
                return True
            await asyncio.sleep(0.1)
        return False

    # ------------------------------------------------------------------------------------------------ life
    async def _live(self) -> None:
        """Take over what runs, then probe, start what is due, keep a spare; wakes at once when something dies."""
        await self._find()
        self._is_settled = True
        self._tell()
        limits = self._charter.runtime
        while True:
            self._wake.clear()
            for name in self._books.due():
                self._own(self._bring_up(name, self._books.begin(name)), f"start {name}")
            for charge in list(self._books.charges.values()):
                if charge.phase == "up" and not self._is_probing(charge.name):
                    self._own(self._probe(charge.name, charge.epoch), f"probe {charge.name}")
            if limits.spare_hosts and all(one.phase == "up" for one in self._books.charges.values()):
                self._spare.keep()  # only then: it must not slow down what is needed
            if self._attendance.sweep():
                self._tell()
            slept, pause_s = time.monotonic(), min(limits.probe_every_s, self._books.due_in_s())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
            if time.monotonic() - slept > pause_s + _FROZEN_S:
                await self._check_in_charge()

    async def _check_in_charge(self) -> None:
        """End this process if another one has its name by now: two must not decide."""

        def holder() -> str:
            try:
                return str(ray.get_actor(SUPERVISOR, namespace=self._charter.runtime.namespace)._actor_id.hex())
            except ValueError:
                return ""

        if await self._actors.blocking(holder) != ray.get_runtime_context().get_actor_id():
            _log.error("this process stood still, and another supervisor has taken over")
            os._exit(1)

    def _tell(self) -> None:
        """Let every gateway know."""
        self._version += 1
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _post(self, name: str) -> Post:
        charge, held = self._books.charges[name], self._held.get(name)
        told = Post(name, charge.phase, charge.epoch, charge.restarts, charge.reason, charge.has_failed)
        if held is None or charge.phase != "up":
            return told
        return replace(
            told, actor=held.actor, report=held.report, endpoint=held.endpoint, pid=held.pid, machine=held.machine
        )

    def _refusal(self, charter: Charter, differing: list[str]) -> InvalidRequest:
        space, name = self._charter.runtime.namespace, self._charter.topology.name
        what = ", ".join(
            f"{one} ('{name}' there, '{charter.topology.name}' here)" if one == "topology" else one for one in differing
        )
        return InvalidRequest(
            f"namespace '{space}' of this Ray cluster serves network '{name}' for another gateway, with another "
            f"configuration: {what}. Start with the same one, or take another namespace (QRAF_RUNTIME__NAMESPACE), or "
            f"stop the other gateways first: the network is then replaced"
        )

    # ------------------------------------------------------------------------------------------------ taking over
    async def _find(self) -> None:
        """Take over what an earlier supervisor left, as it is; end what is of no use."""
        await self._actors.blocking(self._recall)
        await self._actors.blocking(self._store, self._actors.mark)
        self._own(self._take_charge(), "take charge")
        space, own = self._charter.runtime.namespace, ray.get_runtime_context().get_actor_id()
        actors = await self._actors.blocking(named_actors, space)
        others = {name: actor for name, actor in actors.items() if actor._actor_id.hex() != own}
        identities = await asyncio.gather(*(self._actors.identity(*one) for one in others.items()))
        known = list(zip(identities, others.values(), strict=True))
        known.sort(key=lambda pair: -pair[0].epoch if pair[0] is not None else 0)  # of two with one name the newer one
        for identity, actor in known:
            if not self._take_over(identity, actor):
                self._own(self._actors.kill(actor), "kill a stray")

    def _take_over(self, identity: Identity | None, actor: Any) -> bool:
        """Whether a process that was found is used."""
        if identity is None:
            return False
        self._books.observe(identity.epoch)
        if identity.mark != self._actors.mark:
            return False
        report = identity.report
        if report is not None and not report.name:
            return bool(self._charter.runtime.spare_hosts) and self._spare.put(partial(self._actors.ready, actor))
        name = report.name if report is not None else ENGINE
        if name in self._held or name not in self._books.charges or (report is None and identity.endpoint is None):
            return False
        self._books.found(name, identity.epoch)
        self._held[name] = _Held(actor, report, identity.endpoint, identity.pid, identity.machine)
        self._has_found = True
        return True

    def _recall(self) -> None:
        """What the supervisor before this one stored. Blocks."""
        stored = self._stored()
        if stored is not None:
            self._run, epoch, charges, _ = stored
            self._books.observe(epoch)
            for name, (last, restarts) in charges.items():
                if name in self._books.charges:
                    self._books.charges[name].epoch, self._books.charges[name].restarts = last, restarts
        # of two that find none the first one's is the name of the run, whoever goes on first
        internal_kv._internal_kv_put(self._key + b"/run", self._run.encode(), False, namespace=b"qraf")
        self._run = internal_kv._internal_kv_get(self._key + b"/run", namespace=b"qraf").decode()

    def _store(self, mark: str) -> None:
        """What the next supervisor is to know; `mark`: what the network is made for, empty: there is none. Blocks."""
        charges = {one.name: (one.epoch, one.restarts) for one in list(self._books.charges.values())}
        stored = msgspec.msgpack.encode((self._run, self._books.epoch, charges, mark))
        internal_kv._internal_kv_put(self._key, stored, True, namespace=b"qraf")

    def _last_mark(self) -> str:
        """What the network was made for that was kept here last; empty: there is none. Blocks."""
        stored = self._stored()
        return "" if stored is None else stored[3]

    def _stored(self) -> _Stored | None:
        stored = internal_kv._internal_kv_get(self._key, namespace=b"qraf")
        return None if not stored else msgspec.msgpack.decode(stored, type=_Stored)

    @property
    def _key(self) -> bytes:
        return f"supervisor/{self._charter.runtime.namespace}".encode()

    # ------------------------------------------------------------------------------------------------ epochs
    async def _take_charge(self) -> None:
        """No supervisor before this one is given an epoch any more."""
        try:
            await self._actors.blocking(self._ask_journal, "take_charge", self._run, self._term)
        except StorageFailed as fault:  # whoever wants an epoch does it again
            _log.warning("what runs is taken over while the journal is away: %s", fault)
        finally:
            self._charged.set()
        await self._check_in_charge()  # this process may have stood still meanwhile

    def _ask_journal(self, method: str, *args: Any) -> Any:
        """What the table of fences answers. Blocks, the first time for as long as importing SQLAlchemy takes."""
        if self._fences is None:
            from qraf.storage.fences import FenceTable

            self._fences = FenceTable.open(self._charter.journal_url)
        return getattr(self._fences, method)(*args)

    async def _next_epoch(self, above: int) -> int:
        """An epoch that nobody else is ever given; waits while the journal is away."""
        await self._charged.wait()
        while True:
            try:
                epoch: int = await self._actors.blocking(self._ask_journal, "next_epoch", self._run, self._term, above)
                return epoch
            except NodeDown:
                await self._take_charge()
            except StorageFailed as fault:
                _log.warning("nothing is started while the journal is away: %s", fault)
                await asyncio.sleep(_AGAIN_S)

    # ------------------------------------------------------------------------------------------------ starting
    async def _bring_up(self, name: str, begun: int) -> None:
        """Start or replace one process; on failure the books decide when to try again."""
        self._tell()
        actor, epoch = None, begun
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                epoch = await self._next_epoch(begun - 1)
                self._books.numbered(name, begun, epoch)
                await self._actors.blocking(self._store, self._actors.mark)
                if name == ENGINE:
                    actor = await self._actors.engine()
                    identity: Identity = raised(await reply(actor.start.remote(epoch)))
                    held = _Held(actor, None, identity.endpoint, identity.pid, identity.machine)
                else:
                    spec = self._charter.topology.hosts[name]
                    actor = await self._take_spare(spec) or await self._actors.host(spec)
                    adopt = actor.call.options(concurrency_group="control").remote
                    spell = replace(self._charter.spell, name=name, epoch=epoch, run=self._run)
                    report: HostReport = raised(await reply(adopt("adopt", spell)))
                    held = _Held(actor, report, None, report.pid, report.machine)
        except (TimeoutError, RayError, QrafError) as error:
            self._books.lost(name, epoch, str(error) or "start timed out")
            _log.warning("'%s' did not start (epoch %d): %s", name, epoch, error)
            self._tell()
            await self._actors.kill(actor)
            return
        except BaseException:
            await self._actors.kill(actor)
            raise
        if not self._books.arrived(name, epoch):
            await self._actors.kill(actor)
            return
        self._held[name] = held
        self._tell()
        self._wake.set()

    async def _take_spare(self, spec: HostSpec) -> Any:
        """The spare, if it fits and still answers."""
        actor = None if spec.gpus else await self._spare.take()
        if actor is None:
            return None
        try:
            await ping(actor, self._charter.runtime.probe_timeout_s)
        except BaseException as error:
            await self._actors.kill(actor)  # nobody else knows of it
            if isinstance(error, RayError | TimeoutError):
                return None
            raise
        return actor

    # ------------------------------------------------------------------------------------------------ watching
    async def _probe(self, name: str, epoch: int) -> None:
        held, limits = self._held.get(name), self._charter.runtime
        if held is None:
            return  # given up meanwhile
        try:
            if name == ENGINE:
                if not await reply(held.actor.alive.remote(), limits.probe_timeout_s):
                    self._lost(name, epoch, "the engine stopped")
            else:
                report = await ping(held.actor, limits.probe_timeout_s)
                if report.epoch == epoch:
                    held.report = report
                    self._tell()
            self._books.answered(name, epoch)
        except TimeoutError:
            if self._books.missed(name, epoch):
                self._given_up(name, epoch, "hangs")
        except RayError as error:
            self._lost(name, epoch, type(error).__name__)

    def _lost(self, name: str, epoch: int, reason: str) -> None:
        if self._books.lost(name, epoch, reason):
            self._given_up(name, epoch, reason)

    def _given_up(self, name: str, epoch: int, reason: str) -> None:
        """The process is dead to all: nothing it still says counts, and its successor may start."""
        _log.warning("'%s' is down (epoch %d): %s", name, epoch, reason)
        held = self._held.pop(name, None)
        if held is not None:
            self._own(self._actors.kill(held.actor), f"kill {name}")
        self._tell()
        self._wake.set()

    def _is_probing(self, name: str) -> bool:
        return any(task.get_name() == f"probe {name}" for task in self._tasks)

    # ------------------------------------------------------------------------------------------------ tasks
    def _own(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("task %s failed", task.get_name(), exc_info=error)
            if task.get_name() == "live":
                os._exit(1)  # a gateway makes another one; one that looks after nothing must not look alive
