"""The pool of connections to the SQL store: SQLite in the embedded default, PostgreSQL past one machine.

It opens transactions that see one organisation, and turns every driver error into the gateway's own. It knows no
table but Alembic's, never retries, and serves only on a schema that is exactly the one this gateway was written for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from prometheus_client import Gauge
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import QueuePool

from openclaw_gateway.api import (
    Fact,
    HealthCheck,
    Host,
    StartFailed,
    StoreUnavailable,
    asset,
    hookimpl,
)
from openclaw_plugins.database import schema
from openclaw_plugins.database.driver import fetched, in_one_step, inside, open_for
from openclaw_plugins.database.engines import (
    BEGIN_TO_READ,
    BEGIN_TO_WRITE,
    Options,
    Pools,
    location,
    made_private,
    open_pools,
    unverified,
)
from openclaw_plugins.database.faults import Fault, translated
from openclaw_plugins.database.kept import Kept
from openclaw_plugins.database.partitions import Partitions
from openclaw_plugins.database.schema import SchemaState
from openclaw_plugins.database.settings import Settings
from openclaw_plugins.database.wall import Wall
from openclaw_plugins.database.watched import Watched

T = TypeVar("T")


class SqlDatabase:
    """Hands out transactions; a read sees one snapshot, a write is durable when its block has ended."""

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = ()

    Config = Settings

    def __init__(self, config: Settings, host: Host) -> None:
        self._config = config
        self._host = host
        self._url = location(config.url.reveal() if config.url else None, host.data_dir / "gateway.db")
        self._pools: Pools | None = None
        #: while it is open: the connections of its pools that nobody uses now
        self._kept: dict[AsyncEngine, Kept] = {}
        self._wall = Wall(host.id, config.application_role)
        self.partitions = Partitions(
            partial(self.transaction, None, operation="sweep", table="openclaw_messages"),
            lambda: open_pools(self._url, self._options(owner=True)),
            retention=config.retention,
            logger=host.logger,
        )
        self._watched = Watched(host, self.dialect)
        self._active = host.metric(
            Gauge, "database_connections_active", "Connections in use", ("pool",), multiprocess_mode="sum"
        )
        self._limit = host.metric(
            Gauge,
            "database_connections_limit",
            "Connections that a pool may open",
            ("pool",),
            multiprocess_mode="sum",
        )

    @property
    def dialect(self) -> str:
        return "postgresql" if self._url.get_backend_name() == "postgresql" else "sqlite"

    @property
    def shared(self) -> bool:
        return self.dialect == "postgresql"

    @asynccontextmanager
    async def transaction(
        self, organization: str | None, *, operation: str, table: str
    ) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that sees `organization` alone; None is for work of no tenant.

        `operation` is one of select, insert, update, delete, sweep. On SQLite select may only read, and anything
        else waits for the one writer; sweep has its own connections on PostgreSQL, so that load cannot starve it.
        """
        with self._watched.transaction(operation, table):
            async with self._kept_for(operation).lent() as connection:
                driver = await open_for(connection, organization) if self.shared else None
                try:
                    async with connection.begin():
                        yield connection
                finally:
                    if driver is not None:
                        driver.opening = ""

    async def run(
        self, work: Callable[[Connection], T], *, operation: str, table: str, organization: str | None = None
    ) -> T:
        if self.shared:
            async with self.transaction(organization, operation=operation, table=table) as connection:
                return await connection.run_sync(work)
        with self._watched.transaction(operation, table):
            async with self._kept_for(operation).lent() as connection:
                return await in_one_step(connection, BEGIN_TO_READ if operation == "select" else BEGIN_TO_WRITE, work)

    async def statement(
        self, text: str, parameters: Sequence[Any], *, operation: str, table: str
    ) -> Sequence[Sequence[Any]]:
        def ask(connection: Connection) -> Sequence[Sequence[Any]]:
            result = connection.exec_driver_sql(text, tuple(parameters))
            return result.all() if result.returns_rows else ()

        if not self.shared:
            return await self.run(ask, operation=operation, table=table)
        with self._watched.transaction(operation, table):
            async with self._kept[self._open().statements].lent() as connection:
                return await fetched(connection, text, parameters)

    async def inside(self, connection: AsyncConnection, work: Callable[[Connection], T]) -> T:
        return await inside(connection, work)

    @hookimpl
    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        if self.dialect == "sqlite":
            made_private(Path(str(self._url.database)))
        self._pools = open_pools(self._url, self._options())
        for name, engine in self._pools.named():
            pool = engine.sync_engine.pool
            kept = self._kept[engine] = Kept(engine)
            if isinstance(pool, QueuePool):
                name = name if self._host.id == "database" else f"{self._host.id}.{name}"  # there may be two
                self._active.labels(name).set_function(kept.used)
                self._limit.labels(name).set(pool.size())
        try:
            await self._settle_schema()
            async with self.partitions.kept() if self.shared else nullcontext():
                yield
        finally:
            pools, self._pools = self._pools, None
            for kept in self._kept.values():
                await kept.close()
            self._kept.clear()
            await pools.close()

    @hookimpl
    def health(self) -> Sequence[HealthCheck]:
        checks = [HealthCheck(self._host.id, self._probe, gate="ready")]
        if self.shared:
            checks.append(HealthCheck(f"{self._host.id}_partitions", self.partitions.probe))
        return checks

    @hookimpl
    def notices(self) -> Sequence[str]:
        return [*self._wall.notices, *unverified(self._url)]

    @hookimpl
    def migrations(self) -> Path:
        return asset("migrations") / "versions"

    def migration_folders(self) -> list[Path]:
        """Return the folders of revisions of this plugin and of every other that has tables of its own."""
        folders = [self.migrations()]
        for _, plugin in self._host.plugins():
            if hasattr(plugin, "migrations") and (folder := plugin.migrations()) not in folders:
                folders.append(folder)
        return folders

    @asynccontextmanager
    async def owner(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction for the schema's own commands, outside the pools and the application's role."""
        if self.dialect == "sqlite":
            made_private(Path(str(self._url.database)))
        pools = open_pools(self._url, self._options(owner=True))
        try:
            async with pools.writer.begin() as connection:
                yield connection
        except Exception as error:
            fault = translated(error)
            if fault is None:
                raise
            raise fault from error
        finally:
            await pools.close()

    async def upgrade(self) -> None:
        """Bring the schema to the newest revision; several processes may ask for it at once."""
        async with self.owner() as connection:
            await schema.upgrade(connection, self.migration_folders(), self._config.application_role)

    async def downgrade(self, revision: str) -> None:
        """Undo what came after a revision, all of it or nothing; `schema.undone` has said what that is.

        What only later revisions keep is lost.
        """
        async with self.owner() as connection:
            await schema.downgrade(connection, self.migration_folders(), revision)

    async def schema_state(self) -> SchemaState:
        """Say where the schema stands, for the commands."""
        return await self._schema_state(self.owner)

    @property
    def shown(self) -> str:
        """Where the database is, without credentials."""
        return self._url.set(username=None, password=None, query={}).render_as_string()

    def _options(self, *, owner: bool = False) -> Options:
        config = self._config
        return Options(
            pool_size=config.pool_size,
            pool_timeout=config.pool_timeout,
            connect_timeout=config.connect_timeout,
            statement_timeout=600.0 if owner else config.statement_timeout,
            lock_timeout=config.lock_timeout,
            idle_in_transaction_timeout=config.idle_in_transaction_timeout,
            synchronous=config.synchronous,
            role=None if owner else config.application_role,
        )

    def _open(self) -> Pools:
        if self._pools is None:
            raise StoreUnavailable("database", "not open")
        return self._pools

    def _kept_for(self, operation: str) -> Kept:
        return self._kept[self._engine(operation)]

    def _engine(self, operation: str) -> AsyncEngine:
        pools = self._open()
        if operation == "select":
            return pools.reader
        if operation == "sweep":
            return pools.sweeper
        return pools.writer

    async def _settle_schema(self) -> None:
        automatic = self._config.auto_upgrade
        if automatic is None:
            automatic = self._config.url is None
        try:
            state = await self._schema_state(self._reading)
            if not state.matches and state.behind and automatic:
                await self.upgrade()
                state = await self._schema_state(self._reading)
            if self.shared and state.matches:
                await self.partitions.settle()
                async with self._reading() as connection:
                    await self._wall.judge(connection)
        except (StoreUnavailable, Fault) as error:
            raise StartFailed(f"the database at {self.shown} cannot be used: {error}") from error
        if not state.matches:
            raise StartFailed(state.complaint())

    async def _schema_state(self, connected: Callable[[], AbstractAsyncContextManager[AsyncConnection]]) -> SchemaState:
        folders = self.migration_folders()
        async with connected() as connection:
            found = await schema.current(connection)
        return SchemaState(
            self.shown, frozenset(found), frozenset(schema.heads(folders)), frozenset(schema.known(folders))
        )

    def _reading(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return self.transaction(None, operation="select", table="alembic_version")

    async def _probe(self) -> Mapping[str, Any]:
        pools = self._open()
        try:
            async with self._kept[pools.maintenance].lent() as connection, connection.begin():
                await connection.execute(text("SELECT 1"))
        except Exception as error:
            raise translated(error) or error from error
        return {"dialect": self.dialect}
