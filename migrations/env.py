"""Runs the revisions on the connection, and in the transaction, that `openclaw-gateway db` hands over."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], transaction_per_migration=False)
with context.begin_transaction():
    context.run_migrations()
