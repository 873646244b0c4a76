"""Epochs of a run are given out by the journal: the last one, and the supervisor that may have the next."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("epoch", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("holder", sa.String(64), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("runs", "holder")
    op.drop_column("runs", "epoch")
