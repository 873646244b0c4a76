"""Rates: how much in a window, counted in this process, or in Redis for all gateways together.

Windows slide (`limits`, the sliding window counter: O(1) for each rate, exact to the share of the window before).
A busy meter takes small leases, at most `1 / _SHARE` of its rate and good for a second, so that most frames cost no
look at the shared count; what is left of a lease is lost, so a rate is never exceeded by more than a lease a window.

A Redis that does not answer does not stop anybody: each gateway then counts by itself, so that at worst each lets
through a whole rate, and says so (`away`, a log line, a gauge) until it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerHour, RateLimitItemPerMinute
from limits import RateLimitItemPerSecond as PerSecond
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import ConfigurationError

from qraf.clock import Clock
from qraf.errors import InvalidRequest, LimitExceeded, RateExceeded

__all__ = ["Meter", "Rates"]

log = logging.getLogger(__name__)

_KINDS: dict[str, type[RateLimitItem]] = {
    "second": PerSecond,
    "minute": RateLimitItemPerMinute,
    "hour": RateLimitItemPerHour,
    "day": RateLimitItemPerDay,
}
_SHARE = 50
_LEASE_S = 1.0
_BUSY_S = 0.1  # a lease that is used up within this was too small
_PATIENCE_S = 0.05  # how long a refusal stands without asking again
_REST_S = 1.0  # between two looks at a Redis that is away
_MAX_CALLS = 32  # under way to Redis at once; more wait


class Rates:
    """Where rates are counted. `start` before use, `close` after; belongs to one event loop.

    Raises:
        InvalidRequest: a storage that cannot be.
    """

    def __init__(self, storage: str, timeout_s: float, clock: Clock) -> None:
        self._clock, self._timeout_s = clock, timeout_s
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._storage: Any = _redis(storage, timeout_s)
        self._shared = None if self._storage is None else SlidingWindowCounterRateLimiter(self._storage)
        away: Any = () if self._storage is None else self._storage.base_exceptions
        self._faults: tuple[type[Exception], ...] = (
            TimeoutError,
            OSError,
            *(away if isinstance(away, tuple) else (away,)),
        )
        self._calls = asyncio.Semaphore(_MAX_CALLS)
        self._scripts: dict[str, Any] = {}
        self._rest_until = 0.0
        self.away: tuple[float, str] | None = None
        """Since when Redis has not answered (seconds since 1970), and why."""

    def meter(self, policy: str, rate: str, *whose: str) -> Meter:
        """A meter of `rate` (`600/minute`), the same for all who name the same policy and owner."""
        amount, _, unit = rate.partition("/")
        return Meter(self, policy, _KINDS[unit](int(amount)), (policy, *whose))

    async def close(self) -> None:
        """Close the connections."""
        if self._storage is not None:
            with contextlib.suppress(*self._faults):
                await self._storage.bridge.storage.aclose()

    @property
    def are_shared(self) -> bool:
        """Whether gateways count together."""
        return self._shared is not None

    async def script(self, text: str, keys: list[str], args: list[Any]) -> Any:
        """What a script of Redis (Lua, version 5 or newer) gives; None where there is no Redis, or it is away."""
        if self._storage is None:
            return None
        if text not in self._scripts:
            self._scripts[text] = self._storage.bridge.storage.register_script(text)
        return await self._asked(lambda: self._scripts[text](keys, args))

    async def hit(self, item: RateLimitItem, whose: tuple[str, ...], cost: int) -> bool:
        """Count `cost` if it fits into the window; whether it did."""
        return bool(await self._ask("hit", item, *whose, cost=cost))

    async def left(self, item: RateLimitItem, whose: tuple[str, ...]) -> tuple[float, int]:
        """When the window has room again or is empty (seconds since 1970), and how much fits now."""
        stats = await self._ask("get_window_stats", item, *whose)
        return float(stats[0]), int(stats[1])

    async def _ask(self, what: str, *args: Any, **kwargs: Any) -> Any:
        if self._shared is not None:
            answer = await self._asked(lambda: getattr(self._shared, what)(*args, **kwargs))
            if answer is not None:
                return answer
        return await getattr(self._own, what)(*args, **kwargs)

    async def _asked(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        """What Redis answers; None while it is away."""
        if self._clock.monotonic() < self._rest_until:
            return None
        try:
            async with asyncio.timeout(self._timeout_s), self._calls:
                answer = await ask()
        except self._faults as fault:
            self._rest_until = self._clock.monotonic() + _REST_S
            if self.away is None:
                why = str(fault) or type(fault).__name__
                log.warning("rates are counted by this gateway alone: Redis does not answer: %s", why[:300])
                self.away = self._clock.now(), why[:300]
            return None
        if self.away is not None:
            log.warning("rates are counted in Redis again")
            self.away = None
        return answer


class Meter:
    """What one rate of one key or tenant has left, as this gateway knows it."""

    def __init__(self, rates: Rates, policy: str, item: RateLimitItem, whose: tuple[str, ...]) -> None:
        self._rates, self._item, self._whose = rates, item, whose
        self.policy, self.allowed, self.window_s = policy, item.amount, item.get_expiry()
        self.remaining = item.amount
        """What was left when the count was last looked at, less what went since."""
        self._reset_at = 0.0
        self._credit, self._credit_until = 0, 0.0
        self._lease, self._leased_at = 1, -1.0
        self._blocked: RateExceeded | None = None
        self._blocked_until, self._blocked_cost = 0.0, 0
        self._lock = asyncio.Lock()

    @property
    def reset_s(self) -> float:
        """Seconds until there is more room again."""
        return min(float(self.window_s), max(0.0, self._reset_at - self._rates._clock.now()))

    def take_now(self, cost: int) -> bool:
        """Take from what was leased; whether there was enough."""
        if self._credit < cost or self._rates._clock.monotonic() >= self._credit_until:
            return False
        self._credit -= cost
        self.remaining = max(0, self.remaining - cost)
        return True

    def give(self, cost: int) -> None:
        """Give back what was taken a moment ago."""
        self._credit += cost
        self._credit_until = max(self._credit_until, self._rates._clock.monotonic() + _LEASE_S)
        self.remaining += cost

    async def take(self, cost: int) -> None:
        """Take `cost` from the rate.

        Raises:
            RateExceeded: it does not fit now. LimitExceeded: it never will.
        """
        if cost > self.allowed:
            raise LimitExceeded(self.policy, self.allowed, cost)
        async with self._lock:
            if self.take_now(cost):
                return
            now = self._rates._clock.monotonic()
            if self._blocked is not None and cost >= self._blocked_cost and now < self._blocked_until:
                raise self._blocked
            wanted = max(cost, self._next_lease(now))
            fits = await self._rates.hit(self._item, self._whose, wanted)
            if not fits and wanted > cost:
                wanted = cost
                fits = await self._rates.hit(self._item, self._whose, cost)
            self._reset_at, left = await self._rates.left(self._item, self._whose)
            self._leased_at = now = self._rates._clock.monotonic()
            if not fits:
                self.remaining = left
                wait_s = min(self.window_s, max(self.reset_s, cost * self.window_s / self.allowed, 0.001))
                self._blocked = RateExceeded(self.policy, self.allowed, self.window_s, int(1000 * wait_s) + 1)
                self._blocked_until, self._blocked_cost = now + min(_PATIENCE_S, wait_s), cost
                raise self._blocked
            self._blocked = None
            self._credit, self._credit_until = wanted - cost, now + _LEASE_S
            self.remaining = left + self._credit

    def _next_lease(self, now: float) -> int:
        is_busy = self._leased_at >= 0 and now - self._leased_at < _BUSY_S
        most = max(1, self.allowed // _SHARE)
        self._lease = min(most, 2 * self._lease) if is_busy else max(1, self._lease // 4)
        return self._lease


def _redis(url: str, timeout_s: float) -> Any:
    """The store of a URL; None for this process' own."""
    if url == "memory":
        return None
    scheme = url.partition("://")[0]
    if scheme not in ("redis", "rediss", "redis+unix"):
        raise InvalidRequest("must be `memory`, or a URL `redis://HOST:PORT/DB` or `rediss://...`", "/quotas/storage")
    from limits.aio.storage import RedisStorage

    try:
        return RedisStorage(
            f"async+{url}",
            implementation="redispy",
            key_prefix="qraf",
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            max_connections=2 * _MAX_CALLS,
        )
    except (ConfigurationError, ModuleNotFoundError) as fault:
        raise InvalidRequest(
            f"needs the Redis client: pip install 'qraf[redis]' ({fault})", "/quotas/storage"
        ) from None
    except ValueError as fault:
        raise InvalidRequest(f"is no URL of a Redis: {fault}", "/quotas/storage") from None
