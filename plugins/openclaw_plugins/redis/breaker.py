"""Decides from failures, slowness included, whether a node may be asked; it never lets a caller try it out."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable


class Breaker:
    """Closed: calls go. Open: none does, and its owner looks now and then, one look at a time.

    It opens on so many failures within so many seconds. Waits between looks grow, with full jitter, so that the
    replicas of a gateway do not come back in step; they go on growing where the last recovery did not last.
    """

    __slots__ = ("_changed", "_closed_at", "_failures", "_first", "_longest", "_looks", "_within", "closed")

    def __init__(
        self,
        changed: Callable[[bool, str], None],
        *,
        failures: int = 5,
        within: float = 1.0,
        first: float = 0.1,
        longest: float = 5.0,
    ) -> None:
        self.closed = True
        self._changed = changed
        self._failures: deque[float] = deque(maxlen=failures)
        self._within = within
        self._first = first
        self._longest = longest
        self._looks = 0
        self._closed_at = float("-inf")

    def failed(self, now: float, why: str) -> None:
        """Count a call that failed or took too long."""
        if not self.closed:
            return
        failures = self._failures
        failures.append(now)
        if len(failures) == failures.maxlen and now - failures[0] <= self._within:
            self.closed = False
            failures.clear()
            if now - self._closed_at > self._longest:
                self._looks = 0
            self._changed(False, why)

    def wait(self) -> float:
        """Return how long to wait for the next look."""
        wait = random.uniform(0, min(self._longest, self._first * 2**self._looks))  # noqa: S311 - spreads, guards nothing
        self._looks = min(self._looks + 1, 30)
        return wait

    def recovered(self, now: float) -> None:
        """Close again, after a look that found the node well."""
        if not self.closed:
            self.closed = True
            self._closed_at = now
            self._changed(True, "")
