"""PostgreSQL's own catalogue says that organisations are apart: forced row security wherever a row has one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from servers import Postgres
from sqlalchemy import text
from store_kit import Store

ROLE = "openclaw_walled"
#: Tables with an organisation whose rows an unnamed organisation could see, or see those of another.
OPEN = text(
    "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'organization_id' "
    "WHERE c.relkind IN ('r', 'p') AND NOT (c.relrowsecurity AND c.relforcerowsecurity AND EXISTS ("
    "SELECT 1 FROM pg_policy p WHERE p.polrelid = c.oid AND p.polpermissive AND p.polcmd = '*' "
    "AND pg_get_expr(p.polqual, c.oid) LIKE '%organization_id = current_setting(''app.organization''%'))"
    " ORDER BY 1"
)
#: What goes round the wall: a second policy would be added to the first by OR.
SIDE_DOORS = text("SELECT polrelid::regclass::text FROM pg_policy GROUP BY polrelid HAVING count(*) > 1")
#: Partitions are reached through the table whose policy holds, and in no other way.
GRANTED = text(
    "SELECT c.relname FROM pg_class c WHERE c.relispartition AND c.relkind = 'r' AND ("
    f"has_table_privilege('{ROLE}', c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER') "
    "OR EXISTS (SELECT 1 FROM aclexplode(c.relacl) g WHERE g.grantee <> c.relowner)) ORDER BY 1"
)
#: Whoever owns a table may take its wall down, and this role serves requests.
OWNED = text(
    f"SELECT relname FROM pg_class WHERE relowner = '{ROLE}'::regrole UNION ALL "
    f"SELECT rolname FROM pg_roles WHERE rolname = '{ROLE}' AND (rolsuper OR rolbypassrls)"
)


@pytest.fixture
async def store(postgres: Postgres, postgres_url: str, tmp_path: Path) -> AsyncIterator[Store]:
    if not postgres.sql(f"SELECT 1 FROM pg_roles WHERE rolname = '{ROLE}'"):
        postgres.sql(f"CREATE ROLE {ROLE}")
    made = Store(tmp_path, url=postgres_url, application_role=ROLE)
    await made.database.upgrade()
    yield made


async def found(store: Store, query: object) -> list[str]:
    async with store.database.owner() as connection:
        return list((await connection.execute(query)).scalars())  # type: ignore[call-overload]


async def test_no_table_stands_open(store: Store) -> None:
    with_organization = text(
        "SELECT count(*) FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid "
        "WHERE a.attname = 'organization_id' AND c.relkind IN ('r', 'p')"
    )
    assert (await found(store, with_organization))[0] >= 9 + 4
    for query in (OPEN, SIDE_DOORS, GRANTED, OWNED):
        assert await found(store, query) == []


async def test_the_queries_find_what_stands_open(store: Store) -> None:
    async with store.database.owner() as connection:
        for statement in (
            "CREATE TABLE forgotten (organization_id text)",
            "ALTER TABLE openclaw_usage NO FORCE ROW LEVEL SECURITY",
            "DROP POLICY organization ON openclaw_holds",
            "CREATE POLICY everyone ON openclaw_sessions USING (true)",
            "CREATE TABLE owned (x int)",
            f"ALTER TABLE owned OWNER TO {ROLE}",
        ):
            await connection.execute(text(statement))
    months = await found(store, text("SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r' ORDER BY 1"))
    async with store.database.owner() as connection:
        await connection.execute(text(f"GRANT SELECT ON {months[0]} TO {ROLE}"))
    assert await found(store, OPEN) == ["forgotten", "openclaw_holds", "openclaw_usage"]
    assert await found(store, SIDE_DOORS) == ["openclaw_sessions"]
    assert await found(store, GRANTED) == [months[0]]
    assert await found(store, OWNED) == ["owned"]
