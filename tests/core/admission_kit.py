"""What the tests of admission share: accounts that answer as they are told to, and remember what they were asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openclaw_gateway.admission import Admission
from openclaw_gateway.api import (
    PRINCIPAL,
    TIER,
    Balance,
    Charge,
    Correction,
    Exchange,
    Hold,
    Limit,
    Principal,
    Route,
    Take,
    Tier,
)
from openclaw_gateway.errors import StoreUnavailable
from openclaw_gateway.pipeline import CompiledRoute
from openclaw_gateway.plans import Plan
from openclaw_gateway.testing import ManualClock


class Fast:
    """A fast account: refuses the limits that are named, for so long."""

    shared = False

    def __init__(self, lease_ttl: float = 30.0) -> None:
        self.lease_ttl = lease_ttl
        self.refuses: dict[str, float | None] = {}
        self.degraded = False
        self.fails = False
        self.alive = True
        self.asked: list[tuple[str, list[Take]]] = []
        self.released: list[Take] = []
        self.renewed: list[Take] = []
        self.corrected: list[Correction] = []

    async def admit(self, organization: str, takes: Sequence[Take]) -> Sequence[Balance]:
        self.asked.append((organization, list(takes)))
        return [
            Balance(
                limit=take.limit,
                used=take.amount,
                refused=take.limit.name in self.refuses,
                retry_after=self.refuses.get(take.limit.name),
                reset_after=60.0,
                degraded=self.degraded,
                at=7 if take.limit.kind == "rate" else 0,
            )
            for take in takes
        ]

    async def peek(self, organization: str, takes: Sequence[Take]) -> Sequence[Balance]:
        self.asked.append((organization, list(takes)))
        return [Balance(limit=take.limit, used=3) for take in takes]

    async def correct(self, organization: str, corrections: Sequence[Correction]) -> None:
        if self.fails:
            raise StoreUnavailable("store", "gone")
        self.corrected += corrections

    async def release(self, organization: str, takes: Sequence[Take]) -> None:
        self.released += takes

    async def renew(self, organization: str, takes: Sequence[Take]) -> bool:
        self.renewed += takes
        return self.alive


class Durable:
    """A durable account, likewise."""

    def __init__(self) -> None:
        self.refuses: set[str] = set()
        self.fails = False
        self.asked: list[tuple[str, list[Take]]] = []
        self.committed: list[Hold] = []
        self.voided: list[Hold] = []

    async def reserve(self, organization: str, takes: Sequence[Take]) -> tuple[Sequence[Balance], Sequence[Hold]]:
        if self.fails:
            raise StoreUnavailable("store", "gone")
        self.asked.append((organization, list(takes)))
        refused = any(take.limit.name in self.refuses for take in takes)
        balances = [Balance(limit=t.limit, used=t.amount, refused=t.limit.name in self.refuses) for t in takes]
        held = [Hold(f"{t.limit.name}/{t.amount}", t, organization, "2026-11") for t in takes]
        return balances, [] if refused else held

    async def commit(self, holds: Sequence[Hold], **_: Any) -> None:
        if self.fails:
            raise StoreUnavailable("store", "gone")
        self.committed += holds

    async def void(self, holds: Sequence[Hold]) -> None:
        if self.fails:
            raise StoreUnavailable("store", "gone")
        self.voided += holds

    async def release(self, organization: str, meter: str, holder: str, **_: Any) -> None:
        raise AssertionError("admission ends no durable lease")

    async def peek(self, organization: str, takes: Sequence[Take]) -> Sequence[Balance]:
        return [Balance(limit=take.limit, used=5) for take in takes]


class Guarding:
    """A guard that answers, or lets pass."""

    def __init__(self, answer: Any = None, reference: str | None = "r1") -> None:
        self.answer = answer
        self.reference = reference

    async def enter(self) -> Any:
        return self.answer


def rate(name: str = "requests", limit: int = 100, **fields: Any) -> Limit:
    return Limit(name=f"ratelimit.{name}", meter=name, kind="rate", limit=limit, **fields)


def quota(name: str = "messages", limit: int = 100, **fields: Any) -> Limit:
    return Limit(name=f"quota.{name}", meter=name, kind="quota", limit=limit, **fields)


def lease(name: str = "ws_connections", limit: int = 5, **fields: Any) -> Limit:
    return Limit(name=f"concurrency.{name}", meter=name, kind="lease", limit=limit, **fields)


def plan(*charges: tuple[Limit, Any]) -> Plan:
    return Plan([Charge(limit, account) for limit, account in charges])


def admission() -> Admission:
    return Admission(ManualClock())


def exchange(*, kind: Any = "http", method: str = "jwt", client: str = "192.0.2.1", guard: Any = None) -> Exchange:
    route = CompiledRoute(Route(access="authenticated"), None, ())
    x = Exchange(kind, "POST", "/x", route, {"headers": []}, 0.0)
    x[PRINCIPAL] = Principal(organization="acme", user="ada", tier="teams", method=method, credential="k1")
    x[TIER] = Tier(name="teams", title="teams", tables={})
    x.client = client
    x.guard = guard
    return x
