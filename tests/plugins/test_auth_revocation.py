"""A credential that ends takes its open sockets with it, on the replica that hears of it and on the others."""

import asyncio
import time
from contextlib import asynccontextmanager

from click.testing import CliRunner
from socket_kit import closed, place, said, say

from openclaw_gateway.cli import main
from openclaw_gateway.testing import build, serving


@asynccontextmanager
async def open_socket(p, key=None):
    async with p.connect(await p.session(), key=key) as socket:
        await say(socket, "ping")
        await said(socket, "pong")
        yield socket


async def usage(p, key):
    return (await p.ask("GET", "/api/v1/usage", **{"X-API-Key": key}))[0]


async def test_revoking_a_key_closes_its_sockets_and_no_others(tmp_path):
    async with place(tmp_path) as p:
        keys = p.gateway.plugin("api_key")
        admin = await keys.create(organization="ops", user="root", tier="teams", scopes=("admin",))
        other = await keys.create(organization="acme", user="ada", tier="open_source")
        async with open_socket(p) as first, open_socket(p) as second, open_socket(p, other.key) as stays:
            started = time.monotonic()
            path = f"/api/v1/admin/keys/{p.key_id}"
            assert (await p.ask("DELETE", path, **{"X-API-Key": admin.key}))[0] == 204
            assert await usage(p, p.key) == 401
            for socket in (first, second):
                code, reason = await closed(socket, within=1.5)
                assert code == 1008
                assert "revoked" in reason
            assert time.monotonic() - started < 1.5
            await say(stays, "ping")
            await said(stays, "pong")


async def test_a_revocation_by_another_process_holds_in_less_than_a_second_and_closes_sockets(tmp_path):
    """The command line writes the store alone: nothing tells the replica, it looks."""
    async with place(tmp_path) as p, open_socket(p) as socket:
        assert await usage(p, p.key) == 200
        command = ["keys", "revoke", p.key_id, "--config", str(tmp_path / "openclaw.toml")]
        result = await asyncio.to_thread(CliRunner().invoke, main, command)
        assert result.exit_code == 0, result.output
        started = time.monotonic()
        while await usage(p, p.key) == 200:
            assert time.monotonic() - started < 1.0
            await asyncio.sleep(0.02)
        assert (await closed(socket, within=1.5))[0] == 1008


async def test_the_end_of_an_overlap_closes_the_sockets_of_the_old_key(tmp_path):
    async with place(tmp_path) as p, open_socket(p) as old:
        issued = await p.gateway.plugin("api_key").rotate(p.key_id, overlap=1.0)
        async with open_socket(p, issued.key) as new:
            await say(old, "ping")
            await said(old, "pong")
            started = time.monotonic()
            assert (await closed(old, within=2.5))[0] == 1008
            assert time.monotonic() - started > 0.3
            await say(new, "ping")
            await said(new, "pong")


async def test_two_gateways_on_one_store(tmp_path):
    """What one replica makes another knows at once, and what one ends the other ends."""
    async with place(tmp_path) as here:
        there = build(tmp_path / "openclaw.toml")
        async with serving(there) as url:
            made = await there.plugin("api_key").create(organization="acme", user="bob", tier="open_source")
            assert await usage(here, made.key) == 200
            async with open_socket(here, made.key) as socket:
                await there.plugin("api_key").revoke(made.record.key_id)
                async with here.http.get(url + "/api/v1/usage", headers={"X-API-Key": made.key}) as answer:
                    assert answer.status == 401
                assert (await closed(socket, within=1.5))[0] == 1008
            assert await usage(here, made.key) == 401
