"""The tables of the durable account, as statements see them; migrations make them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Column, DateTime, Integer, MetaData, Table, Text, Uuid
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

_metadata = MetaData()
_TIME = DateTime(timezone=True)

usage = Table(
    "openclaw_usage",
    _metadata,
    Column("organization_id", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("limit_name", Text, primary_key=True),
    Column("period", Text, primary_key=True),
    Column("used", BigInteger, nullable=False),
    Column("held", BigInteger, nullable=False),
    #: the tier under which it was last counted
    Column("tier", Text, nullable=False),
    #: how many of the two thresholds of a quota have been passed in this period
    Column("announced", Integer, nullable=False),
    Column("updated_at", _TIME, nullable=False),
)

holds = Table(
    "openclaw_holds",
    _metadata,
    Column("hold_id", Uuid(as_uuid=False), primary_key=True),
    Column("organization_id", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("limit_name", Text, nullable=False),
    Column("period", Text, nullable=False),
    Column("meter", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("holder", Text),
    Column("created_at", _TIME, nullable=False),
    Column("expires_at", _TIME, nullable=False),
)

#: thresholds that were passed and have to be told; one row for each organisation, subject, quota, period, threshold
quota_events = Table(
    "openclaw_quota_events",
    _metadata,
    Column("event_id", Uuid(as_uuid=False), primary_key=True),
    Column("organization_id", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("limit_name", Text, nullable=False),
    Column("period", Text, nullable=False),
    Column("threshold", Text, nullable=False),
    Column("scope", Text, nullable=False),
    Column("used", BigInteger, nullable=False),
    Column("allowed", BigInteger, nullable=False),
    Column("created_at", _TIME, nullable=False),
    Column("resets_at", _TIME),
    Column("claimed_until", _TIME),
    Column("delivered_at", _TIME),
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
