"""What the gateway talks to: sessions, writes, recall, responses and the network, in the words of the frames."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from qraf import __version__
from qraf.actors.runtime import Runtime
from qraf.actors.services import InlineServices, Services
from qraf.clock import Clock, SystemClock
from qraf.errors import (
    GatewayLost,
    InvalidRequest,
    NodeDown,
    NotFound,
    NotReady,
    QrafError,
    SealBroken,
    SessionClosed,
    SessionNotFound,
    StorageFailed,
)
from qraf.filters import validate
from qraf.frames import (
    Enhance,
    GenerateChoice,
    NodeView,
    Recall,
    RecallDone,
    ResponseCreated,
    RouteOut,
    SessionOpen,
    SessionOpened,
    Write,
    WriteDone,
)
from qraf.network.placement import item_node, session_node
from qraf.network.topology import Topology
from qraf.records import Figures, Filter, ForgetReceipt, Item, collection_memory, session_memory
from qraf.service_orders import OperationView
from qraf.sessions.accounts import Account, Accounts
from qraf.sessions.enhance import Enhancer
from qraf.sessions.ledger import Ledger
from qraf.sessions.meters import Meters
from qraf.sessions.orders import Orders
from qraf.sessions.recall import Address, Measurement, Recaller, ahead_of, evidence_out
from qraf.sessions.registry import Sessions
from qraf.sessions.response import Response
from qraf.sessions.responses import Responses
from qraf.sessions.snapshots import order_snapshots
from qraf.sessions.states import States
from qraf.sessions.write import Writer
from qraf.settings import Settings
from qraf.storage.database import is_in_memory
from qraf.storage.journal import Journal, SessionRecord
from qraf.tenants import DEFAULT_TENANT, tenant_of
from qraf.text.generator import Generator
from qraf.times import parse_time

__all__ = ["Service"]

log = logging.getLogger(__name__)

_KEEP_UP_S = 0.5
_SWEEP_S = 5.0
_REAP_S = 0.5
_MOST_EXPIRED = 1000  # items that are forgotten at a time because their time is over


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
        self.enhancer = Enhancer(topology, self.recaller, self.writer, self._generator, clock, self.meters)
        self.responses = Responses(clock, settings.limits)
        shared = settings.data / "gateways" if settings.data.is_dir() and not is_in_memory(settings.journal()) else None
        self.ledger = Ledger(journal.responses, self.responses, clock, settings.limits.kept_response_s, shared)
        self._generators: dict[str, Generator] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._down_since: dict[str, float] = {}
        self._state, self._state_since = "new", clock.now()

    # ------------------------------------------------------------------------------------------------ life
    async def start(self) -> None:
        """Start the runtime and what keeps this service up to date; returns when nodes answer."""
        if self._state != "new":
            raise RuntimeError(f"a service starts once; this one is {self._state}")
        self._enter("starting")
        await self.recaller.sample_links(self.settings.data / "links")
        await self.runtime.start()
        await self.states.establish(self.topology.states)
        await self.orders.start()
        await self.writer.start()
        self.accounts.start()
        await self.ledger.start()
        await self.recaller.refresh()
        self._own(self._keep_up(), "keep up")
        self._own(self._sweep(), "sweep")
        self._own(self._reap(), "reap")
        if self.state == "starting":  # not told to drain meanwhile
            self._enter("ready")

    @property
    def state(self) -> str:
        """`new`, `starting`, `ready`, `draining`, `closing` or `closed`."""
        return self._state

    def drain(self) -> None:
        """Start nothing new from now on: prompts are refused here, other commands by the gateway. What runs goes on.

        Twice is harmless.
        """
        if self._state in ("new", "starting", "ready"):
            self._enter("draining")

    def _enter(self, state: str) -> None:
        self._state, self._state_since = state, self.clock.now()

    async def close(self) -> None:
        """End the running responses, then everything else; what was acknowledged is in the journal."""
        if self._state in ("closing", "closed"):
            return
        self._enter("closing")
        for response in self.responses.all_running():
            response.cancel("shutdown")
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for generator in self._generators.values():
            await generator.aclose()
        await self.orders.close()
        await self.ledger.close()
        await self.writer.close()
        await self.accounts.close()
        await self.runtime.close()
        self._enter("closed")

    def _own(self, work: Any, name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _keep_up(self) -> None:
        while True:
            try:
                self._note_health()
                self.recaller.touch()
                await self.recaller.refresh()
                self.meters.see(self.network())
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
                await self._forget_expired()
            except Exception:
                log.exception("the sweep failed")

    async def _forget_expired(self) -> None:
        while expired := await asyncio.to_thread(self.journal.expired, _MOST_EXPIRED):
            by_memory: dict[str, list[int]] = {}
            for memory, seq in expired:
                by_memory.setdefault(memory, []).append(seq)
            for memory, seqs in by_memory.items():
                await self._forget(memory, seqs)
            if len(expired) < _MOST_EXPIRED:
                break

    def _note_health(self) -> None:
        now = self.clock.now()
        for node, health in self.runtime.health.items():
            if health.up:
                self._down_since.pop(node, None)
            else:
                self._down_since.setdefault(node, now)

    def _generator(self, node: str) -> Generator:
        if node not in self._generators:
            away = self.runtime.leases(node)
            self._generators[node] = Generator(
                lambda: self.runtime.endpoint(node),
                self.settings.generator,
                lease=None if away is None else away.lease,
                slots=None if away is None else away.slots,
            )
        return self._generators[node]

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
            await self._session(request.session)
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
        self._check_text(request.text, "/text")
        self._check_k(request.k, "/k")
        _check_budget(request.token_budget, "/token_budget")
        if request.filter is not None:
            validate(request.filter)
        if request.session is not None:
            await self._session(request.session)
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

    async def enhance(self, request: Enhance, owner: str, account: Account | None = None) -> Response:
        """Start a response, or find the one that was started with the same key; `Response.attach` reads it.

        Raises:
            LimitExceeded: too many run. NotReady: the server starts or stops.
            RateExceeded, QuotaExceeded: `account` may not have more now.
            InvalidRequest, SessionNotFound, SessionClosed: nothing was started.
        """
        started = self._started(request)
        if started is not None:
            return started
        if self._state != "ready":
            raise NotReady(self.state)
        self._check_text(request.prompt, "/prompt")
        self._check_k(request.evidence.k, "/evidence/k")
        _check_budget(request.evidence.token_budget, "/evidence/token_budget")
        if request.evidence.filter is not None:
            validate(request.evidence.filter)
        if request.evidence.as_of is not None:
            parse_time(request.evidence.as_of, "/evidence/as_of")
        self._check_generate(request)
        if request.remember and request.session is None:
            raise InvalidRequest("`remember` needs a `session` to write to", "/remember")
        if request.session is not None:
            await self._session(request.session)
        address: Address = self.recaller.address(request.session, request.collections)
        if account is not None and request.generate is not False:
            await account.check_tokens()
        elsewhere = await self._begun_elsewhere(request, tenant_of(owner)) if request.again else None
        started = self._started(request) or elsewhere  # the same command may have come twice meanwhile
        if started is not None:
            return started
        if account is not None:
            await account.enter("responses")
        try:
            started = self._started(request)  # that may have waited, too
            response = started or self.responses.create(request.id, owner, session=request.session, key=request.key)
        except QrafError:
            if account is not None:
                account.leave("responses")
            raise
        if started is not None:
            if account is not None:
                account.leave("responses")
            return started
        response.request = _digest(request) if request.key else b""
        response.model = (isinstance(request.generate, GenerateChoice) and request.generate.model) or ""
        # before the task runs: one that is cancelled at once answers its command, too
        response.emit(
            ResponseCreated(
                stream=response.stream,
                seq=0,
                id=response.command_id,
                response=response.id,
                model=response.model,
                epoch=response.epoch,
            )
        )
        task = self._own(self.enhancer.run(response, request, address, account), f"response {response.id}")
        response.task = task
        # a task that is cancelled before its first step runs no `finally`
        task.add_done_callback(lambda _: self._ended(response, account))
        self.ledger.note(response)
        return response

    def _ended(self, response: Response, account: Account | None) -> None:
        if account is not None:
            account.leave("responses")
        response.end("cancelled", response.cancel_reason or "cancelled")
        self.ledger.note(response)

    async def _begun_elsewhere(self, request: Enhance, tenant: str) -> Response | None:
        """The response that another gateway began with this key; None also where its gateway died, or nobody knows."""
        try:
            found = None if request.key is None else await self.ledger.find("", tenant, key=request.key)
        except StorageFailed as error:
            log.warning("a prompt may run a second time: %s", error)
            return None
        if found is None or (found.error is not None and found.error.code == GatewayLost.code):
            return None
        if found.request != _digest(request):
            raise InvalidRequest("was used for another request already", "/key")
        return found

    def _started(self, request: Enhance) -> Response | None:
        found = None if request.key is None else self.responses.of_key(request.key)
        if found is not None and found.request != _digest(request):
            raise InvalidRequest("was used for another request already", "/key")
        return found

    def response(self, target: str, owner: str | None = None) -> Response | None:
        """A response by id, stream, key, or the owner's command id."""
        return self.responses.find(target, owner)

    # ------------------------------------------------------------------------------------------------ sessions
    async def list_sessions(
        self, cursor: str | None, limit: int, tenant: str = DEFAULT_TENANT
    ) -> tuple[list[SessionRecord], str | None]:
        """A page of a tenant's sessions."""
        return await self.sessions.list(cursor, limit, tenant)

    async def get_session(self, session: str) -> SessionRecord:
        """A session's record; raises SessionNotFound."""
        return await self.sessions.get(session)

    async def pause_session(self, session: str) -> SessionRecord:
        """Refuse writes and prompts until it is resumed."""
        return await self.sessions.pause(session)

    async def resume_session(self, session: str) -> SessionRecord:
        """Accept writes and prompts again."""
        return await self.sessions.resume(session)

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
            memory = await self._memory(session, collection)
            nodes = self.topology.holders(collection) if collection else (session_node(self.topology, session or ""),)
            wanted = [(node, memory) for node in nodes]
        settings = self.settings.snapshots_here()
        return await order_snapshots(self.runtime, settings, self.orders.operations, tenant, wanted)

    # ------------------------------------------------------------------------------------------------ items
    async def get_item(self, session: str | None, collection: str | None, item_id: str) -> Item:
        """One item with its text; raises NotFound."""
        memory = await self._memory(session, collection)
        item = await asyncio.to_thread(self.journal.find, memory, item_id)
        if item is None:
            raise NotFound("item", item_id)
        return item

    async def list_items(
        self, session: str | None, collection: str | None, cursor: str | None, limit: int, filter: Filter | None = None
    ) -> tuple[list[Item], str | None]:
        """A page of items in the order they were written."""
        if filter is not None:
            validate(filter)
        memory = await self._memory(session, collection)
        return await asyncio.to_thread(self.journal.page, memory, cursor, limit, filter)

    async def delete_item(
        self, session: str | None, collection: str | None, item_id: str, dry_run: bool = False
    ) -> ForgetReceipt:
        """Forget one item; with `dry_run`, see only whether it is there; raises NotFound."""
        item = await self.get_item(session, collection, item_id)
        memory = await self._memory(session, collection)
        if dry_run:
            name = memory[2:]
            node = session_node(self.topology, name) if session is not None else item_node(self.topology, name, item_id)
            figures = await self.runtime.figures(node, memory)
            return ForgetReceipt(memory, 1, figures, figures)
        receipts = await self._forget(memory, [item.seq])
        return next(
            (receipt for receipt in receipts if receipt.forgotten), ForgetReceipt(memory, 1, Figures(), Figures())
        )

    async def forget(
        self, session: str | None, collection: str | None, filter: Filter, dry_run: bool = False
    ) -> tuple[int, list[ForgetReceipt]]:
        """Forget every item that matches; with `dry_run`, count them only."""
        validate(filter)
        memory = await self._memory(session, collection)
        seqs: list[int] = []
        cursor: str | None = None
        while True:
            page, cursor = await asyncio.to_thread(self.journal.page, memory, cursor, 200, filter)
            seqs += [item.seq for item in page]
            if cursor is None:
                break
        if dry_run or not seqs:
            return len(seqs), []
        return len(seqs), await self._forget(memory, seqs)

    async def _forget(self, memory: str, seqs: Sequence[int]) -> list[ForgetReceipt]:
        name = memory[2:]
        nodes = (session_node(self.topology, name),) if memory.startswith("s/") else self.topology.holders(name)
        for (
            node
        ) in nodes:  # a memory that nobody has asked since the start is opened while it has the items: for `before`
            with contextlib.suppress(QrafError):
                await self.runtime.figures(node, memory)
        # the journal first: whatever dies after this, a rebuilt memory does not know the items any more
        await asyncio.to_thread(self.journal.tombstone, memory, seqs)
        receipts = []
        for node in nodes:  # each forgets what it has of them
            try:
                receipts.append(await self.runtime.forget(node, memory, seqs))
            except QrafError as error:
                log.warning("node %s rebuilds without what was forgotten: %s", node, error)
        self.recaller.touch()
        return receipts

    # ------------------------------------------------------------------------------------------------ network
    async def route(
        self,
        prompt: str,
        max_visits: int | None = None,
        explain: bool = False,
        session: str | None = None,
        collections: Sequence[str] | None = None,
    ) -> RouteOut:
        """Where a prompt would go, without measuring anything; `collections` left out: all of the topology."""
        self._check_text(prompt, "/prompt")
        address = self.recaller.address(session, collections)
        prepared = await self.recaller.prepare(prompt, address)
        return await self.recaller.route(prepared, address, max_visits=max_visits, explain=explain)

    def network(self) -> tuple[NodeView, ...]:
        """Every node as the runtime last knew it."""
        return tuple(self.runtime.views())

    def health(self) -> dict[str, Any]:
        """Whether the server can do its work, and what is degraded since when."""
        self._note_health()
        degraded: list[dict[str, Any]] = []
        if self._state != "ready":
            degraded.append({"what": "server", "since": self._state_since, "detail": self._state})
        is_needed = False
        for node, since in sorted(self._down_since.items()):
            needed = self._is_needed(node)
            detail = "down; it is being restarted" if needed else "down; others do its work meanwhile"
            degraded.append({"what": f"node {node}", "since": since, "detail": detail})
            is_needed |= needed
        ready = self._state == "ready" and not is_needed
        if (away := self.journal.away) is not None:  # recall works without it, so prompts may still be sent here
            degraded.append({"what": "journal", "since": away.since, "detail": f"writes are refused: {away.reason}"})
        if (alone := self.accounts.rates.away) is not None:
            detail = (
                f"rates, sockets and responses are counted by this gateway alone: Redis does not answer: {alone[1]}"
            )
            degraded.append({"what": "rates", "since": alone[0], "detail": detail})
        broken = self.journal.broken
        if stopped := max(len(broken), sum(view.stopped for view in self.runtime.views())):
            since = min(broken.values(), default=self.clock.now())
            detail = f"{stopped} memories are stopped: rows of theirs do not open; the log names them"
            degraded.append({"what": "seals", "since": since, "detail": detail})
        if failing := [one for _, one in self.runtime.snapshots().values() if one.failing_since]:
            first = min(failing, key=lambda one: one.failing_since)
            detail = f"snapshots cannot be made, a restart takes longer: {first.reason}"
            degraded.append({"what": "snapshots", "since": first.failing_since, "detail": detail})
        return {"ready": ready, "state": self._state, "degraded": degraded, "processes": self.runtime.processes()}

    def _is_needed(self, node: str) -> bool:
        """Whether work is left undone while this node is down: another generator can stand in, nothing else can."""
        spec = self.topology.node(node)
        if spec.role != "generator":
            return True
        others = (one.name for one in self.topology.generators() if one.name != node)
        return all(other in self._down_since for other in others)

    # ------------------------------------------------------------------------------------------------ checks
    async def _session(self, session: str) -> SessionRecord:
        record = await self.sessions.get(session)
        if record.state == "paused":
            raise SessionClosed(session, "it is paused")
        return record

    async def _memory(self, session: str | None, collection: str | None) -> str:
        if (session is None) == (collection is None):
            raise InvalidRequest("name exactly one of `session` and `collection`", "/session")
        if session is not None:
            await self.sessions.get(session)
            return session_memory(session)
        if not self.topology.holders(collection or ""):
            raise NotFound("collection", collection or "")
        return collection_memory(collection or "")

    def _check_text(self, text: str, pointer: str) -> None:
        if not text.strip():
            raise InvalidRequest("must not be empty", pointer)
        size = len(text.encode("utf-8", "surrogatepass"))
        if size > self.settings.limits.max_prompt_bytes:
            raise InvalidRequest(f"may have {self.settings.limits.max_prompt_bytes} bytes, but has {size}", pointer)
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise InvalidRequest("must be valid Unicode, but has a lone surrogate", pointer)

    def _check_k(self, k: int, pointer: str) -> None:
        if not 1 <= k <= self.settings.limits.max_k:
            raise InvalidRequest(f"must be 1 to {self.settings.limits.max_k}, but is {k}", pointer)

    def _check_generate(self, request: Enhance) -> None:
        choice = request.generate
        if not isinstance(choice, GenerateChoice):
            return
        bounds: tuple[tuple[str, float, float, float], ...] = (
            ("max_tokens", choice.max_tokens, 1, self.settings.limits.max_tokens),
            ("temperature", choice.temperature, 0.0, 2.0),
            ("top_p", choice.top_p, 0.0, 1.0),
        )
        for name, value, low, high in bounds:
            if not low <= value <= high:
                raise InvalidRequest(f"must be {low:g} to {high:g}, but is {value:g}", f"/generate/{name}")
        if len(choice.stop) > 8 or any(not stop for stop in choice.stop):
            raise InvalidRequest("must be at most 8 strings, none empty", "/generate/stop")
        if choice.model is not None:
            known = {name for node in self.topology.generators() for name in (node.name, node.model) if name}
            if choice.model not in known:
                raise InvalidRequest(
                    f"no generator '{choice.model}'; there are: {', '.join(sorted(known)) or 'none'}", "/generate/model"
                )
        if request.metrics is not None and request.metrics.every_ms < 100:
            raise InvalidRequest("must be at least 100", "/metrics/every_ms")


def _check_budget(budget: int | None, pointer: str) -> None:
    if budget is not None and budget < 1:
        raise InvalidRequest(f"must be at least 1, but is {budget}", pointer)


def _digest(request: Enhance) -> bytes:
    """What a key stands for, in 16 bytes."""
    return hashlib.blake2b(
        msgspec.json.encode(msgspec.structs.replace(request, id="", again=False)), digest_size=16
    ).digest()
