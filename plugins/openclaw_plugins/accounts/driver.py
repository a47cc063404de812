"""Runs the synchronous work of one transaction where its store is: inside SQLite's own thread, in one step.

Awaited statement by statement, SQLite costs several switches of thread for each; the work is the same on every
store, so here is the only place that knows the difference. It never begins or ends a transaction.
"""

from __future__ import annotations

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
    # Autocommit says that this side leaves transactions alone: the pool's side has begun one and will end it.
    engine = create_engine(
        "sqlite://",
        creator=lambda: connection,
        poolclass=StaticPool,
        pool_reset_on_return=None,
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,
    )
    return engine.connect()
