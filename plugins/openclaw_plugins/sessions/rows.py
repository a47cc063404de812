"""Between rows and what clients see: conditions, conversions, the database's clock."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import ColumnElement, and_, literal, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from openclaw_gateway.api import Message, Refused, Session, bad_request, not_found
from openclaw_plugins.sessions.tables import messages, now, sessions


def parsed(session_id: str) -> str:
    """Return the canonical form of a session id; whatever is no UUID names no session."""
    try:
        return str(UUID(session_id))
    except ValueError:
        raise Refused(not_found("no such session")) from None


def bounded(metadata: Mapping[str, Any], limit: int) -> None:
    """Refuse metadata that is larger than the store keeps."""
    size = len(msgspec.json.encode(metadata))
    if size > limit:
        raise Refused(bad_request(f"metadata: {size} bytes as JSON, at most {int(limit)}", param="metadata"))


def own(organization: str, id: str) -> ColumnElement[bool]:
    """A living session of the organisation."""
    return and_(sessions.c.session_id == id, sessions.c.organization_id == organization, alive())


def alive() -> ColumnElement[bool]:
    return sessions.c.expires_at > now()


def in_status(status: str | None) -> ColumnElement[bool]:
    """Sessions as a listing filters them: what has run out is expired, swept or not."""
    if status is None:
        return alive()
    if status == "expired":
        return sessions.c.expires_at <= now()
    return and_(sessions.c.status == status, alive())


def older(created_at: datetime, id: str) -> ColumnElement[bool]:
    """Sessions that come after this one, newest first."""
    place = tuple_(
        literal(created_at.astimezone(UTC), sessions.c.created_at.type), literal(id, sessions.c.session_id.type)
    )
    return tuple_(sessions.c.created_at, sessions.c.session_id) < place


def belonging(organization: str, id: str) -> tuple[ColumnElement[bool], ...]:
    """Messages of a session of the organisation."""
    return messages.c.session_id == id, messages.c.organization_id == organization


def session(row: Any, *, listed_as: str | None = None) -> Session:
    return Session(
        session_id=row["session_id"],
        organization_id=row["organization_id"],
        user_id=row["user_id"],
        tier=row["tier"],
        status="expired" if listed_as == "expired" else row["status"],
        metadata=row["metadata"],
        created_at=_aware(row["created_at"]),
        updated_at=_aware(row["updated_at"]),
        expires_at=_aware(row["expires_at"]),
    )


def message(row: Any) -> Message:
    return Message(
        message_id=row["message_id"],
        session_id=row["session_id"],
        role=row["role"],
        content=row["content"],
        timestamp=_aware(row["timestamp"]),
        metadata=row["metadata"],
    )


async def clock(connection: AsyncConnection) -> datetime:
    """Return the database's time."""
    found: datetime = (await connection.execute(select(now()))).scalar_one()
    return _aware(found)


def _aware(time: datetime) -> datetime:
    # SQLite keeps no time zone: what stands there is UTC
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
