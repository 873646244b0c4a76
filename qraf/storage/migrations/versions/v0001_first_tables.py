"""The first tables: items, codes, sessions."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    seq = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "items",
        sa.Column("seq", seq, primary_key=True, autoincrement=True),
        sa.Column("memory", sa.String(512), nullable=False),
        sa.Column("item_id", sa.String(512), nullable=False),
        sa.Column("text", sa.LargeBinary, nullable=False),
        sa.Column("speaker", sa.String(512)),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("metadata", sa.LargeBinary, nullable=False),
        sa.Column("pin", sa.Boolean, nullable=False),
        sa.Column("expires_at", sa.Double),
        sa.Column("amplitudes", sa.LargeBinary),
        sa.Column("forgotten_at", sa.Double),
        sqlite_autoincrement=True,
    )
    live = sa.text("forgotten_at IS NULL")
    op.create_index(
        "items_live_id", "items", ["memory", "item_id"], unique=True, sqlite_where=live, postgresql_where=live
    )
    op.create_index("items_memory_seq", "items", ["memory", "seq"])
    op.create_index("items_memory_speaker", "items", ["memory", "speaker"])
    ends = sa.text("expires_at IS NOT NULL")
    op.create_index("items_expires_at", "items", ["expires_at"], sqlite_where=ends, postgresql_where=ends)
    op.create_table(
        "codes",
        sa.Column("seq", seq, primary_key=True, autoincrement=False),
        sa.Column("code", sa.String(64), nullable=False),
        sa.Column("rows", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(512), primary_key=True),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("metadata", sa.LargeBinary, nullable=False),
        sa.Column("ttl_s", sa.Double),
        sa.Column("expires_at", sa.Double),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("node_hint", sa.String(512), nullable=False),
    )
    op.create_index("sessions_created_at", "sessions", ["created_at", "id"])
    op.create_index("sessions_expires_at", "sessions", ["expires_at"])


def downgrade() -> None:
    for table in ("sessions", "codes", "items"):
        op.drop_table(table)
