"""Responses that other gateways run, followed by what these write of them into the journal while somebody wants it.

The owner writes its very frames, so whoever reads here sees the `seq` and the text that a reader there would have seen.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from qraf.clock import Clock
from qraf.sessions.response import Response
from qraf.sessions.responses import Responses
from qraf.sessions.rings import Ring
from qraf.storage.responses import ResponseRecord, ResponseTable
from qraf.tenants import inside

__all__ = ["WISH_S", "Followed", "Following"]

WISH_S = 10.0  # how long a wish to read counts, and how long one is followed that nobody reads
_WISH_AGAIN_S = 4.0
_LOOK_S = 0.5
_FIRST_LOOK_S = 0.2  # while nothing of one is known yet, and somebody may wait for it
_MOST = 512


class Followed(Response):
    """A response that another gateway runs, as far as its row is known.

    `seen` is the last `seq` that a reader is known to have seen; `stop` is called when somebody cancels it here, or is
    not expected any more.
    """

    is_elsewhere = True

    def __init__(
        self,
        record: ResponseRecord,
        clock: Clock,
        ring: Ring,
        *,
        key: str,
        owner: str,
        gateway: str,
        stop: Callable[[Followed, str], None],
    ) -> None:
        super().__init__(record.body.command, owner, clock, ring, key=key, epoch=record.epoch, session=record.session)
        self.name_as(record)
        self.grace_s, self.gateway, self._stop = WISH_S, gateway, stop
        self.is_known, self.seen, self.wished_at = False, 0, float("-inf")
        self.news = asyncio.Event()
        """Set at each change."""

    def take(self, record: ResponseRecord) -> bool:
        """What its row says now; False where that does not continue what is here, and there is no way on."""
        first = record.seq + 1 - len(record.body.frames)
        if record.status == "running" and record.seq < self.seq:  # read before what is here already
            return True
        if self.is_known and first <= self.seq + 1:
            self.go_on(record)
        elif self.is_known or record.status != "running":
            return False
        elif record.seq:
            self.go_on(record, record.seq)
            self.is_known = True
        if record.is_lost:
            if self.seen > self.seq:
                self.go_on(record, self.seen)
            self.lose_gateway()
        elif record.status != "running":
            self.end_as(record)
        self.news.set()
        return True

    def cancel(self, reason: str = "cancelled") -> bool:
        """Have its gateway stop it; for any other reason than a client's wish, only stop following it."""
        if self.has_ended or self.is_lost:
            return False
        self._stop(self, reason)
        return True

    def lose(self) -> None:
        """Nothing comes any more; its reader hears so."""
        self.is_lost = True
        self.news.set()
        self._wake()


class Following:
    """What a gateway follows, at most 512. Belongs to one event loop, in which somebody calls `work` over and over."""

    def __init__(self, table: ResponseTable, responses: Responses, clock: Clock) -> None:
        self._table, self._responses, self._clock = table, responses, clock
        self._all: dict[str, Followed] = {}
        self._cancelled: set[str] = set()
        self._some = asyncio.Event()

    def begin(self, record: ResponseRecord, gateway: str, key: str) -> Followed | None:
        """Follow one that runs on another gateway, from now on; None where too many are followed."""
        found = self._all.get(record.id)
        if found is None and len(self._all) < _MOST:
            owner = inside(record.tenant, "elsewhere")
            ring = self._responses.ring(owner, record.session)
            found = Followed(record, self._clock, ring, key=key, owner=owner, gateway=gateway, stop=self._stop)
            self._all[record.id] = found
            self._some.set()
        return found

    async def caught_up(self, one: Followed, after_seq: int, until: float) -> bool:
        """Whether what its gateway wrote came to here at least, by a time of the loop. Cancel: safe.

        False also where nothing of it comes any more.
        """
        one.seen = max(one.seen, after_seq)
        if one.left_at is not None:
            one.left_at = self._clock.monotonic()
        while not one.is_lost:
            if one.has_ended or (one.is_known and one.seq >= after_seq):
                return True
            one.news.clear()
            try:
                async with asyncio.timeout_at(until):
                    await one.news.wait()
            except TimeoutError:
                return False
        return False

    async def refresh(self, one: Followed, after_seq: int) -> None:
        """Take what its row says now: who reads a gap here may have its text from any gateway, and misses nothing.

        Raises:
            StorageFailed: the journal does not answer.
        """
        one.seen = max(one.seen, after_seq)
        news = await asyncio.to_thread(self._table.news, {one.id: one.seq})
        if one.id in news and self._all.get(one.id) is one:
            self._take(one, news[one.id])

    async def work(self) -> None:
        """Wait for a moment; then tell the owners what is wanted, and take what they have written."""
        known = all(one.is_known for one in self._all.values())
        pause_s = (_LOOK_S if known else _FIRST_LOOK_S) if self._all or self._cancelled else None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._some.wait()
        self._some.clear()
        if cancelled := set(self._cancelled):
            await asyncio.to_thread(self._table.wish, cancelled, "cancel")
            self._cancelled -= cancelled
        now = self._clock.monotonic()
        for one in [one for one in self._all.values() if one.left_at is not None and now - one.left_at >= WISH_S]:
            self._lose(one)
        if due := [one for one in self._all.values() if now - one.wished_at >= _WISH_AGAIN_S]:
            await asyncio.to_thread(self._table.wish, [one.id for one in due], "read")
            for one in due:
                one.wished_at = now
        if self._all:
            asked = {one.id: one.seq for one in self._all.values()}
            for name, record in (await asyncio.to_thread(self._table.news, asked)).items():
                if name in self._all:
                    self._take(self._all[name], record)

    def close(self) -> None:
        """Follow nothing any more."""
        for one in tuple(self._all.values()):
            self._lose(one)

    def _take(self, one: Followed, record: ResponseRecord | None) -> None:
        if record is None or not one.take(record):
            self._lose(one)
        elif one.has_ended:
            del self._all[one.id]
        if one.is_known and not one.is_lost:
            self._responses.add(one)

    def _stop(self, one: Followed, reason: str) -> None:
        if reason == "cancelled":
            self._cancelled.add(one.id)
            self._some.set()
        else:
            self._lose(one)

    def _lose(self, one: Followed) -> None:
        self._all.pop(one.id, None)
        one.lose()
        if one.is_known:
            self._responses.remove(one)
        else:
            one.close()
