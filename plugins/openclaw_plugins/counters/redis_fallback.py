"""Decides admissions while the shared store does not answer, by each limit's `on_backend_failure`.

closed refuses, open admits uncounted, local counts in this process against its share of the limit. It knows nothing
of what the store has counted, and tells it nothing afterwards but which leases go on.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from openclaw_gateway.api import Balance, Correction, Duration, Host, Limit, Take
from openclaw_plugins.counters.memory import MemoryCounters

#: limits whose share is kept at hand; there are as many as the tier files hold
_KEPT = 10_000


class Fallback:
    """This process's share of every local limit, and the leases that it gave without the store."""

    def __init__(self, host: Host, lease_ttl: Duration, processes: int) -> None:
        self._processes = processes
        self._local = MemoryCounters(MemoryCounters.Config(lease_ttl=lease_ttl), host)
        self._shares: dict[int, tuple[Limit, Limit]] = {}
        #: holders that the store may not know of: it counts them from their next renewal on
        self._given: set[str] = set()

    async def admit(self, organization: str, takes: Sequence[Take]) -> Sequence[Balance]:
        """Decide all takes together, as the store does."""
        closed = [t for t in takes if t.limit.on_backend_failure == "closed" and t.limit.mode == "enforce"]
        rates_closed = any(take.limit.kind != "lease" for take in closed)
        local = [self._share_of(take) for take in takes if take.limit.on_backend_failure == "local"]
        counted = {}
        if rates_closed:
            counted = _by_name(await self._local.peek(organization, local))
        elif closed:
            rates = [take for take in local if take.limit.kind != "lease"]
            leases = [take for take in local if take.limit.kind == "lease"]
            counted = _by_name(await self._local.admit(organization, rates))
            counted |= _by_name(await self._local.peek(organization, leases))
        elif local:
            counted = _by_name(await self._local.admit(organization, local))
        balances = [self._balance(take, counted, rates_closed) for take in takes]
        if not any(balance.refused for balance in balances):
            self._given.update(take.lease for take in takes if take.lease is not None)
        return balances

    async def correct(self, organization: str, corrections: Sequence[Correction]) -> None:
        """Correct what this process counted by itself; a limit that is open or closed counted nothing."""
        mine = [c for c in corrections if c.limit.on_backend_failure == "local"]
        await self._local.correct(organization, [msgspec.structs.replace(c, limit=self._share(c.limit)) for c in mine])

    async def renew(self, organization: str, leases: Sequence[Take]) -> bool:
        """Keep leases while the store does not answer; False where only the store could say."""
        for take in leases:
            limit = take.limit
            if limit.mode == "shadow" or limit.on_backend_failure == "open":
                continue
            if limit.on_backend_failure == "closed":
                return False
            share = self._share_of(take)
            # A holder whose place is in the store moves to this process's share, if there is room.
            held = await self._local.renew(organization, [share])
            if not held and (await self._local.admit(organization, [share]))[0].refused:
                return False
            assert take.lease is not None
            self._given.add(take.lease)
        return True

    async def release(self, organization: str, takes: Sequence[Take]) -> None:
        """Forget leases: their holders have gone, or the store counts them again."""
        leases = [take for take in takes if take.lease is not None]
        self._given.difference_update(take.lease for take in leases if take.lease is not None)
        local = [self._share_of(take) for take in leases if take.limit.on_backend_failure == "local"]
        if local and len(self._local):
            await self._local.release(organization, local)

    def joins(self, take: Take) -> bool:
        """Whether the store is to count a holder that it may not know of."""
        return take.limit.on_backend_failure == "open" or take.lease in self._given

    def _balance(self, take: Take, counted: dict[str, Balance], rates_closed: bool) -> Balance:
        limit = take.limit
        policy = limit.on_backend_failure
        if policy == "local":
            balance = counted[limit.name]
            return msgspec.structs.replace(balance, degraded=True)
        refused = policy == "closed" and limit.mode == "enforce" and not (rates_closed and limit.kind == "lease")
        return Balance(limit=limit, used=0, refused=refused, degraded=True)

    def _share_of(self, take: Take) -> Take:
        return msgspec.structs.replace(take, limit=self._share(take.limit))

    def _share(self, limit: Limit) -> Limit:
        kept = self._shares.get(id(limit))
        if kept is None or kept[0] is not limit:
            if len(self._shares) >= _KEPT:
                self._shares.clear()
            kept = self._shares[id(limit)] = (limit, share(limit, self._processes))
        return kept[1]


def share(limit: Limit, processes: int) -> Limit:
    """Return what one of so many processes may admit by itself."""
    burst = -(-limit.burst // processes) if limit.burst is not None else None
    return msgspec.structs.replace(limit, limit=-(-limit.limit // processes), burst=burst)


def turned_away(takes: Sequence[Take]) -> list[Balance]:
    """Refuse because this process has too many calls under way; the store is well, so no policy applies."""
    return [Balance(limit=t.limit, used=0, refused=t.limit.mode == "enforce", degraded=True) for t in takes]


def _by_name(balances: Sequence[Balance]) -> dict[str, Balance]:
    return {balance.limit.name: balance for balance in balances}
