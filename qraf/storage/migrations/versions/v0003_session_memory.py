"""What a session says of its memory: the bits of its codes, and its byte budget."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sessions", sa.Column("bits", sa.Integer))
    op.add_column("sessions", sa.Column("budget_bytes", sa.BigInteger))


def downgrade() -> None:
    op.drop_column("sessions", "budget_bytes")
    op.drop_column("sessions", "bits")
