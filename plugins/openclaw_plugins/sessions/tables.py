"""The tables of sessions and messages, as statements see them; migrations make them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Column, DateTime, MetaData, Table, Text, Uuid
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

_metadata = MetaData()
_TIME = DateTime(timezone=True)
_ID = Uuid(as_uuid=False)

sessions = Table(
    "openclaw_sessions",
    _metadata,
    Column("session_id", _ID, primary_key=True),
    Column("organization_id", Text, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("tier", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("message_count", BigInteger, nullable=False),
    Column("created_at", _TIME, nullable=False),
    Column("updated_at", _TIME, nullable=False),
    Column("expires_at", _TIME, nullable=False),
)

messages = Table(
    "openclaw_messages",
    _metadata,
    Column("message_id", _ID, primary_key=True),
    Column("session_id", _ID, nullable=False),
    Column("organization_id", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("role", Text, nullable=False),
    Column("content", JSON, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("timestamp", _TIME, primary_key=True),
)


class now(FunctionElement[datetime]):
    """The database's clock, in the form in which each dialect keeps a time."""

    type = _TIME
    inherit_cache = True


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: Any, **_: Any) -> str:
    return "now()"


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: Any, **_: Any) -> str:
    return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"
