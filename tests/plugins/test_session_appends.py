"""Appends share commits: what that gains, and that none of them pays for another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from servers import Postgres
from sqlalchemy import event, text
from store_kit import Store

from openclaw_gateway.api import Limit, NewMessage, Refused, StoreBusy, Take
from openclaw_plugins.accounts import at_once
from openclaw_plugins.sessions import appends
from openclaw_plugins.sessions.appends import Append

MESSAGES = Limit(name="quota.messages", meter="messages", kind="quota", limit=100_000)


@pytest.fixture(params=["sqlite", "postgresql"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    config = {"url": request.getfixturevalue("postgres_url")} if request.param == "postgresql" else {}
    made = Store(tmp_path, lock_timeout=0.5, **config)
    async with made.database.lifespan(), made.accounts.lifespan(), made.sessions.lifespan():
        yield made


async def test_appends_of_one_moment_share_transactions_and_keep_their_order(store: Store) -> None:
    ids = [await store.session() for _ in range(8)]
    await asyncio.gather(*(store.say(ids[i % 8], i) for i in range(200)))
    assert store.transactions() <= 5
    for place, id in enumerate(ids):
        kept = await store.sessions.history("acme", id, limit=200)
        assert [message.content for message in kept] == list(range(place, 200, 8))


async def test_what_is_stored_is_one_statement_of_postgresql_and_its_charge_another(
    postgres_url: str, tmp_path: Path
) -> None:
    store = Store(tmp_path, url=postgres_url)
    async with store.database.lifespan(), store.accounts.lifespan(), store.sessions.lifespan():
        ids = [await store.session() for _ in range(3)]
        await store.say(ids[0], "first")
        _, holds = await store.accounts.reserve("acme", [Take(MESSAGES, "-")])
        asked: list[str] = []

        @event.listens_for(store.database._engine("insert").sync_engine, "before_cursor_execute")
        def told(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
            asked.append(statement)

        await store.say(ids[0], "second", holds=holds)
        assert asked == [appends._AT_ONCE, at_once.STATEMENT]
        asked.clear()
        await asyncio.gather(*(store.say(ids[i % 3], i) for i in range(30)))
        assert set(asked) == {appends._AT_ONCE} and len(asked) <= 4
        kept = [await store.sessions.history("acme", id, limit=20) for id in ids]
        assert [message.content for message in kept[0]] == ["first", "second", *range(0, 30, 3)]
        assert [[message.content for message in of] for of in kept[1:]] == [[*range(1, 30, 3)], [*range(2, 30, 3)]]
        async with store.database.transaction("acme", operation="select", table="t") as connection:
            count = text("SELECT message_count FROM openclaw_sessions ORDER BY session_id")
            assert [row[0] for row in await connection.execute(count)] == [12, 10, 10]


async def test_a_session_that_is_locked_is_counted_as_it_is_by_then(postgres_url: str, tmp_path: Path) -> None:
    store = Store(tmp_path, url=postgres_url, lock_timeout=10)
    async with store.database.lifespan(), store.accounts.lifespan(), store.sessions.lifespan():
        id = await store.session()
        async with store.database.transaction("acme", operation="update", table="t") as connection:
            await connection.execute(text("UPDATE openclaw_sessions SET message_count = message_count + 5"))
            saying = asyncio.create_task(store.say(id, "x"))
            await asyncio.sleep(0.3)  # it waits for the row, with a look at it from before
            assert not saying.done()
        await saying
        async with store.database.transaction("acme", operation="select", table="t") as connection:
            stored = text("SELECT seq, (SELECT message_count FROM openclaw_sessions) FROM openclaw_messages")
            assert tuple((await connection.execute(stored)).one()) == (6, 6)


async def test_one_that_cannot_be_stored_fails_alone_and_is_not_charged(store: Store) -> None:
    ids = [await store.session() for _ in range(3)]
    holds = []
    for _ in range(9):
        _, held = await store.accounts.reserve("acme", [Take(MESSAGES, "-")])
        holds.append(held)
    said: list[Any] = ["a", "lone \ud800", "b", "c", "\ud800", "d", "e"]
    wanted = [*(store.say(ids[i % 3], content, holds=holds[i]) for i, content in enumerate(said))]
    unknown = store.say("0190b0e0-0000-7000-8000-000000000000", "x", holds=holds[7])
    foreign = await store.session("other")
    ends = await asyncio.gather(*wanted, unknown, store.say(foreign, "x", holds=holds[8]), return_exceptions=True)
    statuses = [end.refusal.status if isinstance(end, Refused) else end for end in ends]
    assert statuses == [None, 400, None, None, 400, None, None, 404, 403]
    kept = [message.content for id in ids for message in await store.sessions.history("acme", id, limit=9)]
    assert sorted(kept) == ["a", "b", "c", "d", "e"]
    await store.accounts.void([*holds[7], *holds[8]])  # where there is no session, they are left to the caller
    (balance,) = await store.accounts.peek("acme", [Take(MESSAGES, "-")])
    assert balance.used == 5


async def test_who_leaves_does_not_stop_what_is_on_its_way(store: Store) -> None:
    id = await store.session()
    _, held = await store.accounts.reserve("acme", [Take(MESSAGES, "-")])
    leaving = asyncio.create_task(store.say(id, "left", holds=held))
    staying = asyncio.create_task(store.say(id, "stayed"))
    await asyncio.sleep(0)
    leaving.cancel()
    await staying
    with pytest.raises(asyncio.CancelledError):
        await leaving
    kept = [message.content for message in await store.sessions.history("acme", id, limit=9)]
    (balance,) = await store.accounts.peek("acme", [Take(MESSAGES, "-")])
    assert (kept, balance.used) == (["left", "stayed"], 1)


async def test_a_session_that_other_work_has_locked_holds_up_no_other(postgres_url: str, tmp_path: Path) -> None:
    store = Store(tmp_path, url=postgres_url, lock_timeout=0.3)
    async with store.database.lifespan(), store.accounts.lifespan(), store.sessions.lifespan():
        locked, free = await store.session(), await store.session()
        async with store.database.transaction("acme", operation="update", table="t") as connection:
            await connection.execute(
                text("SELECT 1 FROM openclaw_sessions WHERE session_id = :id FOR UPDATE"), {"id": locked}
            )
            started = time.monotonic()
            ends = await asyncio.gather(
                *(store.say(locked if i % 2 else free, i) for i in range(40)), return_exceptions=True
            )
            took = time.monotonic() - started
        assert [isinstance(end, StoreBusy) for end in ends] == [bool(i % 2) for i in range(40)]
        assert [end for end in ends[::2] if end is not None] == []
        # the lock's time-out once for all of them and once for one alone, not once each
        assert took < 5
        assert len(await store.sessions.history("acme", free, limit=99)) == 20


async def test_sharing_a_commit_is_several_times_as_fast_as_one_each(
    postgres: Postgres, tmp_path: Path, record_property: Any
) -> None:
    name = postgres.create()
    store = Store(tmp_path, url=postgres.url(name), pool_timeout=30.0, statement_timeout=60.0)
    async with store.database.lifespan(), store.accounts.lifespan(), store.sessions.lifespan():
        ids = [await store.session() for _ in range(64)]
        alone = await rate(ids, 6, lambda session: one_each(store, session))
        shared = await rate(ids, 24, lambda session: store.say(session, "x" * 200))
    postgres.drop(name)
    record_property("times", round(shared / alone, 1))
    assert shared > 2 * alone, f"{alone:.0f}/s with a transaction each, {shared:.0f}/s shared"


async def one_each(store: Store, id: str) -> None:
    append = Append(id, [NewMessage(role="user", content="x" * 200)], ())
    assert await store.sessions._appends._attempt("acme", [append])


async def rate(ids: list[str], rounds: int, work: Any) -> float:
    """Messages a second of as many writers at once as there are ids."""

    async def writer(id: str) -> None:
        for _ in range(rounds):
            await work(id)

    started = time.perf_counter()
    await asyncio.gather(*(writer(id) for id in ids))
    return len(ids) * rounds / (time.perf_counter() - started)
