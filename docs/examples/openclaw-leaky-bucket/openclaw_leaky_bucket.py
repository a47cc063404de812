"""Limits rates by leaky buckets in the memory of one process; it never claims to count for other replicas."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from openclaw_gateway.api import (
    PRINCIPAL,
    TIER,
    Balance,
    Charge,
    Correction,
    Exchange,
    Host,
    Limit,
    PluginConfig,
    ResponseHead,
    Route,
    Take,
    Tier,
    hookimpl,
)

_WINDOWS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0}


class LeakyBucket:
    """A call adds one to the caller's bucket, which leaks `limit` per window; what would overflow is refused."""

    requires: ClassVar = (PRINCIPAL, TIER)
    shared: ClassVar = False  # each worker would have buckets of its own: more than one is refused at start

    class Config(PluginConfig, frozen=True, kw_only=True):
        """`[plugins.<id>]` with `use = "leaky_bucket"`"""

        capacity: Annotated[
            float, Meta(gt=0, le=1, description="What a bucket holds, as a share of its limit, at least one call.")
        ] = 0.1

    class Limits(PluginConfig, frozen=True, kw_only=True):
        """`[<id>.<limit>]` of a tier file; the limit counts the meter of its own name."""

        limit: Annotated[int, Meta(ge=1, description="How much leaks out of a bucket in one window.")]
        per: Annotated[Literal["second", "minute", "hour", "day"], Meta(description="The window.")]

    def __init__(self, config: Config, host: Host) -> None:
        self._buckets = Buckets(host.clock.monotonic)
        self._limits = {
            tier: [_limit(f"{host.id}.{name}", name, table, config.capacity) for name, table in tables.items()]
            for tier, tables in host.limits().items()
        }

    @hookimpl
    def charges(self, route: Route, tier: Tier) -> Sequence[Charge]:
        metered = {meter.name for meter in route.meters}
        return [Charge(limit, self._buckets) for limit in self._limits[tier.name] if limit.meter in metered]

    @hookimpl
    def on_response(self, x: Exchange, head: ResponseHead) -> None:
        for balance in x.receipt.balances if x.receipt is not None else ():
            if balance.limit.name.endswith(".requests") and balance.limit.kind == "rate":
                head.set(b"x-ratelimit-limit", b"%d" % balance.limit.limit)
                head.set(b"x-ratelimit-remaining", b"%d" % balance.remaining)
                head.set(b"x-ratelimit-reset", b"%d" % math.ceil(balance.retry_after or balance.reset_after or 0))


class Buckets:
    """The account that counts; satisfies `Counters`. It never awaits, so two admissions cannot mix."""

    shared, lease_ttl = False, math.inf

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        #: how full each bucket was, and when; what was touched longest ago comes first
        self._levels: dict[tuple[str, str, str], tuple[float, float]] = {}

    async def admit(self, organization: str, takes: Sequence[Take]) -> Sequence[Balance]:
        now = self._monotonic()
        levels = [self._level(organization, take, now) for take in takes]
        over = [level + t.amount - t.limit.effective_burst() for t, level in zip(takes, levels, strict=True)]
        if max(over) <= 0:  # one bucket that would overflow means that nothing is charged
            for i, take in enumerate(takes):
                levels[i] += take.amount
                self._levels.pop(key := (organization, take.subject, take.limit.name), None)
                self._levels[key] = levels[i], now
        if self._levels and now - next(iter(self._levels.values()))[1] > _WINDOWS["day"]:
            del self._levels[next(iter(self._levels))]  # no window is longer: this bucket has run dry
        at = round(now * 1000) if max(over) <= 0 else 0
        return [_balance(*each, at) for each in zip(takes, levels, over, strict=True)]

    async def peek(self, organization: str, takes: Sequence[Take]) -> Sequence[Balance]:
        return [_balance(take, self._level(organization, take, self._monotonic())) for take in takes]

    async def correct(self, organization: str, corrections: Sequence[Correction]) -> None:
        now = self._monotonic()
        for wrong in corrections:  # what has leaked since it was charged cannot be given back any more
            leaked = (now - wrong.at / 1000) * wrong.limit.limit / wrong.limit.window
            amount = wrong.amount if wrong.amount > 0 else min(0.0, wrong.amount + max(0.0, leaked))
            level = max(0.0, self._level(organization, Take(wrong.limit, wrong.subject), now) + amount)
            self._levels[organization, wrong.subject, wrong.limit.name] = level, now

    async def release(self, organization: str, takes: Sequence[Take]) -> None:
        """There is nothing to give back: a bucket holds no leases."""

    async def renew(self, organization: str, takes: Sequence[Take]) -> bool:
        return True

    def _level(self, organization: str, take: Take, now: float) -> float:
        level, at = self._levels.get((organization, take.subject, take.limit.name), (0.0, now))
        return max(0.0, round(level - (now - at) * take.limit.limit / take.limit.window, 9))


def _limit(name: str, meter: str, table: LeakyBucket.Limits, share: float) -> Limit:
    held, window = max(1, int(table.limit * share)), _WINDOWS[table.per]
    # The arithmetic is that of gcra, so that is its name to the core: `check` then prints the bound that holds.
    return Limit(name=name, meter=meter, kind="rate", limit=table.limit, window=window, algorithm="gcra", burst=held)


def _balance(take: Take, level: float, over: float = 0.0, at: int = 0) -> Balance:
    leak = take.limit.limit / take.limit.window
    return Balance(
        limit=take.limit,
        used=math.ceil(level),
        refused=over > 0,
        reset_after=level / leak,
        retry_after=over / leak if over > 0 else None,
        at=at,
    )
