"""The database plugin: schema and revisions, isolation, faults, pools."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import aiosqlite
import asyncpg
import msgspec
import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry
from servers import Postgres, start_postgres
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from openclaw_gateway.api import Database, Host, Refused, Secret, StartFailed, StoreBusy, StoreUnavailable, SystemClock
from openclaw_gateway.config.document import Document, GatewaySettings
from openclaw_gateway.testing import build, configuration
from openclaw_plugins.database import engines, schema
from openclaw_plugins.database.commands import db
from openclaw_plugins.database.engines import location, made_private
from openclaw_plugins.database.faults import Fault
from openclaw_plugins.database.pool import SqlDatabase

TABLES = {
    "openclaw_quota_events",
    "openclaw_idempotency",
    "openclaw_sessions",
    "openclaw_messages",
    "openclaw_skill_executions",
    "openclaw_api_keys",
    "openclaw_usage",
    "openclaw_holds",
    "openclaw_audit",
}
INDEXES = {
    "idx_sessions_org",
    "idx_sessions_status",
    "idx_sessions_expires",
    "idx_messages_session",
    "idx_messages_timestamp",
    "idx_executions_session",
    "idx_executions_skill",
    "idx_executions_status",
    "idx_audit_org",
    "idx_api_keys_created",
    "idx_holds_counting",
    "idx_holds_resolved",
    "idx_holds_holder",
    "idx_quota_events_open",
    "idx_idempotency_expires",
    "idx_idempotency_claim",
}
SESSION = (
    "INSERT INTO openclaw_sessions (session_id, organization_id, user_id, tier, status, metadata, created_at, "
    "updated_at, expires_at) VALUES ('{id}', '{org}', 'u', 't', '{status}', '{{}}', "
    "CURRENT_TIMESTAMP, CURRENT_TIMESTAMP, CURRENT_TIMESTAMP)"
)


def database(folder: Path, **config: Any) -> SqlDatabase:
    given = {**config, "url": Secret(config["url"])} if "url" in config else config
    host = Host(
        "database",
        document=Document(gateway=GatewaySettings(pipeline=())),
        config_dir=folder,
        tiers={},
        instances={},
        registry=CollectorRegistry(),
        metrics={},
        clock=SystemClock(),
    )
    return SqlDatabase(SqlDatabase.Config(**given), host)


@pytest.fixture(params=["sqlite", "postgresql"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """An empty database."""
    if request.param == "sqlite":
        yield {"url": f"sqlite:///{tmp_path}/a b%20c.db"}
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    name = postgres.create()
    yield {"url": postgres.url(name)}
    postgres.drop(name)


async def names(store: SqlDatabase, kind: str) -> set[str]:
    queries = {
        ("sqlite", "table"): "SELECT name FROM sqlite_master WHERE type = 'table'",
        ("sqlite", "index"): "SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL",
        ("postgresql", "table"): "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relname ~ '^openclaw' "
        "AND NOT relispartition",
        ("postgresql", "index"): "SELECT c.relname FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid JOIN "
        "pg_class t ON t.oid = i.indrelid WHERE t.relname ~ '^openclaw' AND NOT c.relispartition AND "
        "NOT EXISTS (SELECT 1 FROM pg_constraint WHERE conindid = c.oid)",
    }
    async with store.owner() as connection:
        return set((await connection.execute(text(queries[store.dialect, kind]))).scalars())


async def test_up_and_down_and_up_again(config: dict[str, Any], tmp_path: Path) -> None:
    store = database(tmp_path, **config)
    assert isinstance(store, Database)
    await store.upgrade()
    assert await names(store, "table") >= TABLES
    assert await names(store, "index") == INDEXES
    assert (await store.schema_state()).matches
    async with store.owner() as connection:
        await schema.downgrade(connection, store.migration_folders())
    assert not TABLES & await names(store, "table")
    await store.upgrade()
    await store.upgrade()
    assert await names(store, "table") >= TABLES
    async with store.lifespan():
        pass


async def test_revisions_read_from_the_files_are_alembics(tmp_path: Path) -> None:
    from alembic.script import ScriptDirectory

    folders = database(tmp_path).migration_folders()
    script = ScriptDirectory(str(folders[0].parent))
    assert schema.heads(folders) == set(script.get_heads())
    assert schema.known(folders) == {revision.revision for revision in script.walk_revisions()}


async def test_a_start_refuses_a_schema_that_does_not_match(config: dict[str, Any], tmp_path: Path) -> None:
    store = database(tmp_path, **config)
    with pytest.raises(StartFailed, match=r"no revision.*openclaw-gateway db upgrade"):
        async with store.lifespan():
            pass
    await store.upgrade()
    async with store.owner() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StartFailed, match=r"9999.*newer gateway"):
        async with database(tmp_path, **config, auto_upgrade=True).lifespan():
            pass


async def test_checks_and_foreign_keys_hold(config: dict[str, Any], tmp_path: Path) -> None:
    store = database(tmp_path, **config, auto_upgrade=True)
    id = "0190b0e0-0000-7000-8000-000000000000"
    wrong = [
        SESSION.format(id=id, org="a", status="asleep"),
        "INSERT INTO openclaw_messages (message_id, session_id, organization_id, seq, role, content, metadata, "
        f"timestamp) VALUES ('{id}', '{id}', 'a', 1, 'user', '1', '1', CURRENT_TIMESTAMP)",
        "INSERT INTO openclaw_usage (organization_id, subject, limit_name, period, used, updated_at) "
        "VALUES ('a', '-', 'x', '2026-01', -1, CURRENT_TIMESTAMP)",
    ]
    async with store.lifespan():
        for statement in wrong:
            with pytest.raises(Fault) as error:
                async with store.transaction("a", operation="insert", table="t") as connection:
                    await connection.execute(text(statement))
            assert "openclaw" not in str(error.value)


async def test_the_embedded_default_upgrades_itself_and_is_private(tmp_path: Path) -> None:
    store = database(tmp_path)
    async with store.lifespan():
        async with store.transaction(None, operation="insert", table="t") as connection:
            await connection.execute(text(SESSION.format(id="x", org="a", status="active")))
        for file in tmp_path.joinpath(".openclaw").iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name
    modes = sqlite3.connect(tmp_path / ".openclaw/gateway.db")
    assert modes.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    modes.close()


async def test_a_normal_start_does_not_import_alembic(tmp_path: Path) -> None:
    async with database(tmp_path).lifespan():
        pass
    program = (
        "import asyncio, sys, pathlib; sys.path.insert(0, 'tests/plugins'); import test_database as t\n"
        "async def main():\n"
        "    async with t.database(pathlib.Path(sys.argv[1])).lifespan(): pass\n"
        "asyncio.run(main()); sys.exit('alembic' in sys.modules)"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path), env={**os.environ, "PYTHONPATH": "tests"}
    )
    assert await process.wait() == 0


async def test_sqlite_writers_queue_and_readers_cannot_write(tmp_path: Path) -> None:
    store = database(tmp_path)
    async with store.lifespan():

        async def add(i: int) -> None:
            async with store.transaction("a", operation="update", table="t") as connection:
                found = (await connection.execute(text("SELECT count(*) FROM openclaw_sessions"))).scalar_one()
                await connection.execute(text(SESSION.format(id=f"{i}", org=f"n{found}", status="active")))

        await asyncio.gather(*(add(i) for i in range(50)))
        async with store.transaction("a", operation="select", table="t") as connection:
            orgs = set((await connection.execute(text("SELECT organization_id FROM openclaw_sessions"))).scalars())
        assert orgs == {f"n{i}" for i in range(50)}
        with pytest.raises(StoreUnavailable):
            async with store.transaction("a", operation="select", table="t") as connection:
                await connection.execute(text("DELETE FROM openclaw_sessions"))


async def test_a_look_that_was_cut_short_keeps_no_snapshot_on_sqlite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its traceback is kept, its statement is too; the log of changes must be written back all the same."""
    store = database(tmp_path)
    plain, looked = aiosqlite.Cursor.execute, asyncio.Event()

    async def execute(cursor: Any, statement: str, *more: Any) -> Any:
        found = await plain(cursor, statement, *more)
        if "recursive" in statement:
            looked.set()
            await asyncio.sleep(30)
        return found

    async def look() -> None:
        async with store.transaction(None, operation="select", table="t") as connection:
            numbers = "WITH recursive n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 9)"
            await connection.execute(text(f"{numbers} SELECT i, name FROM n, sqlite_master"))

    async with store.lifespan():
        monkeypatch.setattr(aiosqlite.Cursor, "execute", execute)
        looking = asyncio.create_task(look())
        await looked.wait()
        looking.cancel()
        with pytest.raises(asyncio.CancelledError) as kept:
            await looking
        async with store.transaction(None, operation="insert", table="t") as connection:
            await connection.execute(text(SESSION.format(id=uuid.uuid4().hex, org="a", status="active")))
        with closing(sqlite3.connect(tmp_path / ".openclaw/gateway.db", timeout=1)) as other:
            busy, *_ = other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    assert kept.value is not None
    assert not busy


async def test_an_exhausted_pool_is_busy_and_health_still_answers(config: dict[str, Any], tmp_path: Path) -> None:
    store = database(tmp_path, **config, auto_upgrade=True, pool_size=1, pool_timeout=0.2)
    async with store.lifespan():
        async with store.transaction("a", operation="update", table="t") as connection:
            await connection.execute(text("SELECT 1"))
            with pytest.raises(StoreBusy):
                async with store.transaction("a", operation="update", table="t"):
                    pass
            for check in store.health():
                await asyncio.wait_for(check.probe(), 0.5)
        async with store.transaction("a", operation="update", table="t"):
            pass
    registry = store._host.registry
    labels = {"operation": "update", "error_type": "pool_exhausted"}
    assert registry.get_sample_value("database_errors_total", labels) == 1
    labels = {"operation": "update", "table": "t"}
    assert registry.get_sample_value("database_query_duration_seconds_count", labels) == 3


async def test_a_connection_that_is_kept_is_nobodys_and_is_given_up_to_who_waits(
    config: dict[str, Any], tmp_path: Path
) -> None:
    store = database(tmp_path, **config, auto_upgrade=True, pool_size=1, pool_timeout=30)
    pool = "main" if store.shared else "writer"

    def active() -> float | None:
        return store._host.registry.get_sample_value("database_connections_active", {"pool": pool})

    async def work(rounds: int) -> None:
        for number in range(rounds):
            async with store.transaction("a", operation="update", table="t") as connection:
                assert active() == 1
                await connection.execute(text("SELECT 1"))
            await asyncio.sleep(0 if number % 3 else 0.001)  # others are waiting by then, or nobody

    async with store.lifespan():
        await work(2)
        assert active() == 0
        async with asyncio.timeout(10):
            await asyncio.gather(*(work(20) for _ in range(8)))
            for fails in range(2):
                with pytest.raises(LookupError):
                    async with store.transaction("a", operation="update", table="t"):
                        raise LookupError
                await work(1 + fails)
        assert active() == 0


async def test_what_sweeps_have_done_with_keeps_no_probe_waiting(config: dict[str, Any], tmp_path: Path) -> None:
    store = database(tmp_path, **config, auto_upgrade=True, pool_size=1, pool_timeout=30)

    at_once = 2 if store.shared else 1

    async def sweep(all_there: asyncio.Barrier) -> None:
        async with store.transaction(None, operation="sweep", table="t") as connection:
            await connection.execute(text("SELECT 1"))
            await all_there.wait()

    async with store.lifespan(), asyncio.timeout(10):
        for _ in range(2):
            all_there = asyncio.Barrier(at_once)
            await asyncio.gather(*(sweep(all_there) for _ in range(at_once)))
            for check in store.health():
                await check.probe()


async def test_values_that_cannot_be_stored_are_refused(config: dict[str, Any], tmp_path: Path) -> None:
    store = database(tmp_path, **config, auto_upgrade=True)
    async with store.lifespan():
        values: list[Any] = [2**70, "lone \ud800"] + (["nul \x00"] if store.shared else [])
        for value in values:
            column = "message_count" if isinstance(value, int) else "user_id"
            with pytest.raises(Refused) as error:
                async with store.transaction("a", operation="update", table="t") as connection:
                    await connection.execute(text(f"UPDATE openclaw_sessions SET {column} = :value"), {"value": value})
            assert error.value.refusal.status == 400


async def test_a_transaction_that_fails_or_is_cancelled_leaves_nothing(config: dict[str, Any], tmp_path: Path) -> None:
    store = database(tmp_path, **config, auto_upgrade=True, pool_size=2)
    id = "0190b0e0-0000-7000-8000-000000000000"
    async with store.lifespan():

        async def write(ready: asyncio.Event) -> None:
            async with store.transaction("a", operation="insert", table="t") as connection:
                await connection.execute(text(SESSION.format(id=id, org="a", status="active")))
                ready.set()
                await asyncio.sleep(60)

        for _ in range(5):
            ready = asyncio.Event()
            task = asyncio.create_task(write(ready))
            await ready.wait()
            task.cancel()
            await asyncio.wait([task])
        async with store.transaction("a", operation="insert", table="t") as connection:
            found = await connection.execute(text("SELECT count(*) FROM openclaw_sessions"))
            assert found.scalar_one() == 0


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "not a URL"),
        ("mysql://root:hunter2@h/d", "mysql.*not served"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
    ],
)
def test_a_wrong_url_is_named_and_never_shown(tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        database(tmp_path, url=url)
    assert "hunter2" not in str(error.value)


async def test_an_unreachable_server_stops_the_start_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match=r"127.0.0.1:1/x cannot be used") as error:
        async with database(tmp_path, url="postgresql://u:hunter2@127.0.0.1:1/x").lifespan():
            pass
    assert "hunter2" not in str(error.value)


async def test_a_server_that_dies_is_unavailable_and_comes_back(tmp_path: Path) -> None:
    with start_postgres() as server:
        store = database(tmp_path, url=server.url("postgres"), auto_upgrade=True, connect_timeout=1.0)
        async with store.lifespan():
            server.stop()
            for _ in range(2):
                with pytest.raises(StoreUnavailable):
                    async with store.transaction("a", operation="select", table="t") as connection:
                        await connection.execute(text("SELECT 1"))
                with pytest.raises(StoreUnavailable):
                    await store.health()[0].probe()
            server.start()
            async with asyncio.timeout(5):
                while True:
                    try:
                        async with store.transaction("a", operation="select", table="t") as connection:
                            await connection.execute(text("SELECT 1"))
                        break
                    except StoreUnavailable:
                        await asyncio.sleep(0.05)


async def test_nothing_of_a_closed_database_goes_on(tmp_path: Path) -> None:
    """A thread that ended later would speak to a loop that may be closed by then."""

    def working() -> set[str]:
        return {thread.name for thread in threading.enumerate() if "_connection_worker_thread" in thread.name}

    before = working()
    store = database(tmp_path)
    begun = asyncio.Event()

    async def long() -> None:
        async with store.transaction(None, operation="select", table="t") as connection:
            begun.set()
            count = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 3000000) SELECT max(x) FROM n"
            await connection.execute(text(count))

    async with store.lifespan():
        task = asyncio.create_task(long())
        await begun.wait()
        await asyncio.sleep(0.05)
        assert working() - before
        for _ in range(2):  # the first cancels the work, the second the wait for its end
            task.cancel()
            await asyncio.sleep(0.01)
        await asyncio.wait([task])
    assert working() <= before


# --- PostgreSQL's second wall -------------------------------------------------------------------


@pytest.fixture
async def walled(postgres: Postgres, postgres_url: str, tmp_path: Path) -> Any:
    """A gateway that runs in a role which owns nothing, made ready by `db upgrade`."""
    if not postgres.sql("SELECT 1 FROM pg_roles WHERE rolname = 'openclaw_app'"):
        postgres.sql("CREATE ROLE openclaw_app")
    store = database(tmp_path, url=postgres_url, application_role="openclaw_app")
    await store.upgrade()
    async with store.lifespan():
        yield store


async def test_a_transaction_sees_one_organization(walled: SqlDatabase) -> None:
    ids = {org: f"0190b0e0-0000-7000-8000-00000000000{i}" for i, org in enumerate(("a", "b"))}
    for org, id in ids.items():
        async with walled.transaction(org, operation="insert", table="t") as connection:
            await connection.execute(text(SESSION.format(id=id, org=org, status="active")))
            await connection.execute(
                text(
                    "INSERT INTO openclaw_messages (message_id, session_id, organization_id, seq, role, content, "
                    "metadata, timestamp) VALUES (:id, :id, :org, 1, 'user', '\"canary\"', '{}', now())"
                ),
                {"id": id, "org": org},
            )
    for table in ("openclaw_sessions", "openclaw_messages"):
        seen = text(f"SELECT organization_id FROM {table} ORDER BY 1")
        for org, expected in (("a", ["a"]), ("b", ["b"]), ("", []), ("c", []), (None, ["a", "b"])):
            async with walled.transaction(org, operation="select", table="t") as connection:
                assert list((await connection.execute(seen)).scalars()) == expected
    async with walled.transaction("a", operation="update", table="t") as connection:
        changed = await connection.execute(text("UPDATE openclaw_sessions SET tier = 'x'"))
        assert changed.rowcount == 1
    with pytest.raises(Fault):
        async with walled.transaction("a", operation="insert", table="t") as connection:
            await connection.execute(text(SESSION.format(id=ids["a"][:-1] + "9", org="b", status="active")))


async def test_no_connection_goes_back_with_an_organization(walled: SqlDatabase) -> None:
    """Whatever has ended its transaction, a connection of the pool sees nobody's rows."""

    async def ending(number: int) -> None:
        """Commits, fails in the gateway, fails in the server, or is cut off."""
        organization = None if number % 8 > 3 else f"org-{number}"
        async with walled.transaction(organization, operation="insert", table="t") as connection:
            await connection.execute(text("SELECT 1 / :ok"), {"ok": int(number % 4 != 1)})
            if number % 4 == 2:
                raise LookupError
            if number % 4 == 3:
                await connection.execute(text("SELECT pg_sleep(30)"))

    size = walled._config.pool_size
    for _ in range(4):
        tasks = [asyncio.create_task(ending(number)) for number in range(2 * size)]
        await asyncio.wait([task for number, task in enumerate(tasks) if number % 4 != 3], timeout=5)
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert None in outcomes and len({type(outcome) for outcome in outcomes}) >= 4, outcomes
    settings = text("SELECT current_setting('app.organization', true), current_setting('app.system', true)")
    async with AsyncExitStack() as stack:
        for _ in range(size):
            connection = await stack.enter_async_context(walled._kept_for("select").lent())
            assert {setting or "" for setting in (await connection.execute(settings)).one()} == {""}


async def test_a_transaction_begins_as_its_organization_in_one_round_trip(
    walled: SqlDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with walled.transaction("first", operation="select", table="t") as connection:
        await connection.execute(text("SELECT 1"))
    told: list[str] = []
    call = asyncpg.Connection.execute

    async def execute(self: Any, query: str, *arguments: Any, **named: Any) -> Any:
        told.append(query.split("(")[0])
        return await call(self, query, *arguments, **named)

    monkeypatch.setattr(asyncpg.Connection, "execute", execute)
    who = text("SELECT current_setting('app.organization')")
    for organization in ("a", "it's; DROP TABLE x --", "\\'\\", "Zoë 😀", "a"):
        told.clear()
        async with walled.transaction(organization, operation="select", table="t") as connection:
            assert (await connection.execute(who)).scalar_one() == organization
        assert told == ["BEGIN;SELECT set_config", "COMMIT;"]
    async with walled.transaction("nobody", operation="select", table="t"):
        pass  # asks for nothing, and so leaves nothing to whoever is next
    async with walled._kept_for("select").lent() as connection:
        assert (await connection.execute(text("SELECT current_setting('app.organization', true)"))).scalar_one() == ""


async def test_nobody_goes_on_in_a_transaction_that_was_left_open(walled: SqlDatabase) -> None:
    who = text("SELECT current_setting('app.organization', true), pg_backend_pid()")
    async with walled._kept_for("select").lent() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        await driver.execute("BEGIN; SELECT set_config('app.organization', 'somebody', true)")
        left = await driver.fetchval("SELECT pg_backend_pid()")
    async with AsyncExitStack() as stack:
        for _ in range(walled._config.pool_size):
            transaction = walled.transaction("a", operation="select", table="t")
            connection = await stack.enter_async_context(transaction)
            organization, backend = (await connection.execute(who)).one()
            assert organization == "a" and backend != left


async def test_an_organization_that_cannot_be_named_spoils_no_connection(walled: SqlDatabase) -> None:
    for _ in range(walled._config.pool_size + 1):
        for name in ("nul \x00", "lone \ud800"):
            with pytest.raises(Refused):
                async with walled.transaction(name, operation="select", table="t") as connection:
                    await connection.execute(text("SELECT 1"))
    async with AsyncExitStack() as stack:
        for _ in range(walled._config.pool_size):
            transaction = walled.transaction("a", operation="select", table="t")
            connection = await stack.enter_async_context(transaction)
            assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1


async def test_work_of_no_organization_has_the_rights_of_requests_and_no_more(walled: SqlDatabase) -> None:
    """Sweeps see every organisation, and may still change no table and nothing of what was done."""
    async with walled.transaction(None, operation="sweep", table="t") as connection:
        assert (await connection.execute(text("SELECT current_user"))).scalar_one() == "openclaw_app"
    for forbidden in (
        "UPDATE openclaw_audit SET actor = 'x'",
        "DELETE FROM openclaw_audit",
        "TRUNCATE openclaw_sessions",
        "DROP TABLE openclaw_usage",
        "ALTER TABLE openclaw_sessions DISABLE ROW LEVEL SECURITY",
        "DROP POLICY organization ON openclaw_sessions",
        "CREATE TABLE public.mine (x int)",
        "CREATE ROLE another",
        "COPY openclaw_sessions TO PROGRAM 'true'",
    ):
        with pytest.raises(Fault, match="lacks a right"):
            async with walled.transaction(None, operation="sweep", table="t") as connection:
                await connection.execute(text(forbidden))


@pytest.mark.parametrize(
    ("role", "why"),
    [
        ("SUPERUSER", "is a superuser"),
        ("BYPASSRLS", "has BYPASSRLS"),
        ("IN ROLE openclaw_owner", "owns tables of the gateway, or inherits"),
    ],
)
async def test_a_role_that_row_security_does_not_bind_stops_the_start(
    postgres: Postgres, postgres_url: str, tmp_path: Path, role: str, why: str
) -> None:
    name = "openclaw_" + role.split()[-1].lower() + "_app"
    plain = "openclaw_ungranted"
    for made, options in (("openclaw_owner", "LOGIN"), (name, role), (plain, "")):
        if not postgres.sql(f"SELECT 1 FROM pg_roles WHERE rolname = '{made}'"):
            postgres.sql(f"CREATE ROLE {made} {options}")
    postgres.sql("GRANT CREATE ON SCHEMA public TO openclaw_owner", postgres_url.rsplit("/", 1)[1])
    url = postgres_url.replace("postgres@", "openclaw_owner@")
    await database(tmp_path, url=url).upgrade()
    with pytest.raises(
        StartFailed, match=r"cannot be used: .*lacks a right, which `openclaw-gateway db upgrade` grants"
    ):
        async with database(tmp_path, url=postgres_url, application_role=plain).lifespan():
            pass
    await database(tmp_path, url=url, application_role=name).upgrade()
    with pytest.raises(StartFailed, match=rf"plugins.database.application_role: .*{name}.* it {why}.*owns nothing"):
        async with database(tmp_path, url=postgres_url, application_role=name).lifespan():
            pass


async def test_a_start_says_that_its_login_passes_row_security(
    postgres: Postgres, postgres_url: str, tmp_path: Path
) -> None:
    store = database(tmp_path, url=postgres_url, auto_upgrade=True)
    async with store.lifespan():
        (line,) = store.notices()
    assert "does not bind 'postgres'" in line and "plugins.database.application_role" in line


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            "postgresql://u:hidden@db.internal/g",
            "the database at db.internal is reached with sslmode=prefer, by which ",
        ),
        (
            "postgresql://u@10.0.0.7:5433/g?sslmode=require",
            "the database at 10.0.0.7 is reached with sslmode=require, ",
        ),
        (
            "postgresql://u@/g?host=a:1&host=b:2&ssl=verify-ca",
            "the database at a:1, b:2 is reached with sslmode=verify-ca",
        ),
        ("postgresql://u@db.internal/g?sslmode=verify-full", None),
        ("postgresql://u@127.0.0.1/g", None),
        ("postgresql://u@[::1]/g", None),
        ("postgresql://u@/g?host=/run/postgresql", None),
        (None, None),
    ],
)
def test_a_start_says_where_a_database_need_not_prove_who_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str | None, said: str | None
) -> None:
    monkeypatch.delenv("PGSSLMODE", raising=False)
    store = database(tmp_path, **({"url": url} if url is not None else {}))
    lines = store.notices()
    assert [line.startswith(said) and "hidden" not in line for line in lines if said] == [True] * (said is not None)
    assert bool(lines) == (said is not None)
    monkeypatch.setenv("PGSSLMODE", "verify-full")  # as libpq and asyncpg read it, where the URL does not say
    assert bool(store.notices()) == (url is not None and ("require" in url or "verify-ca" in url))


async def test_a_connection_whose_opening_is_cancelled_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    opened: list[sqlite3.Connection] = []
    closed: list[sqlite3.Connection] = []

    class Seen(engines.Store):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            opened.append(self)
            loop.call_soon_threadsafe(task.cancel)  # it is open, and who waits for it does not know yet

        def close(self) -> None:
            closed.append(self)
            super().close()

    monkeypatch.setattr(engines, "Store", Seen)
    pools = engines.open_pools(location(None, tmp_path / "gateway.db"), database(tmp_path)._options())

    async def use() -> None:
        async with pools.reader.connect():
            pass

    task = asyncio.create_task(use())
    with pytest.raises(asyncio.CancelledError):
        await task
    (thread,) = pools.threads
    await pools.close()
    assert len(opened) == 1 and closed == opened and not thread.is_alive()


async def test_the_mode_of_tls_has_libpqs_name_too(postgres_url: str, tmp_path: Path) -> None:
    assert location(f"{postgres_url}?sslmode=verify-full", tmp_path).query == {"ssl": "verify-full"}
    async with database(tmp_path, url=f"{postgres_url}?sslmode=disable", auto_upgrade=True).lifespan():
        pass
    with pytest.raises(StartFailed):  # this server speaks no TLS, so that it was asked for shows
        async with database(tmp_path, url=f"{postgres_url}?sslmode=require").lifespan():
            pass


async def test_a_login_that_owns_the_tables_is_bound(postgres: Postgres, postgres_url: str, tmp_path: Path) -> None:
    if not postgres.sql("SELECT 1 FROM pg_roles WHERE rolname = 'openclaw_owner'"):
        postgres.sql("CREATE ROLE openclaw_owner LOGIN")
    postgres.sql("GRANT CREATE ON SCHEMA public TO openclaw_owner", postgres_url.rsplit("/", 1)[1])
    store = database(tmp_path, url=postgres_url.replace("postgres@", "openclaw_owner@"), auto_upgrade=True)
    async with store.lifespan():
        assert store.notices() == []
        async with store.transaction("a", operation="insert", table="t") as connection:
            await connection.execute(text(SESSION.format(id=uuid.uuid4(), org="a", status="active")))
        async with store.transaction("b", operation="select", table="t") as connection:
            assert (await connection.execute(text("SELECT count(*) FROM openclaw_sessions"))).scalar_one() == 0


async def test_every_connection_has_its_time_outs(walled: SqlDatabase) -> None:
    for operation in ("select", "insert", "sweep"):
        async with walled.transaction("a", operation=operation, table="t") as connection:
            rows = await connection.execute(
                text(
                    "SELECT name, setting::integer FROM pg_settings WHERE name IN "
                    "('statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout')"
                )
            )
            found = {row.name: row.setting for row in rows}
        assert len(found) == 3 and all(0 < milliseconds <= 60_000 for milliseconds in found.values()), (
            operation,
            found,
        )


async def test_every_table_and_partition_is_walled(walled: SqlDatabase) -> None:
    async with walled.owner() as connection:
        rows = (
            await connection.execute(
                text(
                    "SELECT relname, relispartition, relrowsecurity AND relforcerowsecurity AND "
                    "EXISTS (SELECT 1 FROM pg_policy WHERE polrelid = c.oid) AS walled, "
                    "has_table_privilege('openclaw_app', c.oid, 'SELECT') AS granted "
                    "FROM pg_class c WHERE relkind IN ('r', 'p') AND relname ~ '^openclaw_'"
                )
            )
        ).all()
    assert {row.relname for row in rows if not row.relispartition} == TABLES
    assert [row.relname for row in rows if not row.walled] == []
    partitions = [row for row in rows if row.relispartition]
    assert len(partitions) == 1 + schema.MONTHS_AHEAD
    assert not any(row.granted for row in partitions)


async def test_partitions_are_made_where_they_are_missing(walled: SqlDatabase) -> None:
    async with walled.owner() as connection:
        assert await schema.missing_partitions(connection) == []
        last = await month(connection, 1)
        await connection.execute(text(f"DROP TABLE openclaw_messages_{last}"))
    with pytest.raises(StoreUnavailable, match=last.replace("_", "-")):
        await walled.health()[1].probe()
    await walled.partitions.ensure()
    await walled.health()[1].probe()


async def test_a_start_waits_for_nobody_who_makes_partitions(
    walled: SqlDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    async with walled.owner() as busy:
        await busy.execute(text("SELECT pg_advisory_xact_lock(hashtext('openclaw_ensure_message_partitions'))"))
        await walled.partitions.settle()
        assert not caplog.records
        async with walled.owner() as connection:
            await connection.execute(text(f"DROP TABLE openclaw_messages_{await month(connection, 3)}"))
        await walled.partitions.settle()
        assert "still to be made" in caplog.text
        async with walled.owner() as connection:
            await connection.execute(text(f"DROP TABLE openclaw_messages_{await month(connection, 1)}"))
        with pytest.raises(StoreUnavailable, match="no partition of openclaw_messages for"):
            await walled.partitions.settle()
    await walled.partitions.settle()
    async with walled.owner() as connection:
        assert await schema.missing_partitions(connection, schema.MONTHS_AHEAD) == []


async def month(connection: AsyncConnection, later: int) -> str:
    """The month that is `later` after this one, as the partitions' names end."""
    this = "date_trunc('month', now() AT TIME ZONE 'UTC')"
    rows = await connection.execute(text(f"SELECT to_char({this} + interval '{later} months', 'YYYY_MM')"))
    return str(rows.scalar_one())


# --- the commands -------------------------------------------------------------------------------


def test_db_commands(tmp_path: Path) -> None:
    file = str(configuration(tmp_path, edit={"plugins.database.url": f"sqlite:///{tmp_path}/x.db"}))

    def run(*args: str) -> tuple[int, str]:
        result = CliRunner().invoke(db, [*args, "--config", file])
        return result.exit_code, result.output

    code, output = run("check")
    assert code == 1 and "openclaw-gateway db upgrade" in output
    assert run("current") == (0, "no revision\n")
    code, output = run("upgrade", "--json")
    assert code == 0 and msgspec.json.decode(output)["matches"] is True
    code, output = run("check", "--json")
    assert code == 0
    assert msgspec.json.decode(output)["current"] == ["0008"]


async def test_two_databases_have_pools_of_their_own_names(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/second.db"
    edit = {"plugins.second": {"use": "database", "url": url, "auto_upgrade": True, "pool_size": 3}}
    async with (gateway := build(configuration(tmp_path, edit=edit))).running():
        pools = {
            sample.labels["pool"]: sample.value
            for family in gateway.registry.collect()
            for sample in family.samples
            if sample.name == "database_connections_limit"
        }
    assert set(pools) == {f"{of}{name}" for of in ("", "second.") for name in ("writer", "reader", "maintenance")}
    assert (pools["reader"], pools["second.reader"]) == (4, 3)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_a_database_that_is_open_is_not_opened_beside_sqlite(tmp_path: Path) -> None:
    """To close a file drops every lock that this process has on it, SQLite's among them."""
    file = tmp_path / "gateway.db"
    made_private(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    ours = sqlite3.connect(file, isolation_level=None)
    ours.execute("PRAGMA journal_mode=WAL")
    ours.execute("CREATE TABLE t (x)")
    made_private(file)
    other = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('INSERT INTO t VALUES (1)'); c.commit()"
    subprocess.run([sys.executable, "-c", f"{other}; c.close()", file], check=True)
    # The other one was not the last, and has left the log that we go on with.
    assert file.with_name("gateway.db-wal").exists()
    assert ours.execute("SELECT count(*) FROM t").fetchone() == (1,)
    ours.close()


def test_a_database_that_may_not_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "gateway.db"
    file.touch()
    monkeypatch.setattr("os.access", lambda *_: False)  # the tests may be run by root, who may open everything
    with pytest.raises(StartFailed, match=r"gateway\.db cannot be opened: permission denied"):
        made_private(file)
