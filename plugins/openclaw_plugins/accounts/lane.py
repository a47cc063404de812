"""The lane to the durable account: one transaction at a time, each with everything that came while the last one ran.

The database is not paid once a request. A caller who leaves does not stop what is under way: a reservation that
nobody waits for any more is given back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context

from openclaw_gateway.api import GatewayError, StoreBusy, StoreUnavailable, end_span, start_span, traced
from openclaw_plugins.accounts.work import Reservation, Settlement

#: reservations and settlements of one transaction at most
_BATCH = 256
#: how often work that met a lock of another replica is tried
_ATTEMPTS = 3

Works = Sequence[Reservation | Settlement]


class Lane:
    """Carries work to `apply`, which does all of it in one transaction or raises."""

    def __init__(self, apply: Callable[[Works], Awaitable[None]], observe: Callable[[float], None]) -> None:
        self._apply = apply
        self._observe = observe
        self._waiting: list[Reservation | Settlement] = []
        self._task: asyncio.Task[None] | None = None

    async def through(self, work: Reservation | Settlement) -> None:
        """Wait until the work is done. Raises what `apply` raised for it."""
        span = start_span(f"accounts {work.verb}", kind="internal") if traced() else None
        self._enqueue(work)
        failed = None
        try:
            await work.done
        except GatewayError as error:
            failed = type(error).__name__
            raise
        except asyncio.CancelledError:
            # What is on its way is not called back: a reservation that nobody waits for is given back.
            work.abandoned = True
            self._give_back(work)
            raise
        finally:
            end_span(span, failed)

    async def ended(self) -> None:
        """Wait until nothing is on its way."""
        while self._task is not None:
            await asyncio.wait([self._task])

    def _enqueue(self, work: Reservation | Settlement) -> None:
        self._waiting.append(work)
        if self._task is None:
            # In a context of nobody's: what it carries belongs to many exchanges, and to no one's trace.
            self._task = asyncio.create_task(self._flush(), context=Context())

    def _give_back(self, work: Reservation | Settlement) -> None:
        if isinstance(work, Reservation) and work.holds:
            self._enqueue(Settlement(work.holds, "voided", None, None, bound=False))

    async def _flush(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
                await self._settle(batch)
                for work in batch:
                    if work.abandoned:
                        self._give_back(work)
        finally:
            self._task = None

    async def _settle(self, batch: Works) -> None:
        batch = [work for work in batch if not work.abandoned or isinstance(work, Settlement)]
        if not batch:
            return
        self._observe(len(batch))
        try:
            await self._attempt(batch)
        except StoreUnavailable as error:
            for work in batch:
                work.fail(error)
        except (GatewayError, ValueError) as error:
            # A value of one of them cannot be stored: that one fails alone.
            if len(batch) == 1:
                batch[0].fail(error)
                return
            for work in batch:
                await self._settle([work])
        except BaseException as error:
            for work in batch:
                work.fail(error)
            raise
        else:
            for work in batch:
                work.succeed()

    async def _attempt(self, batch: Works) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await self._apply(batch)
                return
            except StoreBusy:
                if attempt == _ATTEMPTS:
                    raise
