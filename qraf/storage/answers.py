"""Answers kept for a request that comes again: what was asked under an `Idempotency-Key`, and what came of it.

The row is there before the work begins, so that of two requests with one key, on whichever gateways, one works. It is
sealed under the key of its tenant's states: neither the client's key nor what was asked can be read from it. An answer
about a session is sealed under that session's key and goes with it. Nothing here waits for the disk: what a request
wrote does, and a repeat finds that by its ids where the row was lost with the machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import msgspec
from sqlalchemy import Connection, Row, delete, insert, select, update

from qraf.clock import Clock
from qraf.errors import SealBroken
from qraf.records import session_memory
from qraf.storage import tables
from qraf.storage.keyring import Keyring
from qraf.storage.line import Line, retried
from qraf.storage.seal import NotOpened, bound

__all__ = ["AnswerTable", "KeptAnswer"]

_answers = tables.answers
_pack = msgspec.msgpack.Encoder().encode

Begin = Callable[[str, str], AbstractContextManager[Connection]]


class KeptAnswer(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What was asked, as a digest, and its answer: `status` 0 while somebody works on it.

    `is_whole`: the body is here; a very long one is not kept.
    """

    asked: bytes
    status: int = 0
    headers: dict[str, str] = {}
    body: bytes = b""
    is_whole: bool = True


class AnswerTable:
    """The kept answers of a journal, which makes it; methods block and may raise `StorageFailed`."""

    def __init__(self, write: Begin, clock: Clock, line: Line, keyring: Keyring) -> None:
        self._write, self._clock, self.line, self._keyring = write, clock, line, keyring

    @retried
    def begin(self, tenant: str, name: str, asked: bytes, attempt: str, lease_s: float) -> KeptAnswer | None:
        """Take a name for an attempt, for `lease_s` seconds; None where it is taken now, else what is there already.

        Raises:
            SealBroken: what is there does not open.
        """
        now, row_name = self._clock.now(), _name(tenant, name)
        with self._write("begin a request", "relaxed") as connection:
            connection.execute(delete(_answers).where(_answers.c.expires_at <= now))
            row = connection.execute(select(_answers).where(_answers.c.name == row_name)).first()
            if row is not None:
                # the same attempt: the call was made again because its own answer was lost
                return None if row.attempt == attempt else self._opened(connection, row)
            made = {"name": row_name, "tenant": tenant, "attempt": attempt, "is_done": False, "begun_at": now}
            sealed = self._sealed(connection, tenant, row_name, KeptAnswer(asked=asked), None)
            made |= {"expires_at": now + lease_s, **sealed}
            connection.execute(insert(_answers).values(**made))
        return None

    @retried
    def finish(
        self, tenant: str, name: str, attempt: str, answer: KeptAnswer, kept_s: float, session: str | None = None
    ) -> None:
        """Keep the answer of an attempt; one that has lost its name meanwhile keeps nothing.

        `session`: that the answer is about, as it is known inside; where it is gone already, the name is free again.
        """
        row_name = _name(tenant, name)
        with self._write("keep an answer", "relaxed") as connection:
            own = (_answers.c.name == row_name, _answers.c.attempt == attempt)
            if session is not None:
                there = select(tables.sessions.c.id).where(tables.sessions.c.id == session)
                if connection.execute(there).first() is None:
                    connection.execute(delete(_answers).where(*own))
                    return
            change = self._sealed(connection, tenant, row_name, answer, session)
            change |= {"is_done": True, "expires_at": self._clock.now() + kept_s}
            connection.execute(update(_answers).where(*own).values(**change))

    @retried
    def renew(self, tenant: str, name: str, attempt: str, lease_s: float) -> None:
        """An attempt is still at work: its name is taken for `lease_s` seconds from now."""
        with self._write("hold a request", "relaxed") as connection:
            own = (_answers.c.name == _name(tenant, name), _answers.c.attempt == attempt, _answers.c.is_done.is_(False))
            connection.execute(update(_answers).where(*own).values(expires_at=self._clock.now() + lease_s))

    @retried
    def give_up(self, tenant: str, name: str, attempt: str) -> None:
        """Free the name of an attempt that changed nothing."""
        with self._write("free a request", "relaxed") as connection:
            own = (_answers.c.name == _name(tenant, name), _answers.c.attempt == attempt)
            connection.execute(delete(_answers).where(*own))

    @retried
    def trim(self, tenant: str, most: int) -> int:
        """Let go of a tenant's oldest answers beyond `most`; how many went."""
        with self._write("trim answers", "relaxed") as connection:
            mine = select(_answers.c.begun_at).where(_answers.c.tenant == tenant, _answers.c.is_done)
            last = connection.execute(mine.order_by(_answers.c.begun_at.desc()).offset(most).limit(1)).scalar()
            if last is None:
                return 0
            old = (_answers.c.tenant == tenant, _answers.c.is_done, _answers.c.begun_at <= last)
            return int(connection.execute(delete(_answers).where(*old)).rowcount)

    def _sealed(
        self, connection: Connection, tenant: str, name: bytes, answer: KeptAnswer, session: str | None
    ) -> dict[str, object]:
        scope, plain = _scope(tenant, session), _pack(answer)
        key = self._keyring.current(connection, {scope}).get(scope)
        if key is None:
            return {"body": plain, "key": None, "session": session}
        return {"body": key.seal(plain, _belongs(tenant, name)), "key": key.id, "session": session}

    def _opened(self, connection: Connection, row: Row[tuple[object, ...]]) -> KeptAnswer:
        body, scope, why = bytes(row.body), _scope(row.tenant, row.session), "it was changed or is another's"
        try:
            if row.key is not None:
                body = self._keyring.by_id(connection, [row.key])[row.key].open(body, _belongs(row.tenant, row.name))
            elif self._keyring.sealed(connection, {scope}):
                why = "it is not sealed, and others are"
                raise NotOpened
            return msgspec.msgpack.decode(body, type=KeptAnswer)
        except (KeyError, NotOpened, msgspec.DecodeError):
            raise SealBroken(row.tenant, scope, "a kept answer", why) from None


def _scope(tenant: str, session: str | None) -> str:
    return f"states/{tenant}" if session is None else session_memory(session)


def _name(tenant: str, name: str) -> bytes:
    return hashlib.sha256(f"{tenant}\0{name}".encode()).digest()


def _belongs(tenant: str, name: bytes) -> bytes:
    return bound(tenant, "answers", bytes(name).hex())
