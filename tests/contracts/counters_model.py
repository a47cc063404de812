"""The exact model of the counters: it keeps every call that it admitted and decides by adding them up again.

Slow and plain on purpose. What a backend answers must equal what this says, number for number.
"""

from __future__ import annotations

import math
from collections import defaultdict
from fractions import Fraction

import msgspec

from openclaw_gateway.api import Balance, Correction, Limit, Take


class CountersModel:
    """Rates as logs of (time, amount), leases as holders with an expiry; time in whole milliseconds."""

    def __init__(self, lease_ttl: int) -> None:
        self.now = 0
        self._ttl = lease_ttl
        self._logs: dict[tuple, list[tuple[int, int]]] = defaultdict(list)
        self._holders: dict[tuple, dict[str, int]] = defaultdict(dict)

    def admit(self, organization: str, takes: list[Take]) -> list[Balance]:
        fits = [self._wait(organization, take) == 0 for take in takes]
        rate = [take.limit.kind == "rate" for take in takes]
        enforced = [take.limit.mode == "enforce" for take in takes]
        rows = list(zip(takes, fits, rate, enforced, strict=True))
        rates_fit = all(fit for _, fit, is_rate, must in rows if is_rate and must)
        leases_fit = all(fit for _, fit, is_rate, must in rows if not is_rate and must)
        waits = [self._wait(organization, take) for take in takes]
        for take, fit, is_rate, _ in rows:
            if fit and rates_fit and is_rate:
                self._logs[self._key(organization, take)].append((self.now, take.amount))
            elif fit and rates_fit and leases_fit:
                assert take.lease is not None
                self._holders[self._key(organization, take)][take.lease] = self.now + self._ttl
        balances = []
        for (take, fit, is_rate, must), wait in zip(rows, waits, strict=True):
            refused = not fit and (is_rate or rates_fit)
            retry = None
            if refused:
                retry = take.limit.window if wait is None else wait / 1000
            balance = self._balance(organization, take, refused and must, retry)
            charged = is_rate and fit and rates_fit
            balances.append(msgspec.structs.replace(balance, at=self.now if charged else 0))
        return balances

    def correct(self, organization: str, corrections: list[Correction]) -> None:
        """What is given back leaves the place in the log where it was charged, as far as that still counts."""
        for wrong in corrections:
            limit, at = wrong.limit, wrong.at
            log = self._logs[self._key(organization, Take(limit, wrong.subject))]
            window = round(limit.window * 1000)
            if wrong.amount > 0:
                log.append((self.now, wrong.amount))
            elif limit.algorithm == "sliding":
                width = -(-window // 60)
                there = sum(amount for t, amount in log if t // width == at // width)
                log.append((at, -min(there, -wrong.amount)))
            elif limit.algorithm == "fixed":
                if at // window == self.now // window:
                    there = sum(amount for t, amount in log if t // window == at // window)
                    log.append((self.now, -min(there, -wrong.amount)))
            else:
                leaked = Fraction((self.now - at) * limit.limit, window)
                log.append((self.now, -max(Fraction(0), -wrong.amount - leaked)))

    def peek(self, organization: str, takes: list[Take]) -> list[Balance]:
        return [self._balance(organization, take, False, None) for take in takes]

    def release(self, organization: str, takes: list[Take]) -> None:
        for take in takes:
            self._holders[self._key(organization, take)].pop(take.lease or "", None)

    def renew(self, organization: str, takes: list[Take]) -> bool:
        alive = True
        for take in takes:
            holders = self._holders[self._key(organization, take)]
            assert take.lease is not None
            if holders.get(take.lease, 0) > self.now or take.limit.on_backend_failure == "open":
                holders[take.lease] = self.now + self._ttl
            elif take.limit.mode == "enforce":
                alive = False
        return alive

    def admitted_within(self, organization: str, take: Take, since: int, until: int) -> int:
        """How much was admitted in [since, until)."""
        return sum(amount for at, amount in self._logs[self._key(organization, take)] if since <= at < until)

    def busiest(self, organization: str, take: Take) -> int:
        """The most that was admitted in any interval of one window, both kinds of edge included."""
        window = round(take.limit.window * 1000)
        log = self._logs[self._key(organization, take)]
        return max((self.admitted_within(organization, take, at, at + window) for at, _ in log), default=0)

    def _balance(self, organization: str, take: Take, refused: bool, retry: float | None) -> Balance:
        if take.limit.kind == "lease":
            holders = self._holders[self._key(organization, take)]
            used = sum(expiry > self.now for expiry in holders.values())
            return Balance(limit=take.limit, used=used, refused=refused, retry_after=retry)
        used = math.ceil(self._used(organization, take, self.now))
        reset = self._first(lambda at: self._used(organization, take, at) == 0)
        return Balance(limit=take.limit, used=used, refused=refused, reset_after=reset / 1000, retry_after=retry)

    def _wait(self, organization: str, take: Take) -> int | None:
        """Milliseconds until the take fits with no other traffic; None for never."""
        limit = take.limit
        if limit.kind == "lease":
            holders = self._holders[self._key(organization, take)]
            live = sorted(expiry for expiry in holders.values() if expiry > self.now)
            if holders.get(take.lease or "", 0) > self.now or len(live) < limit.limit:
                return 0
            return live[len(live) - limit.limit] - self.now if limit.limit else None
        capacity = limit.effective_burst() if limit.algorithm == "gcra" else limit.limit
        if take.amount > capacity or limit.limit == 0:
            return None
        return self._first(lambda at: self._used(organization, take, at) + take.amount <= capacity)

    def _used(self, organization: str, take: Take, at: int) -> Fraction:
        limit = take.limit
        log = self._logs[self._key(organization, take)]
        window = round(limit.window * 1000)
        if limit.algorithm == "fixed":
            return Fraction(sum(amount for t, amount in log if t // window == at // window))
        if limit.algorithm == "sliding":
            width = -(-window // 60)
            back = -(-window // width)
            return Fraction(sum(amount for t, amount in log if t // width >= at // width - back))
        level, last = Fraction(0), 0
        for t, amount in log:
            level = max(Fraction(0), max(Fraction(0), level - Fraction((t - last) * limit.limit, window)) + amount)
            last = t
        return max(Fraction(0), level - Fraction((at - last) * limit.limit, window))

    def _first(self, holds) -> int:
        """The first millisecond from now on at which `holds` is true; it stays true once it is."""
        if holds(self.now):
            return 0
        low, high = 0, 1
        while not holds(self.now + high):
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(self.now + middle) else (middle, high)
        return high

    @staticmethod
    def _key(organization: str, take: Take) -> tuple:
        limit: Limit = take.limit
        return (organization, take.subject, limit.name, limit.algorithm, limit.window)
