"""The audit log: who was refused what, and every change of a key. Lines are added, never changed.

Whoever knocks a thousand times a second must not fill the disk: the first of its kind is written at once, what is alike
becomes one line a minute that says how often, and different lines have a budget: `_BURST`, and `_PER_S` more each
second. What is beyond is counted in lines of action `more`. Changes of keys are always written.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import OrderedDict

import msgspec

from qraf.clock import Clock
from qraf.errors import InvalidRequest, QrafError
from qraf.frames import ErrorBody
from qraf.gateway.security.principal import Principal
from qraf.storage.keys import AuditCheck, AuditRecord, KeyTable

__all__ = ["Audit"]

log = logging.getLogger(__name__)

_EVERY_S = 0.25
_AGAIN_S = 60.0  # until a line like one that was written is written
_MAX_LINES = 500  # different ones that wait, and as many are known to have been written
_BURST, _PER_S = 500.0, 0.5  # 43,200 lines a day at most, some 15 MB
_DONE = "done"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MORE = ("", "", "more", "", "refused", "", "")


class Audit:
    """Lines on their way to the journal. Belongs to one event loop; `close` writes what waits."""

    def __init__(self, table: KeyTable, clock: Clock) -> None:
        self._table, self._clock = table, clock
        self._waiting: dict[tuple[str, ...], AuditRecord] = {}
        self._written: OrderedDict[tuple[str, ...], float] = OrderedDict()  # when
        self._budget, self._budget_at = _BURST, clock.monotonic()
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
        said = getattr(error, "detail", None) or str(error)
        what = (tenant, subject, action[:128], "", error.code, said[:512], address[:64])
        self._add(what if what in self._waiting or len(self._waiting) < _MAX_LINES else _MORE, request)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._flush_later(), name="audit")

    async def changed(
        self, who: Principal, action: str, target: str, detail: str, *, address: str = "", request: str = ""
    ) -> None:
        """Somebody changed something; written on return. Raises StorageFailed."""
        self._add((who.tenant, who.subject, action, target, _DONE, detail[:512], address[:64]), request)
        await self._flush()

    async def page(self, tenant: str | None, cursor: str | None, limit: int) -> tuple[list[AuditRecord], str | None]:
        """A page of a tenant's lines (None: of every tenant's), newest first, and the cursor of the next one."""
        return await asyncio.to_thread(self._table.audit, tenant, cursor, limit)

    async def check(self, head: str | None = None) -> AuditCheck:
        """Whether every line is as it was written, and none is missing between two others.

        `head`: that of an earlier check (`LAST:DIGEST`), after which nothing may have been cut off. Raises
        InvalidRequest where it is none.
        """
        if head is None:
            return await asyncio.to_thread(self._table.check_audit)
        last, _, digest = head.partition(":")
        if not last.isdigit() or not int(last) or _DIGEST.fullmatch(digest) is None:
            raise InvalidRequest("must be LAST:DIGEST, as an earlier check told it", "/query/head")
        return await asyncio.to_thread(self._table.check_audit, (int(last), digest))

    async def close(self) -> None:
        """Write what waits. Twice: nothing more happens."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            await self._flush(is_last=True)
        except QrafError as fault:
            log.warning("%d audit lines are lost: %s", len(self._waiting), fault)

    def _add(self, what: tuple[str, ...], request: str, times: int = 1) -> None:
        old = self._waiting.get(what)
        if old is not None:
            self._waiting[what] = msgspec.structs.replace(old, times=old.times + times)
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
            times=times,
        )

    async def _flush_later(self) -> None:
        while self._waiting:
            await asyncio.sleep(_EVERY_S)
            try:
                await self._flush()
            except QrafError as fault:
                log.warning("audit lines wait for the journal: %s", fault)

    def _due(self, is_last: bool) -> dict[tuple[str, ...], AuditRecord]:
        """Take what is to be written now."""
        now = self._clock.monotonic()
        self._budget = min(_BURST, self._budget + _PER_S * (now - self._budget_at))
        self._budget_at = now
        lines: dict[tuple[str, ...], AuditRecord] = {}
        for what in sorted(self._waiting, key=lambda what: what == _MORE):  # to which what goes before may add
            is_change = what[4] == _DONE
            if not is_change and not is_last and now - self._written.get(what, float("-inf")) < _AGAIN_S:
                continue
            line = self._waiting.pop(what)
            if not is_change and what != _MORE and self._budget < 1.0:
                self._add(_MORE, "", line.times)
                continue
            if not is_change and what != _MORE:
                self._budget -= 1.0
            lines[what] = line
            self._written[what] = now
            self._written.move_to_end(what)
        while len(self._written) > _MAX_LINES:
            self._written.popitem(last=False)
        return lines

    async def _flush(self, is_last: bool = False) -> None:
        async with self._writing:
            lines = self._due(is_last)
            if is_last:
                lines |= self._due(is_last)  # what has become `more`
            if not lines:
                return
            try:
                await asyncio.to_thread(self._table.note, list(lines.values()))
            except BaseException:
                for what, line in lines.items():
                    self._written.pop(what, None)
                    newer = self._waiting.get(what)
                    times = line.times + (newer.times if newer is not None else 0)
                    self._waiting[what] = msgspec.structs.replace(line, times=times)
                raise
