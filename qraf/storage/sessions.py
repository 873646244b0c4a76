"""The journal's table of sessions. Their metadata is sealed under the key of their memory, which is made with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, delete, insert, or_, select, update

from qraf.errors import SealBroken
from qraf.records import session_memory
from qraf.storage import tables
from qraf.storage.base import Store
from qraf.storage.line import retried
from qraf.storage.pages import check_limit, decode_cursor, encode_cursor, of_tenant
from qraf.storage.records import SessionRecord
from qraf.storage.rows import session_of, session_row
from qraf.storage.sealed import open_session, seal_session
from qraf.tenants import DEFAULT_TENANT

__all__ = ["SessionStore"]

_sessions = tables.sessions


class SessionStore(Store):
    """Sessions by id."""

    @retried
    def create_session(self, record: SessionRecord) -> bool:
        """Write a session unless one of that id is there; whether it was written. Safe against other processes."""
        row = session_row(record)
        with self._write("create session") as connection:
            if _is_there(connection, record.id):
                return False
            connection.execute(insert(_sessions).values(self._sealed(connection, row)))
        return True

    @retried
    def put_session(self, record: SessionRecord) -> None:
        """Write a session, or write it over."""
        row = session_row(record)
        with self._write("write session") as connection:
            connection.execute(delete(_sessions).where(_sessions.c.id == record.id))
            connection.execute(insert(_sessions).values(self._sealed(connection, row)))

    @retried
    def update_session(self, record: SessionRecord) -> bool:
        """Write a session over if it is there; whether it was."""
        row = session_row(record)
        with self._write("write session") as connection:
            if not _is_there(connection, record.id):
                return False
            sealed = self._sealed(connection, row)
            connection.execute(update(_sessions).where(_sessions.c.id == record.id).values(sealed))
        return True

    @retried
    def get_session(self, id: str) -> SessionRecord | None:
        """The session, expired or not."""
        with self._read("read session") as connection:
            found = self._records(connection, select(_sessions).where(_sessions.c.id == id))
        return found[0] if found else None

    @retried
    def list_sessions(
        self, cursor: str | None = None, limit: int = 50, tenant: str = DEFAULT_TENANT
    ) -> tuple[list[SessionRecord], str | None]:
        """A page of a tenant's sessions, oldest first, and the cursor of the next one."""
        check_limit(limit)
        query = (
            select(_sessions)
            .where(of_tenant(_sessions.c.id, tenant))
            .order_by(_sessions.c.created_at, _sessions.c.id)
            .limit(limit + 1)
        )
        if cursor is not None:
            created_at, last_id = decode_cursor("sessions", cursor, (float, str))
            later = and_(_sessions.c.created_at == created_at, _sessions.c.id > last_id)
            query = query.where(or_(_sessions.c.created_at > created_at, later))
        with self._read("list sessions") as connection:
            found = self._records(connection, query, is_list=True)
        last = found[limit - 1] if len(found) > limit else None
        return found[:limit], None if last is None else encode_cursor("sessions", float(last.created_at), last.id)

    @retried
    def expired_sessions(self, limit: int = 100) -> list[SessionRecord]:
        """Sessions whose time is over, for the caller to delete."""
        query = select(_sessions).where(_sessions.c.expires_at <= self._clock.now())
        with self._read("read expired sessions") as connection:
            return self._records(connection, query.order_by(_sessions.c.expires_at).limit(limit), is_list=True)

    @retried
    def delete_session(self, id: str) -> bool:
        """Delete the session's row; whether it was there. Its items, and its key, are `drop_memory`'s."""
        with self._write("delete session") as connection:
            return bool(connection.execute(delete(_sessions).where(_sessions.c.id == id)).rowcount)

    def _sealed(self, connection: Connection, row: dict[str, Any]) -> dict[str, Any]:
        memory = session_memory(row["id"])
        return seal_session(row, self._keyring.current(connection, [memory]).get(memory))

    def _records(self, connection: Connection, query: Select[Any], *, is_list: bool = False) -> list[SessionRecord]:
        """The records of a query; read once more if one does not open, because it may have been on its way out.

        In a list one that does not open has no metadata, so that it does not hide the others; the log names it.
        """
        try:
            return self._opened_sessions(connection, connection.execute(query).all())
        except SealBroken:
            records = []
            for row in connection.execute(query).all():
                try:
                    with self._keyring.noting():
                        records += self._opened_sessions(connection, [row])
                except SealBroken:
                    if not is_list:
                        raise
                    records.append(session_of(row, b"{}"))
            return records

    def _opened_sessions(self, connection: Connection, rows: Sequence[Row[Any]]) -> list[SessionRecord]:
        keys = self._keyring.by_id(connection, [row.key for row in rows])
        plain = [session_memory(row.id) for row in rows if row.key is None]
        sealed = self._keyring.sealed(connection, plain)
        return [open_session(row, keys, sealed) for row in rows]


def _is_there(connection: Connection, id: str) -> bool:
    return connection.execute(select(_sessions.c.id).where(_sessions.c.id == id)).first() is not None
