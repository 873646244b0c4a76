"""Sockets and running responses: how many are open at once, in this gateway, or by Redis in all of them together.

In Redis each gateway says how many a key and its tenant have open in it, and that this holds for `LEASE_S`; it says so
again while any is. A script lets one more in where it fits beside what the others say. So what a gateway that died had
open is free again after `LEASE_S`, and a count that was lost on the way is right again after a third of it. While Redis
does not answer each gateway counts by itself, as with rates; what is open stays open when it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Iterable
from typing import Any

from qraf.errors import QuotaExceeded
from qraf.sessions.rates import Rates

__all__ = ["LEASE_S", "Count", "Seats"]

log = logging.getLogger(__name__)

LEASE_S = 15.0
"""What a gateway that died had open counts so long."""

_SOON_MS = 1000
_AT_ONCE = 32  # tenants whose counts are told side by side
_MANY = 100  # counts in one call

# KEYS: counts, each a hash of gateway -> "how many, until when". ARGV: the gateway, its lease in ms; then for each key
# how many it has, and how many all may have (-1: any). Gives the place of the first that is full, else 0.
_TELL = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for place, key in ipairs(KEYS) do
  local sum, most = tonumber(ARGV[2 * place + 1]), tonumber(ARGV[2 * place + 2])
  local found = redis.call('HGETALL', key)
  for i = 1, #found, 2 do
    local count, till = string.match(found[i + 1], '(%d+) (%d+)')
    if tonumber(till) <= now then
      redis.call('HDEL', key, found[i])
    elseif found[i] ~= ARGV[1] then
      sum = sum + tonumber(count)
    end
  end
  if most >= 0 and sum > most then return place end
end
for place, key in ipairs(KEYS) do
  local count = tonumber(ARGV[2 * place + 1])
  if count == 0 then
    redis.call('HDEL', key, ARGV[1])
  else
    redis.call('HSET', key, ARGV[1], string.format('%d %d', count, now + ARGV[2]))
    redis.call('PEXPIRE', key, ARGV[2])
  end
end
return 0
"""


class Count:
    """How many of a kind a key, or a tenant, has open in this gateway; `most` may be open in all of them.

    `within`: the tenant's, of a key's.
    """

    def __init__(self, policy: str, most: int, within: Count | None, *whose: str) -> None:
        self.policy, self.most, self.here = policy, most, 0
        self.whole = within or self
        self.name = (
            f"qraf:open:{{{whose[0]}}}:{policy}:{':'.join(whose[1:])}"  # a tenant's are in one slot of a cluster
        )
        self.lock = asyncio.Lock()


class Seats:
    """Lets in what fits. `start` before use, `close` after; belongs to one event loop."""

    def __init__(self, rates: Rates) -> None:
        self._rates, self._gateway = rates, secrets.token_hex(8)
        self._taken: set[Count] = set()
        self._changed: set[Count] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to tell the other gateways what is open here."""
        if self._rates.are_shared:
            self._task = asyncio.create_task(self._keep(), name="seats")

    async def close(self) -> None:
        """Give up what is open here. Twice: nothing more happens."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
            await self._tell_all(self._taken | self._changed, is_end=True)

    async def enter(self, own: Count) -> None:
        """Count one more of a key and of its tenant; `leave` when it ends. Cancel: it does not count.

        Raises:
            QuotaExceeded: there are as many as may be.
        """
        counts = (own, own.whole)
        async with own.whole.lock:
            for count in counts:
                if count.here >= count.most:
                    raise QuotaExceeded(count.policy, count.most, _SOON_MS)
            for count in counts:
                count.here += 1
            self._taken.update(counts)
            try:
                full = await self._tell(counts, [count.most for count in counts])
            except BaseException:
                self.leave(own)
                raise
            if full:
                self.leave(own)
                raise QuotaExceeded(counts[full - 1].policy, counts[full - 1].most, _SOON_MS)

    def leave(self, own: Count) -> None:
        """It is gone."""
        for count in (own, own.whole):
            count.here -= 1
            if not count.here:
                self._taken.discard(count)
            if self._task is not None:
                self._changed.add(count)
                self._wake.set()

    # ------------------------------------------------------------------------------------------------------- helpers
    async def _keep(self) -> None:
        """Tell what left as it leaves, and everything that is open three times a lease."""
        loop = asyncio.get_running_loop()
        renew_at = loop.time() + LEASE_S / 3
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(renew_at):
                    await self._wake.wait()
            counts, self._changed = self._changed, set()
            if loop.time() >= renew_at:
                counts, renew_at = counts | self._taken, loop.time() + LEASE_S / 3
            self._wake.clear()
            try:
                await self._tell_all(counts)
            except Exception:  # it must go on: without it what is open here would be given to others
                log.exception("telling what is open failed")

    async def _tell_all(self, counts: Iterable[Count], is_end: bool = False) -> None:
        by_tenant: dict[Count, list[Count]] = {}
        for count in counts:
            by_tenant.setdefault(count.whole, []).append(count)
        tenants = list(by_tenant.items())
        for first in range(0, len(tenants), _AT_ONCE):
            some = tenants[first : first + _AT_ONCE]
            await asyncio.gather(*(self._tell_tenant(whole, mine, is_end) for whole, mine in some))

    async def _tell_tenant(self, whole: Count, counts: list[Count], is_end: bool) -> None:
        for first in range(0, len(counts), _MANY):
            some = counts[first : first + _MANY]
            async with whole.lock:  # what two calls say would else arrive in either order
                if await self._tell(some, [-1] * len(some), is_end) is None:
                    self._changed.update(some)  # told with what is told next

    async def _tell(self, counts: Iterable[Count], most: list[int], is_end: bool = False) -> int | None:
        """Say how many are open here; None where nobody was told, else the place of the first that is full."""
        args: list[Any] = [self._gateway, int(1000 * LEASE_S)]
        names = []
        for count, allowed in zip(counts, most, strict=True):
            names.append(count.name)
            args += [0 if is_end else count.here, allowed]
        full: int | None = await self._rates.script(_TELL, names, args)
        return full
