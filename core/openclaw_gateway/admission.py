"""The one place that admits: joins the charges of all plugins into one decision, and settles it afterwards.

Rates count attempts; quotas and leases count effects, all or nothing. The fast account is asked once, then the
durable one; a refusal by the second gives back the leases of the first. It never decides by itself what a limit
is: limits come from the tier files, through the plugins that own their tables.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from openclaw_gateway.clock import Clock
from openclaw_gateway.contracts.capabilities import Accounts, Counters
from openclaw_gateway.errors import Refused, StoreUnavailable
from openclaw_gateway.facts import PRINCIPAL, SESSION_ID, TIER
from openclaw_gateway.meters import Balance, Meter
from openclaw_gateway.plans import Plan, Takes
from openclaw_gateway.receipt import Receipt
from openclaw_gateway.refusals import Refusal, bad_request, unavailable

if TYPE_CHECKING:
    from openclaw_gateway.exchange import Exchange, Reply

logger = logging.getLogger("openclaw.admission")


class Admission:
    """Admits exchanges by the plans that boot has made."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        #: tier name → meter name → the plan of that meter alone, for what handlers meter themselves
        self.by_meter: Mapping[str, Mapping[str, Plan]] = {}
        #: tier name → the plan of every limit of the tier, for `usage`
        self.whole: Mapping[str, Plan] = {}

    async def admit(
        self, x: Exchange, plan: Plan, *, session: str | None = None, amount: int = 1, estimated: bool = False
    ) -> Refusal | None:
        """Charge every limit of the plan, or refuse. The receipt is on `x`, also after a refusal.

        What is `estimated` is settled by the receipt, before it is committed.
        """
        refusal = await self._count(x, plan, session, amount, estimated)
        if refusal is None and plan.durable:
            refusal = await self._reserve(x, plan, session, amount)
        return refusal

    async def admit_request(self, x: Exchange, plan: Plan) -> Reply | Refusal | None:
        """Admit a request before its handler: as `admit`, and a guard may answer before what lasts is charged."""
        answer: Reply | Refusal | None = await self._count(x, plan, None, 1)
        if answer is None and x.guard is not None:
            answer = await x.guard.enter()
            if answer is not None and x.receipt is not None:
                await x.receipt.release_leases()
        if answer is None and plan.durable:
            answer = await self._reserve(x, plan, None, 1)
        return answer

    async def _count(
        self, x: Exchange, plan: Plan, session: str | None, amount: int, estimated: bool = False
    ) -> Refusal | None:
        """Charge the fast account: rates, and leases of connections."""
        principal = x[PRINCIPAL]
        organization = principal.organization
        receipt = x.receipt
        if receipt is None:
            receipt = x.receipt = Receipt(organization)
        for counters, group in plan.fast:
            takes = group.of(x, principal, session, amount)
            if not takes:
                continue
            balances = await counters.admit(organization, takes)
            receipt.balances += balances
            refused = _refused(balances)
            if refused is not None:
                await receipt.release_leases()
                return self._refusal(x, refused, amount)
            if estimated:
                receipt.estimated(counters, takes, balances)
            leases = [take for take in takes if take.lease is not None]
            if leases:
                receipt.leased(counters, leases)
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
                return self._refusal(x, refused, amount)
            receipt.held(accounts, holds)
        return None

    async def charge(self, x: Exchange, meter: Meter, *, session: str | None = None, amount: int = 1) -> Refusal | None:
        """Admit what a handler meters itself, a skill run say. `session` opens limits that are per session."""
        plan = self.by_meter[x[TIER].name].get(meter.name)
        if plan is None:
            return None
        return await self.admit(x, plan, session=session, amount=amount, estimated=meter.estimated)

    def counts_sessions(self, x: Exchange) -> bool:
        """Whether any limit on this request has a share for each session."""
        plan = x.route.plans.get(x[TIER].name)
        return plan is not None and plan.by_session is not None

    async def in_session(self, x: Exchange, session: str) -> None:
        """State the session that a request names, and charge the limits that waited for it. Raises Refused.

        For the handlers of routes that are declared with `names_session`, once they know that the session is
        there, by its id as it is stored: what is only claimed would be a share for whoever invents it.
        """
        x[SESSION_ID] = session
        plan = x.route.plans.get(x[TIER].name)
        if plan is not None and plan.by_session is not None:
            refusal = await self.admit(x, plan.by_session, session=session)
            if refusal is not None:
                raise Refused(refusal)

    def counts(self, x: Exchange, meter: Meter) -> bool:
        """Whether the caller's tier has any limit on a meter: where it has none, its amount need not be known."""
        plan = self.by_meter[x[TIER].name].get(meter.name)
        return plan is not None and bool(plan.limits)

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

    def _never(self, x: Exchange, balance: Balance, amount: int) -> Refusal:
        """Refuse what no wait can make fit; a time to come back would be a lie."""
        limit = balance.limit
        x.outcome.refused_by = limit.name
        message = (
            f"{limit.name}: this request may take {amount} {limit.meter}, and no more than {limit.capacity()} "
            f"are ever admitted at once; make it smaller"
        )
        return replace(bad_request(message), extra={"limit": balance.report(self._clock.now())})

    def _refusal(self, x: Exchange, balance: Balance, amount: int) -> Refusal:
        limit = balance.limit
        if amount > max(1, limit.capacity()):
            return self._never(x, balance, amount)
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
