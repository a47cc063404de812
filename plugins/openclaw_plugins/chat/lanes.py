"""The way to one model: how many calls may be on it at once, and whether it has failed too often to be asked now.

It never sends anything; who calls enters first, and says how it went.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from openclaw_gateway.api import ModelProvider, UpstreamFailed, UpstreamReason

#: failures that say something of the upstream, not of one request
_FAULTS: frozenset[UpstreamReason] = frozenset({"failed", "broken", "unreachable", "silent", "credential"})
#: calls of late that are looked at
_LATELY = 20


class Breaker:
    """Rests an upstream that fails: at least `failures` of its last calls, and half of them.

    An upstream that flaps never fails many times in a row, so that the share counts and not the row. After the
    rest one call at a time is let through; the first good one ends the matter.
    """

    __slots__ = ("_failed", "_failures", "_lately", "_now", "_probing", "_rest", "_until")

    def __init__(self, failures: int, rest: float, now: Callable[[], float]) -> None:
        self._failures = failures
        self._rest = rest
        self._now = now
        self._lately: deque[bool] = deque(maxlen=_LATELY)
        #: how many of them failed
        self._failed = 0
        #: None while it is well; else when it may be tried again
        self._until: float | None = None
        self._probing = False

    @property
    def resting(self) -> float:
        """1 while it rests, else 0."""
        return float(self._until is not None)

    def ask(self) -> float | None:
        """Return the seconds to wait; None where a call may go on, which then has to say how it went."""
        if self._until is None:
            return None
        left = self._until - self._now()
        if left > 0 or self._probing:
            return max(left, 1.0)
        self._probing = True
        return None

    def went(self, well: bool | None) -> None:
        """Note how a call went; None where it says nothing of the upstream."""
        probe, self._probing = self._probing, False
        if well is None:
            return
        if self._until is not None:
            if well:
                self._until = None
                self._lately.clear()
                self._failed = 0
            elif probe:
                self._until = self._now() + self._rest
            return
        lately = self._lately
        if len(lately) == _LATELY and not lately[0]:
            self._failed -= 1
        lately.append(well)
        if well:
            return
        self._failed += 1
        if self._failed >= self._failures and 2 * self._failed >= len(lately):
            self._until = self._now() + self._rest


class Lane:
    """One model at one provider, with its places and its breaker."""

    __slots__ = ("_free", "_wait", "breaker", "keeps_deadlines", "named", "provider", "provider_id")

    def __init__(
        self,
        provider: ModelProvider,
        provider_id: str,
        named: Callable[[bytes], bytes],
        capacity: int | None,
        wait: float,
        breaker: Breaker,
    ) -> None:
        self.provider = provider
        self.provider_id = provider_id
        #: puts the model's name into what its upstream says
        self.named = named
        self.breaker = breaker
        self.keeps_deadlines = bool(getattr(provider, "keeps_deadlines", False))
        self._free = asyncio.Semaphore(capacity) if capacity is not None else None
        self._wait = wait

    def enter(self, patience: float) -> Awaitable[None] | None:
        """Take a place, or return what waits for one. Raises UpstreamFailed; who has entered leaves."""
        if self._free is not None:
            return self._entered(self._free, patience)
        self._ask()
        return None

    async def _entered(self, free: asyncio.Semaphore, patience: float) -> None:
        try:
            async with asyncio.timeout(min(self._wait, patience)):
                await free.acquire()
        except TimeoutError:
            raise _unavailable("has no place for one more call", 1.0, "busy") from None
        self._ask()

    def _ask(self) -> None:
        rest = self.breaker.ask()
        if rest is not None:
            if self._free is not None:
                self._free.release()
            raise _unavailable("has failed too often of late", rest, "resting")

    def leave(self, failure: UpstreamReason | None) -> None:
        """Give the place back and say how it went."""
        if self._free is not None:
            self._free.release()
        self.breaker.went(True if failure is None else False if failure in _FAULTS else None)

    def abandon(self) -> None:
        """Give the place back; the client left, which says nothing of the upstream."""
        if self._free is not None:
            self._free.release()
        self.breaker.went(None)


def _unavailable(what: str, retry_after: float, reason: UpstreamReason) -> UpstreamFailed:
    return UpstreamFailed(
        f"the model's upstream {what}; try again shortly",
        status=503,
        code="SERVICE_UNAVAILABLE",
        retry_after=retry_after,
        reason=reason,
    )
