"""What the tests of the auth family share: exchanges, hosts, and a real SQLite file behind the Database Protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from aiohttp import web
from prometheus_client import CollectorRegistry
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from openclaw_gateway.api import Exchange, Host, Route, StoreUnavailable, Tier
from openclaw_gateway.config.document import Document, GatewaySettings
from openclaw_gateway.pipeline import CompiledRoute
from openclaw_gateway.testing import ManualClock
from openclaw_plugins.auth.tables import keys, metadata

TIERS = {name: Tier(name=name, title=name, tables={}) for name in ("open_source", "teams", "government")}


def exchange(
    *headers: tuple[str, str],
    access: str = "authenticated",
    kind: str = "http",
    query: str = "",
    scheme: str = "http",
    **route: Any,
) -> Exchange:
    scope = {
        "type": kind,
        "scheme": scheme,
        "headers": [(k.lower().encode(), v.encode()) for k, v in headers],
        "query_string": query.encode(),
    }
    compiled = CompiledRoute(Route(access=access, **route), None, ())
    return Exchange(kind, "GET", "/x", compiled, scope, 0.0)


def bearer(token: str) -> tuple[str, str]:
    return ("Authorization", f"Bearer {token}")


def host(
    directory: Path,
    *,
    id: str = "x",
    tiers: Any = None,
    instances: Any = None,
    clock: Any = None,
) -> Host:
    return Host(
        id,
        document=Document(gateway=GatewaySettings(pipeline=())),
        config_dir=directory,
        tiers=TIERS if tiers is None else tiers,
        instances=instances or {},
        registry=CollectorRegistry(),
        metrics={},
        clock=clock or ManualClock(),
    )


class SqliteKeys:
    """The Database Protocol over one SQLite file with the family's tables; counts transactions, fails on demand."""

    dialect = "sqlite"
    shared = False

    def __init__(self, path: Path) -> None:
        self.engine: AsyncEngine = create_async_engine(f"sqlite+aiosqlite:///{path}")
        self.transactions = 0
        self.down = False

    async def create(self) -> None:
        async with self.engine.begin() as connection:
            await connection.run_sync(metadata.create_all)

    async def write(self, statement: sa.Update, *, key_id: str) -> None:
        async with self.engine.begin() as connection:
            await connection.execute(statement.where(keys.c.key_id == key_id))

    @asynccontextmanager
    async def transaction(
        self, organization: str | None, *, operation: str, table: str
    ) -> AsyncIterator[AsyncConnection]:
        assert organization is None
        assert table in metadata.tables
        self.transactions += 1
        if self.down:
            raise StoreUnavailable("database", "down")
        async with self.engine.begin() as connection:
            yield connection

    async def run(self, work: Callable[[sa.Connection], Any], *, operation: str, table: str) -> Any:
        async with self.transaction(None, operation=operation, table=table) as connection:
            return await self.inside(connection, work)

    async def statement(self, text: str, parameters: Sequence[Any], *, operation: str, table: str) -> Any:
        return await self.run(
            lambda connection: connection.exec_driver_sql(text, tuple(parameters)).all(),
            operation=operation,
            table=table,
        )

    async def inside(self, connection: AsyncConnection, work: Callable[[sa.Connection], Any]) -> Any:
        return await connection.run_sync(work)


class Answers:
    """A service on a real socket that says what a test puts into `answer`: JSON, bytes, or what a function answers."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer: Any = {}
        self.url = ""

    async def respond(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        if callable(self.answer):
            return await self.answer(request)
        if isinstance(self.answer, bytes):
            return web.Response(body=self.answer)
        return web.json_response(self.answer)

    async def down(self, request: web.Request) -> web.Response:
        return web.Response(status=500)


@asynccontextmanager
async def answering() -> AsyncIterator[Answers]:
    service = Answers()
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", service.respond)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        service.url = f"http://127.0.0.1:{runner.addresses[0][1]}/answer"
        yield service
    finally:
        await runner.cleanup()
