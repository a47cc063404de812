"""Keeps the monthly partitions of messages on PostgreSQL: the next ones stand ready, and the past ones go."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from openclaw_gateway.api import GatewayError, StoreUnavailable
from openclaw_plugins.database import schema
from openclaw_plugins.database.engines import Pools
from openclaw_plugins.database.retention import drop_past

_INTERVAL = 6 * 3600.0


class Partitions:
    """The partitions of one database. Any replica looks after them."""

    def __init__(
        self,
        sweeping: Callable[[], AbstractAsyncContextManager[AsyncConnection]],
        owning: Callable[[], Pools],
        *,
        retention: float | None,
        logger: logging.Logger,
    ) -> None:
        self._sweeping = sweeping
        self._owning = owning
        self._retention = retention
        self._logger = logger

    async def ensure(self) -> None:
        """Make this month's partition and the next ones where they are missing."""
        async with self._sweeping() as connection:
            await schema.ensure_partitions(connection)

    async def settle(self) -> None:
        """Make what is missing, for a start: what may wait for later is not worth a gateway that does not serve.

        Raises StoreUnavailable where a message of this month or the next would find no place.
        """
        try:
            await self.ensure()
        except StoreUnavailable as error:
            await self.probe()
            self._logger.warning("message partitions of later months are still to be made", exc_info=error)

    async def drop_past(self) -> list[str]:
        """Drop the months that the retention is over for; return the partitions that are gone."""
        if self._retention is None:
            return []
        pools = self._owning()
        try:
            return await drop_past(pools.maintenance, self._retention, self._logger)
        finally:
            await pools.close()

    async def probe(self) -> Mapping[str, Any]:
        """Raises StoreUnavailable where a message of this month or the next would find no place."""
        async with self._sweeping() as connection:
            missing = await schema.missing_partitions(connection)
        if missing:
            raise StoreUnavailable("database", f"no partition of openclaw_messages for {', '.join(missing)}")
        return {"months_ahead": schema.MONTHS_AHEAD}

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Look after them for as long as the block."""
        task = asyncio.create_task(self._keep())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _keep(self) -> None:
        while True:
            try:
                await self.ensure()
                await self.drop_past()
            except GatewayError as error:
                self._logger.warning("message partitions could not be looked after", exc_info=error)
            await asyncio.sleep(_INTERVAL)
