"""What the gateway talks to: sessions, writes, recall, responses and the network, in the words of the frames."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from msgspec import UNSET, UnsetType

from qraf import __version__
from qraf.actors.runtime import Runtime
from qraf.actors.services import InlineServices, Services
from qraf.clock import Clock, SystemClock
from qraf.errors import NodeDown, QrafError, SealBroken, SessionClosed, SessionNotFound
from qraf.filters import validate
from qraf.frames import Recall, RecallDone, RouteOut, SessionOpen, SessionOpened, Write, WriteDone
from qraf.network.placement import item_node, session_node
from qraf.network.topology import Topology
from qraf.records import Figures, ForgetReceipt, session_memory
from qraf.service_orders import OperationView
from qraf.sessions.accounts import Account, Accounts
from qraf.sessions.checks import check_budget, check_k, check_text
from qraf.sessions.enhance import Enhancer
from qraf.sessions.generators import Generators
from qraf.sessions.health import Health
from qraf.sessions.items import Items
from qraf.sessions.ledger import Ledger
from qraf.sessions.meters import Meters
from qraf.sessions.orders import Orders
from qraf.sessions.prompts import Prompts
from qraf.sessions.recall import Measurement, Recaller, ahead_of, evidence_out
from qraf.sessions.registry import Sessions
from qraf.sessions.responses import Responses
from qraf.sessions.snapshots import order_snapshots
from qraf.sessions.states import States
from qraf.sessions.write import Writer
from qraf.settings import Settings
from qraf.storage.database import is_in_memory
from qraf.storage.journal import Journal, SessionRecord
from qraf.times import parse_time

__all__ = ["Service"]

log = logging.getLogger(__name__)

_KEEP_UP_S = 0.5
_SWEEP_S = 5.0
_REAP_S = 0.5


class Service:
    """One server's life above the transport. `start` before use, `close` after; both may be called once."""

    def __init__(
        self,
        settings: Settings,
        topology: Topology,
        journal: Journal,
        runtime: Runtime,
        clock: Clock | None = None,
        services: Services | None = None,
    ) -> None:
        clock = clock or SystemClock()
        self.settings, self.topology, self.clock = settings, topology, clock
        self.version = __version__
        self.meters = Meters()
        self.runtime, self.journal = runtime, journal
        self.accounts = Accounts(settings.quotas, journal.usage, clock, self.meters)
        self.sessions = Sessions(journal, topology, clock)
        self.states = States(journal, runtime)
        self.writer = Writer(
            settings.limits, journal, runtime, self.sessions, topology, clock, on_secret=settings.write.secrets
        )
        self.recaller = Recaller(topology, runtime, self.sessions, journal, clock, self.meters)
        self.orders = Orders(
            settings.services,
            services or InlineServices(settings.services),
            runtime,
            journal,
            topology,
            self.sessions,
            clock,
            self.meters,
            lambda session, rank: self.configure_session(session, rank=rank),
        )
        self.items = Items(journal, runtime, topology, self.sessions, self.recaller)
        self.generators = Generators(settings.generator, runtime)
        self.health = Health(topology, runtime, journal, self.accounts.rates, clock)
        self.responses = Responses(clock, settings.limits)
        shared = settings.data / "gateways" if settings.data.is_dir() and not is_in_memory(settings.journal()) else None
        self.ledger = Ledger(journal.responses, self.responses, clock, settings.limits.kept_response_s, shared)
        self.prompts = Prompts(
            settings.limits,
            topology,
            self.sessions,
            self.recaller,
            Enhancer(topology, self.recaller, self.writer, self.generators.of, clock, self.meters),
            self.responses,
            self.ledger,
            self.health,
        )
        self._tasks: list[asyncio.Task[None]] = []

    # ------------------------------------------------------------------------------------------------ life
    async def start(self) -> None:
        """Start the runtime and what keeps this service up to date; returns when nodes answer."""
        if self.health.state != "new":
            raise RuntimeError(f"a service starts once; this one is {self.health.state}")
        self.health.enter("starting")
        await self.recaller.sample_links(self.settings.data / "links")
        await self.runtime.start()
        await self.states.establish(self.topology.states)
        await self.orders.start()
        await self.writer.start()
        self.accounts.start()
        await self.ledger.start()
        await self.recaller.refresh()
        works = (self._keep_up(), "keep up"), (self._sweep(), "sweep"), (self._reap(), "reap")
        self._tasks = [asyncio.create_task(work, name=name) for work, name in works]
        if self.health.state == "starting":  # not told to drain meanwhile
            self.health.enter("ready")

    def drain(self) -> None:
        """Start nothing new from now on: prompts are refused here, other commands by the gateway. What runs goes on.

        Twice is harmless.
        """
        if self.health.state in ("new", "starting", "ready"):
            self.health.enter("draining")

    async def close(self) -> None:
        """End the running responses, then everything else; what was acknowledged is in the journal."""
        if self.health.state in ("closing", "closed"):
            return
        self.health.enter("closing")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(self.prompts.close(), *self._tasks, return_exceptions=True)
        await self.generators.close()
        await self.orders.close()
        await self.ledger.close()
        await self.writer.close()
        await self.accounts.close()
        await self.runtime.close()
        self.health.enter("closed")

    async def _keep_up(self) -> None:
        while True:
            try:
                self.health.see()
                self.recaller.touch()
                await self.recaller.refresh()
                self.meters.see(self.runtime.views())
                self.meters.see_snapshots(self.runtime.snapshots())
                self.meters.rates_alone.set(self.accounts.rates.away is not None)
                self.meters.restarts.set(sum(self.runtime.restarts.values()))
            except QrafError as error:
                log.warning("the router keeps what it knew: %s", error)
            except Exception:
                log.exception("keeping up failed")
            await asyncio.sleep(_KEEP_UP_S)

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(_REAP_S)
            self.meters.unread.set(self.responses.reap())

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            try:
                self.responses.sweep()
                self.orders.operations.sweep()
                for session in await self.sessions.expired():
                    with contextlib.suppress(SessionNotFound):  # another gateway was quicker
                        await self.delete_session(session)
                await self.items.forget_expired()
            except Exception:
                log.exception("the sweep failed")

    # ------------------------------------------------------------------------------------------------ commands
    async def open_session(self, request: SessionOpen) -> SessionOpened:
        """Open or make a session.

        Raises:
            SessionNotFound: it is not there and `create` is false.
            SessionClosed: it is paused.
            InvalidRequest: a name, a ttl or metadata that cannot be.
        """
        bits, budget_bytes = request.bits, request.budget_bytes
        record, created = await self.sessions.open(
            request.session, request.metadata, request.ttl_s, request.create, bits, budget_bytes
        )
        if record.state == "paused":
            raise SessionClosed(record.id, "it is paused")
        if not created and (bits is not None or budget_bytes is not None):
            await self.configure_session(record.id, UNSET if bits is None else bits, budget_bytes or UNSET)
        node = session_node(self.topology, record.id)
        health = self.runtime.health.get(node)
        figures = Figures() if created else await self.runtime.figures(node, session_memory(record.id))
        return SessionOpened(
            id=request.id,
            session=record.id,
            created=created,
            node=node,
            epoch=health.epoch if health is not None else 0,
            state=figures,
        )

    async def write(
        self, request: Write, account: Account | None = None, when_queued: Callable[[], None] = lambda: None
    ) -> WriteDone:
        """Write items: durable and absorbed on return; `when_queued` is called if they have to wait for room."""
        if request.session is not None:
            await self.sessions.active(request.session)
        started = self.clock.monotonic()
        result = await self.writer.write(
            session=request.session,
            collection=request.collection,
            items=request.items,
            id=request.id,
            account=account,
            when_queued=when_queued,
        )
        self.meters.write.observe(self.clock.monotonic() - started)
        if request.session is not None:
            self.meters.items.labels(session_node(self.topology, request.session)).inc(result.accepted)
        else:
            for node in self.topology.holders(request.collection or ""):
                share = sum(item_node(self.topology, request.collection or "", i) == node for i in result.item_ids)
                self.meters.items.labels(node).inc(share)
        self.recaller.touch()
        return result

    async def recall(self, request: Recall) -> RecallDone:
        """Evidence for a text."""
        started = self.clock.monotonic()
        check_text(request.text, self.settings.limits, "/text")
        check_k(request.k, self.settings.limits, "/k")
        check_budget(request.token_budget, "/token_budget")
        if request.filter is not None:
            validate(request.filter)
        if request.session is not None:
            await self.sessions.active(request.session)
        address = self.recaller.address(request.session, request.collections)
        as_of = None if request.as_of is None else parse_time(request.as_of, "/as_of")
        prompt = await self.recaller.prepare(request.text, address)
        route = await self.recaller.route(prompt, address, max_visits=request.max_visits, explain=request.explain)
        measurement = Measurement(prompt, route, key=request.id)
        async for _ in self.recaller.measure(
            measurement,
            address,
            k=ahead_of(request.k),
            filter=request.filter,
            as_of=as_of,
            explain=request.explain,
            deadline_ms=self.topology.routing.deadline_ms,
        ):
            pass
        if not measurement.answers and measurement.late:
            node, why = next(iter(measurement.late.items()))
            raise measurement.fault or NodeDown(node, why)
        evidence, coverage = await self.recaller.evidence(measurement, k=request.k, token_budget=request.token_budget)
        return RecallDone(
            id=request.id,
            evidence=evidence_out(evidence),
            coverage=coverage,
            route=self.recaller.settled(measurement),
            state=measurement.figures(request.session),
            links=measurement.links(),
            evicted=measurement.evicted,
            ms=(self.clock.monotonic() - started) * 1000,
        )

    async def route(
        self,
        prompt: str,
        max_visits: int | None = None,
        explain: bool = False,
        session: str | None = None,
        collections: Sequence[str] | None = None,
    ) -> RouteOut:
        """Where a prompt would go, without measuring anything; `collections` left out: all of the topology."""
        check_text(prompt, self.settings.limits, "/prompt")
        address = self.recaller.address(session, collections)
        prepared = await self.recaller.prepare(prompt, address)
        return await self.recaller.route(prepared, address, max_visits=max_visits, explain=explain)

    # ------------------------------------------------------------------------------------------------ sessions
    async def configure_session(
        self,
        session: str,
        bits: int | UnsetType | None = UNSET,
        budget_bytes: int | UnsetType | None = UNSET,
        rank: int | UnsetType | None = UNSET,
    ) -> SessionRecord:
        """Change precision, byte budget and rank of a session's memory, and make the memory anew from the journal.

        None: what the node says; what is unset stays. The old memory answers until the new one is there. A node that
        is down does it when it comes back.
        """
        record, has_changed = await self.sessions.configure(session, bits, budget_bytes, rank)
        if has_changed:
            memory = session_memory(session)
            num_items = await asyncio.to_thread(self.journal.count, memory)
            try:
                await self.runtime.recode(session_node(self.topology, session), memory, num_items)
            except NodeDown as error:
                log.warning("the memory of session %s changes when its node is up: %s", session, error)
            self.recaller.touch()
        return record

    async def delete_session(self, session: str, dry_run: bool = False) -> ForgetReceipt:
        """Forget everything of a session, then the session; with `dry_run`, count its items only."""
        with contextlib.suppress(SealBroken):  # what cannot be read can still be forgotten
            await self.sessions.get(session)
        memory, node = session_memory(session), session_node(self.topology, session)
        before = Figures()
        with contextlib.suppress(QrafError):  # a node that is down must not keep a session from being forgotten
            before = await self.runtime.figures(node, memory)
        if dry_run:
            return ForgetReceipt(memory, await asyncio.to_thread(self.journal.count, memory), before, before)
        await self.sessions.delete(session)
        forgotten = await asyncio.to_thread(self.journal.drop_memory, memory)
        with contextlib.suppress(QrafError):
            await self.runtime.drop(node, memory)
        self.recaller.touch()
        return ForgetReceipt(memory, forgotten, before, Figures())

    async def figures(self, session: str) -> Figures:
        """What a session's state measures."""
        await self.sessions.get(session)
        return await self.runtime.figures(session_node(self.topology, session), session_memory(session))

    async def make_snapshots(self, session: str | None, collection: str | None, tenant: str) -> OperationView:
        """Make snapshots of one memory, or without a name of all that have changed, as an operation of the tenant's.

        Raises:
            NotFound: no such memory. NotAvailable: snapshots are off. NodeDown: a host is down.
            LimitExceeded: too many operations run or wait.
        """
        wanted: list[tuple[str, str]] | None = None
        if session is not None or collection is not None:
            memory = await self.items.memory(session, collection)
            nodes = self.topology.holders(collection) if collection else (session_node(self.topology, session or ""),)
            wanted = [(node, memory) for node in nodes]
        settings = self.settings.snapshots_here()
        return await order_snapshots(self.runtime, settings, self.orders.operations, tenant, wanted)
