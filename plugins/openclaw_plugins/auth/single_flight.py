"""One look-up for all requests that need the same answer at the same moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from openclaw_gateway.api import StoreUnavailable

V = TypeVar("V")


class SingleFlight(Generic[V]):
    """Look-ups that are on their way, by what they are for. The first who asks does the work; others wait for it."""

    __slots__ = ("_flights",)

    def __init__(self) -> None:
        self._flights: dict[bytes, asyncio.Future[V | StoreUnavailable | None]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    async def join(self, mark: bytes, work: Callable[[], Awaitable[V]]) -> V:
        """Return what `work` returns, from a call that may be another request's. Raises StoreUnavailable."""
        while (flight := self._flights.get(mark)) is not None:
            answer = await asyncio.shield(flight)
            if isinstance(answer, StoreUnavailable):
                raise StoreUnavailable(answer.store, "the look-up that this request joined failed")
            if answer is not None:
                return answer
            # The request that did the work was cancelled before it knew: do it anew.
        flight = asyncio.get_running_loop().create_future()
        self._flights[mark] = flight
        known: V | StoreUnavailable | None = None
        try:
            known = found = await work()
            return found
        except StoreUnavailable as error:
            known = error
            raise
        finally:
            del self._flights[mark]
            flight.set_result(known)
