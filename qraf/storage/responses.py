"""The journal's table of responses: what another gateway has to know of them when a client asks it for one.

A response is written when it begins and when it has ended, and in between while somebody elsewhere wants it. Its row
belongs to one life of a gateway (`epoch`), which says that it is alive by `beat`; when that life is over, `bury` ends
what still ran. What a response said is sealed under the key of its session, or of its tenant's responses.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, delete, func, insert, or_, select, update

from qraf.clock import Clock
from qraf.errors import SealBroken
from qraf.frames import ErrorBody, Usage
from qraf.records import Figures, session_memory
from qraf.storage import tables
from qraf.storage.chunks import chunks
from qraf.storage.keyring import Keyring, responses_scope
from qraf.storage.line import Line, retried
from qraf.storage.seal import DataKey, NotOpened, bound

__all__ = ["GatewayRecord", "ResponseBody", "ResponseRecord", "ResponseTable"]

_LONGEST_ID = 64
_responses, _gateways, _sessions = tables.responses, tables.gateways, tables.sessions


class ResponseBody(msgspec.Struct, frozen=True, kw_only=True):
    """What of a response is sealed. `request` is the digest of the command that its key stands for.

    `frames`: its last frames up to the row's `seq`, as its ring keeps them, where somebody elsewhere follows it.
    """

    command: str = ""
    model: str = ""
    request: bytes = b""
    text: str = ""
    frames: tuple[bytes, ...] = ()
    finish_reason: str = ""
    usage: Usage = Usage()
    state: Figures = Figures()
    error: ErrorBody | None = None


class ResponseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A response as the journal holds it. `seq` is that of the last frame that is known, 0 where none is.

    That is the last of all when it has ended, unless its gateway died (`is_lost`).
    """

    id: str
    stream: str
    tenant: str
    epoch: str
    status: str
    created_at: float
    session: str | None = None
    key: str | None = None
    ended_at: float | None = None
    seq: int = 0
    wished_at: float = 0.0
    body: ResponseBody = ResponseBody()

    @property
    def is_lost(self) -> bool:
        """Whether it has failed because its gateway died."""
        return self.status == "failed" and self.body.error is None


class GatewayRecord(msgspec.Struct, frozen=True):
    """A life of a gateway, and when it last said that it is alive (seconds since 1970)."""

    epoch: str
    name: str
    seen_at: float


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ResponseBody).decode


class ResponseTable:
    """The responses of a journal, which makes it; every method blocks and may raise `StorageFailed`."""

    def __init__(
        self,
        write: Callable[..., AbstractContextManager[Connection]],
        read: Callable[[str], AbstractContextManager[Connection]],
        clock: Clock,
        line: Line,
        keyring: Keyring,
    ) -> None:
        self._write, self._read, self._clock, self.line, self._keyring = write, read, clock, line, keyring

    # ------------------------------------------------------------------------------------------------ responses
    @retried
    def put(self, records: Sequence[ResponseRecord]) -> None:
        """Write responses that begin, go on or have ended; none goes back, and after its end none changes any more.

        Those of sessions that were deleted, or whose key does not open, are left out. This does not wait for the disk.
        """
        with self._write("write responses", "relaxed") as connection:
            ids = [one.id for one in records]
            there = set(connection.execute(select(_responses.c.id).where(_responses.c.id.in_(ids))).scalars())
            sessions = {one.session for one in records if one.session is not None}
            known = set(connection.execute(select(_sessions.c.id).where(_sessions.c.id.in_(sessions))).scalars())
            kept = [one for one in records if one.session is None or one.session in known]
            keys = self._keys(connection, {_scope(one.tenant, one.session) for one in kept})
            new = []
            for one in kept:
                scope = _scope(one.tenant, one.session)
                if scope not in keys:
                    continue
                key = keys[scope]
                body = _encode(one.body)
                row = {
                    "status": one.status,
                    "ended_at": one.ended_at,
                    "seq": one.seq,
                    "body": body if key is None else key.seal(body, _belongs(one.tenant, one.id)),
                    "key": None if key is None else key.id,
                }
                if one.id in there:
                    runs = (_responses.c.id == one.id, _responses.c.status == "running", _responses.c.seq <= one.seq)
                    connection.execute(update(_responses).where(*runs).values(row))
                    continue
                row |= {"id": one.id, "stream": one.stream, "asked": _digest(one.key), "tenant": one.tenant}
                row |= {"session": one.session, "epoch": one.epoch, "created_at": one.created_at}
                new.append(row | {"wish": "", "wished_at": 0.0})
            if new:
                connection.execute(insert(_responses), new)
                self._mark_twins(connection, new)

    @retried
    def find(self, tenant: str, name: str, key: str | None = None) -> ResponseRecord | None:
        """A tenant's response by id, stream or key, the newest; None also where its session was erased."""
        names = []
        if len(name) <= _LONGEST_ID and name.isascii() and name.isprintable():
            names = [_responses.c.id == name, _responses.c.stream == name]
        if key:
            names.append(_responses.c.asked == _digest(key))
        query = select(_responses).where(_responses.c.tenant == tenant, or_(False, *names))
        with self._read("read response") as connection:
            row = connection.execute(query.order_by(_responses.c.created_at.desc()).limit(1)).first()
            return None if row is None else self._opened(connection, row)

    @retried
    def news(self, known: Mapping[str, int]) -> dict[str, ResponseRecord | None]:
        """Of these responses, by id and last known `seq`, those that went on or ended; None: it is gone."""
        found: dict[str, ResponseRecord | None] = dict.fromkeys(known)
        columns = select(_responses.c.id, _responses.c.status, _responses.c.seq)
        with self._read("read responses") as connection:
            for chunk in chunks(known):
                for row in connection.execute(columns.where(_responses.c.id.in_(chunk))).all():
                    if row.status == "running" and row.seq <= known[row.id]:
                        del found[row.id]
            for chunk in chunks(found):
                for row in connection.execute(select(_responses).where(_responses.c.id.in_(chunk))).all():
                    with contextlib.suppress(SealBroken), self._keyring.noting():
                        found[row.id] = self._opened(connection, row)
        return found

    @retried
    def wish(self, ids: Collection[str], what: str) -> None:
        """Tell the gateway that runs responses what clients of another one want: `read` or `cancel`."""
        change = {"wish": what, "wished_at": self._clock.now()}
        runs = (_responses.c.status == "running", _responses.c.wish != "cancel")
        with self._write("write responses", "relaxed") as connection:
            for chunk in chunks(ids):
                connection.execute(update(_responses).where(_responses.c.id.in_(chunk), *runs).values(change))

    @retried
    def wishes(self, epoch: str) -> dict[str, tuple[str, float]]:
        """What clients of other gateways want of the responses of this life that run, and since when.

        `read`, `cancel`, or `leave`: the client that asked for it has another one, so it may end if nobody reads it.
        """
        query = select(_responses.c.id, _responses.c.wish, _responses.c.wished_at).where(
            _responses.c.epoch == epoch, _responses.c.status == "running", _responses.c.wish != ""
        )
        with self._read("read responses") as connection:
            return {row.id: (row.wish, row.wished_at) for row in connection.execute(query)}

    @retried
    def running(self, epoch: str) -> tuple[list[str], dict[str, float]]:
        """What runs: the ids of this life's, and the other lives that have some, each with when the first began."""
        others = select(_responses.c.epoch, func.min(_responses.c.created_at)).group_by(_responses.c.epoch)
        runs = _responses.c.status == "running"
        with self._read("read responses") as connection:
            mine = connection.execute(select(_responses.c.id).where(_responses.c.epoch == epoch, runs)).scalars().all()
            rows = connection.execute(others.where(_responses.c.epoch != epoch, runs)).all()
        return list(mine), {row[0]: row[1] for row in rows}

    @retried
    def lose(self, ids: Collection[str]) -> None:
        """These run no more, and nobody knows what became of them: they have failed."""
        change = {"status": "failed", "ended_at": self._clock.now()}
        with self._write("write responses", "relaxed") as connection:
            for chunk in chunks(ids):
                runs = (_responses.c.id.in_(chunk), _responses.c.status == "running")
                connection.execute(update(_responses).where(*runs).values(change))

    @retried
    def sweep(self, ended_before: float) -> None:
        """Delete responses that ended before a time."""
        query = select(_responses.c.id).where(_responses.c.ended_at < ended_before).limit(1)
        with self._read("read responses") as connection:
            if connection.execute(query).first() is None:
                return
        with self._write("delete responses", "relaxed") as connection:
            connection.execute(delete(_responses).where(_responses.c.ended_at < ended_before))

    # ------------------------------------------------------------------------------------------------- gateways
    @retried
    def beat(self, epoch: str, name: str) -> None:
        """This life of a gateway goes on."""
        now = self._clock.now()
        with self._write("write gateways", "relaxed") as connection:
            change = update(_gateways).where(_gateways.c.epoch == epoch).values(seen_at=now)
            if not connection.execute(change).rowcount:
                connection.execute(insert(_gateways).values(epoch=epoch, name=name, seen_at=now))

    @retried
    def gateways(self) -> list[GatewayRecord]:
        """Those that are alive, or were not buried yet."""
        with self._read("read gateways") as connection:
            return [GatewayRecord(row.epoch, row.name, row.seen_at) for row in connection.execute(select(_gateways))]

    @retried
    def bury(self, epochs: Collection[str]) -> int:
        """These lives are over: what still ran in them has failed; how many responses that were."""
        change = {"status": "failed", "ended_at": self._clock.now()}
        runs = (_responses.c.epoch.in_(epochs), _responses.c.status == "running")
        with self._write("write gateways") as connection:
            ended = connection.execute(update(_responses).where(*runs).values(change)).rowcount
            connection.execute(delete(_gateways).where(_gateways.c.epoch.in_(epochs)))
        return ended

    def _mark_twins(self, connection: Connection, new: Sequence[Mapping[str, Any]]) -> None:
        """Of a command that came to two gateways at the same moment the response that nobody reads may stop."""
        asked = {row["asked"]: row["id"] for row in new if row["asked"]}
        twins = (_responses.c.tenant.in_({row["tenant"] for row in new}), _responses.c.asked.in_(asked))
        runs = (_responses.c.status == "running", _responses.c.wish == "", _responses.c.id.not_in(asked.values()))
        if asked:
            connection.execute(update(_responses).where(*twins, *runs).values(wish="leave"))

    def _keys(self, connection: Connection, scopes: Collection[str]) -> dict[str, DataKey | None]:
        """The key of each scope, None where it has none; what does not open is missing, and told in the log."""
        with contextlib.suppress(SealBroken):
            found = self._keyring.current(connection, scopes)
            return {scope: found.get(scope) for scope in scopes}
        keys: dict[str, DataKey | None] = {}
        for scope in scopes:  # one by one: the others' responses go on
            with contextlib.suppress(SealBroken), self._keyring.noting():
                keys[scope] = self._keyring.current(connection, [scope]).get(scope)
        return keys

    def _opened(self, connection: Connection, row: Any) -> ResponseRecord | None:
        scope, key = _scope(row.tenant, row.session), None
        if row.key is not None:
            key = self._keyring.by_id(connection, [row.key]).get(row.key)
            if key is None:  # its session was erased
                return None
        elif self._keyring.sealed(connection, [scope]):
            return None  # of a time before this scope was sealed, or put there by somebody else
        return ResponseRecord(
            id=row.id,
            stream=row.stream,
            tenant=row.tenant,
            epoch=row.epoch,
            status=row.status,
            created_at=row.created_at,
            session=row.session,
            ended_at=row.ended_at,
            seq=row.seq,
            wished_at=row.wished_at,
            body=_body(row, scope, key),
        )


def _body(row: Row[Any], scope: str, key: DataKey | None) -> ResponseBody:
    try:
        return _decode(row.body if key is None else key.open(row.body, _belongs(row.tenant, row.id)))
    except (NotOpened, msgspec.DecodeError):
        why = "it was changed or is another's"
        raise SealBroken(row.tenant, scope, f"response '{row.id}'", why) from None


def _scope(tenant: str, session: str | None) -> str:
    return responses_scope(tenant) if session is None else session_memory(session)


def _belongs(tenant: str, id: str) -> bytes:
    return bound(tenant, "responses", id)


def _digest(key: str | None) -> bytes:
    return hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=16).digest() if key else b""
