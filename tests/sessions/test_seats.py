"""What is open at once is bounded over all gateways, is free again when one of them dies, and goes on without Redis."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import AsyncIterator

import pytest
import redis.asyncio

from qraf.clock import SystemClock
from qraf.errors import QuotaExceeded
from qraf.sessions import seats as seats_module
from qraf.sessions.rates import Rates
from qraf.sessions.seats import Count, Seats
from tests import redis_server

pytestmark = pytest.mark.slow  # most of them with Redis


class Gateway:
    """What one gateway counts of a tenant's key."""

    def __init__(self, url: str, tenant: str, of_key: int = 100, of_tenant: int = 100) -> None:
        self.rates = Rates(url, 1.0, SystemClock())
        self.seats = Seats(self.rates)
        self.tenant = Count("tenant.sockets", of_tenant, None, tenant)
        self.key = Count("key.sockets", of_key, self.tenant, tenant, "k", "client")

    async def enter(self, times: int = 1) -> int:
        """How many of so many get in, all at once."""
        tries = await asyncio.gather(*(self.seats.enter(self.key) for _ in range(times)), return_exceptions=True)
        assert all(one is None or isinstance(one, QuotaExceeded) for one in tries), tries
        return tries.count(None)

    def leave(self, times: int = 1) -> None:
        for _ in range(times):
            self.seats.leave(self.key)

    async def die(self) -> None:
        """What the others see of a kill -9."""
        assert self.seats._task is not None
        self.seats._task.cancel()
        await asyncio.gather(self.seats._task, return_exceptions=True)
        self.seats._task = None


@contextlib.asynccontextmanager
async def gateways(number: int, url: str = "", **most: int) -> AsyncIterator[list[Gateway]]:
    tenant = f"t{secrets.token_hex(6)}"
    every = [Gateway(url or redis_server.url(), tenant, **most) for _ in range(number)]
    for one in every:
        one.seats.start()
    try:
        yield every
    finally:
        for one in every:
            await one.seats.close()
            await one.rates.close()


async def until_in(one: Gateway, times: int = 1) -> None:
    async with asyncio.timeout(10):
        while times:
            times -= await one.enter()
            await asyncio.sleep(0.01)


async def held(one: Gateway) -> dict[bytes, bytes]:
    async with redis.asyncio.Redis.from_url(redis_server.SERVER) as client:
        return dict(await client.hgetall(one.tenant.name))


def till(counts: dict[bytes, bytes], one: Gateway) -> bytes:
    return counts[one.seats._gateway.encode()].split()[1]


async def test_as_many_as_may_be_get_in_over_all_gateways_however_they_come() -> None:
    async with gateways(3, of_tenant=50) as every:
        passed = await asyncio.gather(*(one.enter(40) for one in every))
        assert sum(passed) == 50
        assert [one.tenant.here for one in every] == [one.key.here for one in every] == passed


async def test_the_narrower_one_counts_and_is_named() -> None:
    async with gateways(2, of_key=3, of_tenant=4) as (one, other):
        assert await one.enter(2) + await other.enter(2) == 3
        with pytest.raises(QuotaExceeded, match=r"`key\.sockets` of 3"):
            await one.seats.enter(one.key)
        second = Count("key.sockets", 3, one.tenant, one.key.name, "k2", "client")
        await one.seats.enter(second)
        with pytest.raises(QuotaExceeded, match=r"`tenant\.sockets` of 4"):
            await one.seats.enter(second)


async def test_what_left_one_gateway_is_free_at_the_other() -> None:
    async with gateways(2, of_tenant=2) as (one, other):
        assert (await one.enter(2), await other.enter()) == (2, 0)
        one.leave()
        await until_in(other)
        assert await one.enter() == 0


async def test_a_gateway_that_ends_gives_up_what_it_has_and_leaves_nothing_behind() -> None:
    async with gateways(2, of_tenant=2) as (one, other):
        assert await one.enter(2) == 2
        await one.seats.close()
        assert await other.enter(2) == 2
        await other.seats.close()
        assert await held(other) == {}


async def test_what_a_dead_gateway_had_is_free_after_a_lease_and_what_a_living_one_has_is_not(monkeypatch) -> None:
    monkeypatch.setattr(seats_module, "LEASE_S", 2.0)
    async with gateways(3, of_tenant=3) as (dead, living, third):
        assert await dead.enter(2) + await living.enter() == 3
        assert await third.enter() == 0
        await dead.die()
        await until_in(third, 2)
        first = till(await held(living), living)
        async with asyncio.timeout(10):
            while till(await held(living), living) == first:
                await asyncio.sleep(0.02)
        assert await third.enter() == 0


async def test_a_count_that_redis_lost_is_told_again(monkeypatch) -> None:
    monkeypatch.setattr(seats_module, "LEASE_S", 2.0)
    async with gateways(2, of_tenant=2) as (one, other):
        assert await one.enter(2) == 2
        async with redis.asyncio.Redis.from_url(redis_server.SERVER) as client:
            await client.delete(one.tenant.name, one.key.name)
        async with asyncio.timeout(10):
            while not await held(one):
                await asyncio.sleep(0.02)
        assert await other.enter() == 0


async def test_one_who_goes_while_it_waits_does_not_count() -> None:
    async with gateways(1, of_tenant=5) as (one,):
        tries = [asyncio.create_task(one.seats.enter(one.key)) for _ in range(5)]
        await asyncio.sleep(0)
        for task in tries:
            task.cancel()
        await asyncio.gather(*tries, return_exceptions=True)
        assert (one.tenant.here, one.key.here) == (0, 0)
        assert await one.enter(7) == 5


async def test_without_its_redis_a_gateway_counts_alone_and_tells_what_it_has_when_it_is_back() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections and never answers
        url = f"redis://127.0.0.1:{mute.getsockname()[1]}/0"
        async with gateways(2, url, of_tenant=3) as (one, other):
            one.rates._timeout_s = other.rates._timeout_s = 0.05
            assert (await one.enter(5), await other.enter(5)) == (3, 3)  # at worst each a whole one
            assert one.rates.away is not None
            one.leave()
            assert await one.enter(2) == 1


async def test_what_was_let_in_meanwhile_stays_and_counts_when_redis_is_back(monkeypatch) -> None:
    monkeypatch.setattr(seats_module, "LEASE_S", 2.0)
    async with gateways(2, of_tenant=2) as (one, other):
        for each in (one, other):
            each.rates._rest_until = float("inf")
        assert (await one.enter(2), await other.enter(2)) == (2, 2)
        for each in (one, other):
            each.rates._rest_until = 0.0
        async with asyncio.timeout(10):
            while len(await held(one)) < 2:
                await asyncio.sleep(0.02)
        one.leave(2)
        assert await one.enter() == 0
        other.leave()
        await until_in(one)


async def test_in_one_gateway_nothing_is_asked() -> None:
    async with gateways(1, "memory", of_key=2) as (one,):
        assert await one.enter(3) == 2
        one.leave()
        assert (await one.enter(2), one.seats._changed) == (1, set())
