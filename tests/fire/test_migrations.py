"""Revisions of the tables are applied to PostgreSQL while somebody writes: no write fails, and none waits for long.

A gateway is served by the revisions that it knows, so who writes here are plain clients of the database, who know only
what stood before the revision: that is what replicas of the version before do while the new one migrates.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import asyncpg
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from contracts.conftest import Stores
from servers import Postgres

from openclaw_plugins.database import schema

from .watch import Recorder, counts

WRITERS = 4
SESSION = (
    "INSERT INTO openclaw_sessions (session_id, organization_id, user_id, tier, status, metadata, created_at, "
    "updated_at, expires_at) VALUES (gen_random_uuid(), 'acme', 'u', 't', 'active', '{}', now(), now(), "
    "now() + interval '1 day') RETURNING session_id"
)
MESSAGE = (
    "INSERT INTO openclaw_messages (message_id, session_id, organization_id, seq, role, content, metadata, timestamp) "
    "VALUES (gen_random_uuid(), $1, 'acme', 1, 'user', '\"x\"', '{}', now())"
)


class Writer:
    """Writes a session and its message in one transaction, again and again."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.written = 0
        self.slowest = 0.0
        self.failed: list[str] = []

    async def run(self, stop: asyncio.Event) -> None:
        connection = await asyncpg.connect(self._url)
        while not stop.is_set():
            begun = time.monotonic()
            try:
                async with connection.transaction():
                    await connection.execute("SELECT set_config('app.organization', 'acme', true)")
                    session = await connection.fetchval(SESSION)
                    await connection.execute(MESSAGE, session)
                self.written += 1
            except asyncpg.PostgresError as error:
                self.failed.append(f"{type(error).__name__}: {error}")
            self.slowest = max(self.slowest, time.monotonic() - begun)
            await asyncio.sleep(0.002)
        await connection.close()


async def to(stores: Stores, revision: str) -> None:
    """One revision, in a transaction of its own, as `db upgrade` does with all that are missing."""
    folders = stores.database.migration_folders()

    async with stores.database.owner() as connection:
        await connection.run_sync(lambda sync: command.upgrade(schema._alembic(sync, folders), revision))


@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("rounds", counts(1, 20))
async def test_revisions_are_applied_while_somebody_writes(
    rounds: int, postgres: Postgres, tmp_path: Path, record_property: Recorder
) -> None:
    applied = written = 0
    slowest = 0.0
    failed: list[str] = []
    for number in range(rounds):
        name = postgres.create()
        folder = tmp_path / str(number)
        stores = Stores(folder, {"url": postgres.url(name)}, {})
        folders = stores.database.migration_folders()
        script = ScriptDirectory(str(folders[0].parent))
        revisions = [revision.revision for revision in script.walk_revisions()][::-1]
        await to(stores, revisions[0])
        async with stores.database.owner() as connection:
            await schema.ensure_partitions(connection)
        stop = asyncio.Event()
        writers = [Writer(postgres.url(name)) for _ in range(WRITERS)]
        tasks = [asyncio.create_task(writer.run(stop)) for writer in writers]
        for revision in revisions[1:]:
            before = sum(writer.written for writer in writers)
            await to(stores, revision)
            applied += 1
            async with asyncio.timeout(30):
                while sum(writer.written for writer in writers) < before + 20 and not any(w.failed for w in writers):
                    await asyncio.sleep(0.01)
        stop.set()
        await asyncio.gather(*tasks)
        assert (await stores.database.schema_state()).matches
        counted = int(postgres.sql("SELECT count(*) FROM openclaw_messages", name))
        written += sum(writer.written for writer in writers)
        assert counted == sum(writer.written for writer in writers)
        slowest = max(slowest, *(writer.slowest for writer in writers))
        failed += [error for writer in writers for error in writer.failed]
        postgres.drop(name)
    record_property("revisions applied under writes", applied)
    record_property("transactions meanwhile", written)
    record_property("failed", len(failed))
    record_property("worst wait of a transaction, s", round(slowest, 2))
    assert not failed, failed[:5]
    assert slowest < 2
