"""A statement that is a transaction by itself, on every backend."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from openclaw_gateway.api import Refused, StoreBusy, StoreUnavailable
from openclaw_plugins.database.faults import Fault

from .conftest import Stores

INSERT = (
    "INSERT INTO openclaw_usage (organization_id, subject, limit_name, period, used, held, tier, announced, updated_at)"
    " VALUES ({0}, '-', 'quota.x', 'session', {1}, 0, '', 0, CURRENT_TIMESTAMP)"
)


class Asked:
    """Asks `stores` for statements in its own words for parameters."""

    def __init__(self, stores: Stores) -> None:
        self.database = stores.database
        self._words = ("$1", "$2") if stores.database.shared else ("?", "?")

    async def __call__(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        words = statement.format(*self._words)
        found = await self.database.statement(words, parameters, operation="update", table="openclaw_usage")
        return [tuple(row) for row in found]


async def test_it_is_durable_when_it_returns_and_sees_every_organization(stores: Stores) -> None:
    ask = Asked(stores)
    for organization in ("a", "b"):
        assert await ask(INSERT + " RETURNING used", organization, 5) == [(5,)]
    assert await ask("SELECT organization_id FROM openclaw_usage ORDER BY 1") == [("a",), ("b",)]
    async with stores.database.transaction("a", operation="select", table="openclaw_usage") as connection:
        seen = (await connection.execute(text("SELECT organization_id FROM openclaw_usage ORDER BY 1"))).scalars()
        assert list(seen) == (["a"] if stores.database.shared else ["a", "b"])
    labels = {"operation": "update", "table": "openclaw_usage"}
    assert stores.registry.get_sample_value("database_query_duration_seconds_count", labels) == 3


async def test_one_that_fails_leaves_nothing_and_says_what_a_transaction_would(stores: Stores) -> None:
    ask = Asked(stores)
    await ask(INSERT, "a", 1)
    with pytest.raises(Fault):
        await ask(INSERT, "a", 1)
    if stores.database.shared:
        with pytest.raises(Fault):
            await ask("SELECT nothing FROM openclaw_usage")
    for value in (2**70, "text") if stores.database.shared else (2**70,):
        with pytest.raises(Refused):
            await ask(INSERT, "b", value)
    assert await ask("SELECT organization_id, used FROM openclaw_usage") == [("a", 1)]


async def test_a_row_that_somebody_holds_is_busy(config: dict[str, Any], tmp_path: Path) -> None:
    async with (
        Stores(tmp_path, {**config, "lock_timeout": 0.2}, {}).opened() as stores,
        Stores(tmp_path, config, {}).opened() as other,
    ):
        ask = Asked(stores)
        await ask(INSERT, "a", 1)
        change = "UPDATE openclaw_usage SET used = used + 1"
        async with other.database.transaction(None, operation="update", table="openclaw_usage") as connection:
            await connection.execute(text(change))
            with pytest.raises(StoreBusy):
                await ask(change)
        await ask(change)
        assert await ask("SELECT used FROM openclaw_usage") == [(3,)]


async def test_a_connection_that_was_ended_is_made_anew(stores: Stores) -> None:
    if not stores.database.shared:
        pytest.skip("an embedded store has no server that could end a connection")
    ask = Asked(stores)
    ((mine,),) = await ask("SELECT pg_backend_pid()")
    async with stores.database.transaction(None, operation="select", table="t") as connection:
        await connection.execute(text(f"SELECT pg_terminate_backend({mine}, 5000)"))
    # by then the driver knows, and so nobody has to fail
    await asyncio.sleep(0.2)
    ((other,),) = await ask("SELECT pg_backend_pid()")
    assert other != mine
    with pytest.raises(StoreUnavailable):
        await ask("SELECT pg_terminate_backend(pg_backend_pid())")
    assert await ask("SELECT 1") == [(1,)]
