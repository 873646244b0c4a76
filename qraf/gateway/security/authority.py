"""Turns credentials into principals, and keeps an eye on those that came in."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from qraf.clock import Clock
from qraf.errors import CredentialExpired, CredentialInvalid, NotAllowed, NotAuthenticated, TicketInvalid
from qraf.gateway.loopback import is_loopback
from qraf.gateway.security.audit import Audit
from qraf.gateway.security.keys import Keys, is_key
from qraf.gateway.security.principal import LOCAL, Principal
from qraf.gateway.security.tickets import SUBPROTOCOL, Tickets
from qraf.gateway.security.tokens import Tokens
from qraf.settings import Settings
from qraf.storage.keys import KeyTable

__all__ = ["Authority"]

log = logging.getLogger(__name__)

_MAX_CREDENTIAL = 16_384


class Authority:
    """Who may come in, for one gateway. `close` at its end.

    Raises:
        InvalidRequest: settings that cannot be.
        NotAllowed: no authentication, though others than this machine could come.
    """

    def __init__(self, settings: Settings, table: KeyTable, clock: Clock) -> None:
        self.is_on = settings.auth.mode == "on"
        if not self.is_on and not is_loopback(settings.gateway.host):
            raise NotAllowed(f"listening on '{settings.gateway.host}'", "without authentication only loopback may be")
        self.clock = clock
        self.keys = Keys(table, clock)
        self.tokens = Tokens(settings.auth.jwt, clock)
        self.tickets = Tickets(table, clock, settings.auth.ticket_s)
        self.audit = Audit(table, clock)

    async def close(self) -> None:
        """Write the audit lines that wait."""
        await self.audit.close()

    async def of_headers(self, headers: Sequence[str]) -> Principal:
        """Whose a request with these `Authorization` headers is: with one at most, or a proxy might mean the other.

        Raises:
            NotAuthenticated: nobody's, or what is wrong with it. StorageFailed: it cannot be checked now.
        """
        if not self.is_on:
            return LOCAL
        if not headers:
            raise NotAuthenticated()
        if len(headers) > 1:
            raise CredentialInvalid("`Authorization` must be there once")
        scheme, _, credential = headers[0].partition(" ")
        if scheme.lower() != "bearer" or not credential.strip():
            raise CredentialInvalid("`Authorization` must be `Bearer` and an API key or a token")
        return await self.of_credential(credential.strip())

    async def of_credential(self, credential: str) -> Principal:
        """Whose an API key or a token is; raises as `of_headers`."""
        if not self.is_on:
            return LOCAL
        if len(credential) > _MAX_CREDENTIAL or not credential.isascii():
            raise CredentialInvalid("neither an API key nor a token")
        if credential.startswith(SUBPROTOCOL):
            raise TicketInvalid("a ticket is offered as a subprotocol, and opens a socket alone")
        who = await (self.keys if is_key(credential) else self.tokens).verify(credential)
        self.check_time(who)
        return who

    def check_time(self, who: Principal) -> None:
        """Refuse a principal whose time is over; raises CredentialExpired."""
        if who.expires_at is not None and who.expires_at <= self.clock.now():
            raise CredentialExpired("the credential has expired")

    async def refused(self, principals: Iterable[Principal]) -> Mapping[Principal, NotAuthenticated]:
        """Which of those that came in must go, and why: their time is over, or their key was revoked."""
        faults: dict[Principal, NotAuthenticated] = {}
        by_key: dict[str, set[Principal]] = {}
        for who in principals:
            try:
                self.check_time(who)
            except CredentialExpired as fault:
                faults[who] = fault
                continue
            if who.key:
                by_key.setdefault(who.key, set()).add(who)
        if by_key:
            for key, refusal in (await self.keys.refused(by_key)).items():
                faults.update(dict.fromkeys(by_key[key], refusal))
        return faults
