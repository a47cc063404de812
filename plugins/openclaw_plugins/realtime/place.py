"""The lease under which a socket is open. Its holder ends by itself before somebody else can have the place."""

from __future__ import annotations

import asyncio
import logging

from openclaw_gateway.api import Exchange, StoreUnavailable

#: part of its time to live that a lease may reach without being renewed
_FENCE = 5 / 6
#: how soon a renewal that failed is tried again
_AGAIN = 1.0


class Place:
    """Keeps the leases of one handshake alive. Times are those of the event loop, which go on while we are paused."""

    __slots__ = ("_logger", "_receipt", "_renewed", "_ttl")

    def __init__(self, x: Exchange, logger: logging.Logger, now: float) -> None:
        self._receipt = x.receipt
        self._logger = logger
        self._renewed = now
        self._ttl = x.receipt.lease_ttl if x.receipt is not None else None

    def due(self, now: float) -> float | None:
        """Return how long `keep` has time; None where there is nothing to keep."""
        if self._ttl is None:
            return None
        left = self._renewed + self._ttl / 3 - now
        return left if left > 0 else min(_AGAIN, self._ttl / 12)

    async def keep(self, now: float) -> bool:
        """Renew what is due; False where the place is lost, or might be another's before we know."""
        ttl, receipt = self._ttl, self._receipt
        if ttl is None or receipt is None or now - self._renewed < ttl / 3:
            return True
        if now - self._renewed >= _FENCE * ttl:
            return False
        try:
            async with asyncio.timeout(ttl / 6):
                alive = await receipt.renew_leases()
        except (TimeoutError, StoreUnavailable) as error:
            self._logger.warning("a socket's place could not be renewed", exc_info=error)
            return True
        self._renewed = now
        return alive
