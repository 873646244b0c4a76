"""Stateless services behind one contract: an order in, an answer out; inside this process, or on Ray Serve.

Orders that wait for a service go to it together: while it works on one batch the next one grows, so that the size of
the batches follows the queue. Answers keep the order of the orders, and a fault belongs to one order alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from qraf.actors.batcher import Batcher
from qraf.errors import NodeDown, QrafError
from qraf.service_orders import ServiceAnswer, ServiceOrder
from qraf.settings import ServiceSettings

__all__ = ["SERVICES", "InlineServices", "ServiceStatus", "Services", "Work"]

SERVICES = ("optimization", "correction")

Work = Callable[[Sequence[ServiceOrder]], Sequence[ServiceAnswer | QrafError]]
Take = Callable[[Sequence[ServiceOrder]], Awaitable[Sequence[ServiceAnswer | QrafError]]]
Queue = Batcher[ServiceOrder, ServiceAnswer]


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """A service now: where it runs, with how many replicas (or threads), what waits for it, what was done.

    `place`: `inline` in the server's process, `host` in a host's, `serve` in replicas of its own.
    """

    name: str
    place: Literal["inline", "host", "serve"]
    replicas: int
    waiting: int
    batches: int
    orders: int


class Services(Protocol):
    """Where stateless work runs. Any number of tasks may call at once; orders change nothing, so all may be repeated.

    `call` raises the order's own fault, `LimitExceeded` when too many wait, `NodeDown` when nobody answers.
    Cancelling a call gives up its answer.
    """

    async def start(self) -> None:
        """Make the services ready; returns when they answer."""
        ...

    async def close(self) -> None:
        """Stop what `start` started. Twice does nothing."""
        ...

    async def call(self, service: str, order: ServiceOrder, *, alone: bool = False) -> ServiceAnswer:
        """The answer to an order. `alone`: it is large, so send no others with it."""
        ...

    async def status(self) -> list[ServiceStatus]:
        """Every service as it is now."""
        ...


class InlineServices:
    """Services without processes of their own: in threads of this one, or wherever `send` takes a batch.

    Args:
        settings: how many batches of each service are worked on at once, and how many orders may wait for it.
        work: does the work in a thread; default: the operations, which load torch at the first call.
        send: takes a batch elsewhere instead, such as `HostedRuntime.work` to a host.
    """

    def __init__(
        self, settings: ServiceSettings | None = None, work: Work | None = None, send: Take | None = None
    ) -> None:
        self._settings, self._work, self._take = settings or ServiceSettings(), work, send
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._queues: dict[str, Queue] = {}
        self._done: dict[str, int] = {}

    async def start(self) -> None:
        """Nothing to do: threads start with the first call."""

    async def close(self) -> None:
        """Give up what waits; what runs ends. Twice does nothing."""
        for queue in self._queues.values():
            await queue.close()
        for pool in self._pools.values():
            await asyncio.to_thread(pool.shutdown, cancel_futures=True)

    async def call(self, service: str, order: ServiceOrder, *, alone: bool = False) -> ServiceAnswer:
        """The answer to an order, worked out in a thread."""
        return await self._queue(service).call(order, self._settings.max_batch if alone else 1)

    async def status(self) -> list[ServiceStatus]:
        """The services that were asked for so far."""
        return [
            ServiceStatus(
                name,
                "host" if self._take else "inline",
                self._settings.threads,
                queue.waiting,
                queue.sent,
                self._done.get(name, 0),
            )
            for name, queue in self._queues.items()
        ]

    def _queue(self, service: str) -> Queue:
        if service not in self._queues:
            if self._take is None:
                name = f"service-{service}"
                self._pools[service] = ThreadPoolExecutor(self._settings.threads, thread_name_prefix=name)
            self._queues[service] = make_queue(
                service, lambda orders: self._send(service, orders), self._settings, self._settings.threads
            )
        return self._queues[service]

    async def _send(self, service: str, orders: list[ServiceOrder]) -> Sequence[ServiceAnswer | QrafError]:
        if self._take is not None:
            answers = await self._take(orders)
        else:
            answers = await asyncio.get_running_loop().run_in_executor(self._pools[service], self._answer, orders)
        self._done[service] = self._done.get(service, 0) + len(orders)
        return answers

    def _answer(self, orders: list[ServiceOrder]) -> Sequence[ServiceAnswer | QrafError]:
        return (self._work or _default_work())(orders)


def make_queue(
    service: str,
    send: Callable[[list[ServiceOrder]], Awaitable[Sequence[ServiceAnswer | QrafError]]],
    settings: ServiceSettings,
    max_inflight: int,
) -> Queue:
    """The bounded queue before a service; a batch goes out at once while fewer than `max_inflight` are out."""
    return Batcher(
        f"service '{service}'",
        send,
        window_ms=0.0,
        max_weight=settings.max_batch,
        max_waiting=settings.max_waiting,
        max_inflight=max_inflight,
    )


def _default_work() -> Any:
    try:
        from qraf.operations.work import work
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("qraf"):
            raise
        raise NodeDown("services", f"package '{error.name}' is not installed here") from None
    return work
