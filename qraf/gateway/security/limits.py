"""What a client is told of its rates: headers over HTTP, frames over a socket; and when a socket has gone too far."""

from __future__ import annotations

import hashlib
from collections import deque

from qraf.errors import QuotaExceeded, RateExceeded
from qraf.frames import RateLimit, RateLimits
from qraf.gateway.security.principal import Principal
from qraf.sessions.accounts import Account, Accounts

__all__ = ["LIMIT_CODES", "Visit", "account_of", "rate_headers"]

LIMIT_CODES = (RateExceeded.code, QuotaExceeded.code)
"""The codes of what a rate or a quota refuses."""

_TELL_EVERY_S = 1.0
_MAX_REFUSALS, _WITHIN_S = 50, 10.0
_OF_SOCKETS = ("frames", "write_bytes", "tokens")


def account_of(accounts: Accounts, who: Principal) -> Account:
    """The account that a principal uses: its key's, or its subject's, as far as a column can hold it."""
    name = who.key or who.subject
    if not name.isprintable():
        name = f"sub:{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()}"
    return accounts.of(who.tenant, name, who.role)


def rate_headers(account: Account) -> list[tuple[bytes, bytes]]:
    """`RateLimit` and `RateLimit-Policy` of requests and tokens, and the `x-ratelimit-*` that other clients know."""
    limits, policies, others = [], [], []
    for kind, one in zip(("requests", "tokens"), account.standings("requests", "tokens"), strict=True):
        reset_s = -int(-one.reset_s // 1)
        policies.append(f'"{one.policy}";q={one.limit};w={one.window_s}')
        limits.append(f'"{one.policy}";r={one.remaining};t={reset_s}')
        for name, value in (("limit", one.limit), ("remaining", one.remaining), ("reset", f"{reset_s}s")):
            others.append((f"x-ratelimit-{name}-{kind}".encode(), str(value).encode()))
    return [
        (b"ratelimit-policy", ", ".join(policies).encode()),
        (b"ratelimit", ", ".join(limits).encode()),
        *others,
    ]


class Visit:
    """One socket of an account, from `enter` to `leave`."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self._refusals: deque[float] = deque(maxlen=_MAX_REFUSALS)
        self._told_at = float("-inf")
        self._is_in = False

    async def enter(self) -> None:
        """Count the socket; raises QuotaExceeded where there are as many as may be. Cancel: it does not count."""
        await self.account.enter("sockets")
        self._is_in = True

    def leave(self) -> None:
        """The socket is closed. Twice: nothing more happens."""
        if self._is_in:
            self._is_in = False
            self.account.leave("sockets")

    def rates(self) -> tuple[RateLimit, ...]:
        """How the rates of sockets stand."""
        return tuple(
            RateLimit(
                policy=one.policy,
                limit=one.limit,
                remaining=one.remaining,
                window_s=one.window_s,
                reset_ms=int(1000 * one.reset_s),
            )
            for one in self.account.standings(*_OF_SOCKETS)
        )

    def warning(self, now: float) -> RateLimits | None:
        """What to tell now that little is left; None where there is nothing, or it was told a moment ago."""
        if now - self._told_at < _TELL_EVERY_S or not self.account.is_near():
            return None
        self._told_at = now
        return RateLimits(limits=self.rates())

    def is_too_much(self, error: BaseException, now: float) -> bool:
        """Whether this refusal is one too many: the client goes on though it is told to wait."""
        if not isinstance(error, RateExceeded | QuotaExceeded):
            return False
        self._refusals.append(now)
        return len(self._refusals) == _MAX_REFUSALS and now - self._refusals[0] < _WITHIN_S
