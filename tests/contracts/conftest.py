"""The SQL backends on which the contract suites run, each test on a store of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from servers import Postgres

from openclaw_gateway.api import Host, Secret, SystemClock
from openclaw_gateway.config.document import Document, GatewaySettings
from openclaw_plugins.accounts.sql import SqlAccounts
from openclaw_plugins.database.pool import SqlDatabase
from openclaw_plugins.sessions.sql import SqlSessions


class Stores:
    """A database with what stands on it, opened as a gateway opens them."""

    def __init__(self, folder: Path, config: Mapping[str, Any], accounts: Mapping[str, Any]) -> None:
        self.instances: dict[str, Any] = {}
        self.registry = CollectorRegistry()
        self.metrics: dict[str, Any] = {}
        self._folder = folder
        # A store's time-outs have tests of their own; here a machine that stands still for a moment proves nothing.
        self.config = config = {"statement_timeout": 60.0, **config}
        url = config.get("url")
        given = {**config, "url": Secret(url)} if url else dict(config)
        self.database = SqlDatabase(SqlDatabase.Config(**given), self.host("database"))
        self.instances["database"] = self.database
        self.accounts = SqlAccounts(SqlAccounts.Config(**accounts), self.host("accounts"))
        self.instances["accounts"] = self.accounts
        self.sessions = SqlSessions(SqlSessions.Config(), self.host("sessions"))
        self.instances["sessions"] = self.sessions

    def host(self, id: str) -> Host:
        return Host(
            id,
            document=Document(gateway=GatewaySettings(pipeline=())),
            config_dir=self._folder,
            tiers={},
            instances=self.instances,
            registry=self.registry,
            metrics=self.metrics,
            clock=SystemClock(),
        )

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Stores]:
        async with self.database.lifespan(), self.accounts.lifespan(), self.sessions.lifespan():
            yield self


@pytest.fixture(scope="session")
def migrated(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database at the newest revision, to be copied; it belongs to a role that row security binds."""
    postgres.sql("CREATE ROLE gateway LOGIN CREATEDB")
    name = postgres.create()
    postgres.sql(f"ALTER DATABASE {name} OWNER TO gateway")
    stores = Stores(tmp_path_factory.mktemp("migrated"), {"url": postgres.url(name, "gateway")}, {})
    asyncio.run(stores.database.upgrade())
    return name


@pytest.fixture(params=["sqlite", "postgresql"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """`[plugins.database]` of one backend, with the schema in place."""
    if request.param == "sqlite":
        yield {}
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    name = postgres.create(request.getfixturevalue("migrated"))
    postgres.sql(f"ALTER DATABASE {name} OWNER TO gateway")
    yield {"url": postgres.url(name, "gateway")}
    postgres.drop(name)


@pytest.fixture
async def stores(config: dict[str, Any], tmp_path: Path) -> AsyncIterator[Stores]:
    async with Stores(tmp_path, config, {}).opened() as opened:
        yield opened
