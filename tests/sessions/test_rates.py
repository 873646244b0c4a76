"""Rates hold, cost little, are shared where there is a Redis, and go on where it is away."""

from __future__ import annotations

import asyncio
import secrets
import socket

import pytest

from qraf.clock import SystemClock
from qraf.errors import InvalidRequest, LimitExceeded, RateExceeded
from qraf.sessions.rates import Meter, Rates
from tests import redis_server


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.slow)])
def storage(request) -> str:
    return "memory" if request.param == "memory" else redis_server.url()


def meter(storage: str, rate: str, whose: str = "", clock: SystemClock | None = None) -> Meter:
    return Rates(storage, 1.0, clock or SystemClock()).meter("key.frames", rate, whose or secrets.token_hex(8))


async def take(meter: Meter, cost: int = 1) -> bool:
    try:
        if not meter.take_now(cost):
            await meter.take(cost)
    except RateExceeded:
        return False
    return True


async def test_as_many_as_a_rate_allows_pass_and_no_more(storage) -> None:
    one = meter(storage, "100/hour")
    assert [await take(one) for _ in range(120)] == [True] * 100 + [False] * 20
    assert one.remaining == 0
    assert 0 < one.reset_s <= 3600
    with pytest.raises(RateExceeded) as fault:
        await one.take(1)
    assert (fault.value.limit, fault.value.allowed, fault.value.window_s) == ("key.frames", 100, 3600)
    assert 0 < fault.value.retry_after_ms <= 3_600_000


async def test_large_costs_count_whole_and_one_beyond_the_rate_never_passes(storage) -> None:
    one = meter(storage, "1000/hour")
    assert [await take(one, 400), await take(one, 400), await take(one, 400), await take(one, 200)] == [
        True,
        True,
        False,
        True,
    ]
    with pytest.raises(LimitExceeded, match=r"`key\.frames` allows 1000, but 1001 came"):
        await one.take(1001)


async def test_a_rate_comes_back(storage) -> None:
    one = meter(storage, "5/second")
    assert [await take(one) for _ in range(6)][-1] is False
    await asyncio.sleep(one._blocked.retry_after_ms / 1000 + 0.05)
    async with asyncio.timeout(3):
        while not await take(one):
            await asyncio.sleep(0.05)


async def test_a_busy_meter_asks_the_store_seldom(storage) -> None:
    one = meter(storage, "100000/hour")
    asked = 0
    hit = one._rates.hit

    async def counted(*args):
        nonlocal asked
        asked += 1
        return await hit(*args)

    one._rates.hit = counted
    for _ in range(10_000):
        assert await take(one)
    assert asked < 40


async def test_a_slow_client_pays_for_what_it_takes_and_no_more() -> None:
    """A lease that ends unused is lost; whoever is slow must not lose his rate that way."""

    class Slow(SystemClock):
        ahead = 0.0

        def monotonic(self) -> float:
            return super().monotonic() + self.ahead

    clock = Slow()
    one = meter("memory", "60/hour", clock=clock)
    for _ in range(60):
        assert await take(one)
        clock.ahead += 2.0
    assert not await take(one)


async def test_two_gateways_share_one_rate() -> None:
    url, whose = redis_server.url(), secrets.token_hex(8)
    both = [meter(url, "200/hour", whose) for _ in range(2)]

    async def client(one: Meter) -> int:
        return sum([await take(one) for _ in range(300)])

    passed = await asyncio.gather(*map(client, both))
    # a lease that one of them could not use up any more may be lost
    assert 190 <= sum(passed) <= 200
    assert min(passed) > 0


async def test_without_its_redis_a_gateway_counts_alone_and_says_so(caplog) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections and never answers
        rates = Rates(f"redis://127.0.0.1:{mute.getsockname()[1]}/0", 0.05, SystemClock())
        one = rates.meter("key.frames", "10/hour", "x")
        async with asyncio.timeout(3):  # nobody waits for it again and again
            assert [await take(one) for _ in range(12)] == [True] * 10 + [False] * 2
        assert rates.away is not None
        assert caplog.text.count("counted by this gateway alone") == 1
        await rates.close()


async def test_when_its_redis_is_back_it_is_asked_again(monkeypatch) -> None:
    rates = Rates(redis_server.url(), 1.0, SystemClock())
    one = rates.meter("key.frames", "10/hour", secrets.token_hex(8))
    real = rates._shared.hit

    async def broken(*args: object, **kwargs: object) -> bool:
        raise TimeoutError

    monkeypatch.setattr(rates._shared, "hit", broken)
    assert await take(one)
    assert rates.away is not None
    monkeypatch.setattr(rates._shared, "hit", real)
    rates._rest_until = 0.0
    one._credit = 0
    assert await take(one)
    assert rates.away is None
    await rates.close()


@pytest.mark.parametrize("url", ["http://x", "redis//x", "", "memcached://x"])
def test_a_storage_that_cannot_be_is_refused(url) -> None:
    with pytest.raises(InvalidRequest, match="redis://"):
        Rates(url, 0.1, SystemClock())
