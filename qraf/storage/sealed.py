"""Rows of the journal, sealed and opened. A row without a key is plain, and goes through as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, bindparam, delete, func, select, update

from qraf.errors import SealBroken
from qraf.records import Item, session_memory
from qraf.storage import tables
from qraf.storage.keyring import Keyring, states_scope
from qraf.storage.records import SessionRecord
from qraf.storage.rows import item_of, session_of
from qraf.storage.seal import DataKey, NotOpened, bound
from qraf.storage.snapshots import erase
from qraf.tenants import tenant_of

__all__ = [
    "open_items",
    "open_session",
    "open_state",
    "plain_scopes",
    "seal_code",
    "seal_item",
    "seal_old",
    "seal_session",
    "seal_state",
]

_items, _codes, _sessions, _states = tables.items, tables.codes, tables.sessions, tables.states
_CHUNK = 500


class _Body(msgspec.Struct, array_like=True):
    """What of an item is sealed together."""

    text: bytes
    speaker: str | None
    metadata: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Body).decode


# ------------------------------------------------------------------------------------------------------------- items
def seal_item(row: dict[str, Any], key: DataKey) -> dict[str, Any]:
    """A row of `items` with its number; it is sealed in place."""
    memory, seq, item_id, speaker = row["memory"], row["seq"], row["item_id"], row["speaker"]
    body = _encode(_Body(row["text"], speaker, row["metadata"]))
    given = row["amplitudes"]
    row["text"] = key.seal(body, _of_item(memory, seq, item_id, "item"))
    row["speaker"] = None if speaker is None else key.token(speaker)
    row["metadata"] = b""
    row["amplitudes"] = None if given is None else key.seal(given, _of_item(memory, seq, item_id, "amplitudes"))
    row["key"] = key.id
    return row


def seal_code(memory: str, seq: int, item_id: str, code: str, rows: bytes, key: DataKey | None) -> bytes:
    """Coded amplitudes, sealed under the key of their item; without one as they are."""
    return rows if key is None else key.seal(rows, _of_item(memory, seq, item_id, f"codes {code}"))


def open_items(connection: Connection, keyring: Keyring, rows: Sequence[Row[Any]]) -> list[tuple[str, Item]]:
    """Memory and item of each row of `items` joined with `codes`.

    Raises:
        SealBroken: a row does not open, or is plain in a memory that is sealed.
    """
    keys = keyring.by_id(connection, {row.key for row in rows})
    if len(keys) < len(rows) and (plain := {row.memory for row in rows if row.key is None}):
        for memory in keyring.sealed(connection, plain):
            seq = next(row.seq for row in rows if row.key is None and row.memory == memory)
            raise SealBroken(tenant_of(memory[2:]), memory, seq, "it is not sealed, and its memory is")
    return [(row.memory, item_of(row) if row.key is None else _opened(row, keys)) for row in rows]


def _opened(row: Row[Any], keys: Mapping[int, DataKey]) -> Item:
    memory, seq, item_id = row.memory, row.seq, row.item_id
    key = keys.get(row.key)
    if key is None:
        raise SealBroken(tenant_of(memory[2:]), memory, seq, "its data key is gone")
    what = "text"
    try:
        body = _decode(key.open(row.text, _of_item(memory, seq, item_id, "item")))
        what, given, codes = "amplitudes", row.amplitudes, row.rows
        if given is not None:
            given = key.open(given, _of_item(memory, seq, item_id, "amplitudes"))
        what = "codes"
        if codes is not None:
            codes = key.open(codes, _of_item(memory, seq, item_id, f"codes {row.code}"))
    except (NotOpened, msgspec.DecodeError):
        raise SealBroken(tenant_of(memory[2:]), memory, seq, f"its {what} was changed or is another row's") from None
    return Item(
        seq=seq,
        item_id=item_id,
        text=body.text.decode(),
        speaker=body.speaker,
        role=row.role,
        at=row.at,
        metadata=msgspec.json.decode(body.metadata),
        pin=row.pin,
        expires_at=row.expires_at,
        amplitudes=given,
        codes=codes,
        code=row.code,
    )


def _of_item(memory: str, seq: int, item_id: str, what: str) -> bytes:
    return bound(tenant_of(memory[2:]), memory, seq, what, item_id)


# ---------------------------------------------------------------------------------------------------------- sessions
def seal_session(row: dict[str, Any], key: DataKey | None) -> dict[str, Any]:
    """A row of `sessions`, its metadata sealed."""
    if key is None:
        return row | {"key": None}
    return row | {"metadata": key.seal(row["metadata"], _of_session(row["id"])), "key": key.id}


def open_session(row: Row[Any], keys: Mapping[int, DataKey], sealed: Iterable[str]) -> SessionRecord:
    """The session of a row.

    Raises:
        SealBroken: its metadata does not open, or is plain though its memory is sealed.
    """
    tenant, memory = tenant_of(row.id), session_memory(row.id)
    if row.key is None:
        if memory in sealed:
            raise SealBroken(tenant, memory, "session", "it is not sealed, and its memory is")
        return session_of(row, row.metadata)
    try:
        return session_of(row, keys[row.key].open(row.metadata, _of_session(row.id)))
    except KeyError:
        raise SealBroken(tenant, memory, "session", "its data key is gone") from None
    except NotOpened:
        raise SealBroken(tenant, memory, "session", "its metadata was changed or is another's") from None


def _of_session(session: str) -> bytes:
    return bound(tenant_of(session), session_memory(session), "session")


# ------------------------------------------------------------------------------------------------------------ states
def seal_state(state: str, version: int, what: str, plain: bytes, key: DataKey | None) -> bytes:
    """A state's packet or view, sealed; without a key as it is."""
    return plain if key is None else key.seal(plain, _of_state(state, version, what))


def open_state(state: str, version: int, what: str, sealed: bytes, key: DataKey | None) -> bytes:
    """A state's packet or view; raises SealBroken."""
    if key is None:
        return sealed
    try:
        return key.open(sealed, _of_state(state, version, what))
    except NotOpened:
        where = f"state '{state}' version {version}"
        tenant, reason = tenant_of(state), f"its {what} was changed or is another's"
        raise SealBroken(tenant, states_scope(state), where, reason) from None


def _of_state(state: str, version: int, what: str) -> bytes:
    return bound(tenant_of(state), "states", state, version, what)


# ------------------------------------------------------------------------------------------- what was there before
def plain_scopes(connection: Connection) -> dict[str, int]:
    """Scopes that have rows that are not sealed, and how many."""
    kept = (_items.c.key.is_(None), _items.c.forgotten_at.is_(None))
    found = {
        row[0]: int(row[1])
        for row in connection.execute(select(_items.c.memory, func.count()).where(*kept).group_by(_items.c.memory))
    }
    for session in connection.execute(select(_sessions.c.id).where(_sessions.c.key.is_(None))).scalars():
        memory = session_memory(session)
        found[memory] = found.get(memory, 0) + 1
    for state in connection.execute(select(_states.c.id).where(_states.c.key.is_(None))).scalars():
        scope = states_scope(state)
        found[scope] = found.get(scope, 0) + 1
    return found


def seal_old(connection: Connection, scope: str, key: DataKey) -> None:
    """Seal what a scope holds unsealed, in the transaction that makes its key."""
    answers = tables.answers
    if scope.startswith("states/"):
        _seal_old_states(connection, scope, key)
        mine = (answers.c.tenant == scope.removeprefix("states/"), answers.c.session.is_(None))
        connection.execute(delete(answers).where(*mine, answers.c.key.is_(None)))
        return
    erase(connection, scope)  # they are not sealed; new ones will be
    _seal_old_items(connection, scope, key)
    if scope.startswith("s/"):
        connection.execute(delete(answers).where(answers.c.session == scope[2:], answers.c.key.is_(None)))
        plain = select(_sessions.c.id, _sessions.c.metadata).where(
            _sessions.c.id == scope[2:], _sessions.c.key.is_(None)
        )
        for row in connection.execute(plain).all():
            sealed = seal_session({"id": row.id, "metadata": row.metadata}, key)
            connection.execute(update(_sessions).where(_sessions.c.id == row.id).values(sealed))


def _seal_old_items(connection: Connection, memory: str, key: DataKey) -> None:
    plain = select(*_items.c["memory", "seq", "item_id", "text", "speaker", "metadata", "amplitudes"]).where(
        _items.c.memory == memory, _items.c.key.is_(None), _items.c.forgotten_at.is_(None)
    )
    names = ("text", "speaker", "metadata", "amplitudes", "key")
    change = update(_items).where(_items.c.seq == bindparam("b_seq")).values({n: bindparam(f"b_{n}") for n in names})
    after = 0
    while rows := connection.execute(plain.where(_items.c.seq > after).order_by(_items.c.seq).limit(_CHUNK)).all():
        after = rows[-1].seq
        sealed = [seal_item(dict(row._mapping), key) for row in rows]
        connection.execute(change, [{"b_seq": one["seq"], **{f"b_{n}": one[n] for n in names}} for one in sealed])
        ids = {row.seq: row.item_id for row in rows}
        for code in connection.execute(select(_codes).where(_codes.c.seq.in_(list(ids)))).all():
            new = seal_code(memory, code.seq, ids[code.seq], code.code, code.rows, key)
            connection.execute(update(_codes).where(_codes.c.seq == code.seq).values(rows=new))


def _seal_old_states(connection: Connection, scope: str, key: DataKey) -> None:
    plain = select(_states.c.id).where(_states.c.key.is_(None))
    for state in connection.execute(plain).scalars().all():
        if states_scope(state) != scope:
            continue
        row = connection.execute(select(_states).where(_states.c.id == state)).one()
        sealed = {name: seal_state(state, row.version, name, getattr(row, name), key) for name in ("view", "packet")}
        connection.execute(update(_states).where(_states.c.id == state).values(**sealed, key=key.id))
