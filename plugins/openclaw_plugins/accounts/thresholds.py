"""Which thresholds of a quota a charge has passed: each is told once in a period, however usage and limits move."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Literal

from uuid_utils import uuid7

from openclaw_gateway.api import Limit
from openclaw_plugins.accounts.periods import seconds_left

Threshold = Literal["warning", "exhausted"]

#: in the order in which usage passes them; a row's `announced` is how many were passed
_ORDER: tuple[Threshold, ...] = ("warning", "exhausted")


def passed(limit: Limit, used: int, announced: int) -> int:
    """Return how many thresholds `used` has passed by now; never fewer than were announced before."""
    if limit.kind != "quota" or limit.mode == "shadow":
        return announced
    if used >= limit.limit:
        return 2
    return max(announced, 1 if used >= limit.warn_at * limit.limit else 0)


def newly(limit: Limit, before: int, after: int) -> Iterator[Threshold]:
    """Yield the thresholds to tell of; where the warning is at the whole limit, only that it is used up."""
    for threshold in _ORDER[before:after]:
        if threshold == "exhausted" or limit.warn_at < 1:
            yield threshold


def event(
    key: tuple[str, str, str, str], limit: Limit, threshold: Threshold, used: int, now: datetime
) -> dict[str, Any]:
    """Return the row of the outbox."""
    organization, subject, name, period = key
    left = seconds_left(limit, now)
    return {
        "event_id": str(uuid7()),
        "organization_id": organization,
        "subject": subject,
        "limit_name": name,
        "period": period,
        "threshold": threshold,
        "scope": limit.scope,
        "used": used,
        "allowed": limit.limit,
        "created_at": now,
        "resets_at": now + timedelta(seconds=left) if left is not None else None,
    }
