"""The rows of `openclaw_api_keys`: reads and writes them, and never sees the text of a key."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from openclaw_gateway.api import Database

_TABLE = "openclaw_api_keys"

_keys = sa.Table(
    _TABLE,
    sa.MetaData(),
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


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored of a key, but for its digest. Times are in UTC."""

    key_id: str
    organization_id: str
    user_id: str
    tier: str
    scopes: tuple[str, ...] = ()
    name: str | None = None
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None
    replaced_by: str | None = None

    def state(self, now: datetime) -> Literal["active", "expired", "revoked"]:
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"


class IssuedKey(msgspec.Struct, frozen=True, kw_only=True):
    """A new key with its text, which cannot be had again."""

    key: str
    record: KeyRecord

    def __repr__(self) -> str:
        return f"IssuedKey({self.record.key_id})"


class Stored(msgspec.Struct, frozen=True):
    """A record with the digest by which a key is checked, and the pepper that made it."""

    record: KeyRecord
    digest: bytes
    pepper_version: int


class KeyRecords:
    """The statements on the table, each in a transaction of its own unless it is given several to do."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, key_id: str) -> Stored | None:
        async with self._database.transaction(None, operation="select", table=_TABLE) as connection:
            row = (await connection.execute(sa.select(_keys).where(_keys.c.key_id == key_id))).mappings().first()
        return _stored(row) if row is not None else None

    async def in_force(self, key_ids: Collection[str], now: datetime) -> set[str]:
        """Return those of these keys that are neither revoked nor expired."""
        statement = sa.select(_keys.c.key_id).where(
            _keys.c.key_id.in_(key_ids),
            _keys.c.revoked_at.is_(None),
            sa.or_(_keys.c.expires_at.is_(None), _keys.c.expires_at > now),
        )
        async with self._database.transaction(None, operation="select", table=_TABLE) as connection:
            return set((await connection.execute(statement)).scalars())

    async def all(self, organization: str | None = None) -> Sequence[KeyRecord]:
        """Return the records of an organisation, or of all, newest first."""
        statement = sa.select(_keys).order_by(_keys.c.created_at.desc(), _keys.c.key_id)
        if organization is not None:
            statement = statement.where(_keys.c.organization_id == organization)
        async with self._database.transaction(None, operation="select", table=_TABLE) as connection:
            rows = (await connection.execute(statement)).mappings().all()
        return [_stored(row).record for row in rows]

    async def is_empty(self) -> bool:
        async with self._database.transaction(None, operation="select", table=_TABLE) as connection:
            return (await connection.execute(sa.select(_keys.c.key_id).limit(1))).first() is None

    async def has_live(self, name: str) -> bool:
        """Say whether a key of this name is not revoked."""
        statement = sa.select(_keys.c.key_id).where(_keys.c.name == name, _keys.c.revoked_at.is_(None))
        async with self._database.transaction(None, operation="select", table=_TABLE) as connection:
            return (await connection.execute(statement.limit(1))).first() is not None

    async def add(self, new: Stored) -> None:
        async with self._database.transaction(None, operation="insert", table=_TABLE) as connection:
            await connection.execute(sa.insert(_keys).values(_values(new)))

    async def replace(self, key_id: str, new: Stored, *, expires_at: datetime) -> bool:
        """Store a key's successor and end the key at `expires_at`, both or neither; False where it has one already."""
        ends = sa.case((_keys.c.expires_at < expires_at, _keys.c.expires_at), else_=expires_at)
        statement = (
            sa.update(_keys)
            .where(_keys.c.key_id == key_id, _keys.c.revoked_at.is_(None), _keys.c.replaced_by.is_(None))
            .values(replaced_by=new.record.key_id, expires_at=ends)
        )
        try:
            async with self._database.transaction(None, operation="update", table=_TABLE) as connection:
                await connection.execute(sa.insert(_keys).values(_values(new)))
                if (await connection.execute(statement)).rowcount == 0:
                    raise _Overtaken
        except _Overtaken:
            return False
        return True

    async def revoke(self, key_id: str, now: datetime) -> bool:
        """Revoke a key, keeping the first time of several; False where it is unknown."""
        statement = (
            sa.update(_keys)
            .where(_keys.c.key_id == key_id)
            .values(revoked_at=sa.func.coalesce(_keys.c.revoked_at, sa.literal(now, sa.DateTime(timezone=True))))
        )
        async with self._database.transaction(None, operation="update", table=_TABLE) as connection:
            return (await connection.execute(statement)).rowcount > 0

    async def touch(self, used: Mapping[str, datetime]) -> None:
        """Write when keys were last used."""
        statement = (
            sa.update(_keys)
            .where(_keys.c.key_id == sa.bindparam("used_id"))
            .values(last_used_at=sa.bindparam("used_at", type_=sa.DateTime(timezone=True)))
        )
        async with self._database.transaction(None, operation="update", table=_TABLE) as connection:
            await connection.execute(statement, [{"used_id": id, "used_at": at} for id, at in used.items()])


class _Overtaken(Exception):
    """Leaves a transaction whose key was rotated or revoked by someone else meanwhile."""


def _values(new: Stored) -> dict[str, Any]:
    values: dict[str, Any] = msgspec.structs.asdict(new.record)
    return {**values, "scopes": list(new.record.scopes), "digest": new.digest, "pepper_version": new.pepper_version}


def _stored(row: sa.RowMapping) -> Stored:
    fields = {name: row[name] for name in KeyRecord.__struct_fields__}
    for name, value in fields.items():
        if isinstance(value, datetime) and value.tzinfo is None:
            fields[name] = value.replace(tzinfo=UTC)  # SQLite keeps no zone; what is written there is UTC
    fields["scopes"] = tuple(row["scopes"])
    return Stored(KeyRecord(**fields), bytes(row["digest"]), row["pepper_version"])
