"""Runs work where its store is: a transaction inside SQLite's thread in one step, a statement by PostgreSQL's driver.

Awaited statement by statement, SQLite costs several switches of thread for each; the work is the same on every
store, so here is the only place that knows the difference.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import msgspec
from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import StaticPool

T = TypeVar("T")


def _encode(value: Any) -> str:
    return msgspec.json.encode(value).decode()


#: how columns of JSON are written and read, whichever way a store is spoken to
JSON: dict[str, Any] = {"json_serializer": _encode, "json_deserializer": msgspec.json.decode}

#: the driver's connection → the same one as a synchronous connection, for use in the driver's thread alone
_direct: WeakKeyDictionary[Any, Connection] = WeakKeyDictionary()


async def inside(connection: AsyncConnection, work: Callable[[Connection], T]) -> T:
    """Call `work` with the connection, in the transaction that is open on it; it neither begins nor ends one."""
    if connection.dialect.name != "sqlite":
        return await connection.run_sync(work)
    driver = await _driver_of(connection)

    def step() -> T:
        try:
            return work(_direct_of(driver))
        except sqlite3.Error as error:
            raise _as_sqlalchemy(error) from error

    result: T = await driver._execute(step)
    return result


async def in_one_step(connection: AsyncConnection, begin: str, work: Callable[[Connection], T]) -> T:
    """Call `work` in a transaction of its own on a connection to SQLite: one switch of thread for all of it.

    Once begun it runs to its end, whoever waits for it.
    """
    driver = await _driver_of(connection)

    def step() -> T:
        store: sqlite3.Connection = driver._conn
        direct = _direct_of(driver)
        try:
            store.execute(begin)
            try:
                result = work(direct)
                store.execute("COMMIT")
            except BaseException:
                store.rollback()
                raise
        except sqlite3.Error as error:
            raise _as_sqlalchemy(error) from error
        return result

    found: T = await driver._execute(step)
    return found


def begins_with_tenant() -> type[Any]:
    """Return the class of PostgreSQL's connections whose BEGIN also says, in the same round trip, whose rows it sees.

    `opening` is said once, by the transaction that begins next.
    """
    import asyncpg  # here, for an embedded gateway starts without it

    class Tenanted(asyncpg.Connection):  # type: ignore[misc, unused-ignore]
        opening = ""

        async def execute(self, query: str, *args: Any, **named: Any) -> Any:
            if not self.opening or not query.startswith("BEGIN"):
                return await super().execute(query, *args, **named)
            opening, self.opening = self.opening, ""
            try:
                return await super().execute(f"{query.rstrip(';')};{opening}", **named)
            except BaseException:
                self.terminate()  # it may have begun all the same, and nobody would end it
                raise

    return Tenanted


async def open_for(connection: AsyncConnection, organization: str | None) -> Any:
    """Have the next transaction on PostgreSQL see `organization` alone, None for all; return the driver's connection.

    Raises UnicodeEncodeError for what PostgreSQL takes for no text.
    """
    name = organization or ""
    if (at := name.find("\0")) >= 0:
        raise UnicodeEncodeError("utf-8", name, at, at + 1, "no text of PostgreSQL holds it")
    digits = name.encode().hex()  # in which nothing can be said but a value
    driver = await _sound(connection)
    system = "on" if organization is None else "off"
    driver.opening = (
        f"SELECT set_config('app.organization', convert_from(decode('{digits}', 'hex'), 'UTF8'), true),"
        f" set_config('app.system', '{system}', true)"
    )
    return driver


async def fetched(connection: AsyncConnection, text: str, parameters: Sequence[Any]) -> Sequence[Sequence[Any]]:
    """Run one statement on PostgreSQL, outside any transaction, and return its rows. Raises what SQLAlchemy would.

    It is the driver that is asked: SQLAlchemy's account of a result costs as much as all the rest of a statement.
    """
    import asyncpg  # here, for an embedded gateway starts without it

    driver = await _sound(connection)
    try:
        rows: Sequence[Sequence[Any]] = await driver.fetch(text, *parameters)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        if driver.is_closed() or isinstance(error, asyncpg.InternalClientError):
            await connection.invalidate()
        wrong = isinstance(error, (asyncpg.IntegrityConstraintViolationError, asyncpg.SyntaxOrAccessError))
        kind = ProgrammingError if wrong else DBAPIError
        raise kind(text, None, error, hide_parameters=True) from error
    return rows


def _as_sqlalchemy(error: sqlite3.Error) -> DBAPIError:
    """What SQLAlchemy would have made of an error of SQLite's driver: work may ask the driver itself."""
    kind = {"IntegrityError": IntegrityError, "ProgrammingError": ProgrammingError, "DataError": DataError}
    return kind.get(type(error).__name__, OperationalError)(None, None, error, hide_parameters=True)


async def _sound(connection: AsyncConnection) -> Any:
    """Return the driver's connection to PostgreSQL, made anew where it is no good."""
    driver = await _driver_of(connection)
    if driver.is_closed() or driver.is_in_transaction():
        # The server went away since it was last used, and may be back; or somebody's transaction is open there, in
        # which nobody else may go on.
        await connection.invalidate()
        driver = await _driver_of(connection)
    return driver


async def _driver_of(connection: AsyncConnection) -> Any:
    direct = connection.sync_connection
    if direct is None or direct.invalidated:
        return (await connection.get_raw_connection()).driver_connection
    return direct.connection.driver_connection  # as above, without a switch to where it could be opened anew


def _direct_of(driver: Any) -> Connection:
    direct = _direct.get(driver)
    if direct is None:
        direct = _direct[driver] = _opened(driver._conn)
    return direct


def _opened(connection: Any) -> Connection:
    source = [sqlite3.connect(":memory:")]
    engine = create_engine(
        "sqlite://",
        creator=lambda: source[-1],
        poolclass=StaticPool,
        pool_reset_on_return=None,
        hide_parameters=True,
        **JSON,
    )
    # SQLAlchemy's first look at a store ends with a rollback: ours has a transaction open, so it looks elsewhere.
    engine.connect().close()
    engine.dispose()
    source.append(connection)
    # Never committed, rolled back or closed from here: the pool's side has begun the transaction and will end it.
    return engine.connect()
