"""Keys on the real schema of both SQL backends, row security included."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from openclaw_gateway.api import Host, Principal, Refusal, Tier, UnknownKey
from openclaw_gateway.config.document import Document, GatewaySettings
from openclaw_gateway.exchange import Exchange
from openclaw_gateway.pipeline import CompiledRoute
from openclaw_gateway.routes import Route
from openclaw_gateway.testing import ManualClock
from openclaw_plugins.auth.api_key import ApiKeys

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
