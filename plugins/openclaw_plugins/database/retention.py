"""Drops the monthly partitions of messages whose time is over, on PostgreSQL.

It never drops a row that is younger than the policy, and makes no one wait longer than a lock's time-out: a
partition that is in use is left for the next time. One replica at a time does it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from openclaw_gateway.api import StoreBusy
from openclaw_plugins.database.faults import translated

_ATTEMPTS = 5
_PAUSE = 0.25
_LEAD = text("SELECT pg_try_advisory_lock(hashtext('openclaw_messages_retention'))")
_GIVE_UP = text("SELECT pg_advisory_unlock(hashtext('openclaw_messages_retention'))")
# What waits for a lock holds up whoever comes after it, so it does not wait long. The name tells the month: the
# function that makes partitions gives it. A partition that was detached and not dropped yet is found again.
_PATIENCE = text("SET lock_timeout = '1s'")
_PAST = text(
    "SELECT c.relname AS name, i.inhrelid IS NOT NULL AS attached, coalesce(i.inhdetachpending, false) AS pending "
    "FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid "
    "WHERE c.relkind = 'r' "
    "AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'openclaw_messages'::regclass) "
    "AND CASE WHEN c.relname ~ '^openclaw_messages_[0-9]{4}_(0[1-9]|1[0-2])$' "
    "THEN (to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month') AT TIME ZONE 'UTC' "
    "<= now() - make_interval(secs => :kept) ELSE false END "
    "ORDER BY c.relname"
)


async def drop_past(engine: AsyncEngine, kept: float, logger: logging.Logger) -> list[str]:
    """Drop the partitions all of whose messages are older than `kept` seconds; return their names.

    `engine` connects as the owner of the tables. Raises StoreUnavailable.
    """
    dropped: list[str] = []
    try:
        async with _leading(engine) as connection:
            if connection is None:
                return dropped
            for name, attached, pending in (await connection.execute(_PAST, {"kept": float(kept)})).all():
                if await _drop(connection, name, attached=attached, pending=pending):
                    dropped.append(name)
                    logger.info("a partition of messages was dropped", extra={"fields": {"partition": name}})
                else:
                    logger.warning(
                        "a partition of messages is in use and stays for now", extra={"fields": {"partition": name}}
                    )
    except Exception as error:
        fault = translated(error)
        if fault is None:
            raise
        raise fault from error
    return dropped


@asynccontextmanager
async def _leading(engine: AsyncEngine) -> AsyncIterator[AsyncConnection | None]:
    """Open a connection outside any transaction, while no other replica does this work; None where one does."""
    async with engine.connect() as plain:
        connection = await plain.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(_PATIENCE)
        if not (await connection.execute(_LEAD)).scalar_one():
            yield None
            return
        yield connection
        # Where the block fails, the end of the connection frees the lock.
        await connection.execute(_GIVE_UP)


async def _drop(connection: AsyncConnection, name: str, *, attached: bool, pending: bool) -> bool:
    """Detach, beside reads and writes, and drop; False where other work keeps holding what that needs."""
    detach = text(f'ALTER TABLE openclaw_messages DETACH PARTITION "{name}" CONCURRENTLY')
    finish = text(f'ALTER TABLE openclaw_messages DETACH PARTITION "{name}" FINALIZE')
    for attempt in range(_ATTEMPTS):
        try:
            if attached:
                # One that was interrupted stands between in and out: it can only be finished.
                await connection.execute(finish if pending else detach)
                attached = False
            await connection.execute(text(f'DROP TABLE "{name}"'))
            return True
        except Exception as error:
            if not isinstance(translated(error), StoreBusy):
                raise
            pending = attached and await _pending(connection, name)
            await asyncio.sleep(_PAUSE * (attempt + 1))
    return False


async def _pending(connection: AsyncConnection, name: str) -> bool:
    query = text("SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = to_regclass(:name)")
    return bool((await connection.execute(query, {"name": name})).scalar())
