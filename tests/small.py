"""Small plugins for the tests of the host, offered as if an installed distribution had them."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Annotated, Any, ClassVar

import pytest
from litestar import Response, get, post
from litestar.handlers import asgi
from msgspec import Meta

from openclaw_gateway import loader
from openclaw_gateway.api import (
    MESSAGES,
    PRINCIPAL,
    REQUEST_ID,
    REQUESTS,
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
    Principal,
    Refusal,
    Refused,
    ResponseHead,
    bad_request,
    declared,
    hookimpl,
    needs,
    unauthorized,
)

TRAIL: Fact[list[str]] = Fact("trail")


class Named:
    """States a request id and writes down what it sees."""

    provides: ClassVar[tuple[Fact[Any], ...]] = (REQUEST_ID,)

    class Config(PluginConfig, frozen=True, kw_only=True):
        prefix: Annotated[str, Meta(description="What ids begin with.")] = "r"
        size: Annotated[int, Meta(ge=1, le=9, description="A bounded number.")] = 3

    def __init__(self, config: Config, host: Host) -> None:
        self.config = config
        self.outcomes: list[Outcome] = []
        self.seen: list[Exchange] = []

    @hookimpl
    def on_request(self, x: Exchange) -> None:
        x[REQUEST_ID] = self.config.prefix + "-1"

    @hookimpl
    def on_response(self, x: Exchange, head: ResponseHead) -> None:
        head.set(b"x-request-id", x[REQUEST_ID].encode())

    @hookimpl
    def on_complete(self, x: Exchange, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.seen.append(x)


class Known:
    """Takes `x-org` for a credential."""

    provides: ClassVar[tuple[Fact[Any], ...]] = (PRINCIPAL,)

    def __init__(self, host: Host) -> None:
        self.host = host

    @hookimpl
    def applies(self, route: Any) -> bool:
        return bool(route.access != "public")

    @hookimpl
    async def on_request(self, x: Exchange) -> Refusal | None:
        organization = x.header(b"x-org")
        if organization is None:
            return unauthorized("who are you?")
        x[PRINCIPAL] = Principal(
            organization=organization.decode(), user="u", tier="basic", method="test", credential="c"
        )
        return None


class Ranked:
    """States the tier."""

    provides: ClassVar[tuple[Fact[Any], ...]] = (TIER,)
    requires: ClassVar[tuple[Fact[Any], ...]] = (PRINCIPAL,)

    def __init__(self, host: Host) -> None:
        self.host = host

    @hookimpl
    def applies(self, route: Any) -> bool:
        return bool(route.access != "public")

    @hookimpl
    def on_request(self, x: Exchange) -> None:
        x[TIER] = self.host.tiers[x[PRINCIPAL].tier]


class Tally:
    """Counts for ever, in memory."""

    shared = False
    lease_ttl = 30.0

    def __init__(self, host: Host) -> None:
        self.used: dict[str, int] = {}

    @hookimpl
    def inherit(self, previous: Any) -> None:
        self.used = previous.used

    async def admit(self, organization: str, takes: Any) -> list[Balance]:
        balances = []
        for take in takes:
            key = f"{organization} {take.limit.name}"
            refused = self.used.get(key, 0) + take.amount > take.limit.limit
            if not refused:
                self.used[key] = self.used.get(key, 0) + take.amount
            balances.append(Balance(limit=take.limit, used=self.used.get(key, 0), refused=refused, retry_after=1.5))
        return balances

    async def peek(self, organization: str, takes: Any) -> list[Balance]:
        return [Balance(limit=t.limit, used=self.used.get(f"{organization} {t.limit.name}", 0)) for t in takes]

    async def correct(self, organization: str, corrections: Any) -> None:
        raise NotImplementedError("nothing here is charged by estimate")

    async def release(self, organization: str, takes: Any) -> None:
        return None

    async def renew(self, organization: str, takes: Any) -> bool:
        return True


class Capped:
    """Contributes one rate a table."""

    requires: ClassVar[tuple[Fact[Any], ...]] = (PRINCIPAL, TIER)

    class Config(PluginConfig, frozen=True, kw_only=True):
        counters: Annotated[str, needs(Counters), Meta(description="Where it counts.")] = "tally"

    class Limits(PluginConfig, frozen=True, kw_only=True):
        limit: Annotated[int, Meta(ge=0, description="How many.")]

    def __init__(self, config: Config, host: Host) -> None:
        self.counters = host.get(config.counters, Counters)  # type: ignore[type-abstract]
        self.host = host

    @hookimpl
    def charges(self, route: Any, tier: Any) -> list[Charge]:
        return [
            Charge(Limit(name=f"capped.{name}", meter=name, kind="rate", limit=table.limit), self.counters)
            for name, table in tier.tables["capped"].items()
        ]


class Api:
    """A few routes, each with another fate."""

    def __init__(self, host: Host) -> None:
        self.host = host

    @hookimpl
    def routes(self) -> list[Any]:
        @get("/open", **declared(access="public", summary="anyone"))
        async def open_() -> dict[str, str]:
            return {"ok": "yes"}

        @post("/things", status_code=201, **declared(access="authenticated", meters=(REQUESTS, MESSAGES)))
        async def things() -> dict[str, str]:
            return {"made": "one"}

        @get("/boom", **declared(access="public"))
        async def boom() -> None:
            raise RuntimeError("secret cause")

        @get("/refuses", **declared(access="public"))
        async def refuses() -> Response[bytes]:
            raise Refused(bad_request("no", param="a.b"))

        @asgi(["/raw", "/alias/raw"], copy_scope=False, **declared(access="authenticated", methods=("POST",)))
        async def raw(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"one ", "more_body": True})
            await send({"type": "http.response.body", "body": b"two"})

        return [open_, things, boom, refuses, raw]


CONFIG = """
[gateway]
port = 0
pipeline = ["named", "known", "ranked", "capped"]

[plugins.named]

[plugins.tally]

[plugins.api]
"""

TIERS = {"basic": "[capped.requests]\nlimit = 3\n[capped.messages]\nlimit = 100\n"}

OFFERED = {"named": Named, "known": Known, "ranked": Ranked, "tally": Tally, "capped": Capped, "api": Api}


class Offered(EntryPoint):
    """An entry point whose class is at hand."""

    def load(self) -> Any:
        return OFFERED[self.name]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offer the small plugins beside the installed ones."""
    real = loader.installed()
    extra = {name: [Offered(name, f"small:{cls.__name__}", loader.GROUP)] for name, cls in OFFERED.items()}
    monkeypatch.setattr(loader, "installed", lambda: {**real, **extra})
