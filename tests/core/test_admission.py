"""Admission: what is asked of which account, in which order, what a refusal leaves behind and says, and the receipt."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from openclaw_gateway.api import (
    MESSAGES,
    PRINCIPAL,
    SESSION_ID,
    TOKENS,
    Balance,
    Correction,
    Limit,
    Refusal,
    Refused,
    Reply,
)
from openclaw_gateway.errors import StoreUnavailable
from openclaw_gateway.meters import BUILT_IN, MOST
from openclaw_gateway.plans import Plan

from .admission_kit import Durable, Fast, Guarding, admission, exchange, lease, plan, quota, rate


@pytest.fixture
def fast() -> Fast:
    return Fast()


@pytest.fixture
def durable() -> Durable:
    return Durable()


async def refusal(plan: Plan, x: Any = None, **options: Any) -> Refusal:
    found = await admission().admit(x or exchange(), plan, **options)
    assert found is not None
    return found


# --- what is asked ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "x", "subject"),
    [
        (rate(), exchange(), "-"),
        (rate(scope="user"), exchange(), "ada"),
        (rate(scope="api_key"), exchange(method="api_key"), "k1"),
        (rate(scope="api_key"), exchange(method="jwt"), None),
        (rate(scope="client"), exchange(), "192.0.2.1"),
        (rate(scope="client"), exchange(client=""), None),
        (rate(scope="session"), exchange(), "s1"),
        (rate(scope="session", period="session"), exchange(), "s1"),
        (rate(period="session"), exchange(), "-"),
    ],
)
async def test_a_limit_counts_its_subject_or_does_not_apply(
    fast: Fast, limit: Limit, x: Any, subject: str | None
) -> None:
    assert await admission().admit(x, plan((limit, fast)), session="s1") is None
    assert all(take.amount == 1 for _, takes in fast.asked for take in takes)
    expected = [] if subject is None else [("acme", [subject])]
    assert [(organization, [take.subject for take in takes]) for organization, takes in fast.asked] == expected


async def test_a_quota_of_a_session_counts_the_session_and_applies_to_nothing_without_one(durable: Durable) -> None:
    limits = plan((quota(period="session", scope="organization"), durable))
    assert await admission().admit(exchange(), limits) is None
    assert durable.asked == []
    assert await admission().admit(exchange(), limits, session="s1") is None
    assert [take.subject for take in durable.asked[0][1]] == ["s1"]


async def test_limits_of_a_session_wait_until_the_request_has_named_it(fast: Fast, durable: Durable) -> None:
    one, x = admission(), exchange()
    limits = plan((rate(), fast), (rate("messages", scope="session"), fast), (quota(period="session"), durable))
    x.route.plans["teams"] = limits
    assert one.counts_sessions(x)
    assert await one.admit(x, limits) is None
    await one.in_session(x, "s1")
    assert [(take.limit.name, take.subject) for _, takes in fast.asked for take in takes] == [
        ("ratelimit.requests", "-"),
        ("ratelimit.messages", "s1"),
    ]
    assert [take.subject for _, takes in durable.asked for take in takes] == ["s1"]
    fast.refuses = {"ratelimit.messages": 1.0}
    y = exchange()
    y.route.plans["teams"] = limits
    with pytest.raises(Refused) as refused:
        await one.in_session(y, "s2")
    assert refused.value.refusal.status == 429
    x = exchange()
    x.route.plans["teams"] = plan((rate(), fast))
    fast.asked.clear()
    assert not one.counts_sessions(x)
    await one.in_session(x, "s3")
    assert x[SESSION_ID] == "s3" and fast.asked == []


async def test_one_call_asks_an_account_for_all_its_limits_with_the_amount(fast: Fast, durable: Durable) -> None:
    other = Fast()
    limits = plan((rate(), fast), (quota(), durable), (rate("messages"), fast), (rate("tokens"), other))
    assert [limit.name for limit in limits.limits] == [
        *("ratelimit.requests", "quota.messages", "ratelimit.messages", "ratelimit.tokens"),
    ]
    for amount in (1, 4):
        x = exchange()
        assert await admission().admit(x, limits, amount=amount) is None
        assert [[(take.limit.meter, take.amount) for take in takes] for _, takes in fast.asked] == [
            [("requests", amount), ("messages", amount)]
        ]
        assert [take.amount for take in other.asked[0][1]] == [take.amount for take in durable.asked[0][1]] == [amount]
        assert x.receipt is not None
        assert [b.limit.meter for b in x.receipt.balances] == ["requests", "messages", "tokens", "messages"]
        for account in (fast, other, durable):
            account.asked.clear()


def test_takes_that_are_the_same_for_everybody_are_made_once(fast: Fast) -> None:
    x = exchange()
    for limit, once in ((rate(), True), (rate(scope="user"), False), (lease(), False), (rate(period="session"), True)):
        ((_, takes),) = plan((rate("messages"), fast), (limit, fast)).fast
        first, second = (takes.of(x, x[PRINCIPAL], None, 1) for _ in range(2))
        assert (first is second) is once, limit


async def test_every_lease_has_a_holder_of_its_own(fast: Fast) -> None:
    limits = plan((lease(), fast), (rate(), fast))
    for _ in range(2):
        assert await admission().admit(exchange(), limits) is None
    holders = [take.lease for _, takes in fast.asked for take in takes]
    assert len({holders[0], holders[2]}) == 2 and holders[0] and holders[2]
    assert holders[1] is holders[3] is None


async def test_what_a_handler_meters_is_charged_by_the_plan_of_that_meter(fast: Fast) -> None:
    one = admission()
    one.by_meter = {
        "teams": {"messages": plan((rate("messages"), fast)), "skills": plan(), "tokens": plan((rate("tokens"), fast))}
    }
    x = exchange()
    assert await one.charge(x, MESSAGES) is None
    assert await one.charge(x, MESSAGES, amount=2) is None
    assert [takes[0].amount for _, takes in fast.asked] == [1, 2]
    assert x.receipt is not None and not x.receipt.estimates("messages")
    assert await one.charge(x, TOKENS, amount=9) is None
    assert x.receipt.estimates("tokens")
    assert one.counts(x, MESSAGES)
    one.by_meter = {"teams": {"messages": plan()}}
    assert not one.counts(x, MESSAGES) and not one.counts(x, TOKENS)
    assert await one.charge(x, TOKENS) is None


async def test_usage_is_told_in_the_order_of_the_tier(fast: Fast, durable: Durable) -> None:
    one = admission()
    one.whole = {"teams": plan((quota(), durable), (rate(), fast), (rate("messages", scope="session"), fast))}
    x = exchange()
    assert [(b.limit.name, b.used) for b in await one.usage(x)] == [("quota.messages", 5), ("ratelimit.requests", 3)]
    assert len(await one.usage(x, session="s1")) == 3


# --- what a refusal leaves behind ---------------------------------------------------------------


async def test_a_refused_rate_gives_back_leases_and_asks_nobody_else(fast: Fast, durable: Durable) -> None:
    other = Fast()
    other.refuses = {"ratelimit.requests": 2.0}
    x = exchange()
    found = await refusal(plan((lease(), fast), (rate(), other), (quota(), durable)), x)
    assert (found.status, found.code, found.retry_after) == (429, "RATE_LIMIT_EXCEEDED", 2.0)
    assert x.outcome.refused_by == "ratelimit.requests"
    assert [take.limit.kind for take in fast.released] == ["lease"]
    assert durable.asked == []
    assert x.receipt is not None and [b.limit.kind for b in x.receipt.balances] == ["lease", "rate"]
    assert not x.receipt.open


async def test_a_refused_quota_gives_back_holds_and_leases(fast: Fast, durable: Durable) -> None:
    other = Durable()
    other.refuses = {"quota.messages"}
    x = exchange()
    found = await refusal(plan((lease(), fast), (quota("sessions"), durable), (quota(), other)), x)
    assert (found.status, found.code, found.retry_after) == (403, "QUOTA_EXCEEDED", None)
    assert [hold.take.limit.name for hold in durable.voided] == ["quota.sessions"]
    assert len(fast.released) == 1
    assert x.receipt is not None and not x.receipt.open
    assert [b.limit.name for b in x.receipt.balances][1:] == ["quota.sessions", "quota.messages"]


async def test_a_durable_account_that_does_not_answer_closes_and_gives_back(
    fast: Fast, durable: Durable, caplog: pytest.LogCaptureFixture
) -> None:
    other = Durable()
    other.fails = True
    x = exchange()
    found = await refusal(plan((lease(), fast), (quota("sessions"), durable), (quota(), other)), x)
    assert (found.status, found.code) == (503, "SERVICE_UNAVAILABLE")
    assert len(durable.voided) == len(fast.released) == 1
    assert x.receipt is not None and not x.receipt.open
    assert [r.message for r in caplog.records] == ["the durable account does not answer"]


async def test_a_quota_that_refuses_gives_an_estimated_rate_back(fast: Fast, durable: Durable) -> None:
    durable.refuses = {"quota.tokens"}
    await refusal(plan((rate("tokens"), fast), (quota("tokens"), durable)), amount=40, estimated=True)
    assert [(c.amount, c.at, c.subject) for c in fast.corrected] == [(-40, 7, "-")]


# --- what a refusal says ------------------------------------------------------------------------


async def test_of_several_refusals_the_longest_is_told(fast: Fast) -> None:
    fast.refuses = {"ratelimit.requests": 1.0, "ratelimit.messages": 40.0, "ratelimit.tokens": None}
    x = exchange()
    found = await refusal(plan((rate(), fast), (rate("messages"), fast), (rate("tokens"), fast)), x)
    assert found.retry_after == 40.0 and x.outcome.refused_by == "ratelimit.messages"


@pytest.mark.parametrize(
    ("limit", "kind", "retry_after", "status", "code", "told"),
    [
        (rate(window=5.0), "http", 1.5, 429, "RATE_LIMIT_EXCEEDED", 1.5),
        (rate(window=5.0), "http", 0.0, 429, "RATE_LIMIT_EXCEEDED", 0.0),
        (rate(window=5.0), "http", None, 429, "RATE_LIMIT_EXCEEDED", 5.0),
        (lease(), "websocket", 3.0, 429, "RATE_LIMIT_EXCEEDED", 3.0),
        (lease(), "websocket", None, 429, "RATE_LIMIT_EXCEEDED", 1.0),
        (lease(), "http", 3.0, 403, "CONCURRENCY_EXCEEDED", None),
    ],
)
async def test_each_kind_of_limit_refuses_in_its_own_way(
    fast: Fast, limit: Limit, kind: str, retry_after: float | None, status: int, code: str, told: float | None
) -> None:
    fast.refuses = {limit.name: retry_after}
    found = await refusal(plan((limit, fast)), exchange(kind=kind))
    assert (found.status, found.code, found.retry_after) == (status, code, told)
    assert found.extra["limit"]["name"] == limit.name
    assert limit.name in found.message


@pytest.mark.parametrize(
    ("window", "words"),
    [(1.0, "a second"), (60.0, "a minute"), (3600.0, "an hour"), (86400.0, "a day"), (90.0, "90 s")],
)
async def test_a_window_is_told_in_words(fast: Fast, window: float, words: str) -> None:
    fast.refuses = {"ratelimit.requests": 1.0}
    assert f" in {words}" in (await refusal(plan((rate(window=window), fast)))).message


@pytest.mark.parametrize(
    ("limit", "amount", "status"),
    [
        (rate(limit=10), 10, 429),
        (rate(limit=10), 11, 400),
        (rate(limit=0), 1, 429),  # nothing is ever admitted; but no request is too large for that
        (rate(limit=0), 2, 400),
        (rate(limit=10, algorithm="gcra", burst=3), 3, 429),
        (rate(limit=10, algorithm="gcra", burst=3), 4, 400),
        (rate(limit=10, algorithm="gcra", burst=30), 11, 400),
    ],
)
async def test_what_can_never_fit_is_told_to_be_too_large(fast: Fast, limit: Limit, amount: int, status: int) -> None:
    fast.refuses = {limit.name: 1.0}
    x = exchange()
    found = await refusal(plan((limit, fast)), x, amount=amount)
    assert found.status == status and x.outcome.refused_by == limit.name
    assert (found.retry_after is None) is (status == 400)
    assert found.extra["limit"]["name"] == limit.name


@pytest.mark.parametrize(("retry_after", "status"), [(None, 503), (2.0, 429)])
async def test_an_account_that_did_not_answer_is_no_limit_that_is_used_up(
    fast: Fast, retry_after: float | None, status: int
) -> None:
    fast.refuses, fast.degraded = {"ratelimit.requests": retry_after}, True
    assert (await refusal(plan((rate(), fast)))).status == status


# --- a guard before what lasts ------------------------------------------------------------------


@pytest.mark.parametrize("answer", [Reply(status=200), None])
async def test_a_guard_answers_after_the_rates_and_before_the_quotas(
    fast: Fast, durable: Durable, answer: Reply | None
) -> None:
    x = exchange(guard=Guarding(answer))
    limits = plan((rate(), fast), (lease(), fast), (quota(), durable), (lease("sessions"), durable))
    assert await admission().admit_request(x, limits) is answer
    assert [take.amount for _, takes in fast.asked for take in takes] == [1, 1]
    assert len(fast.released) == (0 if answer is None else 1)
    if answer is not None:
        assert durable.asked == []
        return
    ((_, takes),) = durable.asked
    assert [take.amount for take in takes] == [1, 1]
    assert takes[0].lease == "r1", "a quota is charged under the guard's reference"
    assert takes[1].lease not in (None, "r1"), "a lease keeps its own holder"


async def test_a_guard_is_not_asked_where_a_rate_refuses(fast: Fast, durable: Durable) -> None:
    fast.refuses = {"ratelimit.requests": 1.0}
    found = await admission().admit_request(exchange(guard=Guarding(Reply(status=200))), plan((rate(), fast)))
    assert isinstance(found, Refusal) and found.status == 429


async def test_without_a_guard_or_a_reference_a_quota_is_charged_under_none(durable: Durable) -> None:
    for guard in (None, Guarding(reference=None)):
        assert await admission().admit_request(exchange(guard=guard), plan((quota(), durable))) is None
    assert [(take.lease, take.amount) for _, takes in durable.asked for take in takes] == [(None, 1), (None, 1)]


# --- the receipt --------------------------------------------------------------------------------


async def test_what_is_estimated_is_settled_and_committed(fast: Fast, durable: Durable) -> None:
    other = Fast()
    limits = plan(
        *((rate("tokens"), fast), (rate("messages"), fast)),
        *((rate("tokens"), other), (quota("tokens"), durable), (quota(), durable)),
    )
    x = exchange()
    assert await admission().admit(x, limits, amount=40, estimated=True) is None
    receipt = x.receipt
    assert receipt is not None and receipt.open and receipt.pending and receipt.estimates("tokens")
    receipt.settle("tokens", 25)
    await receipt.commit()
    assert [(hold.take.limit.meter, hold.charge) for hold in durable.committed] == [("tokens", 25), ("messages", None)]
    for account in (fast, other):
        assert [(c.limit.meter, c.amount, c.at, c.degraded) for c in account.corrected] == [("tokens", -15, 7, False)]
    assert not receipt.open and not receipt.pending and not receipt.estimates("tokens")
    await receipt.commit()
    assert len(durable.committed) == 2 and len(fast.corrected) == 1


async def test_an_estimate_that_was_right_or_that_nobody_settled_is_not_corrected(fast: Fast) -> None:
    for settled in (40, None):
        x = exchange()
        assert await admission().admit(x, plan((rate("tokens"), fast)), amount=40, estimated=True) is None
        assert x.receipt is not None
        if settled is not None:
            x.receipt.settle("tokens", settled)
        await x.receipt.commit()
    assert fast.corrected == []


async def test_what_is_voided_gives_back_everything(fast: Fast, durable: Durable) -> None:
    x = exchange()
    limits = plan((rate("tokens"), fast), (quota(), durable))
    assert await admission().admit(x, limits, amount=40, estimated=True) is None
    assert x.receipt is not None
    await x.receipt.void()
    assert [c.amount for c in fast.corrected] == [-40] and len(durable.voided) == 1
    await x.receipt.void()
    assert len(fast.corrected) == len(durable.voided) == 1


async def test_a_request_that_fails_was_a_request(fast: Fast) -> None:
    for admit in (admission().admit, admission().admit_request):
        x = exchange()
        assert await admit(x, plan((rate(), fast))) is None
        assert x.receipt is not None
        await x.receipt.void()
    assert fast.corrected == []


async def test_a_store_that_fails_keeps_what_is_to_be_committed_and_lets_the_rest_expire(
    fast: Fast, durable: Durable, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "openclaw.admission")
    x = exchange()
    assert (
        await admission().admit(x, plan((rate("tokens"), fast), (quota(), durable)), amount=2, estimated=True) is None
    )
    receipt = x.receipt
    assert receipt is not None
    durable.fails = fast.fails = True
    with pytest.raises(StoreUnavailable):
        await receipt.commit()
    assert receipt.pending
    await receipt.void()
    assert not receipt.open
    assert [record.levelname for record in caplog.records] == ["WARNING", "DEBUG"]


async def test_holds_that_were_taken_are_settled_by_nobody_else_unless_they_come_back(durable: Durable) -> None:
    x = exchange()
    assert await admission().admit(x, plan((quota(), durable), (quota("skills"), durable))) is None
    receipt = x.receipt
    assert receipt is not None
    taken = receipt.take_holds("messages")
    assert [hold.take.limit.meter for hold in taken] == ["messages"]
    assert [hold.take.limit.meter for hold in receipt.holds] == ["skills"]
    await receipt.commit()
    assert [hold.take.limit.meter for hold in durable.committed] == ["skills"]
    receipt.give_back([])
    assert not receipt.pending
    receipt.give_back(taken)
    receipt.give_back(taken)
    assert receipt.holds == taken
    await receipt.void()
    assert durable.voided == list(taken)


async def test_leases_of_every_account_are_renewed_for_as_long_as_the_shortest(durable: Durable) -> None:
    one, two = Fast(30.0), Fast(10.0)
    x = exchange()
    assert await admission().admit(x, plan((rate(), one), (quota(), durable))) is None
    assert x.receipt is not None and x.receipt.lease_ttl is None and await x.receipt.renew_leases()
    assert await admission().admit(x, plan((lease(), one), (lease("skills"), two))) is None
    assert x.receipt.lease_ttl == 10.0 and x.receipt.open
    for lost in (one, two):
        lost.alive = False
        assert not await x.receipt.renew_leases()
        lost.alive = True
    assert await x.receipt.renew_leases()
    assert (len(one.renewed), len(two.renewed)) == (3, 3)
    await x.receipt.release_leases()
    await x.receipt.release_leases()
    assert (len(one.released), len(two.released)) == (1, 1)


def test_a_correction_is_the_accounts_own_unless_it_says_otherwise() -> None:
    assert not Correction(limit=rate(), subject="-", amount=-1, at=7).degraded


def test_a_balance_says_what_is_left_and_when_it_is_whole_again() -> None:
    balance = Balance(limit=quota(limit=10, warn_at=0.5), used=5, reset_after=59.6)
    assert balance.warning and balance.remaining == 5
    assert balance.report(1_800_000_000.0) == {
        "name": "quota.messages",
        "kind": "quota",
        "scope": "organization",
        "used": 5,
        "limit": 10,
        "remaining": 5,
        "resetsAt": "2027-01-15T08:01:00Z",
    }
    assert not Balance(limit=quota(limit=10, warn_at=0.5), used=4).warning
    assert not Balance(limit=rate(limit=10, warn_at=0.5), used=9).warning
    assert Balance(limit=rate(limit=10), used=11).remaining == 0
    assert Balance(limit=rate(), used=1).report(0.0)["resetsAt"] is None


@pytest.mark.parametrize(
    ("limit", "bound", "capacity", "burst"),
    [
        (rate(limit=100), 100, 100, 10),
        (rate(limit=100, algorithm="gcra"), 110, 10, 10),
        (rate(limit=5, algorithm="gcra"), 6, 1, 1),
        (rate(limit=5, algorithm="gcra", burst=8), 13, 5, 8),
        (rate(limit=100, algorithm="fixed"), 200, 100, 10),
        (quota(limit=100), 100, 100, 10),
        (quota(limit=100, algorithm="fixed"), 100, 100, 10),
    ],
)
def test_a_limit_says_the_most_it_admits(limit: Limit, bound: int, capacity: int, burst: int) -> None:
    assert (limit.bound(), limit.capacity(), limit.effective_burst()) == (bound, capacity, burst)


def test_the_largest_amount_is_a_whole_number_everywhere() -> None:
    assert MOST == 999_999_999_999_999 < 2**53


def test_the_built_in_meters_and_which_of_them_every_tier_must_limit() -> None:
    assert {name: (meter.required, meter.durable, meter.estimated) for name, meter in BUILT_IN.items()} == {
        "requests": (True, False, False),
        "messages": (True, False, False),
        "sessions": (True, True, False),
        "skills": (False, False, False),
        "tokens": (False, False, True),
        "ws_connections": (True, False, False),
        "ws_messages": (True, False, False),
    }
