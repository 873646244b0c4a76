"""Answers to requests that came with an `Idempotency-Key`, for those that come again."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "answers",
        sa.Column("name", sa.LargeBinary, primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("attempt", sa.String(32), nullable=False),
        sa.Column("begun_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.Column("is_done", sa.Boolean, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("key", sa.BigInteger),
    )
    op.create_index("answers_tenant", "answers", ["tenant", "begun_at"])
    op.create_index("answers_expires_at", "answers", ["expires_at"])


def downgrade() -> None:
    op.drop_table("answers")
