"""Sessions: opened, found, paused, resumed, listed, expired and deleted; and who speaks in a memory."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from ulid import ULID

from qraf.clock import Clock
from qraf.errors import InvalidRequest, SessionClosed, SessionNotFound, StorageFailed
from qraf.network.placement import session_node
from qraf.network.topology import CODE_FIDELITY, Topology
from qraf.records import MIN_BUDGET_BYTES
from qraf.storage.journal import Journal
from qraf.storage.records import SessionRecord
from qraf.storage.rows import encode_json
from qraf.tenants import DEFAULT_TENANT, check_tenant, plain, tenant_of

__all__ = ["Sessions", "check_name"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}", re.ASCII)
_MAX_TTL_S = 10 * 366 * 86_400.0
_MAX_BUDGET_BYTES = 1 << 40
_MAX_RANK = 4096  # as in a topology
_FRESH_S = 1.0  # how old a remembered record may be; what other gateways did is seen after this
_MAX_RECORDS = 10_000
_SPEAKERS_FRESH_S = 30.0  # what other gateways wrote is seen after this
_MAX_MEMORIES, _MAX_SPEAKERS = 10_000, 4096

_Page = tuple[list[SessionRecord], str | None]


def check_name(name: str, pointer: str) -> str:
    """A name that a user may give to a session: 1 to 128 letters, digits, `.`, `_`, `:`, `-`, the first no sign."""
    if _NAME.fullmatch(name) is None:
        need = "must be 1 to 128 letters, digits and . _ : -, and begin with a letter or digit"
        raise InvalidRequest(f"{need}, but is {name!r:.80}", pointer)
    return name


class Sessions:
    """The sessions of a journal, as one gateway sees them. Belongs to one event loop; the journal works in threads.

    A session with `ttl_s` expires that long after it was last made, opened or resumed. From then on it cannot be opened
    or written to, and it is gone when the caller has deleted what `expired` lists.
    """

    def __init__(self, journal: Journal, topology: Topology, clock: Clock, *, max_metadata_bytes: int = 4096) -> None:
        self._journal, self._topology, self._clock = journal, topology, clock
        self._max_metadata_bytes = max_metadata_bytes
        self._records: OrderedDict[str, tuple[float, SessionRecord]] = OrderedDict()
        self._speakers: OrderedDict[str, _Speakers] = OrderedDict()

    # ------------------------------------------------------------------------------------------------------ sessions
    async def open(
        self,
        session: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        ttl_s: float | None = None,
        create: bool = True,
        bits: int | None = None,
        budget_bytes: int | None = None,
    ) -> tuple[SessionRecord, bool]:
        """Find a session or make it; the record, and whether it is new. `bits` and `budget_bytes` are a new one's.

        Without `session` a new one gets an id. `metadata` counts for a new one only; `ttl_s`, when given, for an old
        one too, and opening starts the time anew. A paused session is found and stays paused.

        Raises:
            SessionNotFound: it is not there, and `create` is false.
            SessionClosed: it has expired.
            InvalidRequest: a name, metadata or a time to live that cannot be.
        """
        _check_ttl(ttl_s)
        _check_memory(bits, budget_bytes)
        if session is None:
            if not create:
                raise InvalidRequest("`create: false` needs the name of a session", "/session")
            session = f"ses_{ULID()}"
        else:
            check_tenant(tenant_of(session), "/session")
            check_name(plain(session), "/session")
        metadata = dict(metadata or {})
        size = len(encode_json(metadata, "a session's metadata", "/metadata"))
        if size > self._max_metadata_bytes:
            raise InvalidRequest(f"may have {self._max_metadata_bytes} bytes as JSON, but has {size}", "/metadata")
        while True:
            found = await self._load(session)
            if found is not None:
                self._refuse_expired(found)
                if (renewed := self._renewed(found, ttl_s)) != found:
                    found = await self._update(renewed)
                return found, False
            if not create:
                raise SessionNotFound(session)
            now = self._clock.now()
            record = SessionRecord(
                id=session,
                created_at=now,
                metadata=metadata,
                ttl_s=ttl_s,
                expires_at=None if ttl_s is None else now + ttl_s,
                node_hint=self.home(session),
                bits=bits,
                budget_bytes=budget_bytes,
            )
            if await asyncio.to_thread(self._journal.create_session, record):
                self._remember(record)
                return record, True
            # another gateway made it between the two looks

    async def get(self, session: str) -> SessionRecord:
        """The record, expired or not; up to a second old where another gateway changed it.

        While the journal does not answer: the record as it was known last.

        Raises:
            SessionNotFound: there is none.
        """
        known = self._records.get(session)
        if known is not None and self._clock.monotonic() - known[0] < _FRESH_S:
            self._records.move_to_end(session)
            return known[1]
        try:
            found = await self._load(session)
        except StorageFailed:
            if known is not None:
                return known[1]
            raise
        if found is None:
            raise SessionNotFound(session)
        return found

    async def active(self, session: str) -> SessionRecord:
        """As `get`; raises SessionClosed where it is paused."""
        record = await self.get(session)
        if record.state == "paused":
            raise SessionClosed(session, "it is paused")
        return record

    async def writable(self, session: str) -> SessionRecord:
        """The record of a session that takes writes.

        Raises:
            SessionNotFound: there is none.
            SessionClosed: it is paused or has expired.
        """
        record = await self.get(session)
        self._refuse_expired(record)
        if record.state == "paused":
            raise SessionClosed(session, "it is paused")
        return record

    async def list(self, cursor: str | None = None, limit: int = 50, tenant: str = DEFAULT_TENANT) -> _Page:
        """A page of a tenant's sessions, oldest first, and the cursor of the next one."""
        return await asyncio.to_thread(self._journal.list_sessions, cursor, limit, tenant)

    async def pause(self, session: str) -> SessionRecord:
        """Refuse writes and prompts until it is resumed. Twice is harmless."""
        return await self._update(msgspec.structs.replace(await self._loaded(session), state="paused"))

    async def resume(self, session: str) -> SessionRecord:
        """Take writes and prompts again; its time to live starts anew. Twice is harmless."""
        record = await self._loaded(session)
        self._refuse_expired(record)
        return await self._update(msgspec.structs.replace(self._renewed(record, None), state="open"))

    async def configure(
        self,
        session: str,
        bits: int | UnsetType | None = UNSET,
        budget_bytes: int | UnsetType | None = UNSET,
        rank: int | UnsetType | None = UNSET,
    ) -> tuple[SessionRecord, bool]:
        """Say what precision, byte budget and rank the session's memory has; the record, and whether it changed.

        None: what the node says. What is unset stays.

        Raises:
            SessionNotFound: there is none.
            SessionClosed: it has expired.
            InvalidRequest: no such precision, or a budget or a rank that is too small or too large.
        """
        record = await self._loaded(session)
        self._refuse_expired(record)
        changed = msgspec.structs.replace(
            record,
            bits=record.bits if bits is UNSET else bits,
            budget_bytes=record.budget_bytes if budget_bytes is UNSET else budget_bytes,
            rank=record.rank if rank is UNSET else rank,
        )
        _check_memory(changed.bits, changed.budget_bytes, changed.rank)
        return (record, False) if changed == record else (await self._update(changed), True)

    async def delete(self, session: str) -> None:
        """Delete the session: from now on nothing is written to it. Its items are the journal's to drop.

        Raises:
            SessionNotFound: there is none.
        """
        self._records.pop(session, None)
        self._speakers.pop(f"s/{session}", None)
        if not await asyncio.to_thread(self._journal.delete_session, session):
            raise SessionNotFound(session)
        self._records.pop(session, None)  # a `get` may have remembered it meanwhile

    async def expired(self) -> tuple[str, ...]:
        """Sessions whose time is over, some hundred at once, for the caller to delete with all they hold."""
        return tuple(record.id for record in await asyncio.to_thread(self._journal.expired_sessions))

    def home(self, session: str) -> str:
        """The node that holds the session's memory."""
        return session_node(self._topology, session)

    # ------------------------------------------------------------------------------------------------------ speakers
    async def speakers(self, memory: str) -> tuple[str, ...]:
        """Who speaks in a memory, by name; prompts are encoded without these names.

        While the journal does not answer: those known so far.
        """
        known = self._known_speakers(memory)
        now = self._clock.monotonic()
        if known.loaded_at is None or now - known.loaded_at >= _SPEAKERS_FRESH_S:
            with contextlib.suppress(StorageFailed):
                known.add(await asyncio.to_thread(self._journal.speakers, memory))
                known.loaded_at = now
        return known.names

    def note_speakers(self, memory: str, speakers: Iterable[str | None]) -> None:
        """Somebody spoke in a memory just now."""
        self._known_speakers(memory).add(name for name in speakers if name is not None)

    def _known_speakers(self, memory: str) -> _Speakers:
        known = self._speakers.setdefault(memory, _Speakers())
        self._speakers.move_to_end(memory)
        if len(self._speakers) > _MAX_MEMORIES:
            self._speakers.popitem(last=False)
        return known

    # ------------------------------------------------------------------------------------------------------- helpers
    async def _load(self, session: str) -> SessionRecord | None:
        found = await asyncio.to_thread(self._journal.get_session, session)
        if found is None:
            self._records.pop(session, None)
        else:
            self._remember(found)
        return found

    async def _loaded(self, session: str) -> SessionRecord:
        found = await self._load(session)
        if found is None:
            raise SessionNotFound(session)
        return found

    async def _update(self, record: SessionRecord) -> SessionRecord:
        if not await asyncio.to_thread(self._journal.update_session, record):
            self._records.pop(record.id, None)
            raise SessionNotFound(record.id)
        self._remember(record)
        return record

    def _remember(self, record: SessionRecord) -> None:
        self._records[record.id] = self._clock.monotonic(), record
        self._records.move_to_end(record.id)
        if len(self._records) > _MAX_RECORDS:
            self._records.popitem(last=False)

    def _renewed(self, record: SessionRecord, ttl_s: float | None) -> SessionRecord:
        ttl_s = record.ttl_s if ttl_s is None else ttl_s
        expires_at = None if ttl_s is None else self._clock.now() + ttl_s
        node = self.home(record.id)
        return msgspec.structs.replace(record, ttl_s=ttl_s, expires_at=expires_at, node_hint=node)

    def _refuse_expired(self, record: SessionRecord) -> None:
        if record.expires_at is not None and record.expires_at <= self._clock.now():
            raise SessionClosed(record.id, "it has expired")


class _Speakers:
    """The names known of one memory, and when the journal was last asked."""

    __slots__ = ("_found", "loaded_at", "names")

    def __init__(self) -> None:
        self._found: set[str] = set()
        self.names: tuple[str, ...] = ()
        self.loaded_at: float | None = None

    def add(self, names: Iterable[str]) -> None:
        new = set(names) - self._found
        if new and len(self._found) < _MAX_SPEAKERS:
            self._found |= new
            self.names = tuple(sorted(self._found))


def _check_memory(bits: int | None, budget_bytes: int | None, rank: int | None = None) -> None:
    if bits is not None and bits not in CODE_FIDELITY:
        raise InvalidRequest(f"must be one of {', '.join(map(str, sorted(CODE_FIDELITY)))}, but is {bits}", "/bits")
    if budget_bytes is not None and not MIN_BUDGET_BYTES <= budget_bytes <= _MAX_BUDGET_BYTES:
        need = f"must be {MIN_BUDGET_BYTES} to {_MAX_BUDGET_BYTES} bytes"
        raise InvalidRequest(f"{need}, but is {budget_bytes}", "/budget_bytes")
    if rank is not None and not 1 <= rank <= _MAX_RANK:
        raise InvalidRequest(f"must be from 1 to {_MAX_RANK}, but is {rank}", "/rank")


def _check_ttl(ttl_s: float | None) -> None:
    if ttl_s is not None and not (math.isfinite(ttl_s) and 0 < ttl_s <= _MAX_TTL_S):
        raise InvalidRequest(f"must be more than 0 and at most {_MAX_TTL_S:.0f} seconds, but is {ttl_s}", "/ttl_s")
