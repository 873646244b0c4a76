"""The service as one tenant sees it: every name that comes in is made the tenant's, every name that goes out plain.

This is the only way from a transport to sessions, items, states, responses and operations. Another tenant's are not
there: a name with a slash, which only inside names have, is answered as any name that does not exist.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import msgspec
from msgspec import UNSET, UnsetType
from ulid import ULID

from qraf.actors.services import ServiceStatus
from qraf.errors import InvalidRequest, NotFound, RunsElsewhere, SessionNotFound
from qraf.frames import Enhance, NodeView, Recall, RecallDone, RouteOut, SessionOpen, SessionOpened, Write, WriteDone
from qraf.network.placement import session_node
from qraf.network.topology import Topology
from qraf.records import Figures, Filter, ForgetReceipt, Item
from qraf.service_orders import OperationResult, OperationView, Recompress, ServiceAnswer, ServiceOrder
from qraf.sessions.accounts import Account
from qraf.sessions.registry import check_name
from qraf.sessions.response import Response
from qraf.sessions.service import Service
from qraf.settings import Settings
from qraf.state_orders import (
    Deleted,
    Exported,
    Measured,
    Operand,
    Preparation,
    StateAnswer,
    StateCompare,
    StateExport,
    StateOrder,
    StatePrepare,
    StateView,
    StateViews,
)
from qraf.storage.records import SessionRecord
from qraf.tenants import DEFAULT_TENANT, check_tenant, inside, plain, tenant_of

__all__ = ["TenantService"]

_LOOK_S = 0.25

_T = TypeVar("_T", bound=msgspec.Struct)
_P = TypeVar("_P", bound=Preparation)


class TenantService:
    """One tenant's view of a service; makes nothing of its own, so it may be made for every request."""

    def __init__(self, service: Service, tenant: str = DEFAULT_TENANT, account: Account | None = None) -> None:
        self.tenant, self.account = check_tenant(tenant), account
        self.whole = service
        """The service of all tenants: for what is the server's own, never for names that a client gave."""
        self.states = TenantStates(service, tenant)
        self.orders = TenantOrders(service, tenant)

    @property
    def settings(self) -> Settings:
        """The server's settings."""
        return self.whole.settings

    @property
    def topology(self) -> Topology:
        """The network, which all tenants share."""
        return self.whole.topology

    @property
    def version(self) -> str:
        """The server's version."""
        return self.whole.version

    @property
    def epoch(self) -> str:
        """This life of the gateway: the streams of another one are not known here."""
        return self.whole.responses.epoch

    # ------------------------------------------------------------------------------------------------ commands
    async def open_session(self, request: SessionOpen) -> SessionOpened:
        """As `Service.open_session`."""
        name = request.session
        if name is None and request.create:
            name = f"ses_{ULID()}"
        if name is not None:
            request = msgspec.structs.replace(request, session=inside(self.tenant, check_name(name, "/session")))
        opened = await self.whole.open_session(request)
        return msgspec.structs.replace(opened, session=plain(opened.session))

    async def write(self, request: Write, when_queued: Callable[[], None] = lambda: None) -> WriteDone:
        """As `Service.write`."""
        session, collection = self._session(request.session), self._collection(request.collection)
        request = msgspec.structs.replace(request, session=session, collection=collection)
        return await self.whole.write(request, self.account, when_queued)

    async def recall(self, request: Recall) -> RecallDone:
        """As `Service.recall`."""
        session, collections = self._session(request.session), self._collections(request.collections)
        request = msgspec.structs.replace(request, session=session, collections=collections or ())
        return await self.whole.recall(request)

    async def enhance(self, request: Enhance, owner: str) -> Response:
        """As `Prompts.start`; the response is the tenant's."""
        session, key = self._session(request.session), request.key
        asked = request.collections
        if asked is None and self.tenant != DEFAULT_TENANT:
            asked = self.topology.collections()
        changes: dict[str, Any] = {"session": session, "collections": self._collections(asked)}
        changes["key"] = None if key is None else self._key(key)
        request = msgspec.structs.replace(request, **changes)
        return await self.whole.prompts.start(request, inside(self.tenant, owner), self.account)

    def response(self, target: str, owner: str | None = None) -> Response | None:
        """The tenant's response by id, stream, key, or the owner's command id."""
        for name in (target, self._key(target)):
            found = self.whole.responses.find(name, None if owner is None else inside(self.tenant, owner))
            if found is not None and tenant_of(found.owner) == self.tenant:
                return found
        return None

    async def find_response(
        self, target: str, owner: str | None = None, *, after_seq: int | None = None, follow: bool = True
    ) -> Response | None:
        """As `response`; also one that another gateway ran, or runs: that is followed from now on, if `follow`.

        `after_seq`: what the reader that asks saw last.

        Raises:
            RunsElsewhere: another gateway runs it, and it cannot be followed, or shall not be.
            StorageFailed: the journal, which knows of others, does not answer.
        """
        known = self.response(target, owner)
        return await self.whole.ledger.find(
            target, self.tenant, key=self._key(target), after_seq=after_seq, known=known, follow=follow
        )

    async def cancel_elsewhere(self, running: RunsElsewhere, within_s: float = 0.0) -> Response | None:
        """Have the gateway that runs a response stop it; the response, if it has ended within this time."""
        await self.whole.ledger.cancel(running)
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            await asyncio.sleep(_LOOK_S)
            with contextlib.suppress(RunsElsewhere):
                found = await self.find_response(running.response, follow=False)
                if found is None or found.has_ended:
                    return found
        return None

    # ------------------------------------------------------------------------------------------------ sessions
    async def list_sessions(self, cursor: str | None, limit: int) -> tuple[list[SessionRecord], str | None]:
        """A page of the tenant's sessions."""
        records, cursor = await self.whole.sessions.list(cursor, limit, self.tenant)
        return [_plain(record) for record in records], cursor

    async def get_session(self, session: str) -> SessionRecord:
        """A session's record; raises SessionNotFound."""
        return _plain(await self.whole.sessions.get(self._named(session)))

    async def pause_session(self, session: str) -> SessionRecord:
        """Refuse writes and prompts until it is resumed."""
        return _plain(await self.whole.sessions.pause(self._named(session)))

    async def resume_session(self, session: str) -> SessionRecord:
        """Accept writes and prompts again."""
        return _plain(await self.whole.sessions.resume(self._named(session)))

    async def configure_session(
        self,
        session: str,
        bits: int | UnsetType | None = UNSET,
        budget_bytes: int | UnsetType | None = UNSET,
        rank: int | UnsetType | None = UNSET,
    ) -> SessionRecord:
        """As `Service.configure_session`."""
        return _plain(await self.whole.configure_session(self._named(session), bits, budget_bytes, rank))

    async def delete_session(self, session: str, dry_run: bool = False) -> ForgetReceipt:
        """As `Service.delete_session`."""
        return _receipt(await self.whole.delete_session(self._named(session), dry_run))

    async def figures(self, session: str) -> Figures:
        """What a session's state measures."""
        return await self.whole.figures(self._named(session))

    async def make_snapshots(self, session: str | None, collection: str | None) -> OperationView:
        """As `Service.make_snapshots`; without a name all of the tenant's, and for the default one everybody's."""
        return await self.whole.make_snapshots(self._session(session), self._collection(collection), self.tenant)

    def home(self, session: str) -> str:
        """The node that holds a session's memory."""
        return session_node(self.topology, self._named(session))

    # ------------------------------------------------------------------------------------------------ items
    async def get_item(self, session: str | None, collection: str | None, item_id: str) -> Item:
        """One item with its text; raises NotFound."""
        return await self.whole.items.get(self._session(session), self._collection(collection), item_id)

    async def list_items(
        self, session: str | None, collection: str | None, cursor: str | None, limit: int, filter: Filter | None = None
    ) -> tuple[list[Item], str | None]:
        """A page of items in the order they were written."""
        memory = self._session(session), self._collection(collection)
        return await self.whole.items.page(*memory, cursor, limit, filter)

    async def delete_item(
        self, session: str | None, collection: str | None, item_id: str, dry_run: bool = False
    ) -> ForgetReceipt:
        """As `Items.delete`."""
        memory = self._session(session), self._collection(collection)
        return _receipt(await self.whole.items.delete(*memory, item_id, dry_run))

    async def forget(
        self, session: str | None, collection: str | None, filter: Filter, dry_run: bool = False
    ) -> tuple[int, list[ForgetReceipt]]:
        """Forget every item that matches; with `dry_run`, count them only."""
        memory = self._session(session), self._collection(collection)
        count, receipts = await self.whole.items.forget(*memory, filter, dry_run)
        return count, [_receipt(one) for one in receipts]

    # ------------------------------------------------------------------------------------------------ network
    async def route(
        self, prompt: str, max_visits: int | None = None, explain: bool = False, session: str | None = None
    ) -> RouteOut:
        """Where a prompt of this tenant's would go, without measuring anything."""
        collections = None if self.tenant == DEFAULT_TENANT else self._collections(self.topology.collections())
        return await self.whole.route(prompt, max_visits, explain, self._session(session), collections)

    def network(self) -> tuple[NodeView, ...]:
        """Every node as the runtime last knew it: sums over all tenants, for those who operate the server."""
        return tuple(self.whole.runtime.views())

    # ------------------------------------------------------------------------------------------------ names
    def _named(self, session: str) -> str:
        try:
            return inside(self.tenant, session)
        except ValueError:
            raise SessionNotFound(session) from None

    def _session(self, session: str | None) -> str | None:
        return None if session is None else self._named(session)

    def _collection(self, collection: str | None) -> str | None:
        try:
            return None if collection is None else inside(self.tenant, collection)
        except ValueError:
            raise NotFound("collection", plain(collection or "")) from None

    def _collections(self, collections: Sequence[str] | None) -> tuple[str, ...] | None:
        if collections is None:
            return None
        for index, name in enumerate(collections):
            if "/" in name:
                raise InvalidRequest(f"no node holds a collection {name!r:.80}", f"/collections/{index}")
        return tuple(inside(self.tenant, name) for name in collections)

    def _key(self, key: str) -> str:
        """A response's key inside; no key that a client of the default tenant gives begins with another tenant."""
        return key if self.tenant == DEFAULT_TENANT and "\0" not in key else f"{self.tenant}\0{key}"


class TenantStates:
    """A tenant's stored states; as `States`."""

    def __init__(self, service: Service, tenant: str) -> None:
        self._states, self._tenant = service.states, tenant
        self._operations = service.orders.operations

    async def order(self, order: StateOrder) -> StateAnswer:
        """Carry out an order: all of it or nothing; what it made is durable and the tenant's."""
        return _told(await self._states.order(self._asked(order)))

    async def job(self, order: StateOrder) -> OperationView:
        """Carry out an order as an operation, for which it may take `states.max_operation_s`.

        A cancel while it works gives up the answer; the version of the state tells whether the change was made.

        Raises:
            LimitExceeded: too many operations run or wait.
        """
        asked = self._asked(order)

        async def answer() -> OperationResult:
            return cast("OperationResult", _told(await self._states.order(asked, is_job=True)))

        async def join(answers: Sequence[OperationResult]) -> OperationResult:
            return answers[0]

        nbytes = len(await asyncio.to_thread(msgspec.msgpack.encode, order))
        return self._operations.start(str(type(order).__struct_config__.tag), [answer], join, self._tenant, nbytes)

    async def view(self, state: str) -> StateView:
        """A state as it is shown; raises NotFound."""
        try:
            name = inside(self._tenant, state)
        except ValueError:
            raise NotFound("state", state) from None
        return _view(await self._states.view(name))

    async def page(self, cursor: str | None, limit: int) -> tuple[tuple[StateView, ...], str | None]:
        """A page of states, oldest first, and the cursor of the next one."""
        found, cursor = await self._states.page(cursor, limit, self._tenant)
        return tuple(map(_view, found)), cursor

    def _asked(self, order: StateOrder) -> StateOrder:
        match order:
            case StatePrepare():
                if order.states is None:
                    return self._stored(order, "")
                made = tuple(self._stored(one, f"/states/{index}") for index, one in enumerate(order.states))
                return msgspec.structs.replace(order, states=made)
            case StateCompare():
                pairs = tuple(
                    (self._operand(a, f"/pairs/{index}/0"), self._operand(b, f"/pairs/{index}/1"))
                    for index, (a, b) in enumerate(order.pairs)
                )
                return msgspec.structs.replace(order, pairs=pairs)
            case StateExport():
                return msgspec.structs.replace(order, id=self._id(order.id))
        changes: dict[str, Any] = {"ids": tuple(map(self._id, order.ids))}
        others: tuple[Operand, ...] | None = getattr(order, "others", None)
        if others is not None:
            changes["others"] = tuple(self._operand(one, f"/others/{i}") for i, one in enumerate(others))
        return msgspec.structs.replace(order, **changes)

    def _id(self, state: str) -> str:
        try:
            return inside(self._tenant, state)
        except ValueError:
            raise NotFound("state", plain(state)) from None

    def _operand(self, operand: Operand, pointer: str) -> Operand:
        made: Operand = _operand(self._tenant, operand, pointer)
        return made

    def _stored(self, given: _P, pointer: str) -> _P:
        made: _P = _operand(self._tenant, given, pointer)
        if given.id is None and self._tenant != DEFAULT_TENANT:
            return msgspec.structs.replace(made, id=inside(self._tenant, f"st_{ULID()}"))
        return made


class TenantOrders:
    """A tenant's orders to the stateless services and its long jobs; as `Orders`."""

    def __init__(self, service: Service, tenant: str) -> None:
        self._orders, self._tenant = service.orders, tenant
        self.operations = TenantOperations(service, tenant)

    async def ask(self, order: ServiceOrder, *, in_background: bool = False) -> ServiceAnswer | OperationView:
        """The answer to an order; a job instead where it is large, or where that is wished for."""
        if isinstance(order, Recompress):
            order = msgspec.structs.replace(
                order, session=self._inside(order.session, True), collection=self._inside(order.collection, False)
            )
        states: tuple[Operand, ...] | None = getattr(order, "states", None)
        if states is not None:
            made = tuple(_operand(self._tenant, one, f"/states/{index}") for index, one in enumerate(states))
            changes: Any = {"states": made}
            order = msgspec.structs.replace(order, **changes)
        return await self._orders.ask(order, in_background=in_background, tenant=self._tenant)

    async def status(self) -> list[ServiceStatus]:
        """Every service as it is now, for all tenants."""
        return await self._orders.status()

    def _inside(self, name: str | None, is_session: bool) -> str | None:
        try:
            return None if name is None else inside(self._tenant, name)
        except ValueError:
            name = plain(name or "")
            raise (SessionNotFound(name) if is_session else NotFound("collection", name)) from None


class TenantOperations:
    """A tenant's long jobs; as `Operations`."""

    def __init__(self, service: Service, tenant: str) -> None:
        self._operations, self._tenant = service.orders.operations, tenant

    def get(self, id: str) -> OperationView:
        """A job with its result; raises NotFound."""
        return self._operations.get(id, self._tenant)

    def list(self) -> list[OperationView]:
        """Every job, newest first, without results."""
        return self._operations.list(self._tenant)

    async def cancel(self, id: str) -> OperationView:
        """Stop a job before its next part. Raises NotFound."""
        return await self._operations.cancel(id, self._tenant)

    async def drop(self, id: str) -> OperationView:
        """Cancel a job and forget it with its result. Raises NotFound."""
        return await self._operations.drop(id, self._tenant)


def _name(tenant: str, state: str, pointer: str) -> str:
    try:
        return inside(tenant, state)
    except ValueError:  # answered as one that is not there
        raise InvalidRequest(f"no state '{plain(state)[:100]}'", pointer) from None


def _operand(tenant: str, operand: Operand, pointer: str) -> Any:
    """An operand whose ids are the tenant's."""
    if isinstance(operand, str):
        return _name(tenant, operand, pointer)
    changes: dict[str, str] = {}
    if operand.state:
        changes["state"] = _name(tenant, operand.state, pointer)
    if operand.id:
        if "/" in operand.id:
            need = "must be `st_` and 1 to 60 letters, digits, `.`, `_`, `-`"
            raise InvalidRequest(f"{need}, but is {operand.id!r:.80}", f"{pointer}/id")
        changes["id"] = inside(tenant, operand.id)
    return msgspec.structs.replace(operand, **changes) if changes else operand


def _told(answer: StateAnswer) -> StateAnswer:
    match answer:
        case StateViews():
            return msgspec.structs.replace(answer, states=tuple(map(_view, answer.states)))
        case Measured():
            return msgspec.structs.replace(answer, results=tuple(map(_unscoped, answer.results)))
        case Exported():
            return _unscoped(answer)
        case Deleted():
            return msgspec.structs.replace(answer, ids=tuple(map(plain, answer.ids)))
    return answer


def _unscoped(value: _T) -> _T:
    changes: Any = {"id": plain(value.id)}  # type: ignore[attr-defined]
    return msgspec.structs.replace(value, **changes)


def _view(view: StateView) -> StateView:
    return _unscoped(view)


def _plain(record: SessionRecord) -> SessionRecord:
    return msgspec.structs.replace(record, id=plain(record.id))


def _receipt(receipt: ForgetReceipt) -> ForgetReceipt:
    kind = receipt.memory.partition("/")[0]
    return ForgetReceipt(f"{kind}/{plain(receipt.memory)}", receipt.forgotten, receipt.before, receipt.after)
