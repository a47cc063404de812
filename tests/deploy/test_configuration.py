"""The configuration of the shared stores is good, and serves on a real PostgreSQL and a real Valkey."""

from __future__ import annotations

import json
import tomllib
import urllib.request
from asyncio import to_thread
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Postgres

from openclaw_gateway.errors import ConfigError
from openclaw_gateway.testing import build, serving

from .deploy_files import CONFIGURATION, DEPLOY, ROOT, SECRETS, STATE, production, referenced


@pytest.fixture
def initialised(postgres: Postgres) -> Iterator[str]:
    """A new database to which roles.sql was applied, as the image of PostgreSQL does it."""
    name = postgres.create()
    postgres.sql((DEPLOY / "roles.sql").read_text(), name)
    yield postgres.url(name)
    postgres.drop(name)
    postgres.sql("DROP ROLE gateway_requests")


def test_it_is_good(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gateway = production(monkeypatch, tmp_path)
    assert set(gateway.tiers) == {path.stem for path in (ROOT / "tiers").glob("*.toml")}


def test_its_secrets_are_all_references_and_all_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert referenced() == set(SECRETS)
    for name in SECRETS:
        with monkeypatch.context() as without:
            production(without, tmp_path)
            without.delenv(name)
            with pytest.raises(ConfigError, match=name):
                build(CONFIGURATION, environ={"OPENCLAW_GATEWAY__TIERS": str(ROOT / "tiers")})


def test_nothing_that_replicas_must_share_is_kept_by_one() -> None:
    plugins = tomllib.loads(CONFIGURATION.read_text())["plugins"]
    used = {table.get("use", id) for id, table in plugins.items()}
    assert not {name for name in used if name.endswith(".memory")}
    assert plugins["ws_tickets"]["redis"] == "redis"
    assert plugins["database"]["url"] and plugins["api_key"]["pepper"] and plugins["jwt"]["secret"]
    assert tomllib.loads(CONFIGURATION.read_text())["gateway"]["data_dir"] == STATE


def test_it_has_what_the_embedded_default_has() -> None:
    shipped = tomllib.loads((ROOT / "openclaw.toml").read_text())
    deployed = tomllib.loads(CONFIGURATION.read_text())
    assert deployed["gateway"]["pipeline"] == shipped["gateway"]["pipeline"]
    assert set(deployed["plugins"]) == {*shipped["plugins"], "redis"}


async def test_it_serves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, initialised: str, postgres: Postgres, valkey_url: str
) -> None:
    gateway = production(monkeypatch, tmp_path, DATABASE_URL=initialised, REDIS_URL=valkey_url)
    database = gateway.plugin("database")
    await database.upgrade()
    async with serving(gateway) as url:
        answer = await to_thread(urllib.request.urlopen, f"{url}/health/ready", timeout=10)
        assert json.load(answer) == {"status": "ready"}
    granted = postgres.sql(
        "SELECT count(*) FROM information_schema.role_table_grants WHERE grantee = 'gateway_requests'",
        initialised.rpartition("/")[2],
    )
    assert int(granted) > 0
