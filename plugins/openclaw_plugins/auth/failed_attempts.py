"""Slows down who guesses: failed attempts are counted by client address and by the id of the key that was tried.

It counts in this process alone, within a bounded space. A credential that has been good is never held back, so that
nobody is shut out by what others try from his address, or with his key's id.
"""

from __future__ import annotations

import ipaddress
import logging
from collections import OrderedDict
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated

from msgspec import Meta

from openclaw_gateway.api import Clock, Duration, Exchange, PluginConfig, Refusal
from openclaw_plugins.auth import keys
from openclaw_plugins.auth.credentials import bearer


class FailureLimits(PluginConfig, frozen=True, kw_only=True):
    """`[plugins.<id>.failures]`: how often authentication may fail before attempts are answered with 429."""

    per_address: Annotated[
        int, Meta(ge=0, description="Failures of one client address (IPv6: /64) in a window; 0 for no limit.")
    ] = 600
    per_key: Annotated[
        int, Meta(ge=0, description="Failures with the id of one API key in a window; 0 for no limit.")
    ] = 60
    window: Annotated[Duration, Meta(description="How long failures count.")] = Duration(60)
    size: Annotated[
        int, Meta(ge=1, description="How many addresses and keys are counted, and good credentials remembered.")
    ] = 10_000


class _Count:
    """Failures in a window that began with the first of them."""

    __slots__ = ("failures", "until")

    def __init__(self, until: float) -> None:
        self.failures = 0
        self.until = until


#: most that are passed over, because they were used, before one leaves all the same: a request must not pay for all
_CHANCES = 8


class FailedAttempts:
    """Counts of this process. What is counted is never shown but to whoever is held back."""

    __slots__ = ("_clock", "_counts", "_good", "_limits", "_logger")

    def __init__(self, limits: FailureLimits, clock: Clock, logger: logging.Logger) -> None:
        self._limits = limits
        self._clock = clock
        self._logger = logger
        #: oldest window first
        self._counts: OrderedDict[tuple[str, str], _Count] = OrderedDict()
        #: credentials that were good when last seen, by the interpreter's own keyed hash, for that proves nothing and
        #: every good request pays for it. Whoever has left may be held back, so the oldest leaves that was not used
        #: since it was last looked at for that: nearly the least recently used, and a use moves nothing
        self._good: OrderedDict[int, bool] = OrderedDict()

    def refusal(self, x: Exchange, credential: bytes) -> Refusal | None:
        """Return why this attempt is not looked at; None where it is to be."""
        if not self._counts:
            return None
        now = self._clock.monotonic()
        for scope, subject, most in self._subjects(x):
            count = self._counts.get((scope, subject))
            if count is not None and count.failures >= most and count.until > now:
                return None if hash(credential) in self._good else self._refused(scope, most, count, now)
        return None

    def failed(self, x: Exchange, credential: bytes) -> None:
        self._good.pop(hash(credential), None)
        now = self._clock.monotonic()
        counts = self._counts
        while counts and (len(counts) >= self._limits.size or next(iter(counts.values())).until <= now):
            counts.popitem(last=False)
        for scope, subject, most in self._subjects(x):
            count = counts.get((scope, subject))
            if count is None:
                count = counts[scope, subject] = _Count(now + self._limits.window)
            count.failures += 1
            if count.failures == most:
                # Once a window: who is held back is in the access log from here on.
                fields = {"scope": scope, "failures": most, "client": x.client}
                self._logger.warning("authentication failed too often", extra={"fields": fields})

    def succeeded(self, credential: bytes) -> None:
        good, mark = self._good, hash(credential)
        if mark in good:
            good[mark] = True
            return
        good[mark] = False
        if len(good) > self._limits.size:
            for _ in range(_CHANCES):
                oldest, used = good.popitem(last=False)
                if not used:
                    return
                good[oldest] = False
            good.popitem(last=False)

    def _subjects(self, x: Exchange) -> Iterator[tuple[str, str, int]]:
        if self._limits.per_address and x.client:
            yield "client", _network(x.client), self._limits.per_address
        if self._limits.per_key:
            # Only what has a key's checksum: anything else costs no look-up, and says nothing of the key.
            key_id = keys.key_id(x.header(b"x-api-key") or bearer(x) or b"")
            if key_id is not None:
                yield "api_key", key_id, self._limits.per_key

    def _refused(self, scope: str, most: int, count: _Count, now: float) -> Refusal:
        left = count.until - now
        resets = datetime.fromtimestamp(self._clock.now() + left, UTC).isoformat(timespec="seconds")
        return Refusal(
            status=429,
            code="RATE_LIMIT_EXCEEDED",
            type="rate_limit_error",
            message="authentication failed too often; try again later",
            retry_after=left,
            extra={
                "limit": {
                    "name": "auth.failures",
                    "kind": "rate",
                    "scope": scope,
                    "used": most,
                    "limit": most,
                    "remaining": 0,
                    "resetsAt": resets.replace("+00:00", "Z"),
                }
            },
        )


def _network(address: str) -> str:
    """Return what one client can choose its addresses from: a /64 of IPv6 is given to one subscriber."""
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, 64), strict=False))
