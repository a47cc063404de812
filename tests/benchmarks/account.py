"""The durable account by itself, in this process: what sharing a commit is worth, and what it costs once it is full."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy
from servers import start_postgres

from benchmarks.inside import opened
from openclaw_gateway.api import Limit, Take


class Part(msgspec.Struct, frozen=True):
    """One comparison; the ratio is the first to the second."""

    name: str
    ours: float
    other: float
    unit: str
    beside: str

    @property
    def ratio(self) -> float:
        return self.ours / self.other if self.other else 0.0


async def durable(count: int) -> list[Part]:
    """Reserve and commit a quota, 64 at once, beside the same one after the other: what sharing a commit is worth."""
    found = [await _durable("SQLite", count, {})]
    with start_postgres("-c", "synchronous_commit=on") as postgres:
        edit = {"plugins.database.url": postgres.url(postgres.create()), "plugins.database.auto_upgrade": True}
        found.append(await _durable("PostgreSQL", count, edit))
    return found


async def _durable(store: str, count: int, edit: dict[str, Any]) -> Part:
    limit = Limit(
        name="quota.messages", meter="messages", kind="quota", limit=10**9, scope="organization", period="month"
    )
    with tempfile.TemporaryDirectory() as folder:
        async with opened(Path(folder), edit=edit) as client:
            accounts = client.gateway.plugin("accounts")

            async def one() -> None:
                _, holds = await accounts.reserve("o", [Take(limit, "-", 1)])
                await accounts.commit(holds)

            async def some(number: int) -> None:
                for _ in range(number):
                    await one()

            await some(20)
            begun = time.perf_counter()
            await some(count // 8)
            single = (time.perf_counter() - begun) / (count // 8) * 1e6
            begun = time.perf_counter()
            await asyncio.gather(*(some(count // 64) for _ in range(64)))
            shared = (time.perf_counter() - begun) / (count // 64 * 64) * 1e6
    return Part(f"reserve and commit on {store}, 64 at once", shared, single, "µs each", "one after the other")


async def full(organizations: int, charges: int) -> list[Part]:
    """A charge and a refusal where the account holds much else, beside the same where it holds nothing."""
    found = await _full("SQLite", organizations, charges, {})
    with start_postgres() as postgres:
        edit = {"plugins.database.url": postgres.url(postgres.create()), "plugins.database.auto_upgrade": True}
        edit["plugins.database.statement_timeout"] = "120s"  # to write all of it
        return found + await _full("PostgreSQL", organizations, charges, edit)


async def _full(store: str, organizations: int, charges: int, edit: dict[str, Any]) -> list[Part]:
    quota = Limit(name="quota.messages", meter="messages", kind="quota", limit=10**9)
    used_up = Limit(name="quota.tokens", meter="tokens", kind="quota", limit=1)
    with tempfile.TemporaryDirectory() as folder:
        async with opened(Path(folder), edit=edit) as client:
            accounts = client.gateway.plugin("accounts")

            async def charge() -> None:
                _, holds = await accounts.reserve("o", [Take(quota, "-"), Take(quota, "u")])
                await accounts.commit(holds)

            async def refusal() -> None:
                balances, _ = await accounts.reserve("o", [Take(used_up, "-")])
                assert balances[0].refused

            async def costs() -> tuple[float, ...]:
                return tuple([await _soonest(call) for call in (charge, refusal)])

            _, holds = await accounts.reserve("o", [Take(used_up, "-")])
            await accounts.commit(holds)
            empty = await costs()
            await _filled(client.gateway.plugin("database"), organizations, charges)
            among = f"among {organizations:,} organisations and {charges:,} charges of the last hour, {store}"
            return [
                Part(f"{what} {among}", much, little, "µs", "in an empty account")
                for what, much, little in zip(
                    ("a charge and its commit", "a refusal by a quota"), await costs(), empty, strict=True
                )
            ]


async def _filled(database: Any, organizations: int, charges: int) -> None:
    """Write copies of the rows that are there: to charge for each would take minutes."""
    new = "gen_random_uuid()" if database.shared else "lower(hex(randomblob(16)))"
    numbers = "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {})"
    usage = "subject, limit_name, period, used, held, tier, announced, updated_at"
    hold = "organization_id, subject, limit_name, period, meter, kind, amount, state, holder, created_at, expires_at"
    async with database.transaction(None, operation="insert", table="openclaw_usage") as connection:
        for statement in (
            f"{numbers.format(organizations)} INSERT INTO openclaw_usage (organization_id, {usage})"
            f" SELECT 'x' || n, {usage} FROM openclaw_usage, numbers WHERE organization_id = 'o'",
            f"{numbers.format(charges)} INSERT INTO openclaw_holds (hold_id, {hold}) SELECT {new}, {hold}"
            f" FROM (SELECT * FROM openclaw_holds WHERE limit_name = 'quota.tokens' LIMIT 1) AS one, numbers",
            "ANALYZE openclaw_holds",
            "ANALYZE openclaw_usage",
        ):
            await connection.execute(sqlalchemy.text(statement))


async def _soonest(call: Callable[[], Awaitable[Any]], times: int = 30) -> float:
    """Microseconds until it is done, in the least disturbed of the calls."""
    runs = []
    for _ in range(times):
        begun = time.perf_counter()
        await call()
        runs.append((time.perf_counter() - begun) * 1e6)
    return min(runs)
