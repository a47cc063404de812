"""Keys on the real schema of both SQL backends, row security included."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiosqlite
import asyncpg
import pytest
from prometheus_client import CollectorRegistry
from servers import Postgres
from sqlalchemy import text

from openclaw_gateway.api import By, GatewayError, Host, Principal, Refusal, Refused, Secret, Tier, UnknownKey
from openclaw_gateway.config.document import Document, GatewaySettings
from openclaw_gateway.exchange import Exchange
from openclaw_gateway.pipeline import CompiledRoute
from openclaw_gateway.routes import Route
from openclaw_gateway.testing import ManualClock
from openclaw_plugins.auth.api_key import ApiKeys
from openclaw_plugins.database.pool import SqlDatabase

ACME = {"organization": "acme", "user": "ada", "tier": "teams"}


class Keys:
    def __init__(self, plugin: ApiKeys, clock: ManualClock) -> None:
        self.plugin, self.clock = plugin, clock

    async def ask(self, key: str) -> Principal | Refusal | None:
        scope = {"type": "http", "headers": [(b"x-api-key", key.encode())]}
        route = CompiledRoute(Route(access="authenticated"), None, ())
        return await self.plugin.authenticate(Exchange("http", "GET", "/", route, scope, 0.0))

    async def states(self) -> dict[str, str]:
        return {r.key_id: r.state(self.plugin._now()) for r in await self.plugin.list()}


@pytest.fixture
async def keys(stores, tmp_path: Path) -> AsyncIterator[Keys]:
    clock = ManualClock()
    host = Host(
        "api_key",
        document=Document(gateway=GatewaySettings(pipeline=())),
        config_dir=tmp_path,
        tiers={"teams": Tier(name="teams", title="Teams", tables={})},
        instances=stores.instances,
        registry=stores.registry,
        metrics=stores.metrics,
        clock=clock,
    )
    plugin = ApiKeys(ApiKeys.Config(), host)
    async with plugin.lifespan():
        yield Keys(plugin, clock)


async def test_what_is_stored_comes_back(keys: Keys) -> None:
    issued = await keys.plugin.create(**ACME, scopes=("admin", "chat"), name="ci", expires_in=90 * 86400.0)
    assert list(await keys.plugin.list()) == [issued.record]
    found = await keys.ask(issued.key)
    assert isinstance(found, Principal)
    assert (found.organization, found.user, found.tier) == ("acme", "ada", "teams")
    assert found.scopes == {"admin", "chat"}
    assert found.expires_at == keys.clock.now() + 90 * 86400
    await keys.plugin._last_used.flush()
    (record,) = await keys.plugin.list()
    assert record.last_used_at is not None
    assert record.last_used_at.timestamp() == keys.clock.now()


async def test_a_key_that_was_not_shown_of_late_is_found_in_one_step(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    issued = await keys.plugin.create(**ACME)
    assert isinstance(await keys.ask(issued.key), Principal)  # connected by now
    steps: list[str] = []
    for of, name in (
        (aiosqlite.Connection, "_execute"),
        (asyncpg.Connection, "fetch"),
        (asyncpg.Connection, "execute"),
    ):
        call = getattr(of, name)

        async def counted(self: Any, what: Any, *arguments: Any, call: Any = call, **named: Any) -> Any:
            steps.append(str(what))
            return await call(self, what, *arguments, **named)

        monkeypatch.setattr(of, name, counted)
    keys.clock.advance(5)
    assert isinstance(await keys.ask(issued.key), Principal)
    assert len(steps) == 1, steps
    assert isinstance(await keys.ask(issued.key), Principal)
    assert len(steps) == 1, "it is remembered"


async def test_rotation_leaves_one_successor_and_ends_the_old_key(keys: Keys) -> None:
    old = await keys.plugin.create(**ACME)
    results = await asyncio.gather(
        *(keys.plugin.rotate(old.record.key_id, overlap=60) for _ in range(4)), return_exceptions=True
    )
    (new,) = [r for r in results if not isinstance(r, BaseException)]
    assert all(isinstance(r, UnknownKey) for r in results if r is not new)
    assert len(await keys.plugin.list()) == 2
    assert isinstance(await keys.ask(old.key), Principal)
    keys.clock.advance(60)
    assert isinstance(await keys.ask(old.key), Refusal)
    assert isinstance(await keys.ask(new.key), Principal)
    assert await keys.states() == {old.record.key_id: "expired", new.record.key_id: "active"}


async def test_revocation_keeps_its_first_time(keys: Keys) -> None:
    issued = await keys.plugin.create(**ACME, expires_in=1000)
    await keys.plugin.revoke(issued.record.key_id)
    (first,) = await keys.plugin.list()
    keys.clock.advance(5)
    await keys.plugin.revoke(issued.record.key_id)
    assert list(await keys.plugin.list()) == [first]
    assert isinstance(await keys.ask(issued.key), Refusal)


async def test_a_listing_is_paged_in_one_order_within_its_organisation(keys: Keys) -> None:
    made = []
    for i in range(9):
        issued = await keys.plugin.create(organization="other" if i % 3 == 0 else "acme", user=f"u{i}", tier="teams")
        made.append(issued.record.key_id)
        if i % 2:
            keys.clock.advance(1)  # pairs share their time
    for organization in (None, "acme"):
        whole = [record.key_id for record in await keys.plugin.list(organization)]
        assert len(whole) == (9 if organization is None else 6)
        paged: list[str] = []
        while page := await keys.plugin.list(organization, limit=2, after=paged[-1] if paged else None):
            paged += [record.key_id for record in page]
        assert paged == whole
    for after in ("nobody", made[0]):
        with pytest.raises(UnknownKey):
            await keys.plugin.list("acme", after=after)


async def test_an_organisation_reaches_its_own_keys_only(keys: Keys) -> None:
    theirs = await keys.plugin.create(organization="other", user="eve", tier="teams")
    key_id = theirs.record.key_id
    for attempt in (
        keys.plugin.find(key_id, organization="acme"),
        keys.plugin.rotate(key_id, overlap=0, organization="acme"),
        keys.plugin.revoke(key_id, organization="acme"),
    ):
        with pytest.raises(UnknownKey):
            await attempt
    assert (await keys.plugin.find(key_id, organization="other")) == theirs.record
    assert isinstance(await keys.ask(theirs.key), Principal)
    assert len((await keys.plugin.audit("other")).items) == 1


async def test_every_deed_has_one_entry_and_what_was_not_done_has_none(keys: Keys) -> None:
    by = By("cli:ada", "r-1")
    old = await keys.plugin.create(**ACME, scopes=("chat",), by=by)
    await asyncio.gather(
        *(keys.plugin.rotate(old.record.key_id, overlap=60, by=by) for _ in range(4)), return_exceptions=True
    )
    await asyncio.gather(*(keys.plugin.revoke(old.record.key_id, by=by) for _ in range(4)))
    page = await keys.plugin.audit("acme")
    assert [e.action for e in page.items] == ["key.revoke", "key.rotate", "key.create"]
    assert {(e.actor, e.request_id, e.key_id, e.organization_id) for e in page.items} == {
        ("cli:ada", "r-1", old.record.key_id, "acme")
    }
    assert {e.at.timestamp() for e in page.items} == {keys.clock.now()}
    assert page.items[2].details["scopes"] == ["chat"]
    assert old.key.split("_")[2] not in repr(page)
    assert (await keys.plugin.audit("other")).items == []
    first = await keys.plugin.audit(None, limit=2)
    rest = await keys.plugin.audit(None, limit=2, cursor=first.next_cursor)
    assert [*first.items, *rest.items] == page.items
    assert rest.next_cursor is None
    with pytest.raises(Refused):
        await keys.plugin.audit(None, cursor="nonsense")


async def test_the_keys_of_many_sockets_are_looked_at_together(keys: Keys) -> None:
    good = [await keys.plugin.create(**ACME) for _ in range(3)]
    ending = await keys.plugin.create(**ACME, expires_in=5)
    await keys.plugin.revoke(good[0].record.key_id)

    def principal(credential: str) -> Principal:
        return Principal(**ACME, method="api_key", credential=credential)

    held = [principal(key.record.key_id) for key in (*good, ending)]
    gone = [principal(f"gone{i}") for i in range(1200)]
    tokens = [Principal(**ACME, method="jwt", credential="x")]
    assert set(await keys.plugin.ended([*held, *gone, *tokens])) == {held[0], *gone}
    keys.clock.advance(5)
    assert set(await keys.plugin.ended(held)) == {held[0], held[3]}
    assert await keys.plugin.ended(tokens) == ()


async def test_in_the_role_of_requests_the_audit_is_added_to_and_never_changed(
    postgres: Postgres, postgres_url: str, tmp_path: Path
) -> None:
    if not postgres.sql("SELECT 1 FROM pg_roles WHERE rolname = 'openclaw_clerk'"):
        postgres.sql("CREATE ROLE openclaw_clerk")
    instances: dict[str, Any] = {}
    given: dict[str, Any] = {"registry": CollectorRegistry(), "metrics": {}, "instances": instances}

    def host(id: str) -> Host:
        return Host(
            id,
            document=Document(gateway=GatewaySettings(pipeline=())),
            config_dir=tmp_path,
            tiers={"teams": Tier(name="teams", title="Teams", tables={})},
            clock=ManualClock(),
            **given,
        )

    database = SqlDatabase(
        SqlDatabase.Config(url=Secret(postgres_url), application_role="openclaw_clerk"), host("database")
    )
    instances["database"] = database
    await database.upgrade()
    plugin = ApiKeys(ApiKeys.Config(pepper=Secret("p" * 32)), host("api_key"))
    async with database.lifespan(), plugin.lifespan():
        issued = await plugin.create(**ACME)
        successor = await plugin.rotate(issued.record.key_id, overlap=60)
        await plugin.revoke(successor.record.key_id)
        assert len((await plugin.audit("acme")).items) == 3
        for statement in ("UPDATE openclaw_audit SET actor = 'nobody'", "DELETE FROM openclaw_audit"):
            with pytest.raises(GatewayError, match="lacks a right"):
                async with database.transaction(None, operation="update", table="openclaw_audit") as connection:
                    await connection.execute(text(statement))
        # the second wall: a transaction of one organisation sees no other's entries
        for organization, seen in (("acme", 3), ("other", 0)):
            async with database.transaction(organization, operation="select", table="openclaw_audit") as connection:
                assert (await connection.execute(text("SELECT count(*) FROM openclaw_audit"))).scalar() == seen
