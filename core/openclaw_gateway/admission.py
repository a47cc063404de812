"""The one place that admits: joins the charges of all plugins into one decision, and settles it afterwards.

Rates count attempts; quotas and leases count effects, all or nothing. The fast account is asked once, then the
durable one; a refusal by the second gives back the leases of the first. It never decides by itself what a limit
is: limits come from the tier files, through the plugins that own their tables.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from openclaw_gateway.capabilities import Accounts, Counters, Hold
from openclaw_gateway.clock import Clock
from openclaw_gateway.errors import StoreUnavailable
from openclaw_gateway.facts import PRINCIPAL, TIER
from openclaw_gateway.meters import Balance, Meter, Take
from openclaw_gateway.plans import Plan, Takes
from openclaw_gateway.refusals import Refusal, unavailable

if TYPE_CHECKING:
    from openclaw_gateway.exchange import Exchange, Reply

logger = logging.getLogger("openclaw.admission")


class Receipt:
    """What one exchange was charged, and what of it still has to be settled."""

    __slots__ = ("_holds", "_leases", "_taken", "balances", "organization")

    def __init__(self, organization: str) -> None:
        self.organization = organization
        #: where every limit of this admission stands, in the order of the pipeline
        self.balances: list[Balance] = []
        self._holds: list[tuple[Accounts, Hold]] = []
        self._taken: list[tuple[Accounts, Hold]] = []
        self._leases: list[tuple[Counters, list[Take]]] = []

    @property
    def holds(self) -> tuple[Hold, ...]:
        """Reservations that nobody has resolved or taken yet."""
        return tuple(hold for _, hold in self._holds)

    def take_holds(self, meter: str) -> tuple[Hold, ...]:
        """Hand over the holds of one meter to a caller who resolves them with his own work."""
        taken = [(a, hold) for a, hold in self._holds if hold.take.limit.meter == meter]
        self._holds = [(a, hold) for a, hold in self._holds if hold.take.limit.meter != meter]
        self._taken += taken
        return tuple(hold for _, hold in taken)

    def give_back(self, holds: Iterable[Hold]) -> None:
        """Return holds that were taken and not resolved, so that the runner settles them after all."""
        ids = {hold.id for hold in holds}
        self._holds += [(a, hold) for a, hold in self._taken if hold.id in ids]
        self._taken = [(a, hold) for a, hold in self._taken if hold.id not in ids]

    async def commit(self) -> None:
        """Turn all holds into usage, now. Idempotent. Raises StoreUnavailable, keeping what is unresolved."""
        await self._resolve("commit")

    async def void(self) -> None:
        """Give all holds back, now. Idempotent. A failure is logged; the hold then expires."""
        try:
            await self._resolve("void")
        except StoreUnavailable as error:
            logger.warning("holds could not be given back and will expire", exc_info=error)
            self._holds = []

    @property
    def lease_ttl(self) -> float | None:
        """Seconds after which a lease that is not renewed is lost; None where there is none."""
        return min((counters.lease_ttl for counters, _ in self._leases), default=None)

    async def renew_leases(self) -> bool:
        """Prolong this exchange's leases; False where one is lost and its holder must stop."""
        alive = True
        for counters, takes in self._leases:
            alive = await counters.renew(self.organization, takes) and alive
        return alive

    async def release_leases(self) -> None:
        """Give the exchange's leases back. Idempotent."""
        leases, self._leases = self._leases, []
        for counters, takes in leases:
            await counters.release(self.organization, takes)

    @property
    def open(self) -> bool:
        """Whether anything is left to settle."""
        return bool(self._holds or self._leases)

    async def _resolve(self, how: str) -> None:
        while self._holds:
            accounts = self._holds[0][0]
            mine = [hold for account, hold in self._holds if account is accounts]
            await (accounts.commit(mine) if how == "commit" else accounts.void(mine))
            self._holds = [(account, hold) for account, hold in self._holds if account is not accounts]

    def _held(self, accounts: Accounts, holds: Iterable[Hold]) -> None:
        self._holds += [(accounts, hold) for hold in holds]

    def _leased(self, counters: Counters, takes: list[Take]) -> None:
        self._leases.append((counters, takes))


class Admission:
    """Admits exchanges by the plans that boot has made."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        #: tier name → meter name → the plan of that meter alone, for what handlers meter themselves
        self.by_meter: Mapping[str, Mapping[str, Plan]] = {}
        #: tier name → the plan of every limit of the tier, for `usage`
        self.whole: Mapping[str, Plan] = {}

    async def admit(self, x: Exchange, plan: Plan, *, session: str | None = None, amount: int = 1) -> Refusal | None:
        """Charge every limit of the plan, or refuse. The receipt is on `x`, also after a refusal."""
        refusal = await self._count(x, plan, session, amount)
        if refusal is None and plan.durable:
            refusal = await self._reserve(x, plan, session, amount)
        return refusal

    async def admit_request(self, x: Exchange, plan: Plan) -> Reply | Refusal | None:
        """Admit a request before its handler: as `admit`, and a guard may answer before what lasts is charged."""
        if x.guard is None:
            return await self.admit(x, plan)
        answer: Reply | Refusal | None = await self._count(x, plan, None, 1)
        if answer is None:
            answer = await x.guard.enter()
            if answer is not None and x.receipt is not None:
                await x.receipt.release_leases()
        if answer is None and plan.durable:
            answer = await self._reserve(x, plan, None, 1)
        return answer

    async def _count(self, x: Exchange, plan: Plan, session: str | None, amount: int) -> Refusal | None:
        """Charge the fast account: rates, and leases of connections."""
        principal = x[PRINCIPAL]
        organization = principal.organization
        receipt = x.receipt
        if receipt is None:
            receipt = x.receipt = Receipt(organization)
        for counters, group in plan.fast:
            takes = group.of(x, principal, session, amount)
            balances = await counters.admit(organization, takes)
            receipt.balances += balances
            refused = _refused(balances)
            if refused is not None:
                await receipt.release_leases()
                return self._refusal(x, refused)
            leases = [take for take in takes if take.lease is not None]
            if leases:
                receipt._leased(counters, leases)
        return None

    async def _reserve(self, x: Exchange, plan: Plan, session: str | None, amount: int) -> Refusal | None:
        """Reserve in the durable account: quotas, and leases of what is stored."""
        principal = x[PRINCIPAL]
        organization = principal.organization
        receipt = x.receipt
        assert receipt is not None
        reference = x.guard.reference if x.guard is not None else None
        for accounts, group in plan.durable:
            takes = group.of(x, principal, session, amount)
            if not takes:
                continue
            if reference is not None:
                takes = [take if take.lease is not None else replace(take, lease=reference) for take in takes]
            try:
                balances, holds = await accounts.reserve(organization, takes)
            except StoreUnavailable as error:
                logger.warning("the durable account does not answer", exc_info=error)
                await self._undo(receipt)
                return unavailable("the account of quotas does not answer; try again shortly")
            receipt.balances += balances
            refused = _refused(balances)
            if refused is not None:
                await self._undo(receipt)
                return self._refusal(x, refused)
            receipt._held(accounts, holds)
        return None

    async def charge(self, x: Exchange, meter: Meter, *, session: str | None = None, amount: int = 1) -> Refusal | None:
        """Admit what a handler meters itself, a skill run say. `session` opens limits that are per session."""
        plan = self.by_meter[x[TIER].name].get(meter.name)
        return None if plan is None else await self.admit(x, plan, session=session, amount=amount)

    async def usage(self, x: Exchange, *, session: str | None = None) -> list[Balance]:
        """Say where every limit of the caller's tier stands. Raises StoreUnavailable."""
        principal = x[PRINCIPAL]
        plan = self.whole[x[TIER].name]
        found: dict[str, Balance] = {}
        groups: list[tuple[Counters | Accounts, Takes]] = [*plan.fast, *plan.durable]
        for account, group in groups:
            takes = group.of(x, principal, session, 1)
            for balance in await account.peek(principal.organization, takes):
                found[balance.limit.name] = balance
        return [found[limit.name] for limit in plan.limits if limit.name in found]

    async def _undo(self, receipt: Receipt) -> None:
        await receipt.void()
        await receipt.release_leases()

    def _refusal(self, x: Exchange, balance: Balance) -> Refusal:
        limit = balance.limit
        x.outcome.refused_by = limit.name
        extra: dict[str, Any] = {"limit": balance.report(self._clock.now())}
        if balance.degraded and balance.retry_after is None:
            return unavailable("the account of this limit does not answer; try again shortly")
        if limit.kind == "rate":
            return Refusal(
                status=429,
                code="RATE_LIMIT_EXCEEDED",
                type="rate_limit_error",
                message=f"{limit.name}: {limit.limit} in {_seconds(limit.window)} are used up",
                retry_after=balance.retry_after if balance.retry_after is not None else limit.window,
                extra=extra,
            )
        if limit.kind == "lease":
            if x.kind == "websocket":
                # A refused handshake is worth another try soon, which is what 429 tells clients.
                return Refusal(
                    status=429,
                    code="RATE_LIMIT_EXCEEDED",
                    type="rate_limit_error",
                    message=f"{limit.name}: {limit.limit} are open already",
                    retry_after=balance.retry_after or 1.0,
                    extra=extra,
                )
            return Refusal(
                status=403,
                code="CONCURRENCY_EXCEEDED",
                type="insufficient_quota",
                message=f"{limit.name}: {limit.limit} are in use already",
                extra=extra,
            )
        return Refusal(
            status=403,
            code="QUOTA_EXCEEDED",
            type="insufficient_quota",
            message=f"{limit.name}: the {limit.limit} of this {limit.period} are used up",
            extra=extra,
        )


def _refused(balances: Sequence[Balance]) -> Balance | None:
    """The refusal to tell of: of several, the one that lasts longest, or the client would be back too early."""
    refused = [balance for balance in balances if balance.refused]
    return max(refused, key=lambda b: b.retry_after or 0.0) if refused else None


def _seconds(window: float) -> str:
    names = {1.0: "a second", 60.0: "a minute", 3600.0: "an hour", 86400.0: "a day"}
    return names.get(window, f"{window:g} seconds")
