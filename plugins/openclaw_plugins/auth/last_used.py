"""Keeps when keys were last used, and writes it now and then; a request never waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from openclaw_gateway.api import Clock, StoreUnavailable
from openclaw_plugins.auth.records import KeyRecords


class LastUsed:
    """Times of last use that are not written yet; at most one a key."""

    __slots__ = ("_clock", "_logger", "_records", "_used")

    def __init__(self, records: KeyRecords, clock: Clock, logger: logging.Logger) -> None:
        self._records = records
        self._clock = clock
        self._logger = logger
        self._used: dict[str, float] = {}

    def note(self, key_id: str) -> None:
        self._used[key_id] = self._clock.now()

    @asynccontextmanager
    async def written(self, every: float) -> AsyncIterator[None]:
        """Write every so many seconds, and once more at the end."""
        writer = asyncio.create_task(self._write(every))
        try:
            yield
        finally:
            writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writer
            await self.flush()

    async def flush(self) -> None:
        """Write what is noted; what cannot be written stays noted."""
        used, self._used = self._used, {}
        if not used:
            return
        try:
            await self._records.touch({id: datetime.fromtimestamp(at, UTC) for id, at in used.items()})
        except StoreUnavailable as error:
            self._used = {**used, **self._used}
            self._logger.warning("times of last use were not written", extra={"fields": {"store": error.store}})

    async def _write(self, every: float) -> None:
        while True:
            await asyncio.sleep(every)
            await self.flush()
