"""Calendar periods of quotas: in UTC, by the database's clock, pinned when a reservation is made."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from functools import lru_cache

from openclaw_gateway.api import Limit


def period_of(limit: Limit, now: datetime) -> str:
    """Name the period that `now` falls into; leases and quotas of a session have one for all time."""
    if limit.kind == "lease":
        return "lease"
    if limit.period == "session":
        return "session"
    return _calendar(limit.period, now.date())[0]


def seconds_left(limit: Limit, now: datetime) -> float | None:
    """Return the time to the period's end; None where it has none."""
    if limit.kind == "lease" or limit.period == "session":
        return None
    return (_calendar(limit.period, now.date())[1] - now).total_seconds()


@lru_cache(maxsize=16)
def _calendar(period: str, day: date) -> tuple[str, datetime]:
    """Name the period that a day is in, and say when it ends. Every charge asks, and to write a date takes its time."""
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    if period == "day":
        return f"{start:%Y-%m-%d}", start + timedelta(days=1)
    # the 28th and four days is always in the next month
    end = (start.replace(day=28) + timedelta(days=4)).replace(day=1)
    return f"{start:%Y-%m}", end
