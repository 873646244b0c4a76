"""The journal's tables in SQLAlchemy Core. A change here needs a new file in `migrations/versions` and `REVISION`.

Text and metadata are bytes (UTF-8, JSON), because a text may hold NUL, which PostgreSQL's text cannot, and because
sealed text is bytes too.

`key` names the data key that a row is sealed under (NULL: it is not). Of a sealed item `text` holds text, speaker and
metadata together, `metadata` is empty and `speaker` a token; its codes are sealed under the same key. What SQL has to
look for stays plain: names of memories and sessions, ids, numbers, times, role, pin, sizes.
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

__all__ = [
    "REVISION",
    "answers",
    "audit",
    "codes",
    "data_keys",
    "fences",
    "gateways",
    "held",
    "items",
    "keys",
    "ledgers",
    "metadata",
    "responses",
    "runs",
    "sessions",
    "snapshots",
    "states",
    "tickets",
    "usage",
]

REVISION = "0012"  # the newest migration; a test holds it against the files

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
    Column("key", BigInteger),
    Column("owner", String(256)),  # whose it counts for: a key's id, or a token's subject
    Column("size", Integer),  # what it weighs for quotas
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
    "items_forgotten",
    items.c.memory,
    items.c.seq,
    sqlite_where=items.c.forgotten_at.is_not(None),
    postgresql_where=items.c.forgotten_at.is_not(None),
)
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
    Column("bits", Integer),
    Column("budget_bytes", BigInteger),
    Column("key", BigInteger),
    Column("rank", Integer),
)
Index("sessions_created_at", sessions.c.created_at, sessions.c.id)
Index("sessions_expires_at", sessions.c.expires_at)

states = Table(
    "states",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("size", Integer, nullable=False),  # bytes of the packet
    Column("view", LargeBinary, nullable=False),
    Column("packet", LargeBinary, nullable=False),
    Column("key", BigInteger),
)
Index("states_created_at", states.c.created_at, states.c.id)
Index("states_size", states.c.size)  # their sum is read from the index, not past the packets

keys = Table(
    "api_keys",
    metadata,
    Column("id", String(64), primary_key=True),  # the prefix that is shown
    Column("digest", LargeBinary, nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("scopes", String(512), nullable=False),  # words apart by a space; empty: all of the role
    Column("name", String(256), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("created_by", String(256), nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
)
Index("api_keys_tenant", keys.c.tenant, keys.c.created_at, keys.c.id)

tickets = Table(
    "tickets",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("principal", LargeBinary, nullable=False),
    Column("origin", String(512), nullable=False),
    Column("expires_at", Double, nullable=False),
)
Index("tickets_expires_at", tickets.c.expires_at)

audit = Table(
    "audit",
    metadata,
    Column("seq", _Seq, primary_key=True, autoincrement=True),
    Column("at", Double, nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("subject", String(256), nullable=False),
    Column("action", String(128), nullable=False),
    Column("target", String(512), nullable=False),
    Column("outcome", String(64), nullable=False),
    Column("detail", String(512), nullable=False),
    Column("address", String(64), nullable=False),
    Column("request", String(64), nullable=False),
    Column("times", Integer, nullable=False),
    Column("chain", LargeBinary),
    sqlite_autoincrement=True,
)
Index("audit_tenant", audit.c.tenant, audit.c.seq)

usage = Table(
    "usage",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("day", Integer, primary_key=True, autoincrement=False),  # since 1970-01-01, UTC
    Column("key", String(256), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("frames", BigInteger, nullable=False),
    Column("items", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("responses", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("generated_tokens", BigInteger, nullable=False),
)

ledgers = Table(
    "ledgers",
    metadata,
    Column("id", String(32), primary_key=True),  # of one life of a gateway
    Column("batch", BigInteger, nullable=False),  # the last one that it wrote
    Column("at", Double, nullable=False),
)

held = Table(
    "held",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("owner", String(256), primary_key=True),
    Column("items", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("id", String(32), primary_key=True),  # random
    Column("memory", String(512), nullable=False),
    Column("node", String(512), nullable=False),  # that made it
    Column("store", String(32), nullable=False),  # the id of the place where its file is
    Column("fit", String(64), nullable=False),  # digest of all that a memory must have in common with it
    Column("status", String(16), nullable=False),  # writing, ready, or erased: its file is still to be deleted
    Column("made_at", Double, nullable=False),
    Column("through", BigInteger, nullable=False),  # it lacks nothing of the journal up to this number
    Column("last_seq", BigInteger, nullable=False),  # the newest item in it
    Column("items", BigInteger, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("digest", LargeBinary, nullable=False),  # SHA-256 of the file; empty until it is written
    Column("key", BigInteger),
    Column("secret", LargeBinary, nullable=False),  # its own key, sealed under `key`; empty where it is not sealed
)
Index("snapshots_memory", snapshots.c.memory, snapshots.c.status)
Index("snapshots_status", snapshots.c.status, snapshots.c.store)

runs = Table(
    "runs",
    metadata,
    Column("run", String(64), primary_key=True),  # one life of a cluster
    Column("term", BigInteger, nullable=False),  # rises with each
    Column("epoch", BigInteger, nullable=False, server_default="0"),  # the last one that was given out
    Column("holder", String(64), nullable=False, server_default=""),  # the supervisor that may have the next one
)

fences = Table(
    "fences",
    metadata,
    Column("host", String(512), primary_key=True),
    Column("term", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
)

data_keys = Table(
    "data_keys",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),  # random
    Column("tenant", String(64), nullable=False),
    Column("scope", String(512), nullable=False),  # a memory, or `states/TENANT`
    Column("master", String(16), nullable=False),  # the id of the master key that wraps it
    Column("wrapped", LargeBinary, nullable=False),
    Column("created_at", Double, nullable=False),
)
Index("data_keys_scope", data_keys.c.scope, unique=True)
Index("data_keys_master", data_keys.c.master)

responses = Table(
    "responses",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("stream", String(64), nullable=False),
    Column("asked", LargeBinary, nullable=False),  # digest of the command's key; empty: it had none
    Column("tenant", String(64), nullable=False),
    Column("session", String(512)),
    Column("epoch", String(64), nullable=False),  # the life of a gateway that it belongs to
    Column("status", String(16), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("seq", Integer, nullable=False),  # of its last frame; 0: not known
    Column("wish", String(16), nullable=False),  # what another gateway wants: read, cancel, leave, or nothing
    Column("wished_at", Double, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("key", BigInteger),
)
Index("responses_stream", responses.c.stream, unique=True)
Index("responses_asked", responses.c.tenant, responses.c.asked)
Index("responses_epoch", responses.c.epoch, responses.c.status)
Index("responses_session", responses.c.session)
Index("responses_ended_at", responses.c.ended_at)

gateways = Table(
    "gateways",
    metadata,
    Column("epoch", String(64), primary_key=True),
    Column("name", String(256), nullable=False),
    Column("seen_at", Double, nullable=False),
)

answers = Table(
    "answers",
    metadata,
    Column("name", LargeBinary, primary_key=True),  # digest of tenant and `Idempotency-Key`
    Column("tenant", String(64), nullable=False),
    Column("attempt", String(32), nullable=False),  # who works, or worked, on it
    Column("begun_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),  # until it is done: when the attempt counts as dead
    Column("is_done", Boolean, nullable=False),
    Column("body", LargeBinary, nullable=False),  # what was asked, as a digest, and what was answered
    Column("key", BigInteger),
    Column("session", String(512)),  # that the answer is about: it is erased with it
)
Index("answers_tenant", answers.c.tenant, answers.c.begun_at)
Index("answers_expires_at", answers.c.expires_at)
Index("answers_session", answers.c.session)
