"""Stored states: the packet, and what is shown of it without reading it."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "states",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("view", sa.LargeBinary, nullable=False),
        sa.Column("packet", sa.LargeBinary, nullable=False),
    )
    op.create_index("states_created_at", "states", ["created_at", "id"])
    op.create_index("states_size", "states", ["size"])


def downgrade() -> None:
    op.drop_table("states")
