"""Limits how many requests and messages a subject may send in a window of time, and tells clients where they stand.

It never counts by itself: it says which limits apply, and the counters that it names do the counting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta
from prometheus_client import Counter, Gauge

from openclaw_gateway.api import (
    MOST,
    PRINCIPAL,
    TIER,
    Balance,
    Charge,
    Counters,
    Exchange,
    Fact,
    Host,
    Limit,
    Outcome,
    PluginConfig,
    ResponseHead,
    Route,
    Tier,
    hookimpl,
    needs,
)
from openclaw_plugins.ratelimit.headers import OURS, Shown, Told, headers_of

_PERIODS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class RateLimit:
    """Charges every limit of the caller's tier on what a route meters, and sets the RateLimit headers."""

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = (PRINCIPAL, TIER)

    class Config(PluginConfig, frozen=True, kw_only=True):
        """`[plugins.ratelimit]`"""

        counters: Annotated[
            str, needs(Counters), Meta(description="Id of the plugin that counts; all replicas should share it.")
        ] = "counters"

    class Limits(PluginConfig, frozen=True, kw_only=True):
        """`[ratelimit.<limit>]` of a tier file"""

        limit: Annotated[int, Meta(ge=0, le=MOST, description="How many are admitted in one window; 0 admits none.")]
        per: Annotated[
            str,
            Meta(
                pattern=r"^(second|minute|hour|day|[1-9][0-9]{0,6}[smhd])$",
                description="The window: second, minute, hour, day, or a whole number with a unit such as 90s or 5m.",
            ),
        ]
        meter: Annotated[str | None, Meta(description="What is counted; by default the meter of the same name.")] = None
        scope: Annotated[
            Literal["organization", "user", "api_key", "session", "client"],
            Meta(description="Who shares the limit; client is the caller's network address."),
        ] = "organization"
        algorithm: Annotated[
            Literal["sliding", "gcra", "fixed"],
            Meta(
                description="sliding never exceeds the limit in any window; gcra spreads calls evenly and admits at "
                "most limit + burst; fixed admits at most twice the limit where two windows meet."
            ),
        ] = "sliding"
        burst: Annotated[
            Annotated[int, Meta(ge=1)] | None,
            Meta(description="For gcra: calls admitted at one instant; by default a tenth of the limit."),
        ] = None
        on_backend_failure: Annotated[
            Literal["closed", "open", "local"],
            Meta(
                description="When the counters do not answer: closed refuses, open admits uncounted, local counts in "
                "this process against its share of the limit."
            ),
        ] = "local"
        mode: Annotated[
            Literal["enforce", "shadow"], Meta(description="shadow counts what would be refused, and refuses nothing.")
        ] = "enforce"

        def __post_init__(self) -> None:
            if self.burst is not None and self.algorithm != "gcra":
                raise ValueError(f'burst belongs to algorithm = "gcra", and this limit is "{self.algorithm}"')

    def __init__(self, config: Config, host: Host) -> None:
        self._counters = host.get(config.counters, Counters)
        self._monotonic = host.clock.monotonic
        self._limits = {
            tier: [_limit(f"{host.id}.{name}", name, table) for name, table in tables.items()]
            for tier, tables in host.limits().items()
        }
        labels = ("tier", "limit")
        hits = host.metric(Counter, "rate_limit_hits", "Requests that a rate limit refused.", labels)
        shadow_hits = host.metric(
            Counter, "rate_limit_shadow_hits", "Requests that a rate limit in shadow mode would have refused.", labels
        )
        remaining = host.metric(
            Gauge,
            "rate_limit_remaining",
            "Lowest share of a rate limit that any one subject had left within the last window or two, 0 to 1.",
            labels,
            multiprocess_mode="min",
        )
        self._watched: dict[tuple[str, str], _Watched] = {}
        #: of the limits of other plugins too, since the headers tell of all rates
        self._told: dict[tuple[str, str], Told] = {}
        for tier, limits in self._limits.items():
            for limit in limits:
                key = (tier, limit.name)
                watched = self._watched[key] = _Watched(limit, hits.labels(*key), shadow_hits.labels(*key))
                remaining.labels(*key).set_function(partial(watched.lowest, self._monotonic))

    @hookimpl
    def applies(self, route: Route) -> bool:
        return bool(route.meters or route.message_meters)

    @hookimpl
    def charges(self, route: Route, tier: Tier) -> Sequence[Charge]:
        metered = {meter.name for meter in route.meters}
        return [Charge(limit, self._counters) for limit in self._limits[tier.name] if limit.meter in metered]

    @hookimpl
    def on_response(self, x: Exchange, head: ResponseHead) -> None:
        receipt = x.receipt
        if receipt is None:
            return
        tier = x[TIER].name
        shown = []
        for balance in receipt.balances:
            limit = balance.limit
            if balance.reset_after is None or limit.kind != "rate" or limit.mode == "shadow":
                continue
            shown.append(Shown(self._told.get((tier, limit.name)) or self._told_anew(tier, limit), balance))
        if not shown:
            return
        ours = headers_of(shown, openai=x.route.route.surface == "openai")
        # A handler hardly ever sets one of these: to look once is cheaper than to look for each.
        if OURS.isdisjoint([name for name, _ in head.headers]):
            head.headers.extend(ours)
        else:
            for name, value in ours:
                head.set(name, value)

    @hookimpl
    def on_complete(self, x: Exchange, outcome: Outcome) -> None:
        receipt = x.receipt
        if receipt is None:
            return
        tier = x[TIER].name
        for balance in receipt.balances:
            watched = self._watched.get((tier, balance.limit.name))
            if watched is not None:
                watched.see(balance, self._monotonic())

    def _told_anew(self, tier: str, limit: Limit) -> Told:
        told = self._told[tier, limit.name] = Told(limit)
        return told


class _LowWater:
    """The lowest share seen in this window and in the one before; two numbers, however many subjects there are."""

    __slots__ = ("_before", "_now", "_since", "_window")

    def __init__(self, window: float) -> None:
        self._window = window
        self._since = -math.inf
        self._now = self._before = 1.0

    def see(self, share: float, at: float) -> None:
        if at - self._since >= self._window:
            self._turn(at)
        if share < self._now:
            self._now = share

    def read(self, at: float) -> float:
        if at - self._since >= self._window:
            self._turn(at)
        return min(self._now, self._before)

    def _turn(self, at: float) -> None:
        self._before = self._now if at - self._since < 2 * self._window else 1.0
        self._now = 1.0
        self._since = at


class _Watched:
    """One limit of one tier, with the metrics that speak of it."""

    __slots__ = ("_capacity", "_hits", "_low", "_most", "_shadow_hits")

    def __init__(self, limit: Limit, hits: Counter, shadow_hits: Counter) -> None:
        self._hits = hits
        self._shadow_hits = shadow_hits
        self._most = limit.limit
        self._capacity = limit.capacity()
        self._low = _LowWater(limit.window)

    def see(self, balance: Balance, at: float) -> None:
        if balance.refused:
            self._hits.inc()
        elif balance.retry_after is not None:
            self._shadow_hits.inc()
        if self._most:
            left = self._capacity - balance.used
            self._low.see(left / self._most if left > 0 else 0.0, at)

    def lowest(self, monotonic: Callable[[], float]) -> float:
        return self._low.read(monotonic())


def _limit(full_name: str, name: str, table: RateLimit.Limits) -> Limit:
    return Limit(
        name=full_name,
        meter=table.meter or name,
        kind="rate",
        limit=table.limit,
        scope=table.scope,
        window=float(_PERIODS[table.per] if table.per in _PERIODS else int(table.per[:-1]) * _UNITS[table.per[-1]]),
        algorithm=table.algorithm,
        burst=table.burst,
        on_backend_failure=table.on_backend_failure,
        mode=table.mode,
    )
