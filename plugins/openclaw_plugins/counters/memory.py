"""Counts rates and leases in the memory of one process; it is exact, and it never pretends to be shared."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from openclaw_gateway.api import Balance, Correction, Duration, Fact, Host, Limit, PluginConfig, Take, hookimpl
from openclaw_plugins.counters.window import NEVER, RATES, Holders, Rate

#: how many old tallies an admission looks at to find empty ones: for each new tally, and when no place is left
_LOOKS, _SEARCH = 2, 64


class MemoryCounters:
    """Decides an admission in one critical section: no await, so nothing comes between reading and charging.

    A tally is kept by organisation, subject, limit, algorithm and window: changing a tier or the height of a
    limit keeps what was used. It is dropped once it is empty again.
    """

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = ()

    class Config(PluginConfig, frozen=True, kw_only=True):
        """`[plugins.counters]`"""

        lease_ttl: Annotated[
            Duration, Meta(description="How long a lease (an open WebSocket) lives if its holder does not renew it.")
        ] = Duration(30)
        max_keys: Annotated[
            int,
            Meta(
                ge=1,
                description="Most subjects that are counted at once. Past it a limit on a new subject does what its "
                "`on_backend_failure` says: open admits it uncounted, anything else refuses it.",
            ),
        ] = 100_000

    shared: ClassVar[bool] = False

    def __init__(self, config: Config, host: Host) -> None:
        self._monotonic = host.clock.monotonic
        self._logger = host.logger
        self._lease_ttl = float(config.lease_ttl)
        self._ttl = round(config.lease_ttl * 1000)
        self._max_keys = config.max_keys
        self._tallies: dict[object, Rate | Holders] = {}
        # the same tallies, in the order in which they are looked at again
        self._rounds: deque[Rate | Holders] = deque()
        #: the millisecond in which one of them was looked at last
        self._looked = -1
        self._full = False

    @property
    def lease_ttl(self) -> float:
        return self._lease_ttl

    def __len__(self) -> int:
        """How many subjects are counted now."""
        return len(self._tallies)

    @hookimpl
    def inherit(self, previous: MemoryCounters) -> None:
        # One table for both until the old gateway has drained: a reload must not hand out a fresh window.
        self._tallies, self._rounds = previous._tallies, previous._rounds

    async def admit(self, organization: str, takes: Sequence[Take]) -> Sequence[Balance]:
        now = self._now()
        if now > self._looked and self._rounds:  # once a millisecond: what is looked at is hardly ever at hand
            self._looked = now
            self._forget(now, 1)
        tallies: list[Rate | Holders | None] = [self._tally(organization, take) for take in takes]
        new = [tally for tally in tallies if tally is not None and not tally.kept]
        if new:
            self._make_room(tallies, len(new), now)
        waits: list[int] = []
        rates_fit = leases_fit = True
        for take, tally in zip(takes, tallies, strict=True):
            if tally is None:
                wait = 0 if take.limit.on_backend_failure == "open" else NEVER
            elif isinstance(tally, Holders):
                wait = tally.ask(take.limit, take.lease, now)
            else:
                wait = tally.ask(take.limit, take.amount, now)
            waits.append(wait)
            if wait and take.limit.mode == "enforce":
                if take.limit.kind == "lease":
                    leases_fit = False
                else:
                    rates_fit = False
        if not any(waits):  # as nearly always
            return [self._admitted(take, tally) for take, tally in zip(takes, tallies, strict=True)]
        balances = []
        for take, tally, wait in zip(takes, tallies, waits, strict=True):
            limit = take.limit
            decided = rates_fit or limit.kind != "lease"
            if wait:
                retry_after = None
                if decided and tally is not None:
                    retry_after = wait / 1000 if wait > 0 else limit.window
                balances.append(_balance(limit, tally, decided and limit.mode == "enforce", retry_after))
            else:
                charged = rates_fit and (leases_fit or limit.kind != "lease")
                balances.append(self._admitted(take, tally) if charged else _balance(limit, tally))
        return balances

    async def peek(self, organization: str, takes: Sequence[Take]) -> Sequence[Balance]:
        now = self._now()
        balances = []
        for take in takes:
            tally = self._tally(organization, take)
            self._look(take, tally, now)
            balances.append(_balance(take.limit, tally))
        return balances

    async def correct(self, organization: str, corrections: Sequence[Correction]) -> None:
        now = self._now()
        for correction in corrections:
            take = Take(correction.limit, correction.subject, correction.amount)
            tally = self._tally(organization, take)
            if isinstance(tally, Holders) or not (tally.kept or correction.amount > 0):
                continue
            tally.ask(take.limit, 0, now)
            if not tally.kept:
                self._keep(tally)
            tally.correct(take.limit, correction.amount, correction.at)

    async def release(self, organization: str, takes: Sequence[Take]) -> None:
        for take in takes:
            holders = self._tally(organization, take)
            if isinstance(holders, Holders) and take.lease is not None:
                holders.release(take.lease)

    async def renew(self, organization: str, takes: Sequence[Take]) -> bool:
        alive = True
        now = self._now()
        for take in takes:
            holders = self._tally(organization, take)
            if not isinstance(holders, Holders) or take.lease is None:
                continue
            self._look(take, holders, now)
            # An open limit may have let the holder in uncounted; from now on it counts.
            if take.lease in holders or take.limit.on_backend_failure == "open":
                self._charge(take, holders)
            elif take.limit.mode == "enforce":
                alive = False
        return alive

    def _now(self) -> int:
        # A microsecond is added so that a reading such as 1.001, which no float holds, is not cut to 1000 ms.
        return int(self._monotonic() * 1000 + 0.001)

    def _tally(self, organization: str, take: Take) -> Rate | Holders:
        """Return the tally that counts a take; a new one is kept only once something is charged to it."""
        limit = take.limit
        key = (organization, take.subject, limit.name, limit.algorithm, limit.window)
        tally = self._tallies.get(key)
        if tally is not None:
            return tally
        if limit.kind == "lease":
            return Holders(key)
        return RATES[limit.algorithm](key, round(limit.window * 1000))

    def _admitted(self, take: Take, tally: Rate | Holders | None) -> Balance:
        """Charge what fits; where there was no place to count it, the limit's policy has let it pass."""
        if tally is not None:
            self._charge(take, tally)
        return _balance(take.limit, tally, charged=True)

    @staticmethod
    def _look(take: Take, tally: Rate | Holders, now: int) -> None:
        if isinstance(tally, Holders):
            tally.ask(take.limit, None, now)
        else:
            tally.ask(take.limit, 0, now)

    def _charge(self, take: Take, tally: Rate | Holders) -> None:
        if not tally.kept:
            self._keep(tally)
        if not isinstance(tally, Holders):
            tally.add(take.limit, take.amount)
        elif take.lease is not None:
            tally.hold(take.lease, self._ttl)

    def _keep(self, tally: Rate | Holders) -> None:
        tally.kept = True
        self._tallies[tally.key] = tally
        self._rounds.append(tally)

    def _forget(self, now: int, looks: int) -> None:
        """Drop tallies that are empty again, looking at a few in turn, so that no call pays for all."""
        rounds = self._rounds
        for _ in range(min(looks, len(rounds))):
            tally = rounds[0]
            if tally.until <= now:
                rounds.popleft()
                tally.kept = False
                del self._tallies[tally.key]
            else:
                rounds.rotate(-1)

    def _make_room(self, tallies: list[Rate | Holders | None], new: int, now: int) -> None:
        """See to it that every new tally has a place; where there is none, the limit's policy decides."""
        self._forget(now, _SEARCH if len(self._tallies) + new > self._max_keys else _LOOKS * new)
        full = len(self._tallies) + new > self._max_keys
        # Told again only once a tenth is free: at the edge the state may change with every call.
        if full is not self._full and (full or len(self._tallies) <= 0.9 * self._max_keys):
            self._full = full
            self._logger.warning(
                "no place is left to count new subjects" if full else "new subjects are counted again",
                extra={"fields": {"keys": len(self._tallies), "maxKeys": self._max_keys}},
            )
        if full:
            tallies[:] = [tally if tally is not None and tally.kept else None for tally in tallies]


def _balance(
    limit: Limit,
    tally: Rate | Holders | None,
    refused: bool = False,
    retry_after: float | None = None,
    charged: bool = False,
) -> Balance:
    if tally is None:
        return Balance(limit=limit, used=0, refused=refused, degraded=True)
    reset_after = None
    if limit.kind != "lease":
        left = tally.until - tally.now
        reset_after = left / 1000 if left > 0 else 0.0
    return Balance(
        limit=limit,
        used=tally.used,
        refused=refused,
        reset_after=reset_after,
        retry_after=retry_after,
        at=tally.now if charged and limit.kind == "rate" else 0,
    )
