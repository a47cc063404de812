"""What a failing Valkey costs: a bounded time until it is known, nothing after, and what each limit's policy says."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from counters_kit import counting
from fault_proxy import FaultProxy, faulty
from prometheus_client import CollectorRegistry
from redis import Redis
from servers import Valkey, start_valkey

from openclaw_gateway.api import Balance, Correction, Limit, StartFailed, StoreUnavailable, Take
from openclaw_plugins.counters.redis import RedisCounters
from openclaw_plugins.redis import RedisConnection
from openclaw_plugins.redis.breaker import Breaker

#: all concurrent callers of a process that is asked at the moment of a failure
CALLERS = 16


def rate(limit: int = 1_000_000, policy: str = "local", name: str = "requests", **fields: object) -> Take:
    found = Limit(
        name=f"ratelimit.{name}", meter="requests", kind="rate", limit=limit, on_backend_failure=policy, **fields
    )
    return Take(found, "-")


def place(holder: str, limit: int = 2, policy: str = "local") -> Take:
    found = Limit(
        name=f"concurrency.{policy}", meter="ws_connections", kind="lease", limit=limit, on_backend_failure=policy
    )
    return Take(found, "-", lease=holder)


class Scene:
    """Counters behind a proxy in front of a Valkey of their own."""

    def __init__(
        self,
        counters: RedisCounters,
        redis: RedisConnection,
        proxy: FaultProxy,
        valkey: Valkey,
        registry: CollectorRegistry,
    ) -> None:
        self.counters = counters
        self.redis = redis
        self.proxy = proxy
        self.valkey = valkey
        self._registry = registry

    async def ask(self, take: Take, organization: str = "acme") -> Balance:
        (balance,) = await self.counters.admit(organization, (take,))
        return balance

    async def load(self, take: Take, seconds: float, callers: int = CALLERS) -> list[tuple[float, Balance]]:
        """Ask without pause for so long; return how long each took, and its answer."""
        found: list[tuple[float, Balance]] = []
        end = time.perf_counter() + seconds
        takes = (take,)

        async def caller() -> None:
            while (began := time.perf_counter()) < end:
                (balance,) = await self.counters.admit("acme", takes)
                found.append((time.perf_counter() - began, balance))
                await asyncio.sleep(0.001)

        await asyncio.gather(*(caller() for _ in range(callers)))
        return found

    async def until(self, degraded: bool, take: Take, within: float = 10) -> None:
        async with asyncio.timeout(within):
            while (await self.ask(take)).degraded is not degraded or self.redis.degraded is not degraded:
                await asyncio.sleep(0.01)

    def metric(self, name: str, **labels: str) -> float:
        return self._registry.get_sample_value(name, labels) or 0.0

    def errors(self) -> float:
        samples = [s for m in self._registry.collect() if m.name == "redis_errors" for s in m.samples]
        return sum(s.value for s in samples if s.name == "redis_errors_total")

    async def set(self, *command: str | int) -> None:
        """Say something to the server itself, past the proxy."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.valkey.port)
        parts = [str(word).encode() for word in command]
        writer.write(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts))
        answer = await reader.readline()
        writer.close()
        assert not answer.startswith(b"-"), answer


@pytest.fixture(scope="module")
def own_valkey() -> Iterator[Valkey]:
    with start_valkey() as server:
        yield server


@asynccontextmanager
async def scene(valkey: Valkey, **options: object) -> AsyncIterator[Scene]:
    registry = CollectorRegistry()
    async with (
        faulty(valkey.port) as proxy,
        counting(proxy.url, registry=registry, **options) as (counters, redis),
    ):
        yield Scene(counters, redis, proxy, valkey, registry)


# --- faults that last ---------------------------------------------------------------------------


async def refused(s: Scene) -> None:
    await s.proxy.refuse()


async def unrefused(s: Scene) -> None:
    await s.proxy.listen()


async def paused(s: Scene) -> None:
    s.valkey.pause()


async def resumed(s: Scene) -> None:
    s.valkey.resume()


async def hole(s: Scene) -> None:
    s.proxy.hole = True


async def no_hole(s: Scene) -> None:
    s.proxy.hole = False
    await s.proxy.cut()


async def resets(s: Scene) -> None:
    s.proxy.resets = True


async def no_resets(s: Scene) -> None:
    s.proxy.resets = False


async def late(s: Scene) -> None:
    s.proxy.delay = 0.3


async def in_time(s: Scene) -> None:
    s.proxy.delay = 0.0
    await s.proxy.cut()


async def denied(s: Scene) -> None:
    await s.set("ACL", "SETUSER", "default", "-evalsha", "-eval")


async def allowed(s: Scene) -> None:
    await s.set("ACL", "SETUSER", "default", "+evalsha", "+eval")


async def full(s: Scene) -> None:
    await s.set("CONFIG", "SET", "maxmemory", 1)


async def not_full(s: Scene) -> None:
    await s.set("CONFIG", "SET", "maxmemory", 0)


async def killed(s: Scene) -> None:
    s.valkey.stop(9)


async def restarted(s: Scene) -> None:
    s.valkey.start()


Change = Callable[[Scene], Awaitable[None]]
FAULTS: dict[str, tuple[Change, Change]] = {
    "refused": (refused, unrefused),
    "paused": (paused, resumed),
    "black hole": (hole, no_hole),
    "reset": (resets, no_resets),
    "late": (late, in_time),
    "denied": (denied, allowed),
    "full": (full, not_full),
    "killed": (killed, restarted),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_failing_store_costs_a_bounded_time_and_what_the_policy_says(
    fault: str, own_valkey: Valkey, caplog: pytest.LogCaptureFixture, record_property: Any
) -> None:
    record_property("kinds of fault", 1)
    await fail(fault, own_valkey, caplog, seconds=0.3, share=0.95)  # the rest is for machines that others share


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_failing_store_costs_a_bounded_time_at_the_99th_percentile(
    fault: str, own_valkey: Valkey, caplog: pytest.LogCaptureFixture, record_property: Any
) -> None:
    first, after = await fail(fault, own_valkey, caplog, seconds=3, share=0.99)
    record_property("worst 99 % until the breaker opens, ms", round(1000 * first, 1))
    record_property("worst 99 % after, ms", round(1000 * after, 2))
    record_property("answers of 5xx", 0)


async def fail(
    fault: str, own_valkey: Valkey, caplog: pytest.LogCaptureFixture, *, seconds: float, share: float
) -> tuple[float, float]:
    """Return what the share of the calls took at most until the failure was known, and after."""
    begin, end = FAULTS[fault]
    async with scene(own_valkey, replicas=4) as s:
        served = rate(limit=10)
        for _ in range(8):
            assert not (await s.ask(served)).degraded
        assert s.metric("ledger_degraded", backend="counters") == 0

        await begin(s)
        try:
            first = await s.load(rate(name="load"), seconds)
            assert s.redis.degraded
            assert s.metric("ledger_degraded", backend="counters") == 1
            after = await s.load(rate(name="again"), seconds)
            # local: this process's share, ceil(10 / 4), in whatever order it is asked
            mine = [await s.ask(served) for _ in range(6)]
            closed = await s.ask(rate(policy="closed", name="closed"))
            opened = [await s.ask(rate(limit=1, policy="open", name="open")) for _ in range(5)]
            shadow = await s.ask(rate(policy="closed", name="shadow", mode="shadow"))
            with pytest.raises(StoreUnavailable):
                await s.counters.peek("acme", [served])
        finally:
            await end(s)
        await s.until(False, rate(name="probe"))

    # 0 of 5xx: what a local limit refuses, it refuses as a rate does
    assert not any(b.refused for _, b in (*first, *after))
    assert _at(share, [t for t, _ in first]) <= 0.15
    assert _at(share, [t for t, _ in after]) <= 0.001
    assert [b.refused for b in mine] == [False] * 3 + [True] * 3
    assert all(b.degraded and b.limit.limit == 3 for b in mine)
    assert all((b.retry_after is not None) is b.refused for b in mine)
    assert (closed.refused, closed.degraded, closed.retry_after) == (True, True, None)
    assert all((b.refused, b.degraded) == (False, True) for b in opened)
    assert (shadow.refused, shadow.degraded) == (False, True)
    assert s.errors() > 0
    told = [r.message for r in caplog.records if r.levelno >= logging.WARNING and r.name == "openclaw.redis"]
    assert told == ["the store does not answer", "the store answers again"]
    return _at(share, [t for t, _ in first]), _at(share, [t for t, _ in after])


async def test_a_slow_store_is_a_failing_one(own_valkey: Valkey) -> None:
    async with scene(own_valkey) as s:
        s.proxy.rate = 5_000
        found = await s.load(rate(), 2, callers=32)
        assert not any(b.refused for _, b in found)
        assert any(b.degraded for _, b in found)
        assert _at(0.95, [t for t, _ in found]) <= 0.15
        s.proxy.rate = None
        await s.proxy.cut()
        await s.until(False, rate())


async def test_only_one_look_at_a_time_and_one_connection_afterwards(own_valkey: Valkey) -> None:
    async with scene(own_valkey) as s:
        await s.ask(rate())
        s.proxy.hole = True
        await s.load(rate(), 1.5, callers=64)
        s.proxy.hole = False
        await s.proxy.cut()
        await s.until(False, rate())
        assert not any(b.degraded for _, b in await s.load(rate(), 0.3, callers=64))
        assert s.proxy.most == 1
        assert s.proxy.opened <= 20


async def test_waits_between_looks_grow_and_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(breaker: Breaker, now: float) -> None:
        for i in range(5):
            breaker.failed(now + i / 10, "timeout")

    turns: list[bool] = []
    breaker = Breaker(lambda closed, why: turns.append(closed))
    for i in range(20):
        breaker.failed(i * 0.3, "timeout")  # never five in a second
    assert breaker.closed
    opened(breaker, 100)
    assert not breaker.closed
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    assert [breaker.wait() for _ in range(8)] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])
    breaker.recovered(110)
    opened(breaker, 111)  # it did not last: the waits go on growing
    assert breaker.wait() == 5.0
    breaker.recovered(120)
    opened(breaker, 130)
    assert breaker.wait() == pytest.approx(0.1)
    assert turns == [False, True, False, True, False]
    monkeypatch.undo()
    waits = {round(Breaker(lambda closed, why: None).wait(), 4) for _ in range(50)}
    assert len(waits) > 25


# --- moments ------------------------------------------------------------------------------------


async def test_a_lost_reply_counts_once(
    own_valkey: Valkey, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    record_property("lost replies, each counted once", 40)
    await lose(own_valkey, 40, monkeypatch)


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_many_lost_replies_count_once_each(
    own_valkey: Valkey, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    await lose(own_valkey, 10_000, monkeypatch)
    record_property("lost replies, each counted once", 10_000)


async def lose(valkey: Valkey, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Breaker, "failed", lambda self, now, why: None)  # it would open at the fifth
    async with scene(valkey, timeout=5) as s:
        take = rate(policy="open")
        await s.ask(take)
        for i in range(times):
            s.proxy.lose_replies = 1
            balance = await s.ask(take)
            assert (balance.refused, balance.degraded) == (False, True)
            assert s.proxy.lose_replies == 0
            # The connection is made anew, and says that exactly one was counted.
            (seen,) = await s.counters.peek("acme", [take])
            assert seen.used == i + 2


async def test_a_script_flush_in_mid_flight_is_not_seen(own_valkey: Valkey) -> None:
    async with scene(own_valkey, timeout=2) as s:
        take = rate(limit=300)
        admitted = 0

        async def caller() -> None:
            nonlocal admitted
            for _ in range(60):
                balance = await s.ask(take)
                assert not balance.degraded
                admitted += not balance.refused

        async def flusher() -> None:
            for _ in range(20):
                await s.set("SCRIPT", "FLUSH")
                await asyncio.sleep(0.003)

        await asyncio.gather(flusher(), *(caller() for _ in range(10)))
        assert admitted == 300
        assert s.errors() == 0


async def test_a_flush_of_everything_admits_at_most_the_limit_once_more(own_valkey: Valkey) -> None:
    async with scene(own_valkey, timeout=2) as s:
        take = rate(limit=100)
        admitted = []
        for _ in range(2):
            balances = await asyncio.gather(*(s.ask(take) for _ in range(150)))
            assert not any(b.degraded for b in balances)
            admitted.append(sum(not b.refused for b in balances))
            await s.set("FLUSHALL")
        assert admitted == [100, 100]


async def test_too_many_calls_at_once_are_turned_away_and_nothing_opens(own_valkey: Valkey) -> None:
    async with scene(own_valkey, max_in_flight=16, timeout=2) as s:
        await s.ask(rate())
        balances = await asyncio.gather(*(s.ask(rate(policy=p)) for p in ("open", "local", "closed") * 40))
        busy = [b for b in balances if b.degraded]
        assert len(busy) == 120 - 16
        # refused with 503, whatever the policy: the store is well
        assert all(b.refused and b.retry_after is None for b in busy)
        assert not s.redis.degraded
        assert (await s.ask(rate())).used == 18
        assert s.metric("redis_errors_total", command="evalsha", error_type="busy") == 120 - 16


async def test_400_callers_at_once_meet_no_error(own_valkey: Valkey) -> None:
    async with scene(own_valkey, timeout=2) as s:
        balances = await asyncio.gather(*(s.ask(rate(limit=100)) for _ in range(400)))
        assert sum(not b.refused for b in balances) == 100
        assert not any(b.degraded for b in balances)
        assert s.errors() == 0


async def test_a_blocked_event_loop_is_not_taken_for_a_slow_store(own_valkey: Valkey) -> None:
    async with counting(own_valkey.url) as (counters, redis):
        await counters.admit("acme", [rate()])
        calls = [asyncio.create_task(counters.admit("acme", [rate()])) for _ in range(50)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # written by now
        time.sleep(0.35)
        assert not any(b.degraded for (b,) in await asyncio.gather(*calls))
        assert not redis.degraded


def test_it_is_the_same_on_the_event_loop_that_serves(own_valkey: Valkey) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def run() -> None:
        async with counting(own_valkey.url) as (counters, redis):
            await counters.admit("acme", [rate()])
            calls = [asyncio.create_task(counters.admit("acme", [rate()])) for _ in range(50)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            time.sleep(0.35)
            assert not any(b.degraded for (b,) in await asyncio.gather(*calls))
            own_valkey.pause()
            try:
                for _ in range(6):
                    assert (await counters.admit("acme", [rate()]))[0].degraded
                assert redis.degraded
            finally:
                own_valkey.resume()
            async with asyncio.timeout(5):
                while (await counters.admit("acme", [rate()]))[0].degraded:
                    await asyncio.sleep(0.02)

    uvloop.run(run())


async def test_replies_go_to_who_asked_also_when_callers_leave(own_valkey: Valkey) -> None:
    chance = random.Random(7)
    async with scene(own_valkey, timeout=2) as s:
        s.proxy.slice = 7
        asked = {f"org-{i}": i % 7 + 1 for i in range(150)}
        for organization, times in asked.items():
            for _ in range(times):
                await s.ask(rate(), organization)
        for _ in range(5):
            calls = {o: asyncio.create_task(s.counters.peek(o, [rate()])) for o in asked}
            await asyncio.sleep(chance.random() / 500)
            for organization in chance.sample(sorted(calls), 60):
                calls.pop(organization).cancel()
            for organization, call in calls.items():
                assert (await call)[0].used == asked[organization]
        assert s.errors() == 0


async def test_the_gateway_starts_without_the_store_unless_it_is_required(own_valkey: Valkey) -> None:
    async with faulty(own_valkey.port) as proxy:
        await proxy.refuse()
        with pytest.raises(StartFailed, match=r"127\.0\.0\.1"):
            async with counting(proxy.url, required=True):
                pass
        async with counting(proxy.url) as (counters, redis):
            (check,) = redis.health()
            assert (check.name, check.gate) == ("redis", "info")
            with pytest.raises(StoreUnavailable):
                await check.probe()
            (balance,) = await counters.admit("acme", [rate(policy="open")])
            assert (balance.refused, balance.degraded) == (False, True)
            await proxy.listen()
            async with asyncio.timeout(5):
                while (await counters.admit("acme", [rate()]))[0].degraded:
                    await asyncio.sleep(0.02)
            assert await check.probe() == {"nodes": 1}


# --- leases -------------------------------------------------------------------------------------


async def test_leases_over_an_outage(own_valkey: Valkey) -> None:
    async with scene(own_valkey, replicas=2) as s:
        before = {policy: place("before", 4, policy) for policy in ("closed", "open", "local")}
        for take in before.values():
            assert not (await s.ask(take)).degraded
        await s.proxy.refuse()
        await s.until(True, rate())

        # New ones: closed none, open all, local this process's share of two.
        assert (await s.ask(place("new", 4, "closed"))).refused
        assert not (await s.ask(place("new", 4, "open"))).refused
        assert [(await s.ask(place(f"new-{i}", 4, "local"))).refused for i in range(3)] == [False, False, True]
        # Old ones: closed lives until its fence, open goes on, local only while the share has room.
        with pytest.raises(StoreUnavailable):
            await s.counters.renew("acme", [before["closed"]])
        assert await s.counters.renew("acme", [before["open"]])
        with pytest.raises(StoreUnavailable):
            await s.counters.renew("acme", [before["local"]])
        await s.counters.release("acme", [place("new-1", 4, "local")])
        assert await s.counters.renew("acme", [before["local"]])

        await s.proxy.listen()
        await s.until(False, rate())
        # The store counts from their next renewal on those that it did not give.
        for policy, holder in (("open", "new"), ("local", "new-0"), ("local", "before"), ("closed", "before")):
            assert await s.counters.renew("acme", [place(holder, 4, policy)])
        seen = await s.counters.peek("acme", [place("?", 4, policy) for policy in ("closed", "open", "local")])
        assert [b.used for b in seen] == [1, 2, 2]
        assert not await s.counters.renew("acme", [place("nobody", 4, "local")])

        # Whom the store counts takes nothing of this process's share any more.
        await s.proxy.refuse()
        await s.until(True, rate())
        assert [(await s.ask(place(f"again-{i}", 4, "local"))).refused for i in range(3)] == [False, False, True]


async def test_a_holder_that_was_killed_is_gone_after_its_time_to_live(own_valkey: Valkey) -> None:
    async with scene(own_valkey, lease_ttl=0.4) as s:
        assert not (await s.ask(place("killed", 1))).refused
        refused = await s.ask(place("next", 1))
        assert refused.refused
        assert refused.retry_after is not None
        await asyncio.sleep(refused.retry_after)
        assert not (await s.ask(place("next", 1))).refused
        assert not await s.counters.renew("acme", [place("killed", 1)])


def _at(share: float, times: list[float]) -> float:
    return sorted(times)[int(share * len(times))]


async def test_a_user_with_the_documented_rights_is_enough() -> None:
    """Those of docs/reference/limits.md: every kind of call works, and what is not there is refused by the store."""
    page = (Path(__file__).parents[2] / "docs" / "reference" / "limits.md").read_text()
    of_script = re.search(r"the commands of the script \(`([A-Z\s]+)`", page)
    assert of_script is not None
    rights = [f"+{command.lower()}" for command in ("EVALSHA", "EVAL", "PING", *of_script[1].split())]
    with start_valkey("--user", "gateway", "on", ">secret", "~mine:*", "-@all", *rights) as valkey:
        url = valkey.url.replace("redis://", "redis://gateway:secret@")
        async with counting(url, prefix="mine:") as (counters, redis), counters.lifespan():
            assert counters.notices() == []
            takes = [rate(2, "closed"), rate(2, "closed", "gcra", algorithm="gcra"), place("a", 1, "closed")]
            balances = await counters.admit("acme", takes)
            assert [(balance.refused, balance.degraded) for balance in balances] == [(False, False)] * 3
            assert await counters.renew("acme", takes[2:])
            assert not any(balance.degraded for balance in await counters.peek("acme", takes))
            await counters.correct("acme", [Correction(limit=takes[0].limit, subject="-", amount=-1, at=0)])
            await counters.release("acme", takes[2:])
            (balance,) = await counters.admit("acme", [place("b", 1, "closed")])
            assert not balance.refused and not balance.degraded
            for command in ("KEYS", "FLUSHALL", "CONFIG", "SCRIPT"):
                with pytest.raises(StoreUnavailable):
                    await redis.call(None, command, "*")
        async with counting(url, prefix="another:") as (counters, _):
            (balance,) = await counters.admit("acme", [rate(2, "local")])
            assert balance.degraded  # the store lets it touch no other keys


@pytest.mark.parametrize(
    ("memory", "policy", "told"),
    [
        ("64mb", "allkeys-lru", True),
        ("64mb", "volatile-ttl", True),
        ("64mb", "noeviction", False),
        ("0", "allkeys-lru", False),
    ],
)
async def test_a_store_that_may_evict_is_told_of(memory: str, policy: str, told: bool) -> None:
    with start_valkey("--maxmemory", memory, "--maxmemory-policy", policy) as valkey:
        async with counting(valkey.url) as (counters, _), counters.lifespan():
            assert [policy in line for line in counters.notices()] == ([True] if told else [])


async def test_a_store_that_may_not_be_asked_of_its_memory_is_not_told_of() -> None:
    with start_valkey("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru") as valkey:
        with Redis.from_url(valkey.url) as admin:
            admin.execute_command("ACL", "SETUSER", "default", "-info")
        async with counting(valkey.url) as (counters, redis), counters.lifespan():
            assert counters.notices() == []
            (balance,) = await counters.admit("acme", (rate(),))
            assert not balance.degraded and not redis.degraded
