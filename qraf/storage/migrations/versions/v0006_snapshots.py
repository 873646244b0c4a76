"""Snapshots of memories, and which life of a host may write: a frozen one must not once its successor has started."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

FORGOTTEN = sa.text("forgotten_at IS NOT NULL")


def upgrade() -> None:
    op.create_table(
        "snapshots",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("memory", sa.String(512), nullable=False),
        sa.Column("node", sa.String(512), nullable=False),
        sa.Column("store", sa.String(32), nullable=False),
        sa.Column("fit", sa.String(64), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("made_at", sa.Double, nullable=False),
        sa.Column("through", sa.BigInteger, nullable=False),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
        sa.Column("items", sa.BigInteger, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("key", sa.BigInteger),
        sa.Column("secret", sa.LargeBinary, nullable=False),
    )
    op.create_index("snapshots_memory", "snapshots", ["memory", "status"])
    op.create_index("snapshots_status", "snapshots", ["status", "store"])
    op.create_index("items_forgotten", "items", ["memory", "seq"], sqlite_where=FORGOTTEN, postgresql_where=FORGOTTEN)
    op.create_table(
        "runs",
        sa.Column("run", sa.String(64), primary_key=True),
        sa.Column("term", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "fences",
        sa.Column("host", sa.String(512), primary_key=True),
        sa.Column("term", sa.BigInteger, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("fences")
    op.drop_table("runs")
    op.drop_index("items_forgotten", "items")
    op.drop_table("snapshots")
