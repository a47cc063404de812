"""Looks into the durable account that lock nothing; who changes what was found looks again under the lock."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import RowMapping, select
from sqlalchemy.ext.asyncio import AsyncConnection

from openclaw_plugins.accounts.ledger import COUNTS, PEEK, Key, Row
from openclaw_plugins.accounts.tables import holds


async def standing(connection: AsyncConnection, keys: Sequence[Key]) -> dict[Key, Row]:
    """Read usage rows without a lock."""
    found = await connection.execute(PEEK, {"keys": sorted(set(keys))})
    return {(row[0], row[1], row[2], row[3]): Row(row[4], row[5]) for row in found}


async def leases_of(connection: AsyncConnection, organization: str, meter: str, holder: str) -> Sequence[RowMapping]:
    """Find the standing leases of a holder."""
    found = await connection.execute(
        select(holds).where(
            holds.c.organization_id == organization,
            holds.c.meter == meter,
            holds.c.holder == holder,
            holds.c.kind == "lease",
            holds.c.state == "committed",
        )
    )
    return found.mappings().all()


async def overdue(connection: AsyncConnection, now: datetime, limit: int) -> Sequence[RowMapping]:
    """Find holds past their time, of any organisation."""
    found = await connection.execute(
        select(holds).where(COUNTS, holds.c.expires_at <= now).order_by(holds.c.expires_at).limit(limit)
    )
    return found.mappings().all()
