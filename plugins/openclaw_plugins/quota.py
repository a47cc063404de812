"""Limits how much a subject may use in a calendar period or a session, and warns before it is used up.

It never counts by itself: the durable account reserves, commits and voids.
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
    Accounts,
    Balance,
    Charge,
    Exchange,
    Fact,
    Host,
    Limit,
    Outcome,
    PluginConfig,
    QuotaEvent,
    ResponseHead,
    Route,
    Tier,
    hookimpl,
    needs,
)


class Quota:
    """Charges the quotas of the caller's tier on what a route meters, and sets `X-Quota-Warning`."""

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = (PRINCIPAL, TIER)

    class Config(PluginConfig, frozen=True, kw_only=True):
        """`[plugins.quota]`"""

        accounts: Annotated[
            str, needs(Accounts), Meta(description="Id of the plugin that keeps the durable account.")
        ] = "accounts"

    class Limits(PluginConfig, frozen=True, kw_only=True):
        """`[quota.<limit>]` of a tier file"""

        limit: Annotated[int, Meta(ge=0, le=MOST, description="How much may be used in one period; 0 allows nothing.")]
        per: Annotated[
            Literal["day", "month", "session"],
            Meta(description="The period: a day or a calendar month in UTC, or the life of a session."),
        ]
        meter: Annotated[str | None, Meta(description="What is counted; by default the meter of the same name.")] = None
        scope: Annotated[
            Literal["organization", "user", "api_key", "session", "client"],
            Meta(description="Who shares the quota; client is the caller's network address."),
        ] = "organization"
        warn_at: Annotated[
            float, Meta(ge=0, le=1, description="From which share of the limit on responses carry a warning.")
        ] = 0.8
        mode: Annotated[
            Literal["enforce", "shadow"], Meta(description="shadow counts what would be refused, and refuses nothing.")
        ] = "enforce"

    def __init__(self, config: Config, host: Host) -> None:
        self._accounts = host.get(config.accounts, Accounts)
        self._now = host.clock.now
        self._limits = {
            tier: [_limit(f"{host.id}.{name}", name, table, tier) for name, table in tables.items()]
            for tier, tables in host.limits().items()
        }
        self._logger = host.logger
        self._passed = host.metric(
            Counter, "quota_thresholds", "Thresholds of quotas that were passed.", ("quota", "threshold")
        )
        labels = ("tier", "quota")
        exceeded = host.metric(Counter, "quota_exceeded", "Requests that a quota refused.", labels)
        usage = host.metric(
            Gauge,
            "quota_usage",
            "Highest share of a quota that any one subject has used in its period, as seen by this process, 0 to 1.",
            labels,
            multiprocess_mode="max",
        )
        height = host.metric(
            Gauge, "quota_limit", "What a quota allows in one period.", labels, multiprocess_mode="max"
        )
        self._watched: dict[tuple[str, str], _Watched] = {}
        for tier, limits in self._limits.items():
            for limit in limits:
                height.labels(tier, limit.name).set(limit.limit)
                watched = self._watched[tier, limit.name] = _Watched(exceeded.labels(tier, limit.name))
                usage.labels(tier, limit.name).set_function(partial(watched.highest, self._now))

    @hookimpl
    def applies(self, route: Route) -> bool:
        return bool(route.meters or route.message_meters)

    @hookimpl
    def charges(self, route: Route, tier: Tier) -> Sequence[Charge]:
        metered = {meter.name for meter in route.meters}
        return [Charge(limit, self._accounts) for limit in self._limits[tier.name] if limit.meter in metered]

    @hookimpl
    def on_response(self, x: Exchange, head: ResponseHead) -> None:
        if x.receipt is None:
            return
        warnings = [
            b"%s; used=%d; limit=%d" % (balance.limit.name.encode(), balance.used, balance.limit.limit)
            for balance in x.receipt.balances
            if balance.warning and balance.limit.mode == "enforce"
        ]
        if warnings:
            head.set(b"x-quota-warning", b", ".join(warnings))

    @hookimpl
    def on_complete(self, x: Exchange, outcome: Outcome) -> None:
        if x.receipt is None:
            return
        tier = x[TIER].name
        for balance in x.receipt.balances:
            watched = self._watched.get((tier, balance.limit.name))
            if watched is not None:
                watched.see(x.receipt.organization, balance, self._now())

    @hookimpl
    def on_quota_event(self, event: QuotaEvent) -> None:
        # A quota that is not configured any more gets no series of its own.
        known = any(name == event.limit for _, name in self._watched)
        self._passed.labels(event.limit if known else "(other)", event.threshold).inc()
        fields = {
            "organizationId": event.organization,
            "quota": event.limit,
            "period": event.period,
            "used": event.used,
            "limit": event.allowed,
            "key": event.key,
        }
        state = "is used up" if event.threshold == "exhausted" else "is nearly used up"
        self._logger.warning("%s %s", event.limit, state, extra={"fields": fields})


class _Watched:
    """The organisation that has used most of one quota: one at a time, however many there are."""

    __slots__ = ("_exceeded", "_organization", "_share", "_until")

    def __init__(self, exceeded: Counter) -> None:
        self._exceeded = exceeded
        self._organization: str | None = None
        self._share = 0.0
        self._until = -math.inf

    def see(self, organization: str, balance: Balance, now: float) -> None:
        if balance.refused:
            self._exceeded.inc()
        limit = balance.limit.limit
        share = min(1.0, balance.used / limit) if limit else 1.0
        # The same organisation may also have less than before: what failed has been given back.
        if share >= self._share or organization == self._organization or now >= self._until:
            self._organization = organization
            self._share = share
            self._until = now + (balance.reset_after if balance.reset_after is not None else 3600.0)

    def highest(self, now: Callable[[], float]) -> float:
        return self._share if now() < self._until else 0.0


def _limit(full_name: str, name: str, table: Quota.Limits, tier: str) -> Limit:
    return Limit(
        name=full_name,
        meter=table.meter or name,
        kind="quota",
        limit=table.limit,
        scope="session" if table.per == "session" else table.scope,
        period=table.per,
        mode=table.mode,
        warn_at=table.warn_at,
        tier=tier,
    )
