"""What keys and tenants use and hold, by day; whose an item is and what it weighs; a chain through the audit log."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "usage",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("key", sa.String(256), primary_key=True),
        *(
            sa.Column(name, sa.BigInteger, nullable=False)
            for name in ("requests", "frames", "items", "bytes", "responses", "prompt_tokens", "generated_tokens")
        ),
    )
    op.create_table(
        "ledgers",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("batch", sa.BigInteger, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
    )
    op.create_table(
        "held",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("owner", sa.String(256), primary_key=True),
        sa.Column("items", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
    )
    op.add_column("items", sa.Column("owner", sa.String(256)))
    op.add_column("items", sa.Column("size", sa.Integer))
    op.add_column("audit", sa.Column("chain", sa.LargeBinary))
    _weigh(op.get_bind())


def downgrade() -> None:
    op.drop_column("audit", "chain")
    op.drop_column("items", "size")
    op.drop_column("items", "owner")
    op.drop_table("held")
    op.drop_table("ledgers")
    op.drop_table("usage")


def _weigh(connection: sa.Connection) -> None:
    """What is there already weighs what its columns do, and belongs to its tenant."""
    connection.execute(
        sa.text(
            "UPDATE items SET owner = '', size = length(text) + length(metadata) + coalesce(length(amplitudes), 0)"
            " WHERE forgotten_at IS NULL"
        )
    )
    held: dict[str, list[int]] = {}
    items = sa.text("SELECT memory, count(*), sum(size) FROM items WHERE forgotten_at IS NULL GROUP BY memory")
    for memory, count, size in connection.execute(items):
        _add(held, memory[2:], int(count), int(size))
    for state, size in connection.execute(sa.text("SELECT id, size FROM states")):
        _add(held, state, 0, int(size))
    write = sa.text("INSERT INTO held (tenant, owner, items, bytes) VALUES (:tenant, '', :items, :bytes)")
    for tenant, (count, size) in held.items():
        connection.execute(write, {"tenant": tenant, "items": count, "bytes": size})


def _add(held: dict[str, list[int]], name: str, count: int, size: int) -> None:
    tenant = name.rpartition("/")[0] or "default"
    there = held.setdefault(tenant, [0, 0])
    there[0] += count
    there[1] += size
