"""The rows of `openclaw_api_keys`: reads and writes them, and never sees the text of a key."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import asyncpg

from openclaw_gateway.api import AuditEntry, Database, KeyRecord, UnknownKey
from openclaw_plugins.auth import audit
from openclaw_plugins.auth.tables import KEYS as _TABLE
from openclaw_plugins.auth.tables import keys as _keys

_FIND = sa.select(_keys).where(_keys.c.key_id == sa.bindparam("wanted"))
#: the same in PostgreSQL's words
_FIND_AT_ONCE = str(_FIND.compile(dialect=asyncpg.dialect()))  # type: ignore[no-untyped-call]
_COLUMNS = _keys.c.keys()
#: well under the number of parameters that a statement may have
_AT_ONCE = 500


class Stored(msgspec.Struct, frozen=True):
    """A record with the digest by which a key is checked, and the pepper that made it."""

    record: KeyRecord
    digest: bytes
    pepper_version: int


class KeyRecords:
    """The statements on the table. What changes a key is written with the audit entry that tells of it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, key_id: str) -> Stored | None:
        """Return one key; what every request waits for whose key was not shown a moment ago, so in one step."""
        if self._database.shared:
            rows = await self._database.statement(_FIND_AT_ONCE, (key_id,), operation="select", table=_TABLE)
            return _stored(dict(zip(_COLUMNS, rows[0], strict=True))) if rows else None

        def look(connection: sa.Connection) -> Stored | None:
            row = connection.execute(_FIND, {"wanted": key_id}).mappings().first()
            return _stored(dict(row)) if row is not None else None

        return await self._database.run(look, operation="select", table=_TABLE)

    async def in_force(self, key_ids: Collection[str], now: datetime) -> set[str]:
        """Return those of these keys that are neither revoked nor expired."""
        asked, good = list(key_ids), set[str]()
        async with self._database.transaction(None, operation="select", table=_TABLE) as connection:
            for start in range(0, len(asked), _AT_ONCE):
                statement = sa.select(_keys.c.key_id).where(
                    _keys.c.key_id.in_(asked[start : start + _AT_ONCE]),
                    _keys.c.revoked_at.is_(None),
                    sa.or_(_keys.c.expires_at.is_(None), _keys.c.expires_at > now),
                )
                good.update((await connection.execute(statement)).scalars())
        return good

    async def listed(self, organization: str | None, limit: int | None, after: str | None) -> Sequence[KeyRecord]:
        """Return the records of an organisation, or of all, newest first. Raises UnknownKey."""
        statement = sa.select(_keys).order_by(_keys.c.created_at.desc(), _keys.c.key_id.desc()).limit(limit)
        if organization is not None:
            statement = statement.where(_keys.c.organization_id == organization)
        async with self._database.transaction(None, operation="select", table=_TABLE) as connection:
            if after is not None:
                place = sa.select(_keys.c.created_at).where(_keys.c.key_id == after)
                if organization is not None:
                    place = place.where(_keys.c.organization_id == organization)
                at = (await connection.execute(place)).scalar()
                if at is None:
                    raise UnknownKey(f"no key {after!r}")
                same = sa.and_(_keys.c.created_at == at, _keys.c.key_id < after)
                statement = statement.where(sa.or_(_keys.c.created_at < at, same))
            rows = (await connection.execute(statement)).mappings().all()
        return [_stored(dict(row)).record for row in rows]

    async def is_empty(self) -> bool:
        async with self._database.transaction(None, operation="select", table=_TABLE) as connection:
            return (await connection.execute(sa.select(_keys.c.key_id).limit(1))).first() is None

    async def has_live(self, name: str) -> bool:
        """Say whether a key of this name is not revoked."""
        statement = sa.select(_keys.c.key_id).where(_keys.c.name == name, _keys.c.revoked_at.is_(None))
        async with self._database.transaction(None, operation="select", table=_TABLE) as connection:
            return (await connection.execute(statement.limit(1))).first() is not None

    async def add(self, new: Stored, entry: AuditEntry) -> None:
        async with self._database.transaction(None, operation="insert", table=_TABLE) as connection:
            await connection.execute(sa.insert(_keys).values(_values(new)))
            await audit.write(connection, entry)

    async def replace(self, key_id: str, new: Stored, entry: AuditEntry, *, expires_at: datetime) -> bool:
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
                await audit.write(connection, entry)
        except _Overtaken:
            return False
        return True

    async def revoke(self, key_id: str, entry: AuditEntry) -> None:
        """Revoke a key; of several times the first is kept, and told of."""
        statement = sa.update(_keys).where(_keys.c.key_id == key_id, _keys.c.revoked_at.is_(None))
        async with self._database.transaction(None, operation="update", table=_TABLE) as connection:
            if (await connection.execute(statement.values(revoked_at=entry.at))).rowcount > 0:
                await audit.write(connection, entry)

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


def _stored(row: Mapping[str, Any]) -> Stored:
    fields = {name: row[name] for name in KeyRecord.__struct_fields__}
    for name, value in fields.items():
        if isinstance(value, datetime) and value.tzinfo is None:
            fields[name] = value.replace(tzinfo=UTC)  # SQLite keeps no zone; what is written there is UTC
    fields["scopes"] = tuple(row["scopes"])
    return Stored(KeyRecord(**fields), bytes(row["digest"]), row["pepper_version"])
