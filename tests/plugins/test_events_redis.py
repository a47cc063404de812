"""The event bus of many replicas: what the store loses, forgets or never got is filled in, or said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
import redis as client
from events_kit import Heard, contents, publish, redis
from servers import start_valkey
from topologies import start_cluster

from openclaw_gateway.api import EVENTS_LOST, StoreUnavailable
from openclaw_plugins.events.redis import RedisEvents


@asynccontextmanager
async def replicas(url: str, **config: Any) -> AsyncIterator[tuple[RedisEvents, RedisEvents]]:
    prefix = f"t{uuid4().hex[:12]}:"
    async with redis(url, prefix=prefix, **config) as one, redis(url, prefix=prefix, **config) as two:
        yield one, two


async def test_replicas_hear_the_same_in_the_same_order(valkey_url: str) -> None:
    async with replicas(valkey_url) as (one, two):
        here, there = Heard(), Heard()
        await one.subscribe("acme", "s", here)
        await two.subscribe("acme", "s", there)
        await asyncio.gather(*(publish((one, two)[i % 2], str(i)) for i in range(300)))
        assert await here.count(300) == await there.count(300)
        assert [event.seq for event in here.events] == sorted({event.seq for event in here.events})


async def test_who_subscribes_in_the_midst_misses_nothing(valkey_url: str) -> None:
    async with replicas(valkey_url) as (one, two):
        writing = asyncio.create_task(publish(one, *(str(i) for i in range(400))))
        heards = []
        for _ in range(20):
            await asyncio.sleep(0.002)
            heard = Heard()
            heards.append((await two.subscribe("acme", "s", heard), heard))
        numbers = await writing
        for subscription, heard in heards:
            before = await subscription.replay(numbers[0] - 1)
            assert before is not None
            await heard.count(400 - len(before))
            assert contents([*before, *heard.events]) == [str(i) for i in range(400)]


async def test_what_was_heard_elsewhere_first_is_not_heard_again(valkey_url: str) -> None:
    async with replicas(valkey_url) as (one, two):
        heard = Heard()
        subscription = await two.subscribe("acme", "s", heard)
        numbers = await publish(one, "a", "b")
        assert await subscription.replay(numbers[0]) == []  # the client had `a` from another replica
        await publish(one, "c")
        await heard.count(1)
        await asyncio.sleep(0.05)
        assert heard.contents[-2:] in (["b", "c"], ["c"])


async def test_a_connection_that_is_cut_is_made_again_and_its_gap_is_filled(valkey_url: str) -> None:
    async with replicas(valkey_url) as (one, two):
        here, there = Heard(), Heard()
        await one.subscribe("acme", "s", here)
        await two.subscribe("acme", "s", there)
        admin = client.Redis.from_url(valkey_url)
        for i in range(30):
            if i % 10 == 5:
                admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await publish(one, str(i))
        await there.count(30)
        await here.count(30)
        assert here.contents == there.contents == [str(i) for i in range(30)]
        admin.close()


async def test_a_store_that_forgot_everything_is_told_of_and_numbers_never_come_again(tmp_path: Any) -> None:
    with start_valkey() as valkey:
        async with replicas(valkey.url) as (one, two):
            here, there = Heard(), Heard()
            await one.subscribe("acme", "s", here)
            await two.subscribe("acme", "s", there)
            before = await publish(one, "a", "b")
            await there.count(2)
            valkey.stop()
            with pytest.raises(StoreUnavailable):
                await publish(one, "lost")
            valkey.start()
            after = await published(one, "c")
            assert after > before[-1]
            await settled(here, there, last="c")
            for heard in (here, there):
                said = heard.contents
                assert said[:2] == ["a", "b"] and said[-1] == "c"
                assert set(said[2:-1]) == {EVENTS_LOST}, said
                numbers = [event.seq for event in heard.events]
                assert numbers == sorted(set(numbers))
            late = await two.subscribe("acme", "s", Heard())
            assert await late.replay(before[0]) is None


async def test_a_store_that_kept_everything_loses_nothing_but_what_was_refused(tmp_path: Any) -> None:
    with start_valkey() as valkey:
        options = ("--appendonly", "yes", "--appendfsync", "always")
        valkey.stop()
        valkey.start(*options)
        async with replicas(valkey.url) as (one, two):
            there = Heard()
            await two.subscribe("acme", "s", there)
            (first,) = await publish(one, "a")
            await there.count(1)
            valkey.stop()
            with pytest.raises(StoreUnavailable):
                await publish(one, "refused")
            valkey.start(*options)
            await published(one, "b")
            await settled(there, last="b")
            # That something was refused is said in its place, though the store itself lost nothing.
            assert there.contents[0] == "a" and EVENTS_LOST in there.contents[1:-1]
            fresh = await two.subscribe("acme", "s", Heard())
            assert await fresh.replay(first) is None


async def test_no_store_is_said_and_costs_no_time(tmp_path: Any) -> None:
    with start_valkey() as valkey:
        async with redis(valkey.url, timeout=0.1) as bus:
            valkey.stop()
            for _ in range(10):
                with pytest.raises(StoreUnavailable):
                    await publish(bus, "x")
            started = asyncio.get_running_loop().time()
            for _ in range(100):
                with pytest.raises(StoreUnavailable):
                    await publish(bus, "x")
                with pytest.raises(StoreUnavailable):
                    await bus.subscribe("acme", "other", Heard())
                if asyncio.get_running_loop().time() - started > 3:
                    break
            assert len(bus._owed) == 1
            assert not bus._logs


async def test_a_listened_session_outlives_its_time_and_others_do_not(valkey_url: str) -> None:
    async with redis(valkey_url, keep_for=0.4) as bus:
        heard = Heard()
        await bus.subscribe("acme", "kept", heard)
        (kept,) = await publish(bus, "a", session="kept")
        (gone,) = await publish(bus, "a", session="gone")
        await asyncio.sleep(1.2)
        again = await bus.subscribe("acme", "kept", Heard())
        assert contents(await again.replay(kept - 1)) == ["a"]
        late = await bus.subscribe("acme", "gone", Heard())
        assert late.head > gone
        assert await late.replay(gone - 1) is None
        await publish(bus, "b", session="kept")
        await heard.count(2)
        assert heard.contents == ["a", "b"]


async def test_the_store_holds_no_more_than_the_window(valkey_url: str) -> None:
    prefix = f"t{uuid4().hex[:12]}:"
    async with redis(valkey_url, prefix=prefix, keep=10) as bus:
        await publish(bus, *(str(i) for i in range(100)))
        admin = client.Redis.from_url(valkey_url)
        (log,) = admin.keys(f"{prefix}*:log")
        assert admin.xlen(log) == 10
        assert all(0 < admin.pttl(key) <= 300_000 for key in admin.keys(f"{prefix}*"))
        admin.close()


async def test_in_a_cluster_every_node_tells(tmp_path: Any) -> None:
    with start_cluster() as cluster:
        async with replicas(cluster.url) as (one, two):
            heard = [Heard() for _ in range(12)]
            for i, each in enumerate(heard):
                await two.subscribe("acme", f"s{i}", each)
            for i in range(12):
                await publish(one, "a", "b", session=f"s{i}")
            for each in heard:
                await each.count(2)
                assert each.contents == ["a", "b"]


async def published(bus: RedisEvents, text: str) -> int:
    """Publish as soon as the store answers."""
    async with asyncio.timeout(20):
        while True:
            try:
                return (await publish(bus, text))[0]
            except StoreUnavailable:
                await asyncio.sleep(0.05)


async def settled(*heards: Heard, last: str) -> None:
    async with asyncio.timeout(10):
        while not all(heard.events and heard.contents[-1] == last for heard in heards):
            await asyncio.sleep(0.01)


async def test_a_user_with_the_documented_rights_is_enough() -> None:
    commands = "eval evalsha ping time hget hmget hset pexpire subscribe unsubscribe publish xadd xlen xrange xdel set"
    rights = [f"+{command}" for command in commands.split()]
    with start_valkey("--user", "gateway", "on", ">secret", "~openclaw:*", "&openclaw:*", "-@all", *rights) as valkey:
        url = valkey.url.replace("redis://", "redis://gateway:secret@")
        async with redis(url, prefix="openclaw:", keep=1) as one, redis(url, prefix="openclaw:") as two:
            heard = Heard()
            await two.subscribe("acme", "s", heard)
            await publish(one, "a", "b")
            await heard.count(2)
            assert heard.contents == ["a", "b"]


async def test_a_user_that_may_not_subscribe_is_refused_and_nothing_is_left_behind() -> None:
    with start_valkey("--user", "default", "on", "nopass", "~*", "&*", "+@all", "-subscribe") as valkey:
        async with redis(valkey.url, timeout=0.2) as bus:
            with pytest.raises(StoreUnavailable):
                await bus.subscribe("acme", "s", Heard())
            assert not bus._logs
