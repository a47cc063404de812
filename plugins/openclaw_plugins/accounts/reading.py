"""Looks into the durable account that lock nothing; who changes what was found looks again under the lock."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, RowMapping, and_, or_, select

from openclaw_gateway.api import Standing
from openclaw_plugins.accounts.ledger import COUNTS, aware, clock
from openclaw_plugins.accounts.tables import holds, now, usage
from openclaw_plugins.accounts.work import Key

_KEY = (usage.c.organization_id, usage.c.subject, usage.c.limit_name, usage.c.period)
_PEEK = select(*_KEY, usage.c.used + usage.c.held, now().label("now"))


def standing(connection: Connection, keys: Sequence[Key]) -> tuple[datetime | None, dict[Key, int]]:
    """Read what is used or held, without a lock, and the time; None where there is no row to read it with."""
    time = None
    found: dict[Key, int] = {}
    # not `(a, b) IN (...)`, for which SQLite reads the whole table
    rows = (and_(*(column == part for column, part in zip(_KEY, key, strict=True))) for key in sorted(set(keys)))
    for *key, used, then in connection.execute(_PEEK.where(or_(*rows))) if keys else ():
        found[tuple(key)] = used
        time = aware(then)
    return time, found


def leases_of(connection: Connection, organization: str, meter: str, holder: str) -> Sequence[RowMapping]:
    """Find the standing leases of a holder."""
    found = connection.execute(
        select(holds).where(
            holds.c.organization_id == organization,
            holds.c.meter == meter,
            holds.c.holder == holder,
            holds.c.kind == "lease",
            holds.c.state == "committed",
        )
    )
    return found.mappings().all()


def referring(connection: Connection, organization: str, reference: str) -> Sequence[RowMapping]:
    """Find the reservations that were made under a reference, however they ended."""
    found = connection.execute(
        select(holds).where(
            holds.c.organization_id == organization, holds.c.holder == reference, holds.c.kind == "quota"
        )
    )
    return found.mappings().all()


def overdue(connection: Connection, now: datetime, limit: int) -> Sequence[RowMapping]:
    """Find holds past their time, of any organisation."""
    found = connection.execute(
        select(holds).where(COUNTS, holds.c.expires_at <= now).order_by(holds.c.expires_at).limit(limit)
    )
    return found.mappings().all()


def present(connection: Connection) -> list[Standing]:
    """Read where every organisation stands in the periods that run now."""
    now = clock(connection)
    periods = ("lease", "session", now.strftime("%Y-%m"), now.strftime("%Y-%m-%d"))
    found = connection.execute(
        select(usage).where(usage.c.period.in_(periods), usage.c.used + usage.c.held > 0).order_by(*usage.primary_key)
    )
    return [
        Standing(
            organization=row["organization_id"],
            subject=row["subject"],
            limit=row["limit_name"],
            period=row["period"],
            tier=row["tier"],
            used=row["used"] + row["held"],
        )
        for row in found.mappings()
    ]
