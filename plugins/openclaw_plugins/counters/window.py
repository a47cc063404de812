"""The arithmetic of rates and leases: what is counted when, for one limit and one subject.

Whole milliseconds and whole counts, so that nothing drifts; no clock of its own, no I/O, no await. Time never
goes back within one tally: a reading older than the newest one counts as the newest.
"""

from __future__ import annotations

import math

from openclaw_gateway.api import Limit

#: the wait of an amount that never fits, however long one waits
NEVER = -1

_BUCKETS = 60


class Tally:
    """What is counted for one limit and one subject, as of the last question.

    `now` is the time that counts; `used` what is counted; at `until` nothing is counted any more.
    """

    __slots__ = ("kept", "key", "now", "until", "used")

    def __init__(self, key: object) -> None:
        self.key = key
        #: whether the owner has put it where it finds it again
        self.kept = False
        self.now = 0
        self.used = 0
        self.until = 0


class Sliding(Tally):
    """A sliding window of about 60 buckets and the current one.

    The buckets counted always cover at least one whole window, so no interval of that length holds more than
    the limit; they reach at most one bucket further, which is the price of not keeping every call.
    """

    __slots__ = ("_back", "_log", "_width")

    def __init__(self, key: object, window: int) -> None:
        super().__init__(key)
        self._width = math.ceil(window / _BUCKETS)
        self._back = math.ceil(window / self._width)
        # bucket, count, bucket, count ... oldest first; only buckets in which something was counted
        self._log: list[int] = []

    def ask(self, limit: Limit, amount: int, now: int) -> int:
        """Return the milliseconds until `amount` fits: 0 now, NEVER never."""
        log, width = self._log, self._width
        if now < self.now:
            now = self.now
        self.now = now
        oldest = now // width - self._back
        if log and log[0] < oldest:
            gone = 0
            while gone < len(log) and log[gone] < oldest:
                self.used -= log[gone + 1]
                gone += 2
            del log[:gone]
        excess = self.used + amount - limit.limit
        if excess <= 0 or not amount:
            return 0
        if amount > limit.limit:
            return NEVER
        for i in range(0, len(log), 2):
            excess -= log[i + 1]
            if excess <= 0:
                return (log[i] + self._back + 1) * width - now
        raise AssertionError("the buckets hold less than their total")

    def add(self, limit: Limit, amount: int) -> None:
        """Count `amount` at the time of the question just asked."""
        bucket = self.now // self._width
        log = self._log
        if log and log[-2] == bucket:
            log[-1] += amount
        else:
            log += (bucket, amount)
            self.until = (bucket + self._back + 1) * self._width
        self.used += amount

    def correct(self, limit: Limit, amount: int, at: int) -> None:
        """Count `amount` more now, or so much less in the bucket of `at`; asked about just before."""
        if amount > 0:
            self.add(limit, amount)
            return
        bucket, log = at // self._width, self._log
        for i in range(len(log) - 2, -1, -2):
            if log[i] == bucket:
                given_back = min(log[i + 1], -amount)
                log[i + 1] -= given_back
                self.used -= given_back
            if log[i] <= bucket:
                return


class Gcra(Tally):
    """A bucket of `burst` calls that leaks `limit` calls a window, evenly.

    Any interval as long as the window admits at most the limit and the burst. The level is kept in calls times
    milliseconds of window, so that every step is a whole number.
    """

    __slots__ = ("_level", "_window")

    def __init__(self, key: object, window: int) -> None:
        super().__init__(key)
        self._window = window
        self._level = 0

    def ask(self, limit: Limit, amount: int, now: int) -> int:
        """Return the milliseconds until `amount` fits: 0 now, NEVER never."""
        if now > self.now:
            self._level = max(0, self._level - (now - self.now) * limit.limit)
            self.now = now
        self._read(limit)
        if not amount:
            return 0
        capacity = limit.effective_burst()
        if amount > capacity or not limit.limit:
            return NEVER
        excess = self._level + (amount - capacity) * self._window
        return 0 if excess <= 0 else -(-excess // limit.limit)

    def add(self, limit: Limit, amount: int) -> None:
        """Count `amount` at the time of the question just asked."""
        self._level += amount * self._window
        self._read(limit)

    def correct(self, limit: Limit, amount: int, at: int) -> None:
        """Raise the level, or lower it by what of the charge at `at` has not leaked yet; asked about just before.

        Had it never been charged, something else might have leaked in its place, so no more than that is certain.
        """
        if amount > 0:
            self.add(limit, amount)
            return
        left = -amount * self._window - max(0, self.now - at) * limit.limit
        self._level = max(0, self._level - max(0, left))
        self._read(limit)

    def _read(self, limit: Limit) -> None:
        self.used = -(-self._level // self._window)
        self.until = self.now + (-(-self._level // limit.limit) if limit.limit else 0)


class Fixed(Tally):
    """A count a window; windows stand side by side, so two of them may meet in one interval."""

    __slots__ = ("_window",)

    def __init__(self, key: object, window: int) -> None:
        super().__init__(key)
        self._window = window

    def ask(self, limit: Limit, amount: int, now: int) -> int:
        """Return the milliseconds until `amount` fits: 0 now, NEVER never."""
        if now > self.now:
            self.now = now
            if now >= self.until:
                self.used = 0
        if not amount or self.used + amount <= limit.limit:
            return 0
        return NEVER if amount > limit.limit else self.until - self.now

    def add(self, limit: Limit, amount: int) -> None:
        """Count `amount` at the time of the question just asked."""
        self.used += amount
        self.until = (self.now // self._window + 1) * self._window

    def correct(self, limit: Limit, amount: int, at: int) -> None:
        """Count `amount` more, or so much less where the window of `at` is this one; asked about just before."""
        if amount > 0:
            self.add(limit, amount)
        elif at // self._window == self.now // self._window:
            self.used = max(0, self.used + amount)


class Holders(Tally):
    """The holders of one lease limit, each until its own expiry; a holder counts once."""

    __slots__ = ("_expiry",)

    def __init__(self, key: object) -> None:
        super().__init__(key)
        # in order of expiry: every holder is given the same time to live, and a renewed one moves to the end
        self._expiry: dict[str, int] = {}

    def __contains__(self, holder: str) -> bool:
        return holder in self._expiry

    def ask(self, limit: Limit, holder: str | None, now: int) -> int:
        """Return the milliseconds until a place is free if nobody renews: 0 where one is, or `holder` has one."""
        now = self.now = max(now, self.now)
        while self._expiry:
            holder_first = next(iter(self._expiry))
            if self._expiry[holder_first] > now:
                break
            del self._expiry[holder_first]
        self.used = len(self._expiry)
        excess = self.used + 1 - limit.limit
        if excess <= 0 or holder in self._expiry:
            return 0
        if limit.limit < 1:
            return NEVER
        for i, expiry in enumerate(self._expiry.values(), start=1):
            if i == excess:
                return expiry - now
        raise AssertionError("fewer holders than are counted")

    def hold(self, holder: str, ttl: int) -> None:
        """Give `holder` a place, or prolong the one it has, from the time of the question just asked."""
        self._expiry.pop(holder, None)
        self.until = self._expiry[holder] = self.now + ttl
        self.used = len(self._expiry)

    def release(self, holder: str) -> None:
        self._expiry.pop(holder, None)
        self.used = len(self._expiry)
        if not self._expiry:
            self.until = 0


Rate = Sliding | Gcra | Fixed

RATES: dict[str, type[Sliding] | type[Gcra] | type[Fixed]] = {"sliding": Sliding, "gcra": Gcra, "fixed": Fixed}
