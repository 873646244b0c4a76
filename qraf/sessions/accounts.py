"""Accounts: what a key and its tenant may do, what they do now, and whom it is counted for.

An account is a key of a tenant, or the subject of a token. Every rate and every quota holds twice: for the account
itself, and for its tenant, which is the sum of its accounts.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from dataclasses import dataclass

from qraf.clock import Clock
from qraf.errors import LimitExceeded, QuotaExceeded, RateExceeded, StorageFailed
from qraf.sessions.meters import Meters
from qraf.sessions.rates import Meter, Rates
from qraf.sessions.seats import Count, Seats
from qraf.sessions.usage import Ledger
from qraf.settings import Allowance, QuotaSettings
from qraf.storage.usage import Counts, Held, Payer, Spend, UsageTable

__all__ = ["Account", "Accounts", "Standing"]

_MOST_KNOWN = 20_000
_POLICIES = ("requests", "frames", "write_bytes", "tokens")
_AT_ONCE = ("sockets", "responses")
_SOON_MS = 1000


class Share:
    """What one key, or one tenant, may do and does. `name` is `key` or `tenant`; a key's is within its tenant's."""

    def __init__(self, accounts: Accounts, name: str, allowance: Allowance, within: Share | None, *whose: str) -> None:
        self.allowance = allowance
        self.meters: dict[str, Meter] = {
            # of a subject that comes in two roles the rates are one
            policy: accounts.rates.meter(f"{name}.{policy}", getattr(allowance, policy), name, *whose[:2])
            for policy in _POLICIES
        }
        self.open: dict[str, Count] = {}
        for what in _AT_ONCE:
            wider = None if within is None else within.open[what]
            self.open[what] = Count(f"{name}.{what}", getattr(allowance, what), wider, *whose)

    @property
    def bounds(self) -> tuple[int, int, int]:
        """Items, bytes and tokens a day."""
        return self.allowance.items, self.allowance.bytes, self.allowance.tokens_per_day


@dataclass(frozen=True, slots=True)
class Standing:
    """How a rate stands: of `limit` a window, `remaining` are left, and more in `reset_s`."""

    policy: str
    limit: int
    remaining: int
    window_s: int
    reset_s: float


class Account:
    """One key of a tenant, or one subject, by `Accounts.of`. Its checks raise `RateExceeded` or `QuotaExceeded`."""

    def __init__(self, accounts: Accounts, key: str, own: Share, tenant: Share, payer: Payer) -> None:
        self.key, self.tenant, self.payer = key, payer.tenant, payer
        self._accounts, self._shares = accounts, (own, tenant)

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing open."""
        own = self._shares[0]
        return not any(count.here for count in own.open.values())

    # ------------------------------------------------------------------------------------------------------- rates
    async def request(self) -> None:
        """Count a request over HTTP; one that is refused counts, too."""
        self._accounts.ledger.count(self.payer, Counts(requests=1))
        await self._take("requests", 1)

    async def frame(self) -> None:
        """Count a frame that came in."""
        self._accounts.ledger.count(self.payer, Counts(frames=1))
        await self._take("frames", 1)

    async def write(self, size: int) -> None:
        """Let a write of so many bytes in."""
        await self._take("write_bytes", size)

    def standings(self, *policies: str) -> list[Standing]:
        """How the rates stand: of each policy the one, of the key or of the tenant, of which less is left."""
        found = []
        for policy in policies or _POLICIES:
            meters = (share.meters[policy] for share in self._shares)
            meter = min(meters, key=lambda one: (one.remaining / one.allowed, one.allowed))
            found.append(Standing(meter.policy, meter.allowed, meter.remaining, meter.window_s, meter.reset_s))
        return found

    def is_near(self) -> bool:
        """Whether little is left of a rate of sockets."""
        ratio = self._accounts.settings.warn_ratio
        return any(
            share.meters[policy].remaining < ratio * share.meters[policy].allowed
            for share in self._shares
            for policy in _POLICIES[1:]
        )

    async def _take(self, policy: str, cost: int) -> None:
        own, tenant = (share.meters[policy] for share in self._shares)
        try:
            if not own.take_now(cost):
                await own.take(cost)
            if not tenant.take_now(cost):
                try:
                    await tenant.take(cost)
                except LimitExceeded:
                    own.give(cost)
                    raise
        except LimitExceeded as refusal:
            raise self.refused(refusal) from None

    # ------------------------------------------------------------------------------------------------------ at once
    async def enter(self, what: str) -> None:
        """Count a socket or a running response (`sockets`, `responses`); `leave` when it ends. Cancel: not counted."""
        try:
            await self._accounts.seats.enter(self._shares[0].open[what])
        except QuotaExceeded as refusal:
            raise self.refused(refusal) from None

    def leave(self, what: str) -> None:
        """It is gone."""
        self._accounts.seats.leave(self._shares[0].open[what])

    # ------------------------------------------------------------------------------------------------------- tokens
    async def check_tokens(self) -> None:
        """Refuse a prompt where nothing may be generated any more."""
        try:
            with contextlib.suppress(StorageFailed):
                await asyncio.to_thread(self._accounts.table.check_tokens, self.payer)
        except QuotaExceeded as refusal:
            raise self.refused(refusal) from None
        for share in self._shares:
            meter = share.meters["tokens"]
            if meter.remaining <= 0 and meter.reset_s > 0:
                wait_ms = int(1000 * meter.reset_s) + 1
                raise self.refused(RateExceeded(meter.policy, meter.allowed, meter.window_s, wait_ms))

    async def pace(self, tokens: int) -> None:
        """Let so many generated tokens through the rates; one piece may hold more than a small rate allows at all."""
        if tokens:
            most = min(share.meters["tokens"].allowed for share in self._shares)
            await self._take("tokens", min(tokens, most))

    async def generated(self, tokens: int, prompt: int = 0) -> None:
        """Count tokens that are about to be shown; what was counted survives this process. Cancel: it counts."""
        try:
            await self._accounts.ledger.spend(Spend(self.payer, tokens, prompt))
        except QuotaExceeded as refusal:
            raise self.refused(refusal) from None

    async def today(self) -> tuple[int, Counts, Held]:
        """The day, what was used on it over all gateways (here to the second), and what is held now."""
        table, day = self._accounts.table, self._accounts.ledger.day
        used = await asyncio.to_thread(table.total, self.tenant, self.key, (day, day))
        used.add(self._accounts.ledger.waiting(self.payer))
        return day, used, await asyncio.to_thread(table.held, self.tenant, self.key)

    async def settle(self, counts: Counts) -> None:
        """Count what is known only now, durable on return if the journal answers in time."""
        self.count(counts)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SOON_MS / 1000):
                await self._accounts.ledger.flush()

    def count(self, counts: Counts) -> None:
        """Count what is known only now; written within a second."""
        self._accounts.ledger.count(self.payer, counts)

    def refused(self, refusal: LimitExceeded) -> LimitExceeded:
        """Count what was refused, and give it back."""
        self._accounts.meters.quota_rejections.labels(refusal.limit).inc()
        return refusal


class Bill:
    """What one response has been charged: its tokens before they are shown, its prompt as estimated with the first."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self._prompt = self._generated = 0
        account.count(Counts(responses=1))

    async def tokens(self, generated: int, prompt: int) -> None:
        """Charge tokens that are about to be shown.

        Raises:
            RateExceeded, QuotaExceeded: they were not charged, and must not be shown.

        Cancel: they may have been charged; `settle` gives back what was not shown.
        """
        await self.account.pace(generated)
        prompt = 0 if self._prompt else prompt
        self._prompt += prompt
        self._generated += generated
        try:
            await self.account.generated(generated, prompt)
        except LimitExceeded:
            self._prompt -= prompt
            self._generated -= generated
            raise

    async def settle(self, prompt: int, generated: int) -> None:
        """Correct what was charged to what the answer says of its usage; the estimate stands where it says nothing."""
        more_prompt = prompt - self._prompt if prompt else 0
        more = Counts(prompt_tokens=more_prompt, generated_tokens=generated - self._generated)
        if more.prompt_tokens or more.generated_tokens:
            await self.account.settle(more)


class Accounts:
    """The accounts of a gateway, those that were used last. `start` before use, `close` after."""

    def __init__(self, settings: QuotaSettings, table: UsageTable, clock: Clock, meters: Meters) -> None:
        self.settings, self.table, self.meters = settings, table, meters
        self.rates = Rates(settings.storage, settings.storage_timeout_s, clock)
        self.seats = Seats(self.rates)
        self.ledger = Ledger(table, clock)
        self._known: OrderedDict[tuple[str, str, str], Account] = OrderedDict()
        self._shares: OrderedDict[str, Share] = OrderedDict()

    def start(self) -> None:
        """Begin to write usage, and to tell other gateways what is open."""
        self.ledger.start()
        self.seats.start()

    async def close(self) -> None:
        """Write what waits."""
        await self.ledger.close()
        await self.seats.close()
        await self.rates.close()

    def of(self, tenant: str, key: str, role: str) -> Account:
        """The account of a key's id, or of a token's subject."""
        found = self._known.get((tenant, key, role))
        if found is not None:
            self._known.move_to_end((tenant, key, role))
            return found
        whole = self._shares.get(tenant)
        if whole is None:
            whole = self._shares[tenant] = Share(self, "tenant", self.settings.of_tenant(tenant), None, tenant)
        own = Share(self, "key", self.settings.of_key(tenant, key, role), whole, tenant, key, role)
        payer = Payer(tenant=tenant, key=key, of_tenant=whole.bounds, of_key=own.bounds)
        made = self._known[tenant, key, role] = Account(self, key, own, whole, payer)
        self._let_go()
        return made

    def _let_go(self) -> None:
        """Forget those that were used longest ago and have nothing open; what they used is in the journal."""
        if len(self._known) <= _MOST_KNOWN:
            return
        for name in [name for name, one in self._known.items() if one.is_idle][: _MOST_KNOWN // 10]:
            del self._known[name]
        used = {tenant for tenant, _, _ in self._known}
        for tenant in [tenant for tenant in self._shares if tenant not in used]:
            del self._shares[tenant]
