from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from functools import partial

import pytest

from qraf.actors.replica import Replica
from qraf.actors.services import InlineServices
from qraf.errors import InvalidRequest, LimitExceeded, QrafError
from qraf.service_orders import Dequantized, Nearest, NearestStates, ServiceAnswer, ServiceOrder
from qraf.settings import ServiceSettings
from tests.actors import service_work
from tests.actors.service_work import BAD, ORDER


async def test_orders_are_answered_in_threads_and_faults_are_raised_where_they_belong() -> None:
    services = InlineServices()
    await services.start()
    answer = await services.call("optimization", Nearest(matrices=([1.25, 0.0], [0.0, -0.25])))
    assert isinstance(answer, NearestStates)
    assert answer.results[0].after == (1.0,)
    good, bad = await asyncio.gather(
        services.call("optimization", Nearest(matrices=([1.0],))),
        services.call("optimization", Nearest(matrices=([1.0, 2.0],))),
        return_exceptions=True,
    )
    assert isinstance(good, NearestStates)
    assert isinstance(bad, InvalidRequest)
    await services.close()
    await services.close()


async def test_batches_grow_with_the_queue() -> None:
    services = InlineServices(ServiceSettings(threads=1, max_batch=16), service_work.sizes)
    first = asyncio.create_task(services.call("optimization", ORDER))
    await asyncio.sleep(0.01)
    rest = await asyncio.gather(*(services.call("optimization", ORDER) for _ in range(20)))
    assert (await first).n == 1
    assert sorted(one.n for one in rest) == [4] * 4 + [16] * 16
    large = asyncio.gather(*(services.call("optimization", ORDER, alone=True) for _ in range(3)))
    assert [one.n for one in await large] == [1, 1, 1]
    [status] = await services.status()
    assert (status.place, status.orders, status.waiting) == ("inline", 24, 0)
    await services.close()


async def test_the_event_loop_goes_on_while_a_service_works() -> None:
    services = InlineServices(work=partial(service_work.tell, version=1, seconds=0.3))
    call = asyncio.create_task(services.call("correction", ORDER))
    ticks = 0
    while not call.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert ticks >= 3  # on a machine that does nothing else about 30; one where the loop waits
    assert isinstance(await call, Dequantized)
    await services.close()


async def test_one_service_does_not_wait_for_the_queue_of_another() -> None:
    gate = threading.Event()

    def work(orders):  # type: ignore[no-untyped-def]
        if orders[0] == BAD:
            gate.wait(15)
        return service_work.tell(orders, version=1, seconds=0.0)

    services = InlineServices(ServiceSettings(threads=1), work)
    blocked = asyncio.create_task(services.call("optimization", BAD))
    await asyncio.sleep(0.05)
    started = time.monotonic()
    assert isinstance(await services.call("correction", ORDER), Dequantized)
    assert time.monotonic() - started < 10
    gate.set()
    with pytest.raises(InvalidRequest):
        await blocked
    await services.close()


async def test_more_orders_than_may_wait_are_refused_with_the_time_to_come_back() -> None:
    settings = ServiceSettings(threads=1, max_batch=1, max_waiting=2)
    services = InlineServices(settings, partial(service_work.tell, version=1, seconds=0.05))
    results = await asyncio.gather(*(services.call("optimization", ORDER) for _ in range(6)), return_exceptions=True)
    refused = [one for one in results if isinstance(one, LimitExceeded)]
    assert len(refused) == 3  # one works, two wait
    assert all(one.retryable for one in refused)
    assert isinstance(await services.call("optimization", ORDER), Dequantized)
    await services.close()


async def test_batches_may_be_taken_elsewhere() -> None:
    taken: list[int] = []

    async def take(orders: Sequence[ServiceOrder]) -> Sequence[ServiceAnswer | QrafError]:
        taken.append(len(orders))
        await asyncio.sleep(0.01)
        return service_work.tell(orders, version=3, seconds=0.0)

    services = InlineServices(send=take)
    answers = await asyncio.gather(*(services.call("correction", ORDER) for _ in range(5)))
    assert [one.d for one in answers if isinstance(one, Dequantized)] == [3] * 5
    assert taken == [5]
    [status] = await services.status()
    assert (status.place, status.orders) == ("host", 5)
    await services.close()


async def test_a_replica_that_is_stuck_in_a_batch_says_so() -> None:
    gate = threading.Event()

    def work(orders: Sequence[ServiceOrder]) -> Sequence[ServiceAnswer | QrafError]:
        gate.wait(5)
        return service_work.tell(orders, version=1, seconds=0.0)

    replica = Replica("1", threads=1, stuck_s=0.05, work=work)
    await replica.check_health()
    batch = asyncio.create_task(replica([ORDER]))
    await asyncio.sleep(0.1)
    with pytest.raises(RuntimeError, match="working for more than"):
        await replica.check_health()
    gate.set()
    assert len(await batch) == 1
    await replica.check_health()


async def test_a_bug_in_the_work_is_raised_to_its_callers_and_the_service_goes_on() -> None:
    services = InlineServices(work=service_work.broken)
    with pytest.raises(RuntimeError, match="a bug"):
        await services.call("optimization", ORDER)
    with pytest.raises(RuntimeError, match="a bug"):
        await services.call("optimization", ORDER)
    await services.close()
