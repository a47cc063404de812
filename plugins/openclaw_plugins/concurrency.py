"""Limits how many sessions, sockets or other long-lived things a subject may have at the same time.

What lives as long as a connection is a lease in the fast account; what lives as long as a stored thing is kept in
the durable one. It never counts by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from openclaw_gateway.api import (
    MOST,
    PRINCIPAL,
    TIER,
    Accounts,
    Charge,
    Counters,
    Fact,
    Host,
    Limit,
    PluginConfig,
    Route,
    Tier,
    hookimpl,
    needs,
)


class Concurrency:
    """Charges the lease limits of the caller's tier on what a route meters."""

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = (PRINCIPAL, TIER)

    class Config(PluginConfig, frozen=True, kw_only=True):
        """`[plugins.concurrency]`"""

        counters: Annotated[
            str, needs(Counters), Meta(description="Id of the plugin that keeps leases of connections.")
        ] = "counters"
        accounts: Annotated[
            str, needs(Accounts), Meta(description="Id of the plugin that keeps leases of stored things: sessions.")
        ] = "accounts"

    class Limits(PluginConfig, frozen=True, kw_only=True):
        """`[concurrency.<limit>]` of a tier file"""

        limit: Annotated[int, Meta(ge=0, le=MOST, description="How many may be held at the same time; 0 allows none.")]
        meter: Annotated[str | None, Meta(description="What is counted; by default the meter of the same name.")] = None
        scope: Annotated[
            Literal["organization", "user", "api_key", "session", "client"],
            Meta(description="Who shares the places; client is the caller's network address."),
        ] = "organization"
        on_backend_failure: Annotated[
            Literal["closed", "open", "local"],
            Meta(
                description="When the counters do not answer: closed refuses, open admits uncounted, local counts in "
                "this process against its share. What the durable account keeps is always closed."
            ),
        ] = "local"
        mode: Annotated[
            Literal["enforce", "shadow"], Meta(description="shadow counts what would be refused, and refuses nothing.")
        ] = "enforce"

    def __init__(self, config: Config, host: Host) -> None:
        self._counters = host.get(config.counters, Counters)
        self._accounts = host.get(config.accounts, Accounts)
        self._limits = {
            tier: [_limit(f"{host.id}.{name}", name, table, tier) for name, table in tables.items()]
            for tier, tables in host.limits().items()
        }

    @hookimpl
    def applies(self, route: Route) -> bool:
        return bool(route.meters or route.message_meters)

    @hookimpl
    def charges(self, route: Route, tier: Tier) -> Sequence[Charge]:
        durable = {meter.name: meter.durable for meter in route.meters}
        return [
            Charge(limit, self._accounts if durable[limit.meter] else self._counters)
            for limit in self._limits[tier.name]
            if limit.meter in durable
        ]


def _limit(full_name: str, name: str, table: Concurrency.Limits, tier: str) -> Limit:
    return Limit(
        name=full_name,
        meter=table.meter or name,
        kind="lease",
        limit=table.limit,
        scope=table.scope,
        on_backend_failure=table.on_backend_failure,
        mode=table.mode,
        tier=tier,
    )
