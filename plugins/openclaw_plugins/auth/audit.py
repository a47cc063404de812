"""The rows of `openclaw_audit`: who did what to which key.

An entry is written with its deed, in one transaction, and never holds a secret.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import uuid7

from openclaw_gateway.api import AuditEntry, By, Database, KeyRecord, Page, Refused, bad_request
from openclaw_plugins.auth import tables

Action = Literal["key.create", "key.rotate", "key.revoke"]


def deed(action: Action, key: KeyRecord, by: By, at: datetime, **details: Any) -> AuditEntry:
    """Say that `by` did this to `key`."""
    return AuditEntry(
        audit_id=str(uuid7()),
        at=at,
        actor=by.actor,
        action=action,
        organization_id=key.organization_id,
        key_id=key.key_id,
        request_id=by.request_id,
        details=details,
    )


def grants(key: KeyRecord) -> dict[str, Any]:
    """What a key may do, for the entry that tells of its making."""
    return {
        "userId": key.user_id,
        "tier": key.tier,
        "scopes": list(key.scopes),
        "name": key.name,
        "expiresAt": None if key.expires_at is None else key.expires_at.isoformat().replace("+00:00", "Z"),
    }


async def write(connection: AsyncConnection, entry: AuditEntry) -> None:
    """Write an entry in the transaction of the deed: neither is kept without the other."""
    values: dict[str, Any] = msgspec.structs.asdict(entry)
    await connection.execute(sa.insert(tables.audit).values({**values, "details": dict(entry.details)}))


async def page(database: Database, organization: str | None, *, limit: int, cursor: str | None) -> Page:
    """Return entries, newest first. Raises Refused for a cursor that is none."""
    statement = sa.select(tables.audit).order_by(tables.audit.c.audit_id.desc()).limit(limit + 1)
    if organization is not None:
        statement = statement.where(tables.audit.c.organization_id == organization)
    if cursor is not None:
        statement = statement.where(tables.audit.c.audit_id < _place(cursor))
    async with database.transaction(None, operation="select", table=tables.AUDIT) as connection:
        rows = (await connection.execute(statement)).mappings().all()
    entries = [_entry(row) for row in rows[:limit]]
    return Page(entries, entries[-1].audit_id if len(rows) > limit else None)


def _place(cursor: str) -> str:
    try:
        return str(uuid.UUID(cursor))
    except ValueError:
        raise Refused(bad_request("cursor: not one that this listing gave", param="cursor")) from None


def _entry(row: sa.RowMapping) -> AuditEntry:
    at: datetime = row["at"]
    # SQLite keeps no zone; what is written there is UTC
    return AuditEntry(**{**dict(row), "at": at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)})
