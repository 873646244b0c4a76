"""Tickets: what a page offers as a subprotocol to open one socket, because browsers cannot send a header there.

A ticket is good once, for a minute, for its principal and for pages of the origin that asked for it. It is in no URL.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import secrets
from collections.abc import Sequence

import msgspec

from qraf.clock import Clock
from qraf.errors import CredentialExpired, OriginRefused, TicketInvalid, TicketUsed
from qraf.gateway.security.principal import Principal
from qraf.storage.keys import KeyTable, TicketRecord

__all__ = ["SUBPROTOCOL", "Tickets", "offered_ticket"]

SUBPROTOCOL = "qraf.ticket."
_BYTES = 32


def offered_ticket(subprotocols: Sequence[str]) -> str | None:
    """The ticket among the subprotocols that a client offers."""
    return next((name for name in subprotocols if name.startswith(SUBPROTOCOL)), None)


class Tickets:
    """The tickets of a journal: one that this gateway gave is taken by any other, by one of them once."""

    def __init__(self, table: KeyTable, clock: Clock, ttl_s: float) -> None:
        self._table, self._clock, self._ttl_s = table, clock, ttl_s

    async def issue(self, principal: Principal, origin: str) -> tuple[str, float]:
        """A ticket as the subprotocol to offer, and when it ends."""
        secret, now = secrets.token_bytes(_BYTES), self._clock.now()
        record = TicketRecord(
            digest=hashlib.sha256(secret).digest(),
            principal=msgspec.json.encode(principal),
            origin=origin,
            expires_at=now + self._ttl_s,
        )
        await asyncio.to_thread(self._table.put_ticket, record, now)
        return f"{SUBPROTOCOL}{base64.urlsafe_b64encode(secret).decode().rstrip('=')}", record.expires_at

    async def redeem(self, ticket: str, origin: str) -> Principal:
        """Whose a ticket is; it is used up, whatever comes of it.

        Raises:
            TicketInvalid: no ticket of ours, or one that ended long ago. TicketUsed: it was used already.
            CredentialExpired: its minute is over.
            OriginRefused: another origin asked for it.
        """
        text = ticket.removeprefix(SUBPROTOCOL)
        try:
            secret = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (ValueError, binascii.Error):
            secret = b""
        record = None
        if len(secret) == _BYTES:
            record = await asyncio.to_thread(self._table.take_ticket, hashlib.sha256(secret).digest())
        if record is None:
            raise TicketInvalid("the ticket is none of ours")
        if not record.principal:
            raise TicketUsed("the ticket was used already; each opens one socket")
        if record.expires_at <= self._clock.now():
            raise CredentialExpired("the ticket has expired")
        if record.origin != origin:
            raise OriginRefused("this ticket", "a page of another origin asked for it")
        return msgspec.json.decode(record.principal, type=Principal)
