"""A reload swaps one value: no request fails, none sees a mix, and a bad file changes nothing."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fire.watch import Recorder, counts
from small import CONFIG, TIERS, Api, Named

from openclaw_gateway.api import hookimpl
from openclaw_gateway.errors import ConfigError, StartFailed
from openclaw_gateway.serving.front import rehearse_and_report, reload_and_report
from openclaw_gateway.testing import build, configuration, served

pytestmark = pytest.mark.usefixtures("small")


def write(path: Path, prefix: str, *, broken: bool = False) -> None:
    text = CONFIG.replace("[plugins.named]", f'[plugins.named]\nprefix = "{prefix}"\n')
    path.write_text(text[: len(text) // 2] if broken else text)


async def test_the_new_configuration_serves_and_usage_is_kept(tmp_path: Path) -> None:
    path = configuration(tmp_path, toml=CONFIG, tiers=TIERS)
    async with served(build(path)) as server, aiohttp.ClientSession() as client:
        url = server.gateway.url
        for _ in range(2):
            async with client.post(url + "/things", headers={"x-org": "a"}) as answer:
                assert (answer.status, answer.headers["x-request-id"]) == (201, "r-1")
        write(path, "fresh")
        (tmp_path / "tiers" / "basic.toml").write_text("[capped.requests]\nlimit = 4\n[capped.messages]\nlimit = 100\n")
        assert await server.front.reload() == []
        assert server.gateway.generation == 2
        statuses = []
        for _ in range(3):
            async with client.post(url + "/things", headers={"x-org": "a"}) as answer:
                statuses.append(answer.status)
                assert answer.headers["x-request-id"] == "fresh-1"
        assert statuses == [201, 201, 429]


async def test_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    path = configuration(tmp_path, toml=CONFIG, tiers=TIERS)
    async with served(build(path)) as server, aiohttp.ClientSession() as client:
        before = server.gateway
        for text in ("[gateway", CONFIG.replace("port", "prot"), "", CONFIG.replace('"known", ', "")):
            path.write_text(text)
            with pytest.raises(ConfigError):
                await server.front.reload()
        path.unlink()
        with pytest.raises(ConfigError):
            await server.front.reload()
        assert server.gateway is before
        async with client.get(before.url + "/open") as answer:
            assert answer.status == 200


async def test_what_cannot_change_is_named(tmp_path: Path) -> None:
    path = configuration(tmp_path, toml=CONFIG, tiers=TIERS)
    async with served(build(path)) as server:
        path.write_text(CONFIG.replace("port = 0", "port = 1"))
        assert await server.front.reload() == ["gateway.port"]


async def test_a_rehearsal_says_what_would_change_and_swaps_nothing(tmp_path: Path) -> None:
    path = configuration(tmp_path, toml=CONFIG, tiers=TIERS)
    async with served(build(path)) as server:
        before = server.gateway
        assert await server.front.rehearse() == ([], [])
        text = CONFIG.replace("port = 0", "port = 1")
        path.write_text(text.replace("[plugins.named]", '[plugins.named]\nprefix = "fresh"\n'))
        (tmp_path / "tiers" / "basic.toml").write_text("[capped.requests]\nlimit = 4\n[capped.messages]\nlimit = 100\n")
        changes, fixed = await server.front.rehearse()
        assert [change["key"] for change in changes] == [
            "gateway.port", "plugins.named.prefix", "tiers.basic.capped.requests.limit",
        ]  # fmt: skip
        assert changes[1] == {"key": "plugins.named.prefix", "served": "r", "file": "fresh"}
        assert fixed == ["gateway.port"]
        path.write_text("[gateway")
        told = await rehearse_and_report(server.front)
        assert not told["ok"] and told["problems"][0].startswith("openclaw.toml:1:")
        assert server.gateway is before


async def test_a_plugin_that_raises_when_it_is_built_is_named_and_the_next_reload_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = configuration(tmp_path, toml=CONFIG, tiers=TIERS)

    def broken(self: Named, config: Any, host: Any) -> None:
        raise AttributeError("no such thing")

    async with served(build(path)) as server:
        with monkeypatch.context() as patch:
            patch.setattr(Named, "__init__", broken)
            for told in (await reload_and_report(server.front), await rehearse_and_report(server.front)):
                (problem,) = told["problems"]
                assert (
                    "plugins.named: its constructor failed: AttributeError: no such thing (test_reload.py:" in problem
                )
        with monkeypatch.context() as patch:
            patch.setattr(Api, "routes", hookimpl(lambda self: 1 / 0))
            for told in (await reload_and_report(server.front), await rehearse_and_report(server.front)):
                (problem,) = told["problems"]
                assert "plugins.api: its hook 'routes' failed: ZeroDivisionError: division by zero (test_re" in problem
        assert (await reload_and_report(server.front))["ok"]
        assert server.gateway.generation == 2


@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("rounds", counts(30, 10_000))
async def test_many_reloads_under_load_fail_no_request(tmp_path: Path, rounds: int, record_property: Recorder) -> None:
    path = configuration(tmp_path, toml=CONFIG, tiers=TIERS)
    seen: dict[str, int] = {}
    stop = asyncio.Event()

    async def client(url: str) -> None:
        async with aiohttp.ClientSession(url) as session:
            while not stop.is_set():
                async with session.get("/open") as answer:
                    assert answer.status == 200
                    name = answer.headers["x-request-id"]
                    seen[name] = seen.get(name, 0) + 1

    async with served(build(path)) as server:
        clients = [asyncio.create_task(client(server.gateway.url)) for _ in range(4)]
        refused = 0
        for i in range(rounds):
            write(path, f"g{i}", broken=i % 2 == 1)
            try:
                await server.front.reload()
            except ConfigError:
                refused += 1
        stop.set()
        await asyncio.gather(*clients)
        record_property("reloads", rounds)
        record_property("of a broken file", refused)
        record_property("requests meanwhile", sum(seen.values()))
        record_property("requests failed", 0)
        assert refused == rounds // 2
        assert server.gateway.generation == 1 + rounds - refused
        assert len(seen) >= rounds // 4
        # The gateways before it are closed and gone.
        await asyncio.sleep(0.2)
        gc.collect()
        alive = sum(1 for o in gc.get_objects() if type(o) is type(server.gateway))
        assert alive <= 4


async def test_a_running_stream_ends_on_the_gateway_that_it_began_on(tmp_path: Path, monkeypatch: Any) -> None:
    from litestar.handlers import asgi
    from small import Api

    from openclaw_gateway.api import declared, hookimpl

    go = asyncio.Event()

    def routes(self: Api) -> list[Any]:
        @asgi("/slow", copy_scope=False, **declared(access="public", methods=("GET",)))
        async def slow(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"begun ", "more_body": True})
            await go.wait()
            await send({"type": "http.response.body", "body": b"done"})

        return [slow]

    monkeypatch.setattr(Api, "routes", hookimpl(routes))
    path = configuration(tmp_path, toml=CONFIG, tiers={"basic": ""}, edit={"gateway.pipeline": ["named"]})
    async with served(build(path)) as server, aiohttp.ClientSession() as client:
        named = server.gateway.plugin("named")
        async with client.get(server.gateway.url + "/slow") as answer:
            assert await answer.content.read(6) == b"begun "
            await server.front.reload()
            go.set()
            assert await answer.content.read() == b"done"
        await asyncio.sleep(0.05)
        assert [o.status for o in named.outcomes] == [200]


async def test_while_it_stops_nothing_is_reloaded(tmp_path: Path) -> None:
    path = configuration(tmp_path, toml=CONFIG, tiers=TIERS)
    async with served(build(path)) as server:
        server.gateway.begin_drain()
        with pytest.raises(StartFailed, match="stopping"):
            await server.front.reload()
        assert server.gateway.generation == 1
