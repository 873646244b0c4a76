"""Responses that another gateway may be asked for, and the gateways that run them."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "responses",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("stream", sa.String(64), nullable=False),
        sa.Column("asked", sa.LargeBinary, nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("session", sa.String(512)),
        sa.Column("epoch", sa.String(64), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("ended_at", sa.Double),
        sa.Column("seq", sa.Integer, nullable=False),
        sa.Column("wish", sa.String(16), nullable=False),
        sa.Column("wished_at", sa.Double, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("key", sa.BigInteger),
    )
    op.create_index("responses_stream", "responses", ["stream"], unique=True)
    op.create_index("responses_asked", "responses", ["tenant", "asked"])
    op.create_index("responses_epoch", "responses", ["epoch", "status"])
    op.create_index("responses_session", "responses", ["session"])
    op.create_index("responses_ended_at", "responses", ["ended_at"])
    op.create_table(
        "gateways",
        sa.Column("epoch", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("seen_at", sa.Double, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("gateways")
    op.drop_table("responses")
