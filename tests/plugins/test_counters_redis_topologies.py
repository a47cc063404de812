"""The counters behind Sentinels and in a cluster: the same answers, and what a failover costs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from counters_kit import counting
from redis.crc import key_slot
from topologies import Cluster, Sentinels, start_cluster, start_sentinels

from openclaw_gateway.api import Limit, Take
from openclaw_plugins.counters.redis import RedisCounters
from openclaw_plugins.redis.location import location

REQUESTS = Limit(name="ratelimit.requests", meter="requests", kind="rate", limit=10, on_backend_failure="open")
OTHER = Limit(name="ratelimit.other", meter="requests", kind="rate", limit=100, on_backend_failure="open")
SOCKETS = Limit(name="concurrency.ws", meter="ws_connections", kind="lease", limit=3, on_backend_failure="open")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with start_cluster() as running:
        yield running


@pytest.fixture
def sentinels() -> Iterator[Sentinels]:
    with start_sentinels() as running:
        yield running


async def admitted(counters: RedisCounters, organization: str, calls: int = 15) -> int:
    """How many of so many are admitted; all of them by the store."""
    takes = [(Take(REQUESTS, "-"), Take(OTHER, "-"), Take(SOCKETS, "-", lease=f"h{i}")) for i in range(calls)]
    answers = await asyncio.gather(*(counters.admit(organization, t[:2]) for t in takes))
    assert not any(balance.degraded for balances in answers for balance in balances)
    assert {balances[1].used for balances in answers if not balances[0].refused} <= set(range(1, 101))
    return sum(not balances[0].refused for balances in answers)


async def test_a_cluster_admits_exactly_the_limit_for_organisations_on_every_node(cluster: Cluster) -> None:
    async with counting(cluster.url, timeout=2) as (counters, redis):
        found = await asyncio.gather(*(admitted(counters, f"org-{i}") for i in range(40)))
        assert found == [10] * 40
        for i in range(40):
            holders = [Take(SOCKETS, "-", lease=f"h{n}") for n in range(4)]
            assert [(await counters.admit(f"org-{i}", [h]))[0].refused for h in holders] == [False] * 3 + [True]
            await counters.release(f"org-{i}", [holders[0]])
            assert await counters.renew(f"org-{i}", [holders[1]])
            assert not (await counters.admit(f"org-{i}", [holders[3]]))[0].refused
        asked = [line for line in redis._nodes.lines() if line._wire is not None]
        assert len(asked) == 3
        assert not redis.degraded


async def test_a_slot_that_moves_is_followed(cluster: Cluster) -> None:
    async with counting(cluster.url, timeout=2) as (counters, redis):
        await admitted(counters, "settled")
        await asyncio.sleep(0.3)  # the map is read
        for i in range(3):
            takes = [Take(REQUESTS, "-")]
            slot = key_slot(counters._key(f"moving-{i}", takes[0]).encode())
            await asyncio.to_thread(cluster.move, slot)
            assert await admitted(counters, f"moving-{i}") == 10
        assert not redis.degraded


async def test_all_keys_of_an_organisation_lie_in_one_slot_and_hold_no_name() -> None:
    async with counting("redis+cluster://127.0.0.1:1") as (counters, _):
        names = ["acme", "a{b}c", "{}", "a:b", "ü\udc80", "x" * 10_000]
        takes = [Take(REQUESTS, "-"), Take(OTHER, "{other}"), Take(SOCKETS, "a{b}", lease="l")]
        keys = {name: [counters._key(name, take) for take in takes] for name in names}
        for name, found in keys.items():
            assert len({key_slot(key.encode()) for key in found}) == 1
            assert not any(name in key for key in found if len(name) > 2)
        assert len({key for found in keys.values() for key in found}) == len(names) * len(takes)


@pytest.fixture
def mortal() -> Iterator[Cluster]:
    """One of the test's own, which it may leave in ruins."""
    with start_cluster(replica=True) as running:
        yield running


async def test_a_dead_primary_of_a_cluster_is_replaced_and_the_others_are_not_touched(mortal: Cluster) -> None:
    async with counting(mortal.url) as (counters, redis):
        names = [f"again-{i}" for i in range(30)]
        for name in names:
            await counters.admit(name, [Take(REQUESTS, "-", 4)])
        here = {name: slot_owner(mortal, counters, name) for name in names}
        mortal.nodes[0].stop(9)
        async with asyncio.timeout(20):
            while True:
                for name in names:
                    (balance,) = await counters.admit(name, [Take(REQUESTS, "-", 0)])
                    assert not balance.refused
                    assert not balance.degraded or here[name] == 0, "only the dead node's organisations are degraded"
                if not redis.degraded:
                    break
                await asyncio.sleep(0.05)
        # what was counted before is on the replica
        for name in names:
            (balance,) = await counters.peek(name, [Take(REQUESTS, "-")])
            assert balance.used == 4
            assert await admitted(counters, name) == 6


def slot_owner(cluster: Cluster, counters: RedisCounters, name: str) -> int:
    slot = key_slot(counters._key(name, Take(REQUESTS, "-")).encode())
    return cluster.owner(slot)


async def test_sentinels_name_the_primary_and_after_its_death_the_next(sentinels: Sentinels) -> None:
    async with counting(sentinels.url) as (counters, redis):
        assert await admitted(counters, "acme") == 10
        await counters.admit("other", [Take(REQUESTS, "-", 4)])
        await asyncio.sleep(0.2)  # replicated
        sentinels.primary.stop(9)
        degraded = 0
        async with asyncio.timeout(20):
            while True:
                (balance,) = await counters.admit("probe", [Take(OTHER, "-", 0)])
                assert not balance.refused
                degraded += balance.degraded
                if degraded and not redis.degraded and not balance.degraded:
                    break
                await asyncio.sleep(0.02)
        assert await admitted(counters, "acme") == 0
        assert await admitted(counters, "other") == 6


@pytest.mark.parametrize(
    ("url", "kind", "hosts", "rest"),
    [
        ("redis://h", "single", (("h", 6379),), {}),
        ("redis://:p%40ss@h:1/3", "single", (("h", 1),), {"password": "p@ss", "database": 3}),
        ("rediss://me:secret@[::1]:7000", "single", (("::1", 7000),), {"username": "me", "tls": True}),
        ("redis+sentinel://a,b:1/main/2", "sentinel", (("a", 26379), ("b", 1)), {"name": "main", "database": 2}),
        ("rediss+cluster://u:p@a:1,b:2", "cluster", (("a", 1), ("b", 2)), {"username": "u", "tls": True}),
        ("unix:///run/v.sock", "socket", (), {"path": "/run/v.sock"}),
    ],
)
def test_a_url_says_where_a_store_is(url: str, kind: str, hosts: tuple, rest: dict) -> None:
    found = location(url)
    assert (found.kind, found.hosts) == (kind, hosts)
    assert {key: getattr(found, key) for key in rest} == rest
    assert not any(secret in found.shown for secret in ("p@ss", "secret", "u:p"))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://sekret",
        "redis://",
        "redis://sekret,sekret",
        "redis://:sekret@h/x",
        "redis://sekret:99999",
        "redis+sentinel://sekret",
        "redis://h?password=sekret",
    ],
)
def test_a_url_that_says_nothing_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="expected redis://") as refused:
        location(url)
    assert "sekret" not in str(refused.value)
