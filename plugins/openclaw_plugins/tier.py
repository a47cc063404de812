"""Turns the tier that a credential names into the tier that the files define; never gives a default tier."""

from __future__ import annotations

from typing import Any, ClassVar

from openclaw_gateway.api import (
    PRINCIPAL,
    TIER,
    Exchange,
    Fact,
    Host,
    PluginConfig,
    Refusal,
    Route,
    forbidden,
    hookimpl,
)


class TierStep:
    """States the caller's tier, and refuses a caller whose tier no file names."""

    provides: ClassVar[tuple[Fact[Any], ...]] = (TIER,)
    requires: ClassVar[tuple[Fact[Any], ...]] = (PRINCIPAL,)

    class Config(PluginConfig, frozen=True, kw_only=True):
        """No settings: the tiers are the files of `gateway.tiers`."""

    def __init__(self, config: Config, host: Host) -> None:
        self._tiers = host.tiers
        self._logger = host.logger

    @hookimpl
    def applies(self, route: Route) -> bool:
        return route.access != "public"

    @hookimpl
    def on_request(self, x: Exchange) -> Refusal | None:
        principal = x.get(PRINCIPAL)
        if principal is None:
            return None  # anonymous, on a route where a credential is optional
        tier = self._tiers.get(principal.tier)
        if tier is None:
            self._logger.warning(
                "a credential names a tier that no file defines",
                extra={"fields": {"tier": principal.tier, "organizationId": principal.organization}},
            )
            return forbidden("the tier of this credential is not one that this gateway serves")
        x[TIER] = tier
        return None
