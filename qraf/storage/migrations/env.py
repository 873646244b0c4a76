"""Alembic's entry: runs the migrations on the connection, and inside the transaction, that the caller holds."""

from alembic import context

from qraf.storage.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
