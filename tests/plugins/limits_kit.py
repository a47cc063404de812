"""What the tests of the limit plugins share: a plugin with its tiers, and exchanges that were admitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from openclaw_gateway.api import (
    MESSAGES,
    PRINCIPAL,
    TIER,
    Balance,
    Exchange,
    Host,
    Principal,
    ResponseHead,
    Route,
    Tier,
)
from openclaw_gateway.config.document import Document, GatewaySettings
from openclaw_gateway.pipeline import CompiledRoute
from openclaw_gateway.receipt import Receipt
from openclaw_gateway.testing import ManualClock


class Account:
    """Stands in for both kinds of account where a test is only about what is charged to which."""

    shared = False
    lease_ttl = 30.0

    async def _unused(self, *arguments: object) -> Any:
        raise AssertionError("a test of charges does not charge")

    admit = peek = correct = release = renew = reserve = commit = void = _unused


class Setting:
    """One plugin over typed tier tables: tier name → limit name → table."""

    def __init__(self, plugin: Any, id: str, tables: dict[str, dict[str, dict[str, Any]]]) -> None:
        self.tiers = {
            tier: Tier(
                name=tier,
                title=tier,
                tables={id: {name: msgspec.convert(table, plugin.Limits) for name, table in limits.items()}},
            )
            for tier, limits in tables.items()
        }
        self.clock = ManualClock()
        self.registry = CollectorRegistry()
        self.counters, self.accounts = Account(), Account()
        host = Host(
            id,
            document=Document(gateway=GatewaySettings(pipeline=())),
            config_dir=Path(),
            tiers=self.tiers,
            instances={"counters": self.counters, "accounts": self.accounts},
            registry=self.registry,
            clock=self.clock,
        )
        self.plugin = plugin(plugin.Config(), host)

    def charges(self, tier: str, *meters: Any) -> list[Any]:
        return list(self.plugin.charges(Route(access="authenticated", meters=meters), self.tiers[tier]))

    def is_asked_where_anything_is_metered(self) -> None:
        for route, asked in (
            (Route(access="authenticated", meters=(MESSAGES,)), True),
            (Route(access="authenticated", message_meters=(MESSAGES,)), True),
            (Route(access="authenticated"), False),
        ):
            assert self.plugin.applies(route) is asked

    def limit(self, tier: str, *meters: Any) -> Any:
        (charge,) = self.charges(tier, *meters)
        return charge.limit

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)

    def exchange(self, tier: str, *balances: Balance, surface: Any = "own", organization: str = "acme") -> Exchange:
        """An exchange after an admission that left these balances."""
        route = CompiledRoute(Route(access="authenticated", surface=surface), None, ())
        x = Exchange("http", "GET", "/x", route, {"headers": []}, 0.0)
        x[PRINCIPAL] = Principal(organization=organization, user="u", tier=tier, method="jwt", credential="c")
        x[TIER] = self.tiers[tier]
        x.receipt = Receipt(organization)
        x.receipt.balances += balances
        return x

    def headers(self, x: Exchange) -> dict[str, str]:
        head = ResponseHead(200, [])
        self.plugin.on_response(x, head)
        return {name.decode(): value.decode() for name, value in head.headers}
