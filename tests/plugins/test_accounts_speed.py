"""What the durable account costs, as ratios to what the store itself costs: counted, not timed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiosqlite
import asyncpg
import pytest
from contracts.conftest import Stores

from openclaw_gateway.api import Limit, Take
from openclaw_plugins.accounts import at_once
from openclaw_plugins.database.pool import SqlDatabase

QUOTA = Limit(name="quota.messages", meter="messages", kind="quota", limit=10**9)


class Switches:
    """Counts how often SQLite's thread is called."""

    def __init__(self) -> None:
        self.count = 0


@pytest.fixture
def switches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Switches]:
    found = Switches()
    call = aiosqlite.Connection._execute

    async def counted(self: Any, *arguments: Any, **named: Any) -> Any:
        found.count += 1
        return await call(self, *arguments, **named)

    monkeypatch.setattr(aiosqlite.Connection, "_execute", counted)
    yield found


async def pair(stores: Stores, organization: str = "acme") -> None:
    _, holds = await stores.accounts.reserve(organization, [Take(QUOTA, "-")])
    await stores.accounts.commit(holds)


async def test_a_transaction_of_the_account_is_one_call_of_the_store(tmp_path: Path, switches: Switches) -> None:
    async with Stores(tmp_path, {}, {}).opened() as stores:
        await pair(stores)
        switches.count = 0
        await pair(stores)
        # a reservation and its commit: begin, work and end of each in one go
        assert switches.count == 2


async def test_calls_do_not_grow_with_those_who_wait(tmp_path: Path, switches: Switches) -> None:
    async with Stores(tmp_path, {}, {}).opened() as stores:
        await pair(stores)
        switches.count = 0
        await pair(stores)
        alone, switches.count = switches.count, 0
        await asyncio.gather(*(pair(stores, f"org{i % 7}") for i in range(64)))
        assert switches.count <= 4 * alone


async def test_statements_of_a_batch_do_not_grow_with_it(tmp_path: Path) -> None:
    async with Stores(tmp_path, {}, {}).opened() as stores:
        await asyncio.gather(*(pair(stores) for _ in range(2)))
        statements: list[str] = []
        async with stores.database.transaction(None, operation="update", table="t") as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
        await driver.set_trace_callback(lambda text: statements.append(text.split()[0]))
        await pair(stores)
        alone = len(statements)
        statements.clear()
        batches = stores.registry.get_sample_value("accounts_batch_size_count")
        await asyncio.gather(*(pair(stores) for _ in range(32)))
        after = stores.registry.get_sample_value("accounts_batch_size_count")
        assert batches is not None and after is not None
        kinds = {kind: statements.count(kind) for kind in ("SELECT", "BEGIN", "COMMIT")}
        assert kinds["BEGIN"] == kinds["COMMIT"] == after - batches
        # reads are by the transaction; only what is written is by the hold
        assert kinds["SELECT"] <= alone * (after - batches)


async def test_a_usual_batch_is_one_round_trip_to_postgresql(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = Stores(tmp_path, {"url": postgres_url}, {})
    await stores.database.upgrade()
    async with stores.opened():
        await pair(stores)  # makes the row, and shows the statement to the server
        await pair(stores)
        asked: list[str] = []
        for name in ("_do_execute", "_copy_out", "_copy_in"):
            call = getattr(asyncpg.Connection, name)

            async def counted(self: Any, query: str, *arguments: Any, call: Any = call, **named: Any) -> Any:
                asked.append(query)
                return await call(self, query, *arguments, **named)

            monkeypatch.setattr(asyncpg.Connection, name, counted)
        monkeypatch.setattr(SqlDatabase, "transaction", None)
        batches = stores.registry.get_sample_value("accounts_batch_size_count")
        await pair(stores)
        assert asked == [at_once.STATEMENT] * 2
        await asyncio.gather(*(pair(stores) for _ in range(32)))
        after = stores.registry.get_sample_value("accounts_batch_size_count")
        assert batches is not None and after is not None
        assert set(asked) == {at_once.STATEMENT} and len(asked) == after - batches < 16
        monkeypatch.undo()
