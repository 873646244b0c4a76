"""Migrations of the journal's schema; `qraf.storage.database.migrate` runs them, no alembic.ini is needed."""
