"""What the durable account tells beyond a single admission: thresholds that were passed, where everyone stands.

These are words for values and Protocols; nothing here counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec


class QuotaEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A threshold that usage has passed: `warning` from `warn_at` of the limit on, `exhausted` at all of it.

    There is one for each organisation, subject, quota, period and threshold. It is delivered at least once, and
    `key` says which it is.
    """

    organization: str
    #: who shares the quota: `-` for the whole organisation, else a user, an API key, a session or an address
    subject: str
    limit: str
    period: str
    threshold: Literal["warning", "exhausted"]
    scope: str
    used: int
    allowed: int
    at: datetime
    resets_at: datetime | None

    @property
    def key(self) -> str:
        """What tells a second delivery from a second event."""
        return "/".join((self.organization, self.subject, self.limit, self.period, self.threshold))

    def report(self) -> dict[str, Any]:
        """The fields of a row of `/usage`, as they were when the threshold was passed."""
        resets = self.resets_at.strftime("%Y-%m-%dT%H:%M:%SZ") if self.resets_at is not None else None
        return {
            "name": self.limit,
            "kind": "quota",
            "scope": self.scope,
            "used": self.used,
            "limit": self.allowed,
            "remaining": max(0, self.allowed - self.used),
            "resetsAt": resets,
        }


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What one subject has used of one limit in the period that runs now, and the tier that last counted it."""

    organization: str
    subject: str
    limit: str
    period: str
    tier: str
    used: int


@runtime_checkable
class Standings(Protocol):
    """Knows where every organisation stands, for operators."""

    async def standings(self) -> Sequence[Standing]:
        """Return every subject that has used anything. Raises StoreUnavailable."""
        ...


@runtime_checkable
class ChargeReferences(Protocol):
    """Knows what became of the reservations that were made under one reference."""

    async def disown(self, organization: str, reference: str) -> bool:
        """Say whether anything reserved under `reference` has been committed.

        Where nothing has, all of it is given back for good: a commit that comes later charges nothing. Raises
        StoreUnavailable.
        """
        ...
