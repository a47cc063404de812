"""Knows which revision the schema has and should have, and brings one to the other.

Alembic is imported only where it has work to do: reading the revisions' own files tells a normal start enough.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncConnection

from openclaw_gateway.api import asset

if TYPE_CHECKING:
    from alembic.config import Config

#: monthly partitions of openclaw_messages that stand ready beside the current one
MONTHS_AHEAD = 3

_REVISION = re.compile(r'^revision\s*(?::[^=]+)?=\s*"([^"]+)"', re.MULTILINE)
_DOWN = re.compile(r'^down_revision\s*(?::[^=]+)?=\s*"([^"]+)"', re.MULTILINE)
_TABLES = (
    "openclaw_sessions",
    "openclaw_messages",
    "openclaw_skill_executions",
    "openclaw_api_keys",
    "openclaw_usage",
    "openclaw_holds",
    "openclaw_quota_events",
    "openclaw_idempotency",
)


class SchemaState(msgspec.Struct, frozen=True):
    """Which revisions a database has, and which this gateway needs and knows."""

    database: str
    current: frozenset[str]
    needed: frozenset[str]
    known: frozenset[str]

    @property
    def matches(self) -> bool:
        return self.current == self.needed

    @property
    def behind(self) -> bool:
        """Whether an upgrade mends it: everything that is there is known."""
        return self.current <= self.known

    def complaint(self) -> str:
        """Name what differs and the command that mends it."""
        found, needed = (", ".join(sorted(s)) or "no revision" for s in (self.current, self.needed))
        start = f"the schema of the database at {self.database} is at {found}, this gateway needs {needed}: "
        if self.behind:
            return start + "run `openclaw-gateway db upgrade`"
        return start + "a newer gateway made it, use that one; its `openclaw-gateway db check` tells more"


def known(folders: Sequence[Path]) -> set[str]:
    """Return every revision that the folders hold."""
    return {revision for source in _sources(folders) for revision in _REVISION.findall(source)}


def heads(folders: Sequence[Path]) -> set[str]:
    """Return the newest revision of each folder's line."""
    parents = {parent for source in _sources(folders) for parent in _DOWN.findall(source)}
    return known(folders) - parents


async def current(connection: AsyncConnection) -> set[str]:
    """Return the revisions that the database says it has; none where it is empty."""
    if not await connection.run_sync(lambda sync: inspect(sync).has_table("alembic_version")):
        return set()
    return set((await connection.execute(text("SELECT version_num FROM alembic_version"))).scalars())


async def upgrade(connection: AsyncConnection, folders: Sequence[Path], role: str | None = None) -> None:
    """Run what is missing, in the connection's transaction: all of it or nothing."""
    await _alone(connection)
    await connection.run_sync(_upgrade, folders)
    if connection.dialect.name == "postgresql":
        await ensure_partitions(connection)
        if role is not None:
            await _grant(connection, role)


async def downgrade(connection: AsyncConnection, folders: Sequence[Path], revision: str = "base") -> None:
    """Undo revisions down to `revision`, in the connection's transaction; their data is lost."""
    await _alone(connection)
    await connection.run_sync(_downgrade, folders, revision)


def undone(folders: Sequence[Path], found: Iterable[str], revision: str) -> list[tuple[str, str]]:
    """Return the revisions that a downgrade of such a database undoes, newest first, each with what it says it does.

    Raises ValueError for a revision that is not known, and for one that the database does not have.
    """
    from alembic.script import ScriptDirectory

    if revision not in known(folders):
        raise ValueError(f"there is no revision {revision!r}; there are {', '.join(sorted(known(folders)))}")
    script = ScriptDirectory.from_config(_alembic(None, folders))
    lines = [list(script.iterate_revisions(one, "base")) for one in found]
    for line in lines:
        names = [one.revision for one in line]
        if revision in names:
            return [(one.revision, one.doc) for one in line[: names.index(revision)]]
    raise ValueError(f"the database is at {', '.join(sorted(found)) or 'no revision'}, which comes before {revision!r}")


async def ensure_partitions(connection: AsyncConnection) -> None:
    """Create the partitions of this month and of the next ones where they are missing (PostgreSQL)."""
    # Almost every start finds them all and waits for nobody.
    if not await missing_partitions(connection, MONTHS_AHEAD):
        return
    # The function looks before it creates: of two callers at one moment, the second waits and then finds them there.
    await connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('openclaw_ensure_message_partitions'))"))
    # Only the lock of a table makes a session hear of tables that others have made: the function's own look is cached.
    await connection.execute(text("SELECT 1 FROM openclaw_messages LIMIT 0"))
    await connection.execute(text("SELECT openclaw_ensure_message_partitions(:ahead)"), {"ahead": MONTHS_AHEAD})


async def missing_partitions(connection: AsyncConnection, ahead: int = 1) -> list[str]:
    """Return the months, from this one to `ahead` later, that no partition stands for (PostgreSQL)."""
    rows = await connection.execute(
        text(
            "SELECT to_char(month, 'YYYY-MM') FROM (SELECT date_trunc('month', now() AT TIME ZONE 'UTC') + "
            "make_interval(months => later) AS month FROM generate_series(0, CAST(:ahead AS integer)) AS later) AS m "
            "WHERE to_regclass('openclaw_messages_' || to_char(month, 'YYYY_MM')) IS NULL ORDER BY month"
        ),
        {"ahead": ahead},
    )
    return list(rows.scalars())


async def _alone(connection: AsyncConnection) -> None:
    """Wait until nobody else changes the schema; SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        await connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('openclaw_schema'))"))


def _sources(folders: Sequence[Path]) -> list[str]:
    return [path.read_text() for folder in folders for path in sorted(folder.glob("*.py"))]


def _upgrade(connection: Connection, folders: Sequence[Path]) -> None:
    from alembic import command

    command.upgrade(_alembic(connection, folders), "heads")


def _downgrade(connection: Connection, folders: Sequence[Path], revision: str) -> None:
    from alembic import command

    command.downgrade(_alembic(connection, folders), revision)


def _alembic(connection: Connection | None, folders: Sequence[Path]) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", _option(asset("migrations")))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", "\n".join(_option(folder) for folder in folders))
    config.attributes["connection"] = connection
    return config


def _option(path: Path) -> str:
    return str(path).replace("%", "%%")


async def _grant(connection: AsyncConnection, role: str) -> None:
    # `role` is checked against a pattern of plain names where it is configured. Partitions get no grant of their
    # own: they are reached through the table whose policies hold.
    await connection.execute(text(f'GRANT SELECT, INSERT, UPDATE, DELETE ON {", ".join(_TABLES)} TO "{role}"'))
    # What was done is added to, and never changed.
    await connection.execute(text(f'GRANT SELECT, INSERT ON openclaw_audit TO "{role}"'))
    await connection.execute(text(f'GRANT SELECT ON alembic_version TO "{role}"'))
