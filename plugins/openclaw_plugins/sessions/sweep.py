"""Marks and deletes sessions whose time has come, and counts the living; nothing waits for it to be true."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from prometheus_client import Gauge, Histogram
from sqlalchemy import delete, func, select, update

from openclaw_gateway.api import Database, GatewayError, Host
from openclaw_plugins.sessions.rows import alive, clock
from openclaw_plugins.sessions.tables import sessions

_AT_ONCE = 500


class Sweep:
    """The background work of the session store."""

    def __init__(
        self, database: Database, host: Host, *, lifetime: Histogram, every: float, keep_expired: float
    ) -> None:
        self._database = database
        self._host = host
        self._lifetime = lifetime
        self._every = every
        self._keep_expired = timedelta(seconds=keep_expired)
        self._active = host.metric(
            Gauge,
            "sessions_active",
            "Active sessions, as last counted in the store",
            ("tier",),
            multiprocess_mode="max",
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.count()
        task = asyncio.create_task(self._keep_sweeping())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def expire(self) -> int:
        """Mark what has run out and delete what was kept long enough; return how many were marked."""
        marked = 0
        while True:
            ended = await self._expire_some()
            marked += ended
            if ended < _AT_ONCE:
                return marked

    async def count(self) -> None:
        """Read the number of active sessions of each tier from the store; of several workers, the first one does."""
        workers = self._host.workers
        if workers is not None and workers.index:
            return
        async with self._database.transaction(None, operation="select", table="openclaw_sessions") as connection:
            rows = await connection.execute(
                select(sessions.c.tier, func.count())
                .where(sessions.c.status == "active", alive())
                .group_by(sessions.c.tier)
            )
            counts: dict[str, int] = dict(rows.all())
        for tier in {*self._host.tiers, *counts}:
            self._active.labels(tier).set(counts.get(tier, 0))

    async def _expire_some(self) -> int:
        async with self._database.transaction(None, operation="sweep", table="openclaw_sessions") as connection:
            due = (
                select(sessions.c.session_id)
                .where(~alive(), sessions.c.status != "expired")
                .limit(_AT_ONCE)
                .with_for_update(skip_locked=True)
            )
            marked = await connection.execute(
                update(sessions)
                .where(sessions.c.session_id.in_(due.scalar_subquery()))
                .values(status="expired")
                .returning(sessions.c.tier, sessions.c.created_at, sessions.c.expires_at)
            )
            ended = marked.all()
            kept_until = await clock(connection) - self._keep_expired
            old = select(sessions.c.session_id).where(sessions.c.expires_at <= kept_until).limit(_AT_ONCE)
            await connection.execute(delete(sessions).where(sessions.c.session_id.in_(old.scalar_subquery())))
        for tier, created_at, expires_at in ended:
            self._lifetime.labels(tier).observe((expires_at - created_at).total_seconds())
        return len(ended)

    async def _keep_sweeping(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            try:
                await self.expire()
                await self.count()
            except GatewayError as error:
                self._host.logger.warning("sessions could not be swept", exc_info=error)
