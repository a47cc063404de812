"""Opens the connection pools, so set up that a transaction means the same on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any
from weakref import WeakSet

import aiosqlite
import msgspec
from sqlalchemy import event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from openclaw_gateway.api import StartFailed
from openclaw_plugins.database.driver import JSON, begins_with_tenant
from openclaw_plugins.database.parameters import numbers, readable
from openclaw_plugins.database.tls import secured

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}

#: what needs no proof of who it is
_HERE = frozenset({"localhost", "127.0.0.1", "::1"})

#: one connection writes, and says so from the start: a transaction that began as a read could fail half-way
BEGIN_TO_WRITE, BEGIN_TO_READ = "BEGIN IMMEDIATE", "BEGIN"
#: seconds that what SQLite still does may take at the end
_LAST_WORK = 5.0


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How the pools are set up; times in seconds."""

    pool_size: int
    pool_timeout: float
    connect_timeout: float
    statement_timeout: float
    lock_timeout: float
    idle_in_transaction_timeout: float
    synchronous: str
    role: str | None


class Pools(msgspec.Struct, frozen=True):
    """The engines by what they are for; PostgreSQL reads and writes through one."""

    writer: AsyncEngine
    reader: AsyncEngine
    maintenance: AsyncEngine
    #: for statements that are transactions by themselves and belong to no tenant
    statements: AsyncEngine
    #: SQLite's: each connection has one
    threads: WeakSet[Thread]

    @property
    def sweeper(self) -> AsyncEngine:
        # SQLite has one writer in all, so a sweep queues with the others
        return self.maintenance if self.reader is self.writer else self.writer

    def named(self) -> Iterator[tuple[str, AsyncEngine]]:
        if self.reader is self.writer:
            yield "main", self.writer
        else:
            yield "writer", self.writer
            yield "reader", self.reader
        yield "maintenance", self.maintenance
        if self.statements is not self.writer:
            yield "statements", self.statements

    async def close(self) -> None:
        """Close every connection, and wait for the threads of those that were left in the middle of something.

        A cancelled transaction leaves its connection to end by itself, and so does a cancelled opening; until then its
        thread speaks to this loop.
        """
        for _, engine in self.named():
            await engine.dispose()
        if any(thread.is_alive() for thread in self.threads):
            await asyncio.to_thread(_join, list(self.threads))


def location(url: str | None, embedded: Path) -> URL:
    """Return where the database is, with the driver that we speak. Raises ValueError, which never holds the URL."""
    if url is None:
        return URL.create("sqlite+aiosqlite", database=str(embedded))
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ValueError("not a URL, expected postgresql://... or sqlite:///file") from None
    driver = _DRIVERS.get(parsed.drivername)
    if driver is None:
        raise ValueError(f"{parsed.drivername!r} is not served, expected postgresql://... or sqlite:///file")
    if driver == "sqlite+aiosqlite" and parsed.database in (None, "", ":memory:"):
        raise ValueError("a database in memory is lost with its connection, expected sqlite:///file")
    parsed = parsed.set(drivername=driver)
    if driver.startswith("postgresql"):
        # libpq's word for it; asyncpg has another, and takes the same values
        mode = parsed.query.get("sslmode")
        if mode is not None:
            parsed = parsed.difference_update_query(["sslmode"]).update_query_dict({"ssl": mode})
        readable(parsed)
        secured(parsed)  # what is wrong with it is told now, and not when the gateway starts
    return parsed


def unverified(url: URL) -> list[str]:
    """Say of a PostgreSQL on another machine that it need not prove who it is, if that is so."""
    named = url.query.get("host", ())
    hosts = [url.host] if url.host else [named] if isinstance(named, str) else list(named)
    away = [host for host in hosts if not host.startswith("/") and not {host, host.split(":")[0]} & _HERE]
    mode = url.query.get("ssl", os.environ.get("PGSSLMODE", "prefer"))
    if url.get_backend_name() != "postgresql" or not away or mode == "verify-full":
        return []
    return [
        f"the database at {', '.join(away)} is reached with sslmode={mode}, by which anyone on the way can be it: "
        "add ?sslmode=verify-full&sslrootcert=FILE to its url, the file of its authority"
    ]


def open_pools(url: URL, options: Options) -> Pools:
    """Build the engines; nothing is connected before the first transaction."""
    if url.get_backend_name() == "postgresql":
        main = _postgresql(url, options, size=options.pool_size)
        few = partial(_postgresql, url, options, size=2)
        return Pools(main, main, few(), few(system=True), WeakSet())
    threads: WeakSet[Thread] = WeakSet()
    writer = _sqlite(url, options, threads, size=1, write=True)
    return Pools(
        writer=writer,
        statements=writer,
        reader=_sqlite(url, options, threads, size=min(4, options.pool_size), write=False),
        maintenance=_sqlite(url, options, threads, size=1, write=False),
        threads=threads,
    )


class Store(sqlite3.Connection):
    """A connection that closes for good, with every statement that somebody still holds.

    A request that is cancelled leaves its statement where it stood, and the traceback of that holds it for longer than
    anybody knows. SQLite keeps a closed connection open as long, with what it was reading: the log of changes is
    then never written back, grows without end, and every read gets slower.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._cursors: WeakSet[sqlite3.Cursor] = WeakSet()

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        made = super().cursor(*args, **kwargs)
        self._cursors.add(made)
        return made

    def close(self) -> None:
        for cursor in list(self._cursors):
            cursor.close()
        super().close()


def _join(threads: list[Thread]) -> None:
    end = time.monotonic() + _LAST_WORK
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))


def _postgresql(url: URL, options: Options, *, size: int, system: bool = False) -> AsyncEngine:
    """Build an engine. On one that is `system` each statement commits by itself, and sees every organisation."""
    settings = {
        "application_name": "openclaw-gateway",
        "timezone": "UTC",
        "statement_timeout": _milliseconds(options.statement_timeout),
        "lock_timeout": _milliseconds(options.lock_timeout),
        "idle_in_transaction_session_timeout": _milliseconds(options.idle_in_transaction_timeout),
    }
    if options.role is not None:
        settings["role"] = options.role
    if system:
        settings["app.system"] = "on"
        settings["plan_cache_mode"] = "force_generic_plan"
    url, tls = secured(url)
    return create_async_engine(
        url,
        **({"isolation_level": "AUTOCOMMIT"} if system else {}),
        pool_size=size,
        max_overflow=0,
        # an error's text would else hold what clients wrote, and errors are logged
        hide_parameters=True,
        pool_timeout=options.pool_timeout,
        **JSON,
        connect_args={
            "timeout": options.connect_timeout,
            # the server's own time-out answers first; this one is for a server that does not answer at all
            "command_timeout": options.statement_timeout + 5,
            "server_settings": settings,
            "connection_class": begins_with_tenant(),
            **({"ssl": tls} if tls is not None else {}),
            **numbers(url),
        },
    )


async def _opened(threads: WeakSet[Thread], *args: Any, **kwargs: Any) -> aiosqlite.Connection:
    """Open a connection to its end, whoever waits for it: the driver leaves open what was cancelled in between."""
    connection = aiosqlite.connect(*args, **kwargs)
    connection._thread.daemon = True
    threads.add(connection._thread)
    opening = asyncio.ensure_future(connection)
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(lambda _: connection.stop())
        raise


def _sqlite(url: URL, options: Options, threads: WeakSet[Thread], *, size: int, write: bool) -> AsyncEngine:
    engine = create_async_engine(
        url,
        pool_size=size,
        max_overflow=0,
        # an error's text would else hold what clients wrote, and errors are logged
        hide_parameters=True,
        pool_timeout=options.pool_timeout,
        **JSON,
        connect_args={
            "timeout": options.lock_timeout,
            "factory": Store,
            "async_creator_fn": partial(_opened, threads),
        },
        # see `clean`
        pool_reset_on_return=None,
    )
    # The driver's own idea of when a transaction begins is off: with it a write would start as a read and could
    # fail half-way. One connection writes, so writers of this process queue for it and never meet "locked".
    begin = BEGIN_TO_WRITE if write else BEGIN_TO_READ

    @event.listens_for(engine.sync_engine, "connect")
    def set_up(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(f"PRAGMA synchronous={options.synchronous.upper()}")
        cursor.execute("PRAGMA foreign_keys=ON")
        if not write:
            cursor.execute("PRAGMA query_only=ON")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def start(connection: Any) -> None:
        # One switch to the driver's thread and back, where a cursor of SQLAlchemy's takes three.
        try:
            connection.connection.dbapi_connection.run_async(lambda driver: driver.execute(begin))
        except sqlite3.Error as error:
            raise OperationalError(begin, None, error) from error

    @event.listens_for(engine.sync_engine, "reset")
    def clean(connection: Any, _: Any, state: Any) -> None:
        # A block has always ended its transaction; to ask the driver's thread again would cost as much as a statement.
        if not state.terminate_only and connection.driver_connection.in_transaction:
            connection.rollback()

    return engine


def _milliseconds(seconds: float) -> str:
    return str(max(1, int(seconds * 1000)))


def made_private(file: Path) -> None:
    """Make the file before SQLite does, closed to others; the -wal and -shm files take over its mode.

    A file that is there is never opened here. SQLite's locks belong to the process, and whoever closes another
    descriptor of the file drops all of them (https://sqlite.org/howtocorrupt.html, 2.2): the next command that closes
    the database would take itself for the last, and delete the log that connections of ours go on writing to.
    """
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file.resolve(), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        if not os.access(file, os.R_OK | os.W_OK):
            raise StartFailed(f"the database file {file} cannot be opened: permission denied") from None
    except OSError as error:
        raise StartFailed(f"the database file {file} cannot be opened: {error.strerror}") from error
