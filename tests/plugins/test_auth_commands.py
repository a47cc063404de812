"""The commands `keys` and `token` against the shipped configuration, and what they make against a served gateway."""

import asyncio
import getpass
import json
import re

import aiohttp
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from openclaw_gateway.cli import main
from openclaw_gateway.testing import build, configuration, serving

KEY = re.compile(r"ocg_[0-9A-Za-z]{12}_[0-9A-Za-z]{36}")


@pytest.fixture
def config(tmp_path):
    return configuration(tmp_path)


def run(config, *words, status=0):
    result = CliRunner().invoke(main, [*words, "--config", str(config)])
    assert result.exit_code == status, result.output
    return result


def created(config, *words):
    return json.loads(
        run(config, "keys", "create", "--org", "acme", "--user", "ada", "--tier", "teams", "--json", *words).stdout
    )


def test_a_key_is_shown_once_and_listed_without_it(config):
    made = created(config, "--scope", "admin", "--scope", "chat", "--expires", "90d", "--name", "ci")
    assert KEY.fullmatch(made["key"])
    assert made["id"] == made["key"].split("_")[1]
    assert (made["org"], made["user"], made["tier"], made["scopes"]) == ("acme", "ada", "teams", ["admin", "chat"])
    listed = run(config, "keys", "list", "--json").stdout
    assert made["key"].split("_")[2] not in listed
    (row,) = json.loads(listed)
    assert (row["id"], row["state"], row["name"], row["lastUsedAt"]) == (made["id"], "active", "ci", None)
    assert row["expiresAt"].endswith("Z")
    assert json.loads(run(config, "keys", "list", "--org", "other", "--json").stdout) == []
    assert made["id"] in run(config, "keys", "list").stdout


def test_without_json_the_key_alone_is_on_stdout(config):
    result = run(config, "keys", "create", "--org", "acme", "--user", "ada", "--tier", "teams")
    assert KEY.fullmatch(result.stdout.strip())


def test_the_list_shows_use_expiry_and_successor(config):
    first = created(config, "--expires", "90d")
    second = json.loads(run(config, "keys", "rotate", first["id"], "--json").stdout)
    header, *rows = run(config, "keys", "list").stdout.splitlines()
    assert header.split()[-4:] == ["createdAt", "expiresAt", "lastUsedAt", "replacedBy"]
    (row,) = [row for row in rows if row.startswith(first["id"])]
    assert row.split()[-1] == second["id"]


async def test_what_the_commands_do_is_kept_with_the_user_of_the_machine(config):
    made = await asyncio.to_thread(created, config)
    await asyncio.to_thread(run, config, "keys", "rotate", made["id"])
    await asyncio.to_thread(run, config, "keys", "revoke", made["id"])
    gateway = build(config)
    async with gateway.opened("api_key") as plugin:
        entries = (await plugin.audit()).items
    assert [entry.action for entry in entries] == ["key.revoke", "key.rotate", "key.create"]
    assert {entry.actor for entry in entries} == {f"cli:{getpass.getuser()}"}
    assert made["key"].split("_")[2] not in repr(entries)


def test_rotation_and_revocation(config):
    first = created(config)
    second = json.loads(run(config, "keys", "rotate", first["id"], "--overlap", "1h", "--json").stdout)
    assert second["id"] != first["id"]
    assert second["scopes"] == first["scopes"]
    run(config, "keys", "revoke", second["id"])
    rows = {row["id"]: row for row in json.loads(run(config, "keys", "list", "--json").stdout)}
    assert rows[first["id"]]["replacedBy"] == second["id"]
    assert rows[first["id"]]["state"] == "active"
    assert rows[second["id"]]["state"] == "revoked"
    assert "no key" in run(config, "keys", "revoke", "nobody", status=1).stderr
    assert "no key" in run(config, "keys", "rotate", second["id"], status=1).stderr


@pytest.mark.parametrize("command", [("keys", "create"), ("token",)])
def test_a_tier_that_no_file_names_is_wrong_use(config, command):
    result = run(config, *command, "--org", "acme", "--user", "ada", "--tier", "goverment", status=2)
    assert "did you mean 'government'?" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("duration", ["3600", "5 parsecs", ""])
def test_a_duration_needs_its_unit(config, duration):
    words = ("--org", "acme", "--user", "ada", "--tier", "teams", "--ttl", duration)
    assert "expected a duration" in run(config, "token", *words, status=2).stderr


def test_an_expiry_beyond_the_calendar_is_wrong_use(config):
    words = ("--org", "acme", "--user", "ada", "--tier", "teams", "--expires", "9999999d")
    assert "too far" in run(config, "keys", "create", *words, status=2).stderr


def test_a_token_needs_a_secret(tmp_path):
    public = ed25519.Ed25519PrivateKey.generate().public_key()
    text = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pem").write_bytes(text)
    config = configuration(
        tmp_path, edit={"plugins.jwt.algorithms": ["EdDSA"], "plugins.jwt.public_key_file": "key.pem"}
    )
    result = run(config, "token", "--org", "acme", "--user", "ada", "--tier", "teams", status=2)
    assert "EdDSA with a public key" in result.stderr


def test_settings_that_do_not_fit_are_named_in_their_file(tmp_path):
    config = configuration(tmp_path, edit={"plugins.jwt.secret": "short"})
    result = run(config, "check", status=1)
    assert "openclaw.toml" in result.output
    assert "plugins.jwt" in result.output
    assert "shorter than the 32 bytes" in result.output


def test_what_the_commands_make_opens_a_served_gateway(config):
    """In order: key, token, nothing, a bad one, both, a public route; then the key is revoked under a live gateway."""
    import asyncio

    key = created(config)
    token = run(config, "token", "--org", "acme", "--user", "ada", "--tier", "teams", "--ttl", "10m").stdout.strip()

    async def scenario():
        gateway = build(config)
        async with serving(gateway) as url, aiohttp.ClientSession() as client:

            async def ask(**headers):
                async with client.get(f"{url}/v1/models", headers=headers) as response:
                    body = await response.json(content_type=None)
                    assert response.headers["x-request-id"]
                    assert response.headers["x-content-type-options"] == "nosniff"
                    assert "server" not in response.headers
                    return response.status, body, response.headers

            assert (await ask(**{"X-API-Key": key["key"]}))[0] == 200
            assert (await ask(Authorization=f"Bearer {key['key']}"))[0] == 200
            assert (await ask(Authorization=f"bearer {token}"))[0] == 200
            for headers in ({}, {"X-API-Key": key["key"][:-1] + "-"}, {"Authorization": f"Bearer {token}x"}):
                status, body, sent = await ask(**headers)
                assert (status, body["error"]["code"]) == (401, "UNAUTHORIZED")
                assert sent["www-authenticate"].startswith("Bearer")
                assert sent["content-type"] == "application/problem+json"
                assert body["error"]["requestId"] == sent["x-request-id"]
            status, body, _ = await ask(**{"X-API-Key": key["key"], "Authorization": f"Bearer {token}"})
            assert (status, body["error"]["code"]) == (400, "BAD_REQUEST")
            async with client.get(f"{url}/health/live") as response:
                assert response.status == 200
            await gateway.plugin("api_key").revoke(key["id"])
            assert (await ask(**{"X-API-Key": key["key"]}))[0] == 401

    asyncio.run(scenario())


def test_nothing_is_made_that_has_expired_before_it_is_shown(config):
    whose = ("--org", "acme", "--user", "ada", "--tier", "teams")
    for command, option in ((("keys", "create"), "--expires"), (("token",), "--ttl")):
        refused = run(config, *command, *whose, option, "0s", status=2)
        assert "expected more than no time at all" in refused.output
