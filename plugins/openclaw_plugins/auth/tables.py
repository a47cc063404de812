"""The tables of keys and of what was done to them, as statements name them; Alembic makes them, never this."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

KEYS: Final = "openclaw_api_keys"
AUDIT: Final = "openclaw_audit"

metadata = sa.MetaData()

keys = sa.Table(
    KEYS,
    metadata,
    sa.Column("key_id", sa.String, primary_key=True),
    sa.Column("organization_id", sa.String, nullable=False),
    sa.Column("user_id", sa.String, nullable=False),
    sa.Column("tier", sa.String, nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("pepper_version", sa.Integer, nullable=False),
    sa.Column("name", sa.String),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("expires_at", sa.DateTime(timezone=True)),
    sa.Column("last_used_at", sa.DateTime(timezone=True)),
    sa.Column("revoked_at", sa.DateTime(timezone=True)),
    sa.Column("replaced_by", sa.String),
)

audit = sa.Table(
    AUDIT,
    metadata,
    sa.Column("audit_id", sa.Uuid(as_uuid=False), primary_key=True),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("actor", sa.String, nullable=False),
    sa.Column("action", sa.String, nullable=False),
    sa.Column("organization_id", sa.String, nullable=False),
    sa.Column("key_id", sa.String, nullable=False),
    sa.Column("request_id", sa.String),
    sa.Column("details", sa.JSON, nullable=False),
)
