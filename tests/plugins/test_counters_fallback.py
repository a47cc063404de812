"""What a process decides by itself while the store does not answer: its share of a limit, and no more."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from openclaw_gateway.api import Correction, Duration, Limit, Take
from openclaw_gateway.testing import ManualClock
from openclaw_plugins.counters import redis_fallback
from openclaw_plugins.counters.redis_fallback import Fallback, share, turned_away


def rate(policy: str = "local", limit: int = 5, **fields: Any) -> Limit:
    return Limit(
        **{
            "name": f"r.{policy}",
            "meter": "requests",
            "kind": "rate",
            "limit": limit,
            "window": 60,
            "on_backend_failure": policy,
            **fields,
        }
    )


def lease(holder: str, policy: str = "local", limit: int = 3, **fields: Any) -> Take:
    name = f"c.{policy}"
    given = Limit(name=name, meter="m", kind="lease", limit=limit, on_backend_failure=policy, **fields)
    return Take(given, "-", lease=holder)


@pytest.fixture
def fallback() -> Fallback:
    """One of two processes."""
    host: Any = SimpleNamespace(clock=ManualClock(), logger=logging.getLogger("test"), registry=CollectorRegistry())
    return Fallback(host, Duration(30), 2)


async def refused(fallback: Fallback, *takes: Take) -> list[bool]:
    balances = await fallback.admit("acme", takes)
    assert all(balance.degraded for balance in balances)
    assert [balance.limit.name for balance in balances] == [take.limit.name for take in takes]
    return [balance.refused for balance in balances]


@pytest.mark.parametrize(("limit", "processes", "expected"), [(5, 2, 3), (4, 2, 2), (1, 8, 1), (0, 8, 0), (9, 1, 9)])
def test_a_share_is_rounded_up_so_that_nobody_is_left_without_one(limit: int, processes: int, expected: int) -> None:
    assert share(rate(limit=limit, burst=limit or 1), processes).limit == expected
    assert share(rate(limit=limit, burst=limit), processes).burst == expected
    assert share(rate(limit=limit), processes).burst is None


async def test_each_policy_decides_for_its_limit(fallback: Fallback) -> None:
    takes = [Take(rate(policy), "-") for policy in ("local", "open")]
    assert [await refused(fallback, *takes) for _ in range(4)] == [[False, False]] * 3 + [[True, False]]
    assert await refused(fallback, Take(rate("closed"), "-")) == [True]
    assert await refused(fallback, Take(rate("closed", mode="shadow"), "-")) == [False]
    for policy in ("open", "closed"):
        (balance,) = await fallback.admit("acme", [Take(rate(policy), "-")])
        assert balance.used == 0


async def test_what_a_closed_rate_refuses_is_counted_nowhere(fallback: Fallback) -> None:
    local, closed = Take(rate(), "-"), Take(rate("closed"), "-")
    for _ in range(5):
        assert await refused(fallback, local, closed, lease("a"), lease("b", "closed")) == [False, True, False, False]
    assert [await refused(fallback, local) for _ in range(4)] == [[False]] * 3 + [[True]]


async def test_what_a_closed_lease_refuses_is_a_charge_of_the_rates_and_takes_no_place(fallback: Fallback) -> None:
    """As the store has it: a request that is refused for its place was a request."""
    local, closed = Take(rate(), "-"), lease("a", "closed")
    for number in range(3):
        assert await refused(fallback, local, lease(f"h{number}"), closed) == [False, False, True]
    assert not any(fallback.joins(lease(f"h{number}")) for number in range(3))
    assert await refused(fallback, local) == [True]
    assert await refused(fallback, lease("x"), lease("x")) == [False, False]
    assert await refused(fallback, lease("y")) == [False]
    assert await refused(fallback, lease("z")) == [True]


async def test_a_holder_whom_the_store_may_not_know_joins_it_with_his_renewal(fallback: Fallback) -> None:
    given, open_ = lease("given"), lease("anyone", "open")
    assert not fallback.joins(given) and fallback.joins(open_)
    assert await refused(fallback, given) == [False]
    assert fallback.joins(given)
    await fallback.release("acme", [given])
    assert not fallback.joins(given)
    # His place is free again: two of two.
    assert [await refused(fallback, lease(holder)) for holder in "abc"] == [[False], [False], [True]]
    assert not fallback.joins(lease("c"))


async def test_a_renewal_is_good_where_this_process_can_say_so(fallback: Fallback) -> None:
    assert await fallback.renew("acme", [lease("a", "open"), lease("a", "closed", mode="shadow")])
    assert not await fallback.renew("acme", [lease("a", "closed")])
    assert not await fallback.renew("acme", [lease("a", "open"), lease("a", "closed")])
    # Those whose place is in the store move to this process while it has room: two of three.
    assert [await fallback.renew("acme", [lease(holder)]) for holder in "abc"] == [True, True, False]
    assert [fallback.joins(lease(holder)) for holder in "abc"] == [True, True, False]
    assert await fallback.renew("acme", [lease("a"), lease("b")])


async def test_a_correction_is_one_of_the_share(fallback: Fallback) -> None:
    take = Take(rate(limit=100), "-", 50)
    (balance,) = await fallback.admit("acme", [take])
    assert (balance.used, balance.refused) == (50, False)
    assert await refused(fallback, take) == [True]

    async def give_back(limit: Limit) -> None:
        await fallback.correct("acme", [Correction(limit=limit, subject="-", amount=-50, at=balance.at)])

    for policy in ("open", "closed"):  # by their policy they counted nothing
        await give_back(rate(policy, 100, name=take.limit.name))
    assert await refused(fallback, take) == [True]
    await give_back(take.limit)
    assert await refused(fallback, take) == [False]


async def test_shares_are_kept_and_not_without_end(fallback: Fallback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_fallback, "_KEPT", 3)
    limits = [rate(name=f"r.{number}") for number in range(4)]
    for limit in limits[:3]:
        await fallback.admit("acme", [Take(limit, "-")])
    kept = {key: found[1] for key, found in fallback._shares.items()}
    for limit in limits[:3]:
        await fallback.admit("acme", [Take(limit, "-")])
    assert len(kept) == 3 and all(fallback._shares[key][1] is found for key, found in kept.items())
    await fallback.admit("acme", [Take(limits[3], "-")])
    assert len(fallback._shares) == 1
    # What it has counted does not go with them.
    assert [await refused(fallback, Take(limits[0], "-")) for _ in range(2)] == [[False], [True]]


def test_who_is_turned_away_by_this_process_alone_is_told_by_every_limit_that_counts() -> None:
    takes = [Take(rate(policy), "-") for policy in ("local", "open", "closed")]
    assert [(b.refused, b.degraded, b.used) for b in turned_away(takes)] == [(True, True, 0)] * 3
    (balance,) = turned_away([Take(rate(mode="shadow"), "-")])
    assert (balance.refused, balance.degraded) == (False, True)
