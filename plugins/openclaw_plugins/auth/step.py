"""The `auth` step: asks its methods who the caller is, and holds the caller against what the route declares.

It recognises no credential itself, and never turns an outage of a key source into a refusal of the caller.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta
from prometheus_client import Counter

from openclaw_gateway.api import (
    PRINCIPAL,
    Authenticator,
    Exchange,
    Fact,
    Host,
    PluginConfig,
    Principal,
    Refusal,
    Route,
    StoreUnavailable,
    bad_request,
    forbidden,
    hookimpl,
    needs,
    unauthorized,
    unavailable,
)
from openclaw_plugins.auth.credentials import presented
from openclaw_plugins.auth.failed_attempts import FailedAttempts, FailureLimits

_MISSING = unauthorized("this route needs a credential: `Authorization: Bearer ...` or `X-API-Key: ...`")
_UNRECOGNISED = unauthorized("the credential is of no kind that this gateway accepts")
_EXPIRED = unauthorized("the credential has expired")
_SEVERAL = bad_request("the request carries more than one credential; send exactly one")
_UNKNOWN = unavailable("the credential cannot be checked at the moment")


class Auth:
    """States the principal of every route that is not public, and refuses who may not call it."""

    provides: ClassVar[tuple[Fact[Any], ...]] = (PRINCIPAL,)
    requires: ClassVar[tuple[Fact[Any], ...]] = ()

    class Config(PluginConfig, frozen=True, kw_only=True):
        methods: Annotated[
            tuple[Annotated[str, needs(Authenticator)], ...],
            Meta(description="Ids of the plugins that recognise credentials, asked in this order."),
        ]
        failures: Annotated[FailureLimits, Meta(description="How often authentication may fail.")] = FailureLimits()

    def __init__(self, config: Config, host: Host) -> None:
        if not config.methods:
            raise ValueError("methods: empty, so no credential would ever be accepted")
        self._methods = [host.get(id, Authenticator).authenticate for id in config.methods]
        self._clock = host.clock
        self._logger = host.logger
        self._failures = FailedAttempts(config.failures, host.clock, host.logger)
        attempts = host.metric(
            Counter, "auth_failures", "Credentials that were not good, and attempts that were held back.", ("result",)
        )
        self._count_failed = attempts.labels("refused").inc
        self._count_held_back = attempts.labels("held_back").inc
        # Only tiers that name the scopes they open can take scopes away from a credential.
        self._opened = {name: tier.scopes for name, tier in host.tiers.items() if tier.scopes is not None}

    @hookimpl
    def applies(self, route: Route) -> bool:
        return route.access != "public"

    @hookimpl
    async def on_request(self, x: Exchange) -> Refusal | None:
        credentials = presented(x.scope)
        if not credentials:
            return _MISSING if x.route.route.access == "authenticated" else None
        if len(credentials) > 1:
            return _SEVERAL
        (credential,) = credentials
        held_back = self._failures.refusal(x, credential)
        if held_back is not None:
            self._count_held_back()
            return held_back
        found: Principal | Refusal | None = None
        try:
            for authenticate in self._methods:
                found = await authenticate(x)
                if found is not None:
                    break
        except StoreUnavailable as error:
            self._logger.warning("a credential could not be checked", extra={"fields": {"store": error.store}})
            return _UNKNOWN
        if isinstance(found, Principal):
            self._failures.succeeded(credential)
            return self._admit(x, found)
        refusal = found or _UNRECOGNISED
        if refusal.status == 401:
            self._failures.failed(x, credential)
            self._count_failed()
        return refusal

    @hookimpl
    def on_message(self, x: Exchange) -> Refusal | None:
        """A socket outlives its handshake, but not its credential."""
        principal = x.get(PRINCIPAL)
        if principal is not None and principal.expires_at is not None and principal.expires_at <= self._clock.now():
            return _EXPIRED
        return None

    def _admit(self, x: Exchange, principal: Principal) -> Refusal | None:
        opened = self._opened.get(principal.tier)
        if opened is not None and not principal.scopes <= opened:
            principal = msgspec.structs.replace(principal, scopes=principal.scopes & opened)
        # Stated before it is judged: the log of a refusal names the caller too.
        x[PRINCIPAL] = principal
        route = x.route.route
        if route.tiers and principal.tier not in route.tiers:
            return forbidden("the tier of this credential does not open this route")
        if route.scopes and not principal.scopes.issuperset(route.scopes):
            missing = ", ".join(scope for scope in route.scopes if scope not in principal.scopes)
            return forbidden(f"this route needs a scope that the credential lacks: {missing}")
        return None
