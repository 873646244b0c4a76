"""What a session says of its memory's sketch: its rank."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sessions", sa.Column("rank", sa.Integer))


def downgrade() -> None:
    op.drop_column("sessions", "rank")
