"""Delivers the events that charges have left in the outbox, each by one replica at a time, at least once.

An event is claimed for a while, told, and marked. A replica that dies in between lets the claim run out, and
another one tells it again under the same key.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, RowMapping, bindparam, delete, or_, select, update

from openclaw_gateway.api import Database, GatewayError, Host, QuotaEvent
from openclaw_plugins.accounts.ledger import aware, clock
from openclaw_plugins.accounts.tables import quota_events as table

Listener = Callable[[QuotaEvent], Awaitable[None] | None]

_BATCH = 50
#: how long an event that was delivered is kept, for those who ask what was told
_KEPT = timedelta(days=40)
_MISANSWERED = (
    "plugins.%s: its hook 'on_quota_event' returned what it must not; found %s; expected None or an awaitable"
)
_OPEN = table.c.delivered_at.is_(None)
_MARK = update(table).where(table.c.event_id == bindparam("id")).values(delivered_at=bindparam("now"))


class Outbox:
    """Looks for events every `every` seconds, and at once when a charge of this replica has left one."""

    def __init__(self, database: Database, host: Host, *, every: float, claim: float) -> None:
        self._database = database
        self._host = host
        self._every = every
        self._claim = timedelta(seconds=claim)
        self._something = asyncio.Event()
        self._listeners: Sequence[tuple[str, Listener]] = ()

    def nudge(self) -> None:
        """Say that there is an event, or will be once its transaction is committed."""
        self._something.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Deliver in a task for as long as the block; without a listener there is none, and events wait for one."""
        self._listeners = [
            (id, plugin.on_quota_event) for id, plugin in self._host.plugins() if hasattr(plugin, "on_quota_event")
        ]
        task = asyncio.create_task(self._keep_delivering()) if self._listeners else None
        try:
            yield
        finally:
            if task is not None:
                task.cancel()
                await asyncio.wait([task])

    async def deliver(self) -> int:
        """Deliver what is there; return how many events were claimed."""
        claimed = await self._database.run(self._claimed, operation="sweep", table=table.name)
        told = [row["event_id"] for row in claimed if await self._tell(_event(row))]
        if told:
            await self._database.run(lambda sync: _marked(sync, told), operation="sweep", table=table.name)
        return len(claimed)

    def _claimed(self, connection: Connection) -> Sequence[RowMapping]:
        now = clock(connection)
        free = or_(table.c.claimed_until.is_(None), table.c.claimed_until <= now)
        next_ones = (
            select(table.c.event_id)
            .where(_OPEN, free)
            .order_by(table.c.created_at, table.c.event_id)
            .limit(_BATCH)
            .with_for_update(skip_locked=True)
        )
        claiming = update(table).where(table.c.event_id.in_(next_ones)).values(claimed_until=now + self._claim)
        rows = connection.execute(claiming.returning(table)).mappings().all()
        return sorted(rows, key=lambda row: (row["created_at"], row["event_id"]))

    async def _tell(self, event: QuotaEvent) -> bool:
        told = True
        for id, listener in self._listeners:
            extra = {"fields": {"event": event.key}}
            try:
                answer = listener(event)
                if inspect.isawaitable(answer):
                    async with asyncio.timeout(self._claim.total_seconds() / 2):
                        await answer
                elif answer is not None:
                    # Not told again: the next answer would be no other, and those who took the event hear it anew.
                    self._host.logger.error(_MISANSWERED, id, type(answer).__name__, extra=extra)
            except Exception as error:
                told = False
                text = "a quota event was not taken by the plugin %s"
                self._host.logger.error(text, id, exc_info=error, extra=extra)
        return told

    async def _keep_delivering(self) -> None:
        while True:
            try:
                while await self.deliver() == _BATCH:
                    pass
            except GatewayError as error:
                self._host.logger.warning("quota events could not be delivered", exc_info=error)
            self._something.clear()
            try:
                async with asyncio.timeout(self._every):
                    await self._something.wait()
                # the transaction that left it may still be open
                await asyncio.sleep(0.05)
            except TimeoutError:
                pass


def forget(connection: Connection, now: datetime) -> None:
    """Delete events that were delivered long ago."""
    connection.execute(delete(table).where(table.c.delivered_at < now - _KEPT))


def _marked(connection: Connection, ids: Sequence[str]) -> None:
    now = clock(connection)
    connection.execute(_MARK, [{"id": id, "now": now} for id in ids])


def _event(row: Any) -> QuotaEvent:
    return QuotaEvent(
        organization=row["organization_id"],
        subject=row["subject"],
        limit=row["limit_name"],
        period=row["period"],
        threshold=row["threshold"],
        scope=row["scope"],
        used=row["used"],
        allowed=row["allowed"],
        at=aware(row["created_at"]),
        resets_at=aware(row["resets_at"]) if row["resets_at"] is not None else None,
    )
