"""Calendar periods of quotas: in UTC, by the database's clock, pinned when a reservation is made."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from openclaw_gateway.api import Limit


def period_of(limit: Limit, now: datetime) -> str:
    """Name the period that `now` falls into; leases and quotas of a session have one for all time."""
    if limit.kind == "lease":
        return "lease"
    if limit.period == "session":
        return "session"
    return now.strftime("%Y-%m-%d" if limit.period == "day" else "%Y-%m")


def seconds_left(limit: Limit, now: datetime) -> float | None:
    """Return the time to the period's end; None where it has none."""
    if limit.kind == "lease" or limit.period == "session":
        return None
    day = datetime(now.year, now.month, now.day, tzinfo=UTC)
    # the 28th and four days is always in the next month
    end = day + timedelta(days=1) if limit.period == "day" else (day.replace(day=28) + timedelta(days=4)).replace(day=1)
    return (end - now).total_seconds()
