"""The quota plugin: which limits it charges, its warning header, what it counts."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import msgspec
import pytest
from plugins.limits_kit import Setting

from openclaw_gateway.api import MESSAGES, SESSIONS, SKILLS, Balance, Outcome, QuotaEvent
from openclaw_plugins.quota import Quota

TABLES = {
    "teams": {
        "sessions": {"limit": 1000, "per": "month"},
        "messages": {"limit": 200, "per": "month", "warn_at": 0.5},
        "skills": {"limit": 50, "per": "session"},
    }
}


@pytest.fixture
def setting() -> Setting:
    return Setting(Quota, "quota", TABLES)


def test_it_charges_the_durable_account(setting: Setting) -> None:
    charges = setting.charges("teams", SESSIONS, MESSAGES)
    assert [(c.limit.name, c.limit.kind, c.limit.limit, c.limit.period, c.limit.warn_at) for c in charges] == [
        ("quota.sessions", "quota", 1000, "month", 0.8),
        ("quota.messages", "quota", 200, "month", 0.5),
    ]
    assert all(c.account is setting.accounts for c in charges)


def test_it_is_asked_where_anything_is_metered(setting: Setting) -> None:
    setting.is_asked_where_anything_is_metered()


def test_a_quota_of_a_session_counts_each_session_by_itself(setting: Setting) -> None:
    limit = setting.limit("teams", SKILLS)
    assert (limit.period, limit.scope) == ("session", "session")


@pytest.mark.parametrize(
    "table",
    [
        {"limit": 5, "per": "minute"},
        {"limit": 5, "per": "year"},
        {"limit": -5, "per": "month"},
        {"limit": 5, "per": "month", "warn_at": 1.2},
        {"limit": 5, "per": "month", "algorithm": "sliding"},
        {"limit": 5, "per": "month", "on_backend_failure": "open"},
    ],
)
def test_a_wrong_table_is_refused(table: dict) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(table, Quota.Limits)


def test_a_quota_may_allow_nothing() -> None:
    assert msgspec.convert({"limit": 0, "per": "month"}, Quota.Limits).limit == 0


@pytest.mark.parametrize(("used", "warns"), [(99, False), (100, True), (200, True)])
def test_it_warns_from_its_threshold_on(setting: Setting, used: int, warns: bool) -> None:
    x = setting.exchange("teams", Balance(limit=setting.limit("teams", MESSAGES), used=used, reset_after=10.0))
    expected = {"x-quota-warning": f"quota.messages; used={used}; limit=200"} if warns else {}
    assert setting.headers(x) == expected


def test_several_warnings_share_one_header(setting: Setting) -> None:
    sessions, messages = (c.limit for c in setting.charges("teams", SESSIONS, MESSAGES))
    x = setting.exchange(
        "teams",
        Balance(limit=sessions, used=800, reset_after=10.0),
        Balance(limit=messages, used=200, refused=True, reset_after=10.0),
    )
    assert setting.headers(x) == {
        "x-quota-warning": "quota.sessions; used=800; limit=1000, quota.messages; used=200; limit=200"
    }


def test_usage_is_the_highest_share_of_any_organisation_until_the_period_ends(setting: Setting) -> None:
    limit = setting.limit("teams", MESSAGES)

    def complete(organization: str, used: int, refused: bool = False) -> None:
        balance = Balance(limit=limit, used=used, refused=refused, reset_after=1800.0)
        setting.plugin.on_complete(setting.exchange("teams", balance, organization=organization), Outcome())

    def usage() -> float | None:
        return setting.metric("quota_usage", tier="teams", quota="quota.messages")

    assert setting.metric("quota_limit", tier="teams", quota="quota.messages") == 200
    assert usage() == 0
    complete("a", 50)
    complete("b", 20)
    assert usage() == 0.25
    complete("b", 150)
    complete("b", 149)  # one of them failed and was given back
    assert usage() == 0.745
    setting.clock.advance(1799)
    assert usage() == 0.745
    setting.clock.advance(1)
    assert usage() == 0
    complete("a", 50)
    assert usage() == 0.25
    complete("a", 200, refused=True)
    assert usage() == 1
    assert setting.metric("quota_exceeded_total", tier="teams", quota="quota.messages") == 1


@pytest.mark.parametrize(("threshold", "said"), [("warning", "is nearly used up"), ("exhausted", "is used up")])
@pytest.mark.parametrize(("limit", "series"), [("quota.messages", "quota.messages"), ("quota.gone", "(other)")])
def test_a_threshold_is_told_in_the_log_and_counted_by_quota(
    setting: Setting, caplog: pytest.LogCaptureFixture, threshold: str, said: str, limit: str, series: str
) -> None:
    event = QuotaEvent(
        organization="acme",
        subject="-",
        limit=limit,
        period="2026-11",
        threshold=threshold,  # type: ignore[arg-type]
        scope="organization",
        used=180,
        allowed=200,
        at=datetime(2026, 11, 28, tzinfo=UTC),
        resets_at=None,
    )
    caplog.set_level(logging.WARNING)
    setting.plugin.on_quota_event(event)
    (record,) = caplog.records
    assert record.getMessage() == f"{limit} {said}"
    assert record.fields["organizationId"] == "acme"  # type: ignore[attr-defined]
    assert setting.metric("quota_thresholds_total", quota=series, threshold=threshold) == 1
