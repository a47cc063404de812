"""Runs the revisions: on the connection that the gateway hands over, or by `alembic -x url=...` for authors."""

from __future__ import annotations

import asyncio

from alembic import context
from sqlalchemy import Connection, pool


def run(connection: Connection) -> None:
    context.configure(connection=connection, transaction_per_migration=False)
    with context.begin_transaction():
        context.run_migrations()


async def connect(url: str) -> None:
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(url, poolclass=pool.NullPool)
    async with engine.begin() as connection:
        await connection.run_sync(run)
    await engine.dispose()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    asyncio.run(connect(context.get_x_argument(as_dictionary=True)["url"]))
