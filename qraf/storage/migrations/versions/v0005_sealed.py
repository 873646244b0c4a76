"""Sealed rows: the wrapped data keys, and which of them a row is sealed under (NULL: not sealed)."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

SEALED = ("items", "sessions", "states")


def upgrade() -> None:
    op.create_table(
        "data_keys",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("scope", sa.String(512), nullable=False),
        sa.Column("master", sa.String(16), nullable=False),
        sa.Column("wrapped", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_index("data_keys_scope", "data_keys", ["scope"], unique=True)
    op.create_index("data_keys_master", "data_keys", ["master"])
    for table in SEALED:
        op.add_column(table, sa.Column("key", sa.BigInteger))


def downgrade() -> None:
    # rows that are sealed stay so: without their keys nothing can read them
    for table in SEALED:
        op.drop_column(table, "key")
    op.drop_table("data_keys")
