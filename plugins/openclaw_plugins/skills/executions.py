"""The rows of runs: ended once, with their charge in the same transaction; by the reaper where nobody else did.

A run that its process did not end is never charged: its hold expires.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    MetaData,
    Table,
    Text,
    Uuid,
    and_,
    delete,
    insert,
    select,
    update,
)

from openclaw_gateway.api import Accounts, Clock, Database, ExecutionStatus, Hold, Refused, StoreUnavailable, not_found

_TIME = DateTime(timezone=True)
_ID = Uuid(as_uuid=False)
_NAME = "openclaw_skill_executions"
#: how long after its time-out a run may still be written down by the process that runs it
_MARGIN = 60.0
_PAUSES = (0.1, 0.5)

table = Table(
    _NAME,
    MetaData(),
    Column("execution_id", _ID, primary_key=True),
    Column("session_id", _ID),
    Column("organization_id", Text, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("skill_name", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("params", JSON, nullable=False),
    Column("result", JSON(none_as_null=True)),
    Column("error", Text),
    Column("idempotency_key", Text),
    Column("duration_ms", BigInteger),
    Column("started_at", _TIME, nullable=False),
    Column("finished_at", _TIME),
    Column("deadline_at", _TIME),
)
_OPEN = table.c.status.in_(("pending", "running"))
#: what of a session a run has to know: that it is there
_sessions = Table(
    "openclaw_sessions",
    MetaData(),
    Column("session_id", _ID, primary_key=True),
    Column("organization_id", Text, nullable=False),
)


class Executions:
    """Writes runs of skills down."""

    def __init__(self, database: Database, accounts: Accounts, clock: Clock) -> None:
        self._database = database
        self._accounts = accounts
        self._clock = clock

    async def begin(
        self,
        execution_id: str,
        *,
        organization: str,
        user: str,
        session_id: str | None,
        skill: str,
        params: Any,
        at_most: float,
    ) -> datetime:
        """Store the run as running. Raises Refused (404) where its session has gone meanwhile, and StoreUnavailable."""
        started_at = self._now()
        row = {
            "execution_id": execution_id,
            "session_id": session_id,
            "organization_id": organization,
            "user_id": user,
            "skill_name": skill,
            "status": "running",
            "params": params,
            "started_at": started_at,
            "deadline_at": started_at + timedelta(seconds=at_most + _MARGIN),
        }
        async with self._database.transaction(organization, operation="insert", table=_NAME) as connection:
            if session_id is not None:
                # A deletion that has begun is waited for, and one that comes now waits for the row.
                own = and_(_sessions.c.session_id == session_id, _sessions.c.organization_id == organization)
                there = select(_sessions.c.session_id).where(own).with_for_update(read=True, key_share=True)
                if (await connection.execute(there)).first() is None:
                    raise Refused(not_found("no such session"))
            await connection.execute(insert(table), row)
        return started_at

    async def end(
        self,
        execution_id: str,
        organization: str,
        *,
        status: ExecutionStatus,
        result: Any,
        error: str | None,
        duration_ms: int,
        holds: Sequence[Hold],
        counts: bool,
    ) -> None:
        """Store how the run ended, and with that its charge, where it `counts`; else give the charge back.

        Raises StoreUnavailable after some tries: the reaper ends the run then, and the holds expire.
        """
        change = (
            update(table)
            .where(and_(table.c.execution_id == execution_id, table.c.organization_id == organization, _OPEN))
            .values(status=status, result=result, error=error, duration_ms=duration_ms, finished_at=self._now())
        )
        for pause in (*_PAUSES, None):
            try:
                async with self._database.transaction(organization, operation="update", table=_NAME) as connection:
                    # A row that was ended by another, or went with its session, has been settled there.
                    counts = (await connection.execute(change)).rowcount == 1 and counts
                    if counts:
                        await self._accounts.commit(holds, transaction=connection)
                break
            except Refused:
                counts = False  # the charge was settled without us; how the run ended is still to be told
            except StoreUnavailable:
                if pause is None:
                    raise
                await asyncio.sleep(pause)
        if not counts:
            await self.forgive(holds)

    async def forgive(self, holds: Sequence[Hold]) -> None:
        """Give the charge of a run back. A store that does not answer lets it expire."""
        if holds:
            with suppress(StoreUnavailable):
                await self._accounts.void(holds)

    async def reap(self, keep: float) -> list[str]:
        """End the runs that nobody can be running any more; return their skills.

        Runs of no session, which no session takes with it, are deleted after `keep` seconds.
        """
        now = self._now()
        async with self._database.transaction(None, operation="sweep", table=_NAME) as connection:
            lost = await connection.execute(
                update(table)
                .where(_OPEN, table.c.deadline_at < now)
                .values(status="lost", error="the process that ran it has ended", finished_at=now)
                .returning(table.c.skill_name)
            )
            names = list(lost.scalars())
            await connection.execute(
                delete(table).where(
                    table.c.session_id.is_(None), ~_OPEN, table.c.started_at < now - timedelta(seconds=keep)
                )
            )
        return names

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.now(), UTC)
