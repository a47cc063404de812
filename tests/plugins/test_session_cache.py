"""Sessions behind a cache, as two replicas see them: what is gone is gone, and an outage costs speed alone."""

from __future__ import annotations

import asyncio
import copy
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from servers import start_valkey
from store_kit import Store

from openclaw_gateway.api import Principal, Refused, Secret, Session, SessionStore, StoreBusy
from openclaw_plugins.redis import RedisConnection
from openclaw_plugins.sessions.cache import CachedSessions


class Slow:
    """A session store whose reads a test can hold, and counts."""

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        self.reads = 0
        self.most = 0
        self._now = 0
        self.read = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()
        #: the same store, read through here
        self.seen = copy.copy(store)
        self.seen.get = self.get

    async def get(self, organization: str, session_id: str) -> Session:
        self.reads += 1
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            return await self._store.get(organization, session_id)
        finally:
            self.read.set()
            await self.go.wait()
            self._now -= 1


class Replica:
    def __init__(self, store: Store, url: str, prefix: str, **config: Any) -> None:
        self.slow = Slow(store.sessions)
        self._opened = AsyncExitStack()
        redis = RedisConnection(RedisConnection.Config(url=Secret(url), prefix=prefix), store._host("redis"))
        store._instances |= {"redis": redis, "stored": self.slow.seen}
        self.redis = redis
        self.sessions = CachedSessions(CachedSessions.Config(store="stored", **config), store._host("sessions"))

    async def __aenter__(self) -> Replica:
        await self._opened.enter_async_context(self.redis.lifespan())
        await self._opened.enter_async_context(self.sessions.lifespan())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._opened.aclose()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    made = Store(tmp_path)
    async with made.database.lifespan(), made.accounts.lifespan(), made.sessions.lifespan():
        yield made


@pytest.fixture
async def replica(store: Store, valkey_url: str) -> AsyncIterator[Callable[..., Any]]:
    prefix = f"t{uuid.uuid4().hex[:12]}:"
    async with AsyncExitStack() as opened:

        async def open_one(**config: Any) -> Replica:
            return await opened.enter_async_context(Replica(store, valkey_url, prefix, **config))

        yield open_one


async def gone(replica: Replica, id: str, organization: str = "acme") -> int:
    with pytest.raises(Refused) as error:
        await replica.sessions.get(organization, id)
    return error.value.refusal.status


async def test_a_copy_answers_on_every_replica_until_a_change(store: Store, replica: Callable[..., Any]) -> None:
    one, two = await replica(), await replica()
    id = await store.session()
    read = await one.sessions.get("acme", id)
    assert [await two.sessions.get("acme", id) for _ in range(3)] == [read] * 3
    assert (one.slow.reads, two.slow.reads) == (1, 0)
    changed = await two.sessions.update("acme", id, metadata={"a": 1}, status=None)
    assert await one.sessions.get("acme", id) == changed == await two.sessions.get("acme", id)
    await one.sessions.delete("acme", id)
    assert [await gone(one, id), await gone(two, id)] == [404, 404]


async def test_what_was_read_before_a_delete_is_not_kept_after_it(store: Store, replica: Callable[..., Any]) -> None:
    one, two = await replica(), await replica()
    id = await store.session()
    one.slow.go.clear()
    reading = asyncio.create_task(one.sessions.get("acme", id))
    await one.slow.read.wait()
    await two.sessions.delete("acme", id)
    one.slow.go.set()
    assert (await reading).session_id == id  # it was asked for before the delete
    assert [await gone(one, id), await gone(two, id)] == [404, 404]


async def test_a_copy_is_for_its_own_organization(store: Store, replica: Callable[..., Any]) -> None:
    one = await replica()
    id = await store.session()
    await one.sessions.get("acme", id)
    assert await gone(one, id, "other") == 403
    # even where a copy of another stands in its place
    keys = one.sessions._keys("acme", id)
    copy = await one.redis.call(keys[0], "GET", keys[0])
    theirs = one.sessions._keys("other", id)[0]
    await one.redis.call(theirs, "SET", theirs, copy)
    assert await gone(one, id, "other") == 403


async def test_those_who_ask_at_one_moment_share_a_read(store: Store, replica: Callable[..., Any]) -> None:
    one = await replica()
    id = await store.session()
    asked = [asyncio.create_task(one.sessions.get("acme", id)) for _ in range(50)]
    await asyncio.sleep(0)
    asked[0].cancel()
    assert len({session.session_id for session in await asyncio.gather(*asked[1:])}) == 1
    assert one.slow.reads == 1


async def test_a_session_ends_in_time_from_its_copy_too(store: Store, replica: Callable[..., Any]) -> None:
    one = await replica()
    who = Principal(organization="acme", user="ada", tier="teams", method="api_key", credential="k")
    made = await one.sessions.create(who, tier="teams", metadata={}, ttl=1, holds=())
    await one.sessions.get("acme", made.session_id)
    await asyncio.sleep(1.1)
    assert await gone(one, made.session_id) == 404


async def test_without_redis_the_store_answers_behind_a_bound(store: Store) -> None:
    with start_valkey() as server:
        async with Replica(store, server.url, "t:", max_reads=2, max_wait=0.5) as one:
            ids = [await store.session() for _ in range(12)]
            await asyncio.gather(*(one.sessions.get("acme", id) for id in ids))
            one.slow.most = 0
            server.stop()
            await asyncio.gather(*(one.sessions.get("acme", id) for id in ids))
            assert one.slow.most <= 2
            one.slow.go.clear()
            ends = asyncio.gather(*(one.sessions.get("acme", id) for id in ids), return_exceptions=True)
            await asyncio.sleep(0.8)
            one.slow.go.set()
            assert [type(end) for end in await ends].count(StoreBusy) == 10


async def test_a_delete_while_redis_is_silent_resurrects_nothing(store: Store) -> None:
    with start_valkey() as server:
        async with Replica(store, server.url, "t:") as one:
            id = await store.session()
            await one.sessions.get("acme", id)
            server.pause()  # what it holds, it will still hold
            await one.sessions.delete("acme", id)
            assert await gone(one, id) == 404
            server.resume()
            async with asyncio.timeout(15):
                while one.sessions._doubtful(id):
                    assert await gone(one, id) == 404
                    await asyncio.sleep(0.05)
            assert await gone(one, id) == 404
            keys = one.sessions._keys("acme", id)
            assert await one.redis.call(keys[0], "EXISTS", keys[0]) == 0
