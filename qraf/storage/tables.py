"""The journal's tables in SQLAlchemy Core. A change here needs a new file in `migrations/versions` and `REVISION`.

Text and metadata are bytes (UTF-8, JSON), because a text may hold NUL, which PostgreSQL's text cannot, and because
sealed text is bytes too.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
)

__all__ = ["REVISION", "codes", "items", "metadata", "sessions"]

REVISION = "0001"  # the newest migration; a test holds it against the files

metadata = MetaData()

# SQLite numbers rows by itself only in a column declared INTEGER, which holds 64 bits there
_Seq = BigInteger().with_variant(Integer(), "sqlite")

items = Table(
    "items",
    metadata,
    Column("seq", _Seq, primary_key=True, autoincrement=True),
    Column("memory", String(512), nullable=False),
    Column("item_id", String(512), nullable=False),
    Column("text", LargeBinary, nullable=False),
    Column("speaker", String(512)),
    Column("role", String(32), nullable=False),
    Column("at", Double, nullable=False),
    Column("metadata", LargeBinary, nullable=False),
    Column("pin", Boolean, nullable=False),
    Column("expires_at", Double),
    Column("amplitudes", LargeBinary),
    Column("forgotten_at", Double),
    sqlite_autoincrement=True,  # a number is never given twice, not even after the newest row is gone
)
Index(
    "items_live_id",
    items.c.memory,
    items.c.item_id,
    unique=True,
    sqlite_where=items.c.forgotten_at.is_(None),
    postgresql_where=items.c.forgotten_at.is_(None),
)
Index("items_memory_seq", items.c.memory, items.c.seq)
Index("items_memory_speaker", items.c.memory, items.c.speaker)
Index(
    "items_expires_at",
    items.c.expires_at,
    sqlite_where=items.c.expires_at.is_not(None),
    postgresql_where=items.c.expires_at.is_not(None),
)

codes = Table(
    "codes",
    metadata,
    Column("seq", _Seq, primary_key=True, autoincrement=False),
    Column("code", String(64), nullable=False),
    Column("rows", LargeBinary, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", String(512), primary_key=True),
    Column("created_at", Double, nullable=False),
    Column("metadata", LargeBinary, nullable=False),
    Column("ttl_s", Double),
    Column("expires_at", Double),
    Column("state", String(16), nullable=False),
    Column("node_hint", String(512), nullable=False),
)
Index("sessions_created_at", sessions.c.created_at, sessions.c.id)
Index("sessions_expires_at", sessions.c.expires_at)
