"""Orders to the stateless services: what they name is filled in, small ones are answered, large ones become jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np

from qraf.actors.runtime import Runtime
from qraf.actors.services import Services, ServiceStatus
from qraf.clock import Clock
from qraf.code_orders import ShotsDecoded
from qraf.errors import InvalidRequest, LimitExceeded, NotFound, QrafError
from qraf.network.placement import session_node
from qraf.network.topology import Topology
from qraf.operations.parts import Part, cost_s, joined, placed, service_of, split
from qraf.records import collection_memory, session_memory
from qraf.service_orders import (
    OperationView,
    Quantized,
    Recompress,
    Recompressed,
    Repaired,
    ServiceAnswer,
    ServiceOrder,
)
from qraf.sessions.meters import Meters
from qraf.sessions.operations import Operations
from qraf.sessions.registry import Sessions
from qraf.settings import ServiceSettings
from qraf.state_orders import ArrayData, Operand, Preparation
from qraf.storage.journal import Journal
from qraf.storage.records import StateRecord
from qraf.tenants import DEFAULT_TENANT, plain

__all__ = ["Orders"]

_LANES = 2  # parts of a job under way for each replica: one works, one waits


class Orders:
    """The services as a transport sees them."""

    def __init__(
        self,
        settings: ServiceSettings,
        services: Services,
        runtime: Runtime,
        journal: Journal,
        topology: Topology,
        sessions: Sessions,
        clock: Clock,
        meters: Meters,
        set_rank: Callable[[str, int], Awaitable[object]],
    ) -> None:
        self._settings, self._services, self._runtime = settings, services, runtime
        self._journal, self._topology, self._sessions, self._meters = journal, topology, sessions, meters
        self._set_rank = set_rank
        most = max((spec.max_replicas for spec in topology.services), default=1)
        self.operations = Operations(
            clock,
            max_open=settings.max_operations,
            kept_s=settings.kept_operation_s,
            max_bytes=settings.max_operation_bytes,
            lanes=_LANES * most,
        )

    async def start(self) -> None:
        """Start the services."""
        await self._services.start()

    async def close(self) -> None:
        """Cancel the jobs and stop the services. Twice does nothing."""
        await self.operations.close()
        await self._services.close()

    async def ask(
        self, order: ServiceOrder, *, in_background: bool = False, tenant: str = DEFAULT_TENANT
    ) -> ServiceAnswer | OperationView:
        """The answer to an order; a job of the tenant's instead where it is large, or where that is wished for.

        Raises:
            InvalidRequest: a fault of the request, by its pointer. NotFound: no such state or memory.
            LimitExceeded: too many orders or jobs wait. NodeDown: a service, or a memory's node, does not answer.
        """
        order, nodes = await self._filled(order)
        if in_background or cost_s(order) > self._settings.long_order_s:
            return self._job(order, nodes, tenant)
        return self._told(await self._services.call(service_of(order), order), nodes)

    async def status(self) -> list[ServiceStatus]:
        """Every service as it is now."""
        return await self._services.status()

    # ------------------------------------------------------------------------------------------------ how it is done
    def _job(self, order: ServiceOrder, nodes: Sequence[str], tenant: str) -> OperationView:
        parts = split(order, self._settings.part_s)

        async def answer(part: Part) -> ServiceAnswer:
            try:
                return await self._services.call(service_of(part.order), part.order, alone=True)
            except QrafError as fault:
                raise placed(fault, part) from None

        async def join(answers: Sequence[ServiceAnswer]) -> ServiceAnswer:
            return self._told(await asyncio.to_thread(joined, order, answers), nodes)

        op = type(order).__struct_config__.tag
        nbytes = len(msgspec.msgpack.encode(order))
        return self.operations.start(str(op), [partial(answer, part) for part in parts], join, tenant, nbytes)

    def _told(self, answer: ServiceAnswer, nodes: Sequence[str]) -> ServiceAnswer:
        """Count what was done, and name the nodes of what was read there."""
        match answer:
            case Quantized():
                for coding in answer.codings:
                    self._meters.quantize_infidelity.labels(coding.code).observe(coding.infidelity_mean)
            case Repaired():
                for repaired in answer.results:
                    for kind in repaired.syndromes.found:
                        self._meters.corrections.labels(kind).inc()
            case ShotsDecoded():
                self._meters.corrections.labels("decoded").inc(
                    int(np.bitwise_count(np.frombuffer(answer.observables, np.uint8)).sum())
                )
            case Recompressed() if nodes:
                named = zip(answer.results, nodes, strict=True)
                results = tuple(msgspec.structs.replace(one, node=node) for one, node in named)
                return msgspec.structs.replace(answer, results=results)
        return answer

    async def _filled(self, order: ServiceOrder) -> tuple[ServiceOrder, Sequence[str]]:
        """The order with everything in it that it names: packets of states, amplitudes of texts, sketches."""
        if isinstance(order, Recompress):
            return await self._with_sketches(order)
        states: tuple[Operand, ...] | None = getattr(order, "states", None)
        if states is None:
            return order, ()
        ids = [one if isinstance(one, str) else one.state for one in states]
        wanted = [one for one in ids if one is not None]
        found = await self._packets(wanted) if wanted else {}
        texts = [_text(one) for one in states]
        given = [text for text in texts if text is not None]
        encoded = await self._runtime.encode(given) if given else np.zeros((0, 0), np.float32)
        rows = iter(encoded)
        filled: list[Operand] = []
        for index, (operand, state, text) in enumerate(zip(states, ids, texts, strict=True)):
            if state is not None and (isinstance(operand, str) or _is_alone(operand)):
                if state not in found:
                    raise InvalidRequest(f"no state '{plain(state)[:100]}'", f"/states/{index}")
                filled.append(Preparation(packet=found[state].packet))
            elif text is not None:
                amplitudes = ArrayData(data=next(rows).tobytes(), shape=(self._topology.dim,), dtype="float32")
                filled.append(Preparation(amplitudes=amplitudes, normalize=True))
            else:
                filled.append(operand)
        return msgspec.structs.replace(order, states=tuple(filled)), ()

    async def _packets(self, wanted: Sequence[str]) -> dict[str, StateRecord]:
        """What the journal has of these states, within the bound on open jobs."""
        sizes = await asyncio.to_thread(self._journal.states.sizes, wanted)
        most, total = self._settings.max_operation_bytes, sum(size for _, size in sizes.values())
        if total > most:
            raise LimitExceeded("services.max_operation_bytes", most, total)
        return await asyncio.to_thread(self._journal.states.fetch, wanted)

    async def _with_sketches(self, order: Recompress) -> tuple[ServiceOrder, Sequence[str]]:
        given = [name for name in ("session", "collection", "sketches") if getattr(order, name) is not None]
        if len(given) != 1:
            raise InvalidRequest("give exactly one of `session`, `collection` and `sketches`", "/session")
        if order.apply and order.session is None:
            need = "changes the memory of a `session`; a collection has the `rank` of its nodes in the topology"
            raise InvalidRequest(need, "/apply")
        if order.sketches is not None:
            return order, ()
        if order.after is not None:
            raise InvalidRequest("goes with `sketches`", "/after")
        if order.session is not None:
            await self._sessions.get(order.session)
            memory = session_memory(order.session)
            nodes: tuple[str, ...] = (session_node(self._topology, order.session),)
        else:
            assert order.collection is not None
            memory, nodes = collection_memory(order.collection), self._topology.holders(order.collection)
            if not nodes:
                raise NotFound("collection", order.collection)
        packets = await asyncio.gather(*(self._runtime.sketch(node, memory) for node in nodes))
        held = [(node, packet) for node, packet in zip(nodes, packets, strict=True) if packet]
        if not held:
            raise InvalidRequest("the memory is empty", f"/{given[0]}")
        sketches = tuple(packet for _, packet in held)
        changes: dict[str, Any] = {"sketches": sketches, "session": None, "collection": None}
        if order.apply:
            assert order.session is not None
            await self._set_rank(order.session, order.rank)
            changes["after"] = (await self._runtime.sketch(nodes[0], memory) or sketches[0],)
        return msgspec.structs.replace(order, **changes), [node for node, _ in held]


def _text(operand: Operand) -> str | None:
    """The text that is to be encoded; None where there is none, or none that can be."""
    if isinstance(operand, str) or not operand.text or not operand.text.strip() or not _is_alone(operand):
        return None
    return None if any("\ud800" <= char <= "\udfff" for char in operand.text) else operand.text


def _is_alone(preparation: Preparation) -> bool:
    """Whether it is given in one way; else the service names the fault."""
    ways = [getattr(preparation, name) for name in ("amplitudes", "density", "factor", "ensemble", "text", "counts")]
    ways += [preparation.circuit, preparation.named, preparation.packet, preparation.state]
    return sum(one is not None for one in ways) == 1
