"""Whose session a kept answer is about: it goes with it. Those kept before name none, and go."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("answers", sa.Column("session", sa.String(512)))
    op.create_index("answers_session", "answers", ["session"])
    op.execute("DELETE FROM answers")


def downgrade() -> None:
    op.drop_index("answers_session", "answers")
    op.drop_column("answers", "session")
