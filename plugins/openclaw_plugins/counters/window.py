"""The arithmetic of rates and leases: what is counted when, for one limit and one subject.

Whole milliseconds and whole counts, so that nothing drifts; no clock of its own, no I/O, no await. Time never
goes back within one tally: a reading older than the newest one counts as the newest.
"""

from __future__ import annotations

import math

from openclaw_gateway.api import Limit

#: what `wait` says of an amount that never fits, however long one waits
NEVER = -1

_BUCKETS = 60


class Sliding:
    """A sliding window of about 60 buckets and the current one.

    The buckets counted always cover at least one whole window, so no interval of that length holds more than
    the limit; they reach at most one bucket further, which is the price of not keeping every call.
    """

    __slots__ = ("_back", "_log", "_total", "_width")

    def __init__(self, window: int) -> None:
        self._width = math.ceil(window / _BUCKETS)
        self._back = math.ceil(window / self._width)
        # bucket, count, bucket, count ... oldest first; only buckets in which something was counted
        self._log: list[int] = []
        self._total = 0

    def at(self, now: int) -> int:
        """Drop what has left the window; return the time that counts."""
        log = self._log
        if not log:
            return now
        newest: int = log[-2]
        if now < newest * self._width:
            now = newest * self._width
        oldest = now // self._width - self._back
        gone = 0
        while gone < len(log) and log[gone] < oldest:
            self._total -= log[gone + 1]
            gone += 2
        if gone:
            del log[:gone]
        return now

    def used(self, limit: Limit, now: int) -> int:
        return self._total

    def wait(self, limit: Limit, amount: int, now: int) -> int:
        """Milliseconds until `amount` fits; 0 where it fits now. `now` comes from `at`."""
        excess = self._total + amount - limit.limit
        if excess <= 0:
            return 0
        if amount > limit.limit:
            return NEVER
        log = self._log
        for i in range(0, len(log), 2):
            excess -= log[i + 1]
            if excess <= 0:
                return self._leaves(log[i]) - now
        raise AssertionError("the buckets hold less than their total")

    def add(self, limit: Limit, amount: int, now: int) -> None:
        bucket = now // self._width
        log = self._log
        if log and log[-2] == bucket:
            log[-1] += amount
        else:
            log += (bucket, amount)
        self._total += amount

    def reset(self, limit: Limit, now: int) -> int:
        """Milliseconds until nothing is counted any more."""
        return self._leaves(self._log[-2]) - now if self._log else 0

    def _leaves(self, bucket: int) -> int:
        return (bucket + self._back + 1) * self._width


class Gcra:
    """A bucket of `burst` calls that leaks `limit` calls a window, evenly.

    Any interval as long as the window admits at most the limit and the burst. The level is kept in calls times
    milliseconds of window, so that every step is a whole number.
    """

    __slots__ = ("_last", "_level", "_window")

    def __init__(self, window: int) -> None:
        self._window = window
        self._level = 0
        self._last = 0
        self._level = 0

    def at(self, now: int) -> int:
        return max(now, self._last)

    def used(self, limit: Limit, now: int) -> int:
        return -(-self._now(limit, now) // self._window)

    def wait(self, limit: Limit, amount: int, now: int) -> int:
        capacity = limit.effective_burst()
        if amount > capacity or not limit.limit:
            return NEVER
        excess = self._now(limit, now) + (amount - capacity) * self._window
        return 0 if excess <= 0 else -(-excess // limit.limit)

    def add(self, limit: Limit, amount: int, now: int) -> None:
        self._level = self._now(limit, now) + amount * self._window
        self._last = now

    def reset(self, limit: Limit, now: int) -> int:
        level = self._now(limit, now)
        return -(-level // limit.limit) if limit.limit else 0

    def _now(self, limit: Limit, now: int) -> int:
        return max(0, self._level - (now - self._last) * limit.limit)


class Fixed:
    """A count a window; windows stand side by side, so two of them may meet in one interval."""

    __slots__ = ("_count", "_index", "_window")

    def __init__(self, window: int) -> None:
        self._window = window
        self._index = 0
        self._count = 0

    def at(self, now: int) -> int:
        now = max(now, self._index * self._window)
        if now // self._window != self._index:
            self._index = now // self._window
            self._count = 0
        return now

    def used(self, limit: Limit, now: int) -> int:
        return self._count

    def wait(self, limit: Limit, amount: int, now: int) -> int:
        if self._count + amount <= limit.limit:
            return 0
        return NEVER if amount > limit.limit else self._left(now)

    def add(self, limit: Limit, amount: int, now: int) -> None:
        self._count += amount

    def reset(self, limit: Limit, now: int) -> int:
        return self._left(now) if self._count else 0

    def _left(self, now: int) -> int:
        return (self._index + 1) * self._window - now


class Holders:
    """The holders of one lease limit, each until its own expiry; a holder counts once."""

    __slots__ = ("_expiry", "_last")

    def __init__(self) -> None:
        # in order of expiry: every holder is given the same time to live, and a renewed one moves to the end
        self._expiry: dict[str, int] = {}
        self._last = 0

    def __contains__(self, holder: str) -> bool:
        return holder in self._expiry

    def __len__(self) -> int:
        return len(self._expiry)

    def at(self, now: int) -> int:
        """Drop who has expired; return the time that counts."""
        now = self._last = max(now, self._last)
        while self._expiry:
            holder = next(iter(self._expiry))
            if self._expiry[holder] > now:
                break
            del self._expiry[holder]
        return now

    def wait(self, limit: Limit, holder: str | None, now: int) -> int:
        """Milliseconds until a place is free if nobody renews; 0 where one is free or `holder` has one."""
        excess = len(self._expiry) + 1 - limit.limit
        if excess <= 0 or holder in self._expiry:
            return 0
        if limit.limit < 1:
            return NEVER
        for i, expiry in enumerate(self._expiry.values(), start=1):
            if i == excess:
                return expiry - now
        raise AssertionError("fewer holders than are counted")

    def hold(self, holder: str, until: int) -> None:
        self._expiry.pop(holder, None)
        self._expiry[holder] = until

    def release(self, holder: str) -> None:
        self._expiry.pop(holder, None)


Rate = Sliding | Gcra | Fixed

_RATES: dict[str, type[Sliding] | type[Gcra] | type[Fixed]] = {"sliding": Sliding, "gcra": Gcra, "fixed": Fixed}


def tally(limit: Limit) -> Rate | Holders:
    """Return an empty tally for a limit of this kind, algorithm and window."""
    if limit.kind == "lease":
        return Holders()
    return _RATES[limit.algorithm](round(limit.window * 1000))
