"""The ledger: what keys use, on its way to the journal.

Generated tokens are written before anybody sees them, so whatever dies, the journal has counted every token that went
out; what it counts beyond that is at most what was written and had not left the process. Many responses share one
transaction: while one is under way the next gathers. Requests and frames are counted here and written every second, so
a process that is killed loses up to a second of those. Items and bytes are written with the items themselves.

While the journal does not answer nothing stops: tokens are shown after `_PATIENCE_S`, kept here, and written later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from qraf.clock import Clock
from qraf.errors import QuotaExceeded, StorageFailed
from qraf.storage.usage import Counts, Payer, Spend, UsageTable, day_of

__all__ = ["Ledger"]

log = logging.getLogger(__name__)

_EVERY_S = 1.0
_PATIENCE_S = 1.0
_MOST = 100_000  # keys and days that wait while the journal is away; more are let go, and the log says so
_MAX_SPENDS = 4096  # in one transaction

_Counts = dict[tuple[str, str, int], Counts]
_Spends = list[tuple[Spend, asyncio.Future[QuotaExceeded | None]]]


class Ledger:
    """Usage of a gateway. `start` before use, `close` writes what waits. Belongs to one event loop."""

    def __init__(self, table: UsageTable, clock: Clock) -> None:
        self._table, self._clock = table, clock
        self._counts: _Counts = {}
        self._spends: _Spends = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._writing = asyncio.Lock()
        self._flushing: set[asyncio.Task[None]] = set()
        self._is_away = False
        self._id, self._batch = secrets.token_hex(16), 0
        self._failed: tuple[_Counts, _Spends, int] | None = None  # a batch of a day that may have been written

    def start(self) -> None:
        """Begin to write."""
        if self._task is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="usage")
            self._task = asyncio.create_task(self._run(), name="usage")

    async def close(self) -> None:
        """Write what waits, and stop. Twice: nothing more happens."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        await self.flush()
        if self._failed is not None or self._counts:
            log.error("the journal did not answer to the end: what was used since then is not counted")
        if self._thread is not None:
            await asyncio.to_thread(self._thread.shutdown)

    @property
    def day(self) -> int:
        """Today, in days since 1970-01-01 (UTC)."""
        return day_of(self._clock.now())

    def waiting(self, payer: Payer) -> Counts:
        """What of today is not written yet."""
        return self._counts.get((payer.tenant, payer.key, self.day), Counts())

    def count(self, payer: Payer, counts: Counts) -> None:
        """Add to what a key used today; written within a second."""
        self._add((payer.tenant, payer.key, self.day), counts)

    async def spend(self, spend: Spend) -> None:
        """Count tokens that are about to be shown; durable on return. Cancel: they are counted, whatever the quota.

        Raises:
            QuotaExceeded: they do not fit into the day's quota, and were not counted.
        """
        answer: asyncio.Future[QuotaExceeded | None] = asyncio.get_running_loop().create_future()
        self._spends.append((spend, answer))
        self._wake.set()
        try:
            async with asyncio.timeout(0.0 if self._is_away else _PATIENCE_S):
                refusal = await asyncio.shield(answer)
        except TimeoutError:  # shown now
            self._is_away = True
            self._insist(spend, answer)
            return
        except asyncio.CancelledError:  # whoever was charged gives back what was not shown
            self._insist(spend, answer)
            raise
        if refusal is not None:
            raise refusal

    async def flush(self) -> None:
        """Write what waits now, if the journal answers. Cancel: safe, it is written all the same."""
        if self._thread is not None:
            task = asyncio.create_task(self._flush(self._thread), name="write usage")
            self._flushing.add(task)
            task.add_done_callback(self._flushing.discard)
            await asyncio.shield(task)

    async def _flush(self, thread: ThreadPoolExecutor) -> None:
        async with self._writing:
            # counted together, so that they take no room while the journal is away
            self._count_shown([spend for spend, answer in self._spends if answer.cancelled()])
            self._spends = [one for one in self._spends if not one[1].cancelled()]
            if self._failed is not None and not await self._write(thread, *self._failed):
                return
            spends, self._spends = self._spends[:_MAX_SPENDS], self._spends[_MAX_SPENDS:]
            counts, self._counts = self._counts, {}
            if counts or spends:
                self._batch += 1
                await self._write(thread, counts, spends, self.day)

    async def _write(self, thread: ThreadPoolExecutor, counts: _Counts, spends: _Spends, day: int) -> bool:
        """Write a batch; whether it worked. One that may be written or not is kept as it is, under its number."""
        loop, asked = asyncio.get_running_loop(), [spend for spend, _ in spends]
        try:
            answers = await loop.run_in_executor(thread, self._table.note, counts, asked, (self._id, self._batch), day)
        except StorageFailed as fault:
            if not self._is_away:
                log.warning("usage waits for the journal: %s", fault)
            self._is_away = True
            for _, answer in spends:  # shown meanwhile
                if not answer.done():
                    answer.set_result(None)
            self._failed = counts, spends, day
            return False
        self._is_away, self._failed = False, None
        for (spend, answer), refusal in zip(spends, answers, strict=True):
            if not answer.done():
                answer.set_result(refusal)
            elif refusal is not None:  # shown all the same
                self._count_shown([spend], day)
        return True

    def _insist(self, spend: Spend, answer: asyncio.Future[QuotaExceeded | None]) -> None:
        """Have it counted whatever the quota, also where the refusal has come in this moment."""
        if not answer.cancel() and answer.result() is not None:
            self._count_shown([spend])

    def _count_shown(self, spends: Iterable[Spend], day: int | None = None) -> None:
        for spend in spends:
            at = spend.payer.tenant, spend.payer.key, self.day if day is None else day
            self._add(at, Counts(prompt_tokens=spend.prompt, generated_tokens=spend.generated))

    def _add(self, at: tuple[str, str, int], counts: Counts) -> None:
        there = self._counts.get(at)
        if there is None and len(self._counts) >= _MOST:
            log.error("usage of %d keys waits for the journal; that of more is lost", _MOST)
            return
        self._counts.setdefault(at, Counts()).add(counts)

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            if not self._spends:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_EVERY_S):
                        await self._wake.wait()
            try:
                await self.flush()
            except Exception:
                log.exception("writing usage failed")
            if self._is_away:
                await asyncio.sleep(_EVERY_S)
