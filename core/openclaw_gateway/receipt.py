"""What one exchange was charged, and how it is settled: committed with its work, or given back.

It decides nothing: what is charged, admission has decided.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from msgspec.structs import replace

from openclaw_gateway.contracts.capabilities import Accounts, Counters, Hold
from openclaw_gateway.errors import StoreUnavailable
from openclaw_gateway.meters import Balance, Correction, Take

logger = logging.getLogger("openclaw.admission")


class Receipt:
    """What one exchange was charged, and what of it still has to be settled."""

    __slots__ = ("_estimates", "_holds", "_leases", "_settled", "_taken", "balances", "organization")

    def __init__(self, organization: str) -> None:
        self.organization = organization
        #: where every limit of this admission stands, in the order of the pipeline
        self.balances: list[Balance] = []
        self._holds: list[tuple[Accounts, Hold]] = []
        self._taken: list[tuple[Accounts, Hold]] = []
        self._leases: list[tuple[Counters, list[Take]]] = []
        #: rates that were charged by estimate, and by how much
        self._estimates: list[tuple[Counters, Take, Balance]] = []
        self._settled: dict[str, int] = {}

    def estimates(self, meter: str) -> bool:
        """Whether anything of this meter was charged by estimate and is not resolved yet."""
        charged = (*(take for _, take, _ in self._estimates), *(hold.take for _, hold in self._holds))
        return any(take.limit.meter == meter for take in charged)

    def settle(self, meter: str, amount: int) -> None:
        """Say how much of an estimated meter there really was: commits charge that. Zero is an amount."""
        self._settled[meter] = amount
        self._holds = [
            (account, replace(hold, charge=amount) if hold.take.limit.meter == meter else hold)
            for account, hold in self._holds
        ]

    @property
    def holds(self) -> tuple[Hold, ...]:
        """Reservations that nobody has resolved or taken yet."""
        return tuple(hold for _, hold in self._holds)

    @property
    def pending(self) -> bool:
        """Whether there are such holds."""
        return bool(self._holds)

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
        """Turn all holds into usage, now. Idempotent. Raises StoreUnavailable, keeping what is unresolved.

        An estimate that nobody has settled stays what it was.
        """
        await self._resolve("commit")
        await self._correct(self._settled)

    async def void(self) -> None:
        """Give all holds back, now. Idempotent. A failure is logged; the hold then expires."""
        try:
            await self._resolve("void")
        except StoreUnavailable as error:
            logger.warning("holds could not be given back and will expire", exc_info=error)
            self._holds = []
        await self._correct({take.limit.meter: 0 for _, take, _ in self._estimates})

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
        return bool(self._holds or self._leases or self._estimates)

    # --- what admission adds ----------------------------------------------------------------------

    def held(self, accounts: Accounts, holds: Iterable[Hold]) -> None:
        self._holds += [(accounts, hold) for hold in holds]

    def leased(self, counters: Counters, takes: list[Take]) -> None:
        self._leases.append((counters, takes))

    def estimated(self, counters: Counters, takes: Sequence[Take], balances: Sequence[Balance]) -> None:
        self._estimates += [(counters, take, b) for take, b in zip(takes, balances, strict=True) if b.at]

    async def _resolve(self, how: str) -> None:
        while self._holds:
            accounts = self._holds[0][0]
            mine = [hold for account, hold in self._holds if account is accounts]
            await (accounts.commit(mine) if how == "commit" else accounts.void(mine))
            self._holds = [(account, hold) for account, hold in self._holds if account is not accounts]

    async def _correct(self, amounts: Mapping[str, int]) -> None:
        """Make the estimates of rates what they turned out to be; one call an account."""
        estimates, self._estimates = self._estimates, []
        by_account: dict[int, tuple[Counters, list[Correction]]] = {}
        for counters, take, balance in estimates:
            difference = amounts.get(take.limit.meter, take.amount) - take.amount
            if difference:
                correction = Correction(
                    limit=take.limit,
                    subject=take.subject,
                    amount=difference,
                    at=balance.at,
                    degraded=balance.degraded,
                )
                by_account.setdefault(id(counters), (counters, []))[1].append(correction)
        for counters, corrections in by_account.values():
            try:
                await counters.correct(self.organization, corrections)
            except StoreUnavailable as error:
                # Not a warning for each request: whoever holds the store tells once that it does not answer.
                logger.debug("an estimate could not be corrected and leaves with its window: %s", error)
