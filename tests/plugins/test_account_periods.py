"""Periods and thresholds of quotas: where each ends, and which has been passed."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from openclaw_gateway.api import Limit
from openclaw_plugins.accounts.periods import period_of, seconds_left
from openclaw_plugins.accounts.thresholds import newly, passed

DAY = 86_400.0


def quota(limit: int = 100, **fields: object) -> Limit:
    return Limit(name="quota.messages", meter="messages", kind="quota", limit=limit, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("limit", "now", "name", "left"),
    [
        (quota(), datetime(2026, 11, 28, 12, tzinfo=UTC), "2026-11", 2.5 * DAY),
        (quota(), datetime(2026, 12, 31, 23, 59, 59, 500_000, tzinfo=UTC), "2026-12", 0.5),
        (quota(), datetime(2027, 1, 1, tzinfo=UTC), "2027-01", 31 * DAY),
        (quota(), datetime(2027, 2, 1, tzinfo=UTC), "2027-02", 28 * DAY),
        (quota(), datetime(2028, 2, 29, tzinfo=UTC), "2028-02", DAY),
        (quota(period="day"), datetime(2026, 12, 31, 18, tzinfo=UTC), "2026-12-31", 0.25 * DAY),
        (quota(period="day"), datetime(2026, 11, 28, tzinfo=UTC), "2026-11-28", DAY),
        (quota(period="session"), datetime(2026, 11, 28, tzinfo=UTC), "session", None),
        (
            Limit(name="concurrency.sessions", meter="sessions", kind="lease", limit=1),
            datetime(2026, 11, 28, tzinfo=UTC),
            "lease",
            None,
        ),
    ],
)
def test_a_period_has_a_name_and_an_end(limit: Limit, now: datetime, name: str, left: float | None) -> None:
    assert (period_of(limit, now), seconds_left(limit, now)) == (name, left)


@pytest.mark.parametrize(
    ("limit", "used", "announced", "expected"),
    [
        (quota(), 79, 0, 0),
        (quota(), 80, 0, 1),
        (quota(), 99, 0, 1),
        (quota(), 100, 0, 2),
        (quota(), 100, 1, 2),
        (quota(), 101, 2, 2),
        (quota(), 10, 2, 2),  # what was told once stays told, also where the limit was raised
        (quota(), 10, 1, 1),
        (quota(mode="shadow"), 100, 0, 0),
        (Limit(name="concurrency.sessions", meter="sessions", kind="lease", limit=1), 1, 0, 0),
    ],
)
def test_thresholds_are_passed_and_stay_passed(limit: Limit, used: int, announced: int, expected: int) -> None:
    assert passed(limit, used, announced) == expected


def test_the_new_ones_are_told_in_their_order_and_a_warning_at_the_whole_limit_is_none() -> None:
    assert list(newly(quota(), 0, 2)) == ["warning", "exhausted"]
    assert list(newly(quota(), 0, 1)) == ["warning"]
    assert list(newly(quota(), 1, 2)) == ["exhausted"]
    assert list(newly(quota(), 2, 2)) == []
    assert list(newly(quota(warn_at=1.0), 0, 2)) == ["exhausted"]
