"""The rate limit plugin: which limits it charges, what it tells clients, what it counts."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from plugins.limits_kit import Setting

from openclaw_gateway.api import MESSAGES, REQUESTS, WS_MESSAGES, Balance, Limit, Outcome, ResponseHead
from openclaw_gateway.tiers import TierFiles
from openclaw_plugins.ratelimit import RateLimit

TABLES = {
    "teams": {
        "requests": {"limit": 500, "per": "minute"},
        "ws_messages": {"limit": 1000, "per": "minute"},
        "daily": {"limit": 10_000, "per": "24h", "meter": "requests", "scope": "user"},
        "trial": {"limit": 3, "per": "minute", "meter": "messages", "mode": "shadow"},
    },
    "free": {"requests": {"limit": 100, "per": "minute"}},
}


@pytest.fixture
def setting() -> Setting:
    return Setting(RateLimit, "ratelimit", TABLES)


def test_it_charges_every_limit_on_what_the_route_meters(setting: Setting) -> None:
    charges = setting.charges("teams", REQUESTS)
    assert [(c.limit.name, c.limit.limit, c.limit.window, c.limit.scope) for c in charges] == [
        ("ratelimit.requests", 500, 60.0, "organization"),
        ("ratelimit.daily", 10_000, 86_400.0, "user"),
    ]
    assert all(c.account is setting.counters and c.limit.kind == "rate" for c in charges)
    assert [c.limit.name for c in setting.charges("teams", WS_MESSAGES)] == ["ratelimit.ws_messages"]
    assert setting.charges("free", MESSAGES) == []


def test_it_is_asked_where_anything_is_metered(setting: Setting) -> None:
    setting.is_asked_where_anything_is_metered()


@pytest.mark.parametrize(
    ("per", "seconds"),
    [("second", 1), ("minute", 60), ("hour", 3600), ("day", 86_400), ("90s", 90), ("5m", 300), ("2h", 7200)],
)
def test_a_period_is_a_word_or_a_duration(per: str, seconds: int) -> None:
    setting = Setting(RateLimit, "ratelimit", {"t": {"requests": {"limit": 1, "per": per}}})
    assert setting.limit("t", REQUESTS).window == seconds


@pytest.mark.parametrize(
    "table",
    [
        {"limit": 5, "per": "month"},
        {"limit": 5, "per": "fortnight"},
        {"limit": 5, "per": "0s"},
        {"limit": 5, "per": "500ms"},
        {"limit": -1, "per": "minute"},
        {"limit": 1.5, "per": "minute"},
        {"limit": 5},
        {"limit": 5, "per": "minute", "algorithm": "leaky"},
        {"limit": 5, "per": "minute", "warn_at": 0.5},
        {"limit": 5, "per": "minute", "algorithm": "gcra", "burst": 0},
        {"limit": 5, "per": "minute", "burst": 5},
    ],
)
def test_a_wrong_table_is_refused(table: dict) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(table, RateLimit.Limits)


def test_every_wrong_value_of_a_tier_file_is_named_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "teams.toml").write_text(
        '[ratelimit.requests]\nlimit = -5\nper = "fortnight"\n[ratelimit.other]\nlimit = 1\nper = "minute"\nburts = 3\n'
    )
    _, problems = TierFiles(tmp_path, "tiers").build({"ratelimit": RateLimit.Limits})
    assert [(p.origin, p.path) for p in problems] == [
        ("tiers/teams.toml:2:1", "ratelimit.requests.limit"),
        ("tiers/teams.toml:3:1", "ratelimit.requests.per"),
        ("tiers/teams.toml:7:1", "ratelimit.other.burts"),
    ]


def test_success_and_refusal_carry_the_same_headers(setting: Setting) -> None:
    limit, daily = (c.limit for c in setting.charges("teams", REQUESTS))
    x = setting.exchange(
        "teams", Balance(limit=limit, used=1, reset_after=60.2), Balance(limit=daily, used=9_999, reset_after=86_400.0)
    )
    assert setting.headers(x) == {
        "ratelimit": '"ratelimit.requests";r=499;t=61, "ratelimit.daily";r=1;t=86400',
        "ratelimit-policy": '"ratelimit.requests";q=500;w=60, "ratelimit.daily";q=10000;w=86400',
        "x-ratelimit-limit": "10000",
        "x-ratelimit-remaining": "1",
        "x-ratelimit-reset": "86400",
    }
    refused = setting.exchange(
        "teams",
        Balance(limit=limit, used=500, refused=True, reset_after=60.2, retry_after=12.4),
        Balance(limit=daily, used=10_000, reset_after=86_400.0),
    )
    headers = setting.headers(refused)
    assert headers["ratelimit"] == '"ratelimit.requests";r=0;t=13, "ratelimit.daily";r=0;t=86400'
    assert (headers["x-ratelimit-limit"], headers["x-ratelimit-remaining"]) == ("500", "0")
    assert headers["x-ratelimit-reset"] == "13"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0s"), (0.12, "120ms"), (1.0, "1s"), (59.1, "1m0s"), (360.0, "6m0s"), (3600, "1h0m0s")]
)
def test_the_openai_surface_has_its_own_three(setting: Setting, seconds: float, text: str) -> None:
    limit = setting.limit("free", REQUESTS)
    x = setting.exchange("free", Balance(limit=limit, used=40, reset_after=seconds), surface="openai")
    headers = setting.headers(x)
    assert headers["x-ratelimit-limit-requests"] == "100"
    assert headers["x-ratelimit-remaining-requests"] == "60"
    assert headers["x-ratelimit-reset-requests"] == text


def test_nothing_is_said_of_shadow_limits_and_of_accounts_that_did_not_answer(setting: Setting) -> None:
    shadow, limit = setting.limit("teams", MESSAGES), setting.limit("free", REQUESTS)
    x = setting.exchange(
        "free", Balance(limit=shadow, used=3, reset_after=1.0), Balance(limit=limit, used=0, degraded=True)
    )
    assert setting.headers(x) == {}


def test_hits_are_counted_by_tier_and_limit(setting: Setting) -> None:
    limit, shadow = setting.limit("free", REQUESTS), setting.limit("teams", MESSAGES)
    refused = Balance(limit=limit, used=100, refused=True, reset_after=60.0, retry_after=1.0)
    admitted = Balance(limit=limit, used=1, reset_after=60.0)
    for balance in (refused, refused, admitted):
        setting.plugin.on_complete(setting.exchange("free", balance), Outcome())
    would = Balance(limit=shadow, used=3, reset_after=60.0, retry_after=1.0)
    setting.plugin.on_complete(setting.exchange("teams", would), Outcome())
    assert setting.metric("rate_limit_hits_total", tier="free", limit="ratelimit.requests") == 2
    assert setting.metric("rate_limit_hits_total", tier="teams", limit="ratelimit.trial") == 0
    assert setting.metric("rate_limit_shadow_hits_total", tier="teams", limit="ratelimit.trial") == 1


def test_the_lowest_share_left_is_forgotten_after_two_windows(setting: Setting) -> None:
    limit = setting.limit("free", REQUESTS)

    def lowest() -> float | None:
        return setting.metric("rate_limit_remaining", tier="free", limit="ratelimit.requests")

    assert lowest() == 1
    for organization, used in (("a", 20), ("b", 75), ("c", 1)):
        balance = Balance(limit=limit, used=used, reset_after=60.0)
        setting.plugin.on_complete(setting.exchange("free", balance, organization=organization), Outcome())
    assert lowest() == 0.25
    setting.clock.advance(59)
    assert lowest() == 0.25
    setting.clock.advance(60)
    assert lowest() == 0.25
    setting.clock.advance(60)
    assert lowest() == 1


def test_a_window_of_the_lowest_share_ends_where_the_next_begins(setting: Setting) -> None:
    limit = setting.limit("free", REQUESTS)
    for used in (75, 10):
        balance = Balance(limit=limit, used=used, reset_after=60.0)
        setting.plugin.on_complete(setting.exchange("free", balance), Outcome())
        setting.clock.advance(60)
    assert setting.metric("rate_limit_remaining", tier="free", limit="ratelimit.requests") == 0.9


def test_of_limits_that_are_as_tight_the_first_is_told(setting: Setting) -> None:
    minute, daily = (charge.limit for charge in setting.charges("teams", REQUESTS))
    x = setting.exchange(
        "teams",
        Balance(limit=minute, used=250, reset_after=60.0),
        Balance(limit=daily, used=5000, reset_after=60.0),
    )
    assert setting.headers(x)["x-ratelimit-limit"] == "500"


def test_a_rate_of_another_plugin_is_told_by_its_own_policy(setting: Setting) -> None:
    other = Limit(name="calls.tools", meter="tools", kind="rate", limit=7, window=30.0, tier="free")
    shown = setting.headers(setting.exchange("free", Balance(limit=other, used=2, reset_after=12.0)))
    assert shown["ratelimit-policy"] == '"calls.tools";q=7;w=30'
    assert shown["ratelimit"] == '"calls.tools";r=5;t=12'


def test_a_refusal_that_no_time_mends_is_told_with_the_time_of_the_window(setting: Setting) -> None:
    balance = Balance(limit=setting.limit("free", REQUESTS), used=1, refused=True, reset_after=40.0)
    assert setting.headers(setting.exchange("free", balance))["x-ratelimit-reset"] == "40"


def test_a_header_of_the_handler_is_replaced_and_not_doubled(setting: Setting) -> None:
    head = ResponseHead(200, [(b"x-ratelimit-limit", b"7")])
    x = setting.exchange("free", Balance(limit=setting.limit("free", REQUESTS), used=1, reset_after=60.0))
    setting.plugin.on_response(x, head)
    assert [value for name, value in head.headers if name == b"x-ratelimit-limit"] == [b"100"]


def test_the_least_that_can_be_set() -> None:
    table = {"limit": 0, "per": "minute", "algorithm": "gcra", "burst": 1}
    assert (found := msgspec.convert(table, RateLimit.Limits)).limit == 0 and found.burst == 1
