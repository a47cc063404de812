"""What every kind of counters must do, run over each of them, and against the exact model."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from uuid import uuid4

import msgspec
import pytest
from contracts.counters_model import CountersModel
from counters_kit import counting
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from openclaw_gateway.api import Balance, Correction, Counters, Duration, Limit, Take
from openclaw_plugins.counters.memory import MemoryCounters
from openclaw_plugins.counters.redis import RedisCounters
from openclaw_plugins.redis import RedisConnection

TTL = 30_000


class MillisecondClock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.ms = 1_000_000_000

    def now(self) -> float:
        return self.ms / 1000

    monotonic = now


class Backend:
    """One kind of counters on a clock that the test holds."""

    def __init__(self, counters: Counters, clock: MillisecondClock) -> None:
        self.counters = counters
        self.clock = clock

    async def admit(self, *takes: Take, organization: str = "acme") -> list[Balance]:
        return list(await self.counters.admit(organization, takes))

    async def admitted(self, take: Take, calls: int) -> int:
        """How many of so many calls are admitted, all at once."""
        balances = await asyncio.gather(*(self.admit(take) for _ in range(calls)))
        return sum(not balance.refused for (balance,) in balances)


def memory(clock: MillisecondClock, **config: int) -> MemoryCounters:
    host = SimpleNamespace(clock=clock, logger=logging.getLogger("test"), registry=CollectorRegistry())
    return MemoryCounters(MemoryCounters.Config(lease_ttl=Duration(TTL / 1000), **config), host)


class OnClock:
    """The counters in Valkey, which takes its time from a key of the test in place of its own clock."""

    def __init__(self, counters: RedisCounters, redis: RedisConnection, clock: MillisecondClock) -> None:
        self._counters = counters
        self._redis = redis
        self._clock = clock
        self._told = 0
        name = f"{redis.prefix}clock"
        for script in ("admit_script", "renew_script", "correct_script"):
            clock = f"local now = tonumber(redis.call('GET', '{name}'))\nlocal later = now\n"
            text, clocks = CLOCK.subn(clock, getattr(counters, script))
            text, keeps = re.subn(r"local KEEP = 1000\n", "local KEEP = 3600000\n", text)
            assert (clocks, keeps) == (1, 1), script
            setattr(counters, script, text)

    async def admit(self, organization: str, takes: Sequence[Take]) -> Sequence[Balance]:
        await self._tell()
        return await self._counters.admit(organization, takes)

    async def peek(self, organization: str, takes: Sequence[Take]) -> Sequence[Balance]:
        await self._tell()
        return await self._counters.peek(organization, takes)

    async def correct(self, organization: str, corrections: Sequence[Correction]) -> None:
        await self._tell()
        await self._counters.correct(organization, corrections)

    async def release(self, organization: str, takes: Sequence[Take]) -> None:
        await self._counters.release(organization, takes)

    async def renew(self, organization: str, takes: Sequence[Take]) -> bool:
        await self._tell()
        return await self._counters.renew(organization, takes)

    async def _tell(self) -> None:
        if self._told != self._clock.ms:
            self._told = self._clock.ms
            await self._redis.call(None, "SET", f"{self._redis.prefix}clock", self._told)


CLOCK = re.compile(r"local time = redis\.call\('TIME'\)\nlocal now(, later)? = .+\n")


@pytest.fixture(params=["memory", "valkey"])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    clock = MillisecondClock()
    if request.param == "memory":
        yield Backend(memory(clock), clock)
        return
    async with counting(request.getfixturevalue("valkey_url"), timeout=5) as (counters, redis):
        yield Backend(OnClock(counters, redis, clock), clock)


def rate(limit: int = 100, *, window: float = 60, name: str = "ratelimit.requests", **fields: object) -> Limit:
    return Limit(name=name, meter="requests", kind="rate", limit=limit, window=window, **fields)


def lease(limit: int = 2, **fields: object) -> Limit:
    return Limit(name="concurrency.ws_connections", meter="ws_connections", kind="lease", limit=limit, **fields)


def holding(limit: Limit, holder: str) -> Take:
    return Take(limit, "-", lease=holder)


# --- rates --------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["sliding", "fixed"])
async def test_of_400_concurrent_calls_a_limit_of_100_admits_exactly_100(backend: Backend, algorithm: str) -> None:
    assert await backend.admitted(Take(rate(algorithm=algorithm), "-"), 400) == 100


async def test_gcra_admits_its_burst_at_once_and_then_one_each_interval(backend: Backend) -> None:
    take = Take(rate(algorithm="gcra"), "-")
    assert await backend.admitted(take, 400) == 10
    backend.clock.ms += 599
    assert await backend.admitted(take, 5) == 0
    backend.clock.ms += 1
    assert await backend.admitted(take, 5) == 1


async def test_a_limit_spent_at_the_end_of_a_window_is_not_there_again_at_the_start_of_the_next(
    backend: Backend,
) -> None:
    take = Take(rate(), "-")
    backend.clock.ms += 59_999
    assert await backend.admitted(take, 150) == 100
    for _ in range(59):
        backend.clock.ms += 1_000
        assert await backend.admitted(take, 20) == 0
    backend.clock.ms += 2_000
    assert await backend.admitted(take, 150) == 100


async def test_fixed_admits_at_most_its_stated_bound_where_two_windows_meet(backend: Backend) -> None:
    limit = rate(algorithm="fixed")
    take = Take(limit, "-")
    backend.clock.ms += -backend.clock.ms % 60_000 - 1
    first = await backend.admitted(take, 300)
    backend.clock.ms += 1
    assert first + await backend.admitted(take, 300) == limit.bound() == 200


@pytest.mark.parametrize("window", [1, 7, 60, 90, 3600, 86400])
async def test_sliding_costs_at_most_one_bucket_of_conservatism(backend: Backend, window: int) -> None:
    take = Take(rate(3, window=window), "-")
    assert await backend.admitted(take, 5) == 3
    backend.clock.ms += window * 1000 - 1
    assert await backend.admitted(take, 5) == 0
    # A bucket is a sixtieth of the window in whole milliseconds; rounding may cost as much again below a minute.
    bucket = -(-window * 1000 // 60)
    backend.clock.ms += 1 + bucket + (0 if window % 60 == 0 else bucket)
    assert await backend.admitted(take, 5) == 3


@pytest.mark.parametrize("algorithm", ["sliding", "gcra", "fixed"])
@pytest.mark.parametrize(("limit", "amount"), [(100, 1), (7, 3), (2000, 150), (1, 1)])
async def test_retrying_after_retry_after_is_admitted_and_a_millisecond_earlier_is_not(
    backend: Backend, algorithm: str, limit: int, amount: int
) -> None:
    take = Take(rate(limit, algorithm=algorithm, burst=amount + 3 if algorithm == "gcra" else None), "-", amount)
    for step in (7, 450, 1_300, 61):
        for _ in range(limit // amount + 5):
            (balance,) = await backend.admit(take)
            if balance.refused:
                break
            backend.clock.ms += step % 50
        assert balance.refused
        assert balance.retry_after is not None
        backend.clock.ms += round(balance.retry_after * 1000) - 1
        assert (await backend.admit(take))[0].refused
        backend.clock.ms += 1
        assert not (await backend.admit(take))[0].refused
        backend.clock.ms += step


@pytest.mark.parametrize("algorithm", ["sliding", "gcra", "fixed"])
async def test_after_reset_after_the_whole_limit_is_free(backend: Backend, algorithm: str) -> None:
    take = Take(rate(algorithm=algorithm), "-")
    admitted = await backend.admitted(take, 200)
    (balance,) = await backend.counters.peek("acme", [take])
    assert balance.reset_after is not None
    backend.clock.ms += round(balance.reset_after * 1000)
    assert (await backend.counters.peek("acme", [take]))[0].used == 0
    assert await backend.admitted(take, 200) == admitted


async def test_used_counts_this_admission(backend: Backend) -> None:
    take = Take(rate(5), "-")
    assert [(await backend.admit(take))[0].used for _ in range(7)] == [1, 2, 3, 4, 5, 5, 5]


async def test_a_refusal_by_one_rate_charges_no_other(backend: Backend) -> None:
    wide, narrow = Take(rate(100), "-"), Take(rate(3, name="ratelimit.narrow"), "-")
    for _ in range(10):
        await backend.admit(wide, narrow)
    balances = await backend.counters.peek("acme", [wide, narrow])
    assert [b.used for b in balances] == [3, 3]
    refused = await backend.admit(wide, narrow)
    assert [b.refused for b in refused] == [False, True]


async def test_a_limit_of_zero_admits_nothing_and_an_amount_above_the_limit_never_fits(backend: Backend) -> None:
    for algorithm in ("sliding", "gcra", "fixed"):
        (balance,) = await backend.admit(Take(rate(0, algorithm=algorithm), "-"))
        assert (balance.refused, balance.used, balance.reset_after) == (True, 0, 0.0)
        (balance,) = await backend.admit(Take(rate(5, algorithm=algorithm), "-", 6))
        assert (balance.refused, balance.used) == (True, 0)


async def test_organisations_and_subjects_do_not_share(backend: Backend) -> None:
    limit = rate(1, scope="user")
    for organization in ("acme", "other"):
        for user in ("ann", "bob"):
            assert not (await backend.admit(Take(limit, user), organization=organization))[0].refused
            assert (await backend.admit(Take(limit, user), organization=organization))[0].refused


async def test_usage_is_kept_when_the_limit_changes(backend: Backend) -> None:
    assert await backend.admitted(Take(rate(100), "-"), 100) == 100
    assert await backend.admitted(Take(rate(500), "-"), 600) == 400
    (balance,) = await backend.admit(Take(rate(100), "-"))
    assert (balance.refused, balance.used, balance.remaining) == (True, 500, 0)


async def test_a_shadow_limit_counts_what_it_would_admit_and_refuses_nothing(backend: Backend) -> None:
    shadow = Take(rate(3, mode="shadow"), "-")
    other = Take(rate(100, name="ratelimit.other"), "-")
    seen = [await backend.admit(shadow, other) for _ in range(5)]
    assert not any(balance.refused for row in seen for balance in row)
    assert [row[0].used for row in seen] == [1, 2, 3, 3, 3]
    assert [row[0].retry_after is not None for row in seen] == [False, False, False, True, True]
    assert seen[-1][1].used == 5


async def test_a_clock_that_goes_back_admits_nothing_more(backend: Backend) -> None:
    for algorithm in ("sliding", "fixed"):
        take = Take(rate(algorithm=algorithm, name=f"ratelimit.{algorithm}"), "-")
        assert await backend.admitted(take, 150) == 100
        backend.clock.ms -= 3_600_000
        assert await backend.admitted(take, 150) == 0
        backend.clock.ms += 3_600_000


async def test_a_look_charges_nothing(backend: Backend) -> None:
    take = Take(rate(1), "-")
    for _ in range(5):
        assert (await backend.counters.peek("acme", [take]))[0].used == 0
    assert not (await backend.admit(take))[0].refused


# --- estimates that are corrected --------------------------------------------------------------


def corrected(take: Take, balance: Balance, actual: int) -> Correction:
    return Correction(limit=take.limit, subject=take.subject, amount=actual - take.amount, at=balance.at)


@pytest.mark.parametrize("algorithm", ["sliding", "gcra", "fixed"])
async def test_what_was_charged_too_much_is_free_again_and_zero_is_an_amount(backend: Backend, algorithm: str) -> None:
    take = Take(rate(1000, algorithm=algorithm, burst=1000 if algorithm == "gcra" else None), "-", 900)
    (balance,) = await backend.admit(take)
    assert (await backend.admit(take))[0].refused
    await backend.counters.correct("acme", [corrected(take, balance, 100)])
    (after,) = await backend.admit(take)
    assert (after.refused, after.used) == (False, 1000)
    await backend.counters.correct("acme", [corrected(take, after, 0)])
    assert (await backend.counters.peek("acme", [take]))[0].used == 100


@pytest.mark.parametrize("algorithm", ["sliding", "gcra", "fixed"])
async def test_what_was_charged_for_nothing_leaves_nothing(backend: Backend, algorithm: str) -> None:
    take = Take(rate(algorithm=algorithm, burst=100 if algorithm == "gcra" else None), "-", 1)
    (balance,) = await backend.admit(take)
    await backend.counters.correct("acme", [corrected(take, balance, 0)])
    assert (await backend.counters.peek("acme", [take]))[0].used == 0


@pytest.mark.parametrize("algorithm", ["sliding", "gcra", "fixed"])
async def test_a_correction_by_one_is_a_correction(backend: Backend, algorithm: str) -> None:
    take = Take(rate(algorithm=algorithm, burst=100 if algorithm == "gcra" else None), "-", 5)
    (balance,) = await backend.admit(take)
    for actual, used in ((6, 6), (4, 5)):
        await backend.counters.correct("acme", [corrected(take, balance, actual)])
        assert (await backend.counters.peek("acme", [take]))[0].used == used


@pytest.mark.parametrize("algorithm", ["sliding", "gcra", "fixed"])
async def test_nothing_always_fits(backend: Backend, algorithm: str) -> None:
    limit = rate(10, algorithm=algorithm, burst=10 if algorithm == "gcra" else None)
    assert not (await backend.admit(Take(limit, "-", 10)))[0].refused
    (balance,) = await backend.admit(Take(limit, "-", 0))
    assert (balance.refused, balance.used) == (False, 10)


@pytest.mark.parametrize("algorithm", ["sliding", "gcra", "fixed"])
async def test_what_was_charged_too_little_counts_and_refuses_those_who_come_later(
    backend: Backend, algorithm: str
) -> None:
    take = Take(rate(1000, algorithm=algorithm, burst=1000 if algorithm == "gcra" else None), "-", 100)
    (balance,) = await backend.admit(take)
    await backend.counters.correct("acme", [corrected(take, balance, 1200)])
    (after,) = await backend.admit(take)
    assert (after.refused, after.used, after.remaining) == (True, 1200, 0)


@pytest.mark.parametrize("algorithm", ["sliding", "gcra", "fixed"])
async def test_what_was_charged_too_little_counts_now_where_its_window_is_over(
    backend: Backend, algorithm: str
) -> None:
    take = Take(rate(algorithm=algorithm, burst=100 if algorithm == "gcra" else None), "-", 5)
    (balance,) = await backend.admit(take)
    backend.clock.ms += 3 * 60_000
    await backend.counters.correct("acme", [corrected(take, balance, 6)])
    assert (await backend.counters.peek("acme", [take]))[0].used == 1


@pytest.mark.parametrize("algorithm", ["sliding", "gcra", "fixed"])
async def test_what_has_left_the_window_is_not_given_back_to_another(backend: Backend, algorithm: str) -> None:
    """Given back late, an estimate must not take away what somebody else was charged meanwhile."""
    take = Take(rate(100, algorithm=algorithm, burst=100 if algorithm == "gcra" else None), "-", 100)
    (old,) = await backend.admit(take)
    backend.clock.ms += 3 * 60_000
    assert not (await backend.admit(take))[0].refused
    await backend.counters.correct("acme", [corrected(take, old, 0)])
    (balance,) = await backend.admit(take)
    assert (balance.refused, balance.used) == (True, 100)


async def test_what_has_leaked_is_not_given_back_by_so_much_as_a_millisecond(backend: Backend) -> None:
    take = Take(rate(1, algorithm="gcra", burst=1), "-")
    (old,) = await backend.admit(take)
    backend.clock.ms += 120_000
    assert (await backend.admit(take))[0].reset_after == 60
    await backend.counters.correct("acme", [corrected(take, old, 0)])
    assert (await backend.admit(take))[0].reset_after == 60


async def test_what_is_given_back_leaves_the_bucket_in_which_it_was_charged(backend: Backend) -> None:
    """Taken from a later bucket, it would let the later charge leave the window with the earlier one."""
    take = Take(rate(100), "-", 50)
    (early,) = await backend.admit(take)
    backend.clock.ms += 30_000
    assert not (await backend.admit(take))[0].refused
    await backend.counters.correct("acme", [corrected(take, early, 0)])
    backend.clock.ms += 32_000  # the first bucket has left, the second has not
    assert (await backend.counters.peek("acme", [take]))[0].used == 50


async def test_a_correction_of_what_was_never_charged_gives_nothing(backend: Backend) -> None:
    take = Take(rate(10), "-", 5)
    wrong = Correction(limit=take.limit, subject="-", amount=-5, at=backend.clock.ms)
    await backend.counters.correct("acme", [wrong])
    assert (await backend.counters.peek("acme", [take]))[0].used == 0
    assert await backend.admitted(Take(rate(10), "-"), 30) == 10


async def test_refused_and_shadowed_charges_say_that_there_is_nothing_to_correct(backend: Backend) -> None:
    shadow, closed = Take(rate(1, mode="shadow", name="r.shadow"), "-", 2), Take(rate(1, name="r.closed"), "-", 2)
    assert [b.at for b in await backend.admit(shadow)] == [0]
    assert [b.at for b in await backend.admit(closed)] == [0]
    assert (await backend.admit(Take(rate(), "-")))[0].at == backend.clock.ms


async def test_an_estimate_that_this_process_counted_without_the_store_is_corrected_here(unused_tcp_port: int) -> None:
    """Each of the two replicas has half of the limit while nothing listens."""
    take = Take(rate(2000, on_backend_failure="local"), "-", 900)
    async with counting(f"redis://127.0.0.1:{unused_tcp_port}", replicas=2, timeout=1) as (counters, _):
        (balance,) = await counters.admit("acme", [take])
        assert (balance.refused, balance.degraded, balance.used) == (False, True, 900)
        assert (await counters.admit("acme", [take]))[0].refused
        await counters.correct("acme", [msgspec.structs.replace(corrected(take, balance, 100), degraded=True)])
        (after,) = await counters.admit("acme", [take])
        assert (after.refused, after.used) == (False, 1000)


async def test_an_admission_that_comes_again_is_encoded_once_in_valkey_for_each_organisation(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openclaw_plugins.counters.redis._KEPT", 2)
    async with counting(valkey_url, timeout=5) as (counters, redis):
        encoded = []
        prepare = redis.prepare
        monkeypatch.setattr(redis, "prepare", lambda *given: encoded.append(given) or prepare(*given))
        plan, other = (Take(rate(), "-"),), (Take(rate(), "-"), Take(rate(name="ratelimit.other"), "-"))
        for used, (organization, takes) in enumerate([("a", plan), ("a", plan), ("a", other), ("a", plan)], 1):
            assert (await counters.admit(organization, takes))[0].used == used
        assert len(encoded) == 2
        assert [balance.used for balance in await counters.admit("b", other)] == [1, 1]
        assert len(encoded) == 3
        # It has kept two: the first of them went. And those of one holder do not come again.
        assert (await counters.admit("a", other))[1].used == 2
        assert len(encoded) == 3
        for holder in ("one", "two", "three"):
            await counters.admit("a", (holding(lease(5), holder),))
        assert (await counters.admit("a", other))[1].used == 3
        assert len(encoded) == 6
        assert (await counters.admit("a", plan))[0].used == 7
        assert len(encoded) == 7


# --- leases -------------------------------------------------------------------------------------


async def test_the_store_gives_no_place_away_before_its_holder_has_stopped_to_count_on_it(valkey_url: str) -> None:
    """A holder counts from before he asked, to the microsecond; the store counts milliseconds, and must round up."""
    ttl = 0.05
    async with counting(valkey_url, timeout=5, lease_ttl=ttl) as (counters, _):
        for number in range(40):
            organization = f"o{number}"
            asked = time.monotonic()
            await counters.admit(organization, (holding(lease(1), "first"),))
            fence = asked + ttl
            while (await counters.admit(organization, (holding(lease(1), "next"),)))[0].refused:
                pass
            assert time.monotonic() >= fence


async def test_a_lease_is_refused_above_the_limit_and_free_after_release(backend: Backend) -> None:
    limit = lease(2)
    assert not (await backend.admit(holding(limit, "a")))[0].refused
    assert not (await backend.admit(holding(limit, "b")))[0].refused
    assert (await backend.admit(holding(limit, "c")))[0].refused
    for _ in range(3):  # idempotent
        await backend.counters.release("acme", [holding(limit, "a")])
    assert not (await backend.admit(holding(limit, "c")))[0].refused
    assert (await backend.admit(holding(limit, "d")))[0].refused


async def test_a_lease_expires_unless_it_is_renewed(backend: Backend) -> None:
    limit = lease(2)
    await backend.admit(holding(limit, "kept"))
    await backend.admit(holding(limit, "left"))
    for _ in range(3):
        backend.clock.ms += 10_000
        assert await backend.counters.renew("acme", [holding(limit, "kept")])
    assert not (await backend.admit(holding(limit, "new")))[0].refused
    assert (await backend.admit(holding(limit, "more")))[0].refused
    assert not await backend.counters.renew("acme", [holding(limit, "left")])
    assert (await backend.counters.peek("acme", [holding(limit, "any")]))[0].used == 2


async def test_a_lease_lives_for_its_whole_time_to_live_and_no_longer(backend: Backend) -> None:
    limit = lease(1)
    await backend.admit(holding(limit, "a"))
    backend.clock.ms += TTL - 1
    (balance,) = await backend.admit(holding(limit, "b"))
    assert balance.refused
    assert balance.retry_after == 0.001
    backend.clock.ms += 1
    assert not (await backend.admit(holding(limit, "b")))[0].refused


async def test_who_asks_for_nothing_is_given_it(backend: Backend) -> None:
    assert await backend.counters.renew("acme", [])
    assert await backend.counters.renew("acme", [Take(rate(), "-")])
    assert list(await backend.counters.admit("acme", [])) == list(await backend.counters.peek("acme", [])) == []
    await backend.counters.correct("acme", [])


async def test_a_holder_counts_once(backend: Backend) -> None:
    limit = lease(1)
    for _ in range(3):
        (balance,) = await backend.admit(holding(limit, "a"))
        assert (balance.refused, balance.used) == (False, 1)


async def test_a_refused_lease_leaves_the_rates_charged_and_takes_no_lease(backend: Backend) -> None:
    attempts, few = Take(rate(), "-"), lease(1)
    wide = Limit(name="concurrency.wide", meter="ws_connections", kind="lease", limit=5)
    await backend.admit(attempts, holding(few, "a"), holding(wide, "a"))
    balances = await backend.admit(attempts, holding(few, "b"), holding(wide, "b"))
    assert [b.refused for b in balances] == [False, True, False]
    assert [b.used for b in balances] == [2, 1, 1]


async def test_a_refused_rate_takes_no_lease(backend: Backend) -> None:
    attempts, places = Take(rate(1), "-"), lease(1)
    await backend.admit(attempts)
    balances = await backend.admit(attempts, holding(places, "a"))
    assert [(b.refused, b.used) for b in balances] == [(True, 1), (False, 0)]


async def test_of_100_concurrent_holders_exactly_the_limit_gets_in(backend: Backend) -> None:
    limit = lease(20)
    balances = await asyncio.gather(*(backend.admit(holding(limit, f"h{i}")) for i in range(100)))
    assert sum(not b.refused for (b,) in balances) == 20


async def test_a_shadow_lease_that_found_no_place_does_not_stop_its_holder(backend: Backend) -> None:
    limit = lease(1, mode="shadow")
    for holder in ("a", "b"):
        assert not (await backend.admit(holding(limit, holder)))[0].refused
    assert await backend.counters.renew("acme", [holding(limit, "b")])


# --- against the model --------------------------------------------------------------------------

LIMITS = (
    rate(5, window=1, name="ratelimit.second"),
    rate(12, window=60, name="ratelimit.minute"),
    rate(9, window=7, algorithm="gcra", burst=4, name="ratelimit.gcra"),
    rate(6, window=10, algorithm="fixed", name="ratelimit.fixed"),
    rate(4, window=5, mode="shadow", name="ratelimit.shadow"),
)
LEASES = (lease(2), Limit(name="concurrency.shadow", meter="m", kind="lease", limit=1, mode="shadow"))

_steps = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.sampled_from([1, 16, 17, 83, 500, 999, 1_000, 1_017, 7_000, 15_000, 61_000])),
        st.tuples(
            st.just("admit"),
            st.lists(st.sampled_from(range(len(LIMITS))), min_size=1, max_size=4, unique=True),
            st.integers(1, 5),
            st.sampled_from([None, "a", "b", "c"]),
            st.integers(1, 4),
        ),
        st.tuples(st.just("correct"), st.integers(0, 30), st.integers(0, 5)),
        st.tuples(st.just("renew"), st.sampled_from(["a", "b", "c"])),
        st.tuples(st.just("release"), st.sampled_from(["a", "b", "c"])),
    ),
    max_size=60,
)


def same(seen: list[Balance], model: list[Balance], exact: bool) -> bool:
    if exact:
        return seen == model
    late = [(a.reset_after or 0) >= (b.reset_after or 0) for a, b in zip(seen, model, strict=True)]
    rest = [[msgspec.structs.replace(b, reset_after=None) for b in each] for each in (seen, model)]
    return all(late) and rest[0] == rest[1]


async def replay(backend: Backend, steps: list[tuple]) -> None:
    model = CountersModel(TTL)
    organization = uuid4().hex
    charged: list[tuple[Take, Balance]] = []
    exact = True  # after a correction the time until all is free may be told later than it is, never earlier
    within = True  # whether nothing was corrected upwards
    for step in steps:
        model.now = backend.clock.ms
        match step:
            case ("wait", ms):
                backend.clock.ms += ms
            case ("admit", chosen, amount, holder, times):
                takes = [Take(LIMITS[i], "-", amount) for i in chosen]
                if holder is not None:
                    takes += [holding(limit, holder) for limit in LEASES]
                for _ in range(times):
                    balances = await backend.admit(*takes, organization=organization)
                    assert same(balances, model.admit(organization, takes), exact)
                    charged += [(t, b) for t, b in zip(takes, balances, strict=True) if b.at]
            case ("correct", place, actual) if charged:
                take, balance = charged.pop(place % len(charged))
                correction = corrected(take, balance, actual)
                if correction.amount:
                    await backend.counters.correct(organization, [correction])
                    model.correct(organization, [correction])
                    exact = False
                    within = within and correction.amount < 0
            case ("renew", holder):
                takes = [holding(limit, holder) for limit in LEASES]
                assert await backend.counters.renew(organization, takes) == model.renew(organization, takes)
            case ("release", holder):
                takes = [holding(limit, holder) for limit in LEASES]
                await backend.counters.release(organization, takes)
                model.release(organization, takes)
        model.now = backend.clock.ms
        everything = [Take(limit, "-") for limit in LIMITS] + [holding(limit, "?") for limit in LEASES]
        seen = list(await backend.counters.peek(organization, everything))
        assert same(seen, model.peek(organization, everything), exact)
    for limit in LIMITS if within else ():
        assert model.busiest(organization, Take(limit, "-")) <= limit.bound()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_steps)
async def test_the_same_trace_gives_the_same_answers_as_the_model(backend: Backend, steps: list[tuple]) -> None:
    await replay(backend, steps)


@pytest.mark.long
@pytest.mark.timeout(900)
@settings(max_examples=2_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_steps)
async def test_many_traces_give_the_same_answers_as_the_model(backend: Backend, steps: list[tuple]) -> None:
    await replay(backend, steps)


# --- memory only --------------------------------------------------------------------------------


async def test_memory_drops_what_is_empty_again() -> None:
    clock = MillisecondClock()
    counters = memory(clock)
    for i in range(1_000):
        await counters.admit("acme", [Take(rate(scope="user"), f"user-{i}"), holding(lease(), f"h{i}")])
    assert len(counters) == 1_001
    clock.ms += 120_000
    for _ in range(1_002):  # one is looked at in a millisecond
        clock.ms += 1
        await counters.admit("acme", [Take(rate(), "-")])
    assert len(counters) == 1


async def test_memory_keeps_nothing_for_a_correction_of_what_it_never_counted() -> None:
    counters = memory(MillisecondClock())
    for take, amount in ((Take(rate(), "-"), -5), (Take(rate(), "-"), 0), (holding(lease(), "h"), 5)):
        await counters.correct("acme", [Correction(limit=take.limit, subject="-", amount=amount, at=1)])
        assert len(counters) == 0
    await counters.correct("acme", [Correction(limit=rate(), subject="-", amount=5, at=1)])
    assert len(counters) == 1


async def test_memory_past_its_cap_refuses_new_subjects_unless_the_limit_is_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = MillisecondClock()
    counters = memory(clock, max_keys=10)
    for i in range(10):
        await counters.admit("acme", [Take(rate(scope="user"), f"user-{i}")])
    for policy, refused in (("closed", True), ("local", True), ("open", False)):
        limit = rate(scope="user", on_backend_failure=policy)
        for _ in range(3):
            (balance,) = await counters.admit("acme", [Take(limit, "one-more")])
            assert (balance.refused, balance.degraded, balance.retry_after) == (refused, True, None)
            assert (balance.used, balance.reset_after) == (0, None)
    assert len(counters) == 10
    (known,) = await counters.admit("acme", [Take(rate(scope="user"), "user-3")])
    assert (known.refused, known.used) == (False, 2)
    clock.ms += 61_000
    (balance,) = await counters.admit("acme", [Take(rate(scope="user"), "one-more")])
    assert (balance.refused, balance.used) == (False, 1)
    assert [record.message for record in caplog.records] == [
        "no place is left to count new subjects",
        "new subjects are counted again",
    ]


async def test_memory_makes_room_for_all_that_one_admission_counts() -> None:
    clock = MillisecondClock()
    counters = memory(clock, max_keys=4)
    for i in range(4):
        await counters.admit("acme", [Take(rate(scope="user"), f"old-{i}")])
    clock.ms += 120_000
    balances = await counters.admit("acme", [Take(rate(scope="user"), f"new-{i}") for i in range(4)])
    assert [(balance.refused, balance.used) for balance in balances] == [(False, 1)] * 4


def test_memory_says_that_it_is_not_shared() -> None:
    counters = memory(MillisecondClock())
    assert isinstance(counters, Counters)
    assert counters.shared is False
    assert counters.lease_ttl == TTL / 1000
