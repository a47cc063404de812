"""Partitions of messages by the database's clock, which these tests move: made ahead, and dropped when past."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from servers import Postgres
from sqlalchemy import text
from store_kit import Store

from openclaw_gateway.api import StoreUnavailable

_KEPT = timedelta(days=92)
_MONTHS = 24


class Clock:
    """`now()` of one database: a function that its statements find before PostgreSQL's own."""

    def __init__(self, postgres: Postgres, name: str) -> None:
        self._postgres = postgres
        self._name = name
        postgres.sql(
            "CREATE TABLE public.clock (at timestamptz NOT NULL); INSERT INTO public.clock VALUES ('2030-01-01Z'); "
            "CREATE FUNCTION public.now() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT at FROM public.clock'; "
            f"ALTER DATABASE {name} SET search_path = public, pg_catalog",
            name,
        )

    def set(self, at: datetime) -> None:
        self._postgres.sql(f"UPDATE public.clock SET at = '{at.isoformat()}'", self._name)


@pytest.fixture
def timed(postgres: Postgres, tmp_path: Path) -> Any:
    name = postgres.create()
    clock = Clock(postgres, name)
    yield clock, Store(tmp_path, url=postgres.url(name), retention=_KEPT.total_seconds())
    postgres.drop(name)


async def partitions(store: Store) -> list[str]:
    async with store.database.owner() as connection:
        rows = await connection.execute(
            text("SELECT relname FROM pg_class WHERE relname ~ '^openclaw_messages_2' AND relkind = 'r' ORDER BY 1")
        )
        return [name.removeprefix("openclaw_messages_") for name in rows.scalars()]


async def test_two_years_of_months_with_writers(timed: Any) -> None:
    clock, store = timed
    stored: list[datetime] = []
    slowest = 0.0
    async with store.database.lifespan(), store.sessions.lifespan():
        sessions = [await store.session() for _ in range(4)]
        for month in range(_MONTHS):
            at = datetime(2030 + month // 12, month % 12 + 1, 1, tzinfo=UTC)
            # the first microsecond, and the last
            for moment in (at, (at + timedelta(days=32)).replace(day=1) - timedelta(microseconds=1)):
                clock.set(moment)
                async with store.database.owner() as connection:
                    await connection.execute(
                        text("UPDATE openclaw_sessions SET expires_at = now() + interval '1 year'")
                    )

                async def write(session: str) -> None:
                    nonlocal slowest
                    started = time.monotonic()
                    await store.say(session, "x")
                    slowest = max(slowest, time.monotonic() - started)

                async def looked_after(month: int = month) -> None:
                    if month not in (10, 11):  # two months in which no replica did
                        await store.database.partitions.ensure()
                        await store.database.partitions.drop_past()

                await asyncio.gather(*(write(session) for session in sessions), looked_after())
                stored += [moment] * len(sessions)
        now = stored[-1]
        found = await partitions(store)
        # the months within the policy, this one, and three ahead
        assert found[0] == "2031_09" and found[-1] == "2032_03"
        async with store.database.transaction("acme", operation="select", table="t") as connection:
            kept = list((await connection.execute(text("SELECT timestamp FROM openclaw_messages"))).scalars())
    assert sorted(kept) == sorted(at for at in stored if at >= datetime(2031, 9, 1, tzinfo=UTC))
    assert all(at in kept for at in stored if at > now - _KEPT)
    assert slowest < 2


async def test_a_partition_in_use_is_left_and_what_was_begun_is_finished(timed: Any) -> None:
    clock, store = timed
    async with store.database.lifespan(), store.sessions.lifespan():
        session = await store.session()
        await store.say(session, "old")
        clock.set(datetime(2030, 4, 1, tzinfo=UTC))
        await store.database.partitions.ensure()
        assert await store.database.partitions.drop_past() == []  # 31 January is 60 days ago
        clock.set(datetime(2030, 6, 1, tzinfo=UTC))
        await store.database.partitions.ensure()
        async with store.database.transaction("acme", operation="select", table="t") as reader:
            await reader.execute(text("SELECT count(*) FROM openclaw_messages"))
            dropping = asyncio.create_task(store.database.partitions.drop_past())
            await asyncio.sleep(0.5)
            # another replica finds that it is being done
            assert await store.database.partitions.drop_past() == []
            started = time.monotonic()
            async with store.database.transaction("acme", operation="insert", table="t") as writer:
                await writer.execute(
                    text(
                        "INSERT INTO openclaw_messages (message_id, session_id, organization_id, seq, role, content, "
                        "metadata, timestamp) VALUES (gen_random_uuid(), :id, 'acme', 9, 'user', '1', '{}', now())"
                    ),
                    {"id": session},
                )
            assert time.monotonic() - started < 2
            dropping.cancel()
            await asyncio.wait([dropping])
        assert "2030_01" in await partitions(store)
        async with asyncio.timeout(10):
            while not (gone := await store.database.partitions.drop_past()):
                await asyncio.sleep(0.05)  # the server has not noticed yet that the first one is gone
        assert gone[0] == "openclaw_messages_2030_01"
        assert "2030_01" not in await partitions(store)
        assert await store.database.partitions.drop_past() == []


async def test_nothing_is_dropped_unless_it_is_asked_for(postgres: Postgres, tmp_path: Path) -> None:
    name = postgres.create()
    clock = Clock(postgres, name)
    store = Store(tmp_path, url=postgres.url(name))
    async with store.database.lifespan():
        clock.set(datetime(2040, 1, 1, tzinfo=UTC))
        with pytest.raises(StoreUnavailable):
            await store.database.partitions.probe()
        await store.database.partitions.ensure()
        await store.database.partitions.probe()
        assert await store.database.partitions.drop_past() == []
        assert (await partitions(store))[0] == "2030_01"
    postgres.drop(name)
