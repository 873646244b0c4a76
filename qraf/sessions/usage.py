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


class Ledger:
    """Usage of a gateway. `start` before use, `close` writes what waits. Belongs to one event loop."""

    def __init__(self, table: UsageTable, clock: Clock) -> None:
        self._table, self._clock = table, clock
        self._counts: dict[tuple[str, str, int], Counts] = {}
        self._spends: list[tuple[Spend, asyncio.Future[QuotaExceeded | None]]] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._writing = asyncio.Lock()
        self._flushing: set[asyncio.Task[None]] = set()
        self._is_away = False
        self._id, self._batch = secrets.token_hex(16), 0
        self._failed: dict[tuple[str, str, int], Counts] | None = None  # a batch that may have been written

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
        """Count tokens that are about to be shown; durable on return. Cancel: they may have been counted.

        Raises:
            QuotaExceeded: they do not fit into the day's quota, and were not counted.
        """
        answer: asyncio.Future[QuotaExceeded | None] = asyncio.get_running_loop().create_future()
        self._spends.append((spend, answer))
        self._wake.set()
        try:
            async with asyncio.timeout(0.0 if self._is_away else _PATIENCE_S):
                refusal = await asyncio.shield(answer)
        except TimeoutError:
            self._is_away = True
            answer.cancel()  # shown now, and counted without asking
            return
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
            if self._failed is not None:
                if not await self._write(thread, self._failed, []):
                    return
                self._failed = None
            self._count_shown([spend for spend, answer in self._spends if answer.cancelled()])
            waiting = [one for one in self._spends if not one[1].cancelled()]
            spends, self._spends = waiting[:_MAX_SPENDS], waiting[_MAX_SPENDS:]
            counts, self._counts = self._counts, {}
            if counts or spends:
                self._batch += 1
                await self._write(thread, counts, spends)

    async def _write(
        self,
        thread: ThreadPoolExecutor,
        counts: dict[tuple[str, str, int], Counts],
        spends: list[tuple[Spend, asyncio.Future[QuotaExceeded | None]]],
    ) -> bool:
        """Write a batch; whether it worked. One that may be written or not is kept as it is, under its number."""
        batch = (self._id, self._batch)
        loop = asyncio.get_running_loop()
        try:
            answers = await loop.run_in_executor(
                thread, self._table.note, counts, [spend for spend, _ in spends], batch
            )
        except StorageFailed as fault:
            if not self._is_away:
                log.warning("usage waits for the journal: %s", fault)
            self._is_away = True
            for spend, answer in spends:  # shown meanwhile
                at = spend.payer.tenant, spend.payer.key, self.day
                shown = Counts(prompt_tokens=spend.prompt, generated_tokens=spend.generated)
                counts.setdefault(at, Counts()).add(shown)
                if not answer.done():
                    answer.set_result(None)
            self._failed = counts
            return False
        self._is_away = False
        for (spend, answer), refusal in zip(spends, answers, strict=True):
            if not answer.done():
                answer.set_result(refusal)
            elif refusal is not None:
                self._count_shown([spend])
        return True

    def _count_shown(self, spends: Iterable[Spend]) -> None:
        for spend in spends:
            self.count(spend.payer, Counts(prompt_tokens=spend.prompt, generated_tokens=spend.generated))

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
