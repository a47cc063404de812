"""Runs the synchronous work of one transaction where its store is: inside SQLite's own thread, in one step.

Awaited statement by statement, SQLite costs several switches of thread for each; the work is the same on every
store, so here is the only place that knows the difference. It never begins or ends a transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, create_engine
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import StaticPool

T = TypeVar("T")

#: the driver's connection → the same one as a synchronous connection, for use in the driver's thread alone
_direct: WeakKeyDictionary[Any, Connection] = WeakKeyDictionary()


async def inside(connection: AsyncConnection, work: Callable[[Connection], T]) -> T:
    """Call `work` with the connection, in the transaction that is open on it."""
    if connection.dialect.name != "sqlite":
        return await connection.run_sync(work)
    driver: Any = (await connection.get_raw_connection()).driver_connection

    def step() -> T:
        direct = _direct.get(driver)
        if direct is None:
            direct = _direct[driver] = _opened(driver._conn)
        return work(direct)

    result: T = await driver._execute(step)
    return result


def _opened(connection: Any) -> Connection:
    source = [sqlite3.connect(":memory:")]
    engine = create_engine(
        "sqlite://",
        creator=lambda: source[-1],
        poolclass=StaticPool,
        pool_reset_on_return=None,
        hide_parameters=True,
    )
    # SQLAlchemy's first look at a store ends with a rollback: ours has a transaction open, so it looks elsewhere.
    engine.connect().close()
    engine.dispose()
    source.append(connection)
    # Never committed, rolled back or closed from here: the pool's side has begun the transaction and will end it.
    return engine.connect()
