"""The audit log: who was refused what, and every change of a key. Lines are added, never changed.

Whoever knocks a thousand times a second must not fill the disk: what is alike within a moment becomes one line that
says how often, and the moments' different lines are bounded.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from qraf.clock import Clock
from qraf.errors import QrafError
from qraf.frames import ErrorBody
from qraf.gateway.security.principal import Principal
from qraf.storage.keys import AuditRecord, KeyTable

__all__ = ["Audit"]

log = logging.getLogger(__name__)

_EVERY_S = 0.25
_MAX_LINES = 500  # different ones that wait; more are counted in one line
_MORE = ("", "", "more", "", "refused", "", "")


class Audit:
    """Lines on their way to the journal. Belongs to one event loop; `close` writes what waits."""

    def __init__(self, table: KeyTable, clock: Clock) -> None:
        self._table, self._clock = table, clock
        self._waiting: dict[tuple[str, ...], AuditRecord] = {}
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def refused(
        self,
        who: Principal | None,
        action: str,
        error: QrafError | ErrorBody,
        *,
        address: str = "",
        request: str = "",
    ) -> None:
        """Somebody was kept from something; written a moment later."""
        tenant, subject = ("", "") if who is None else (who.tenant, who.subject)
        said = error.detail if isinstance(error, ErrorBody) else str(error)
        what = (tenant, subject, action[:128], "", error.code, said[:512], address[:64])
        self._add(what if what in self._waiting or len(self._waiting) < _MAX_LINES else _MORE, request)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._flush_later(), name="audit")

    async def changed(
        self, who: Principal, action: str, target: str, detail: str, *, address: str = "", request: str = ""
    ) -> None:
        """Somebody changed something; written on return. Raises StorageFailed."""
        self._add((who.tenant, who.subject, action, target, "done", detail[:512], address[:64]), request)
        await self._flush()

    async def page(self, tenant: str | None, cursor: str | None, limit: int) -> tuple[list[AuditRecord], str | None]:
        """A page of a tenant's lines (None: of every tenant's), newest first, and the cursor of the next one."""
        return await asyncio.to_thread(self._table.audit, tenant, cursor, limit)

    async def close(self) -> None:
        """Write what waits. Twice: nothing more happens."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            await self._flush()
        except QrafError as fault:
            log.warning("%d audit lines are lost: %s", len(self._waiting), fault)

    def _add(self, what: tuple[str, ...], request: str) -> None:
        old = self._waiting.get(what)
        if old is not None:
            self._waiting[what] = msgspec.structs.replace(old, times=old.times + 1)
            return
        tenant, subject, action, target, outcome, detail, address = what
        self._waiting[what] = AuditRecord(
            at=self._clock.now(),
            tenant=tenant,
            subject=subject,
            action=action,
            target=target,
            outcome=outcome,
            detail=detail,
            address=address,
            request=request[:64],
        )

    async def _flush_later(self) -> None:
        while self._waiting:
            await asyncio.sleep(_EVERY_S)
            try:
                await self._flush()
            except QrafError as fault:
                log.warning("audit lines wait for the journal: %s", fault)

    async def _flush(self) -> None:
        async with self._writing:
            lines = dict(self._waiting)
            if not lines:
                return
            self._waiting.clear()
            try:
                await asyncio.to_thread(self._table.note, list(lines.values()))
            except BaseException:
                for what, line in lines.items():
                    newer = self._waiting.get(what)
                    times = line.times + (newer.times if newer is not None else 0)
                    self._waiting[what] = msgspec.structs.replace(line, times=times)
                raise
