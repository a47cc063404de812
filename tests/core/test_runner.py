"""An exchange over a real socket: order, early answers, faults, streams, completion exactly once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from small import CONFIG, TIERS, Known, Named

from openclaw_gateway.api import Exchange
from openclaw_gateway.gateway import Gateway
from openclaw_gateway.testing import build, configuration, serving

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture
def gateway(tmp_path: Path, small: None) -> Gateway:
    return build(configuration(tmp_path, toml=CONFIG, tiers=TIERS))


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[aiohttp.ClientSession]:
    async with serving(gateway) as url, aiohttp.ClientSession(url) as session:
        yield session


async def test_every_answer_passes_the_pipeline_even_where_no_route_matches(
    client: aiohttp.ClientSession, gateway: Gateway
) -> None:
    for method, path, status, code in [
        ("GET", "/open", 200, None),
        ("GET", "/nowhere", 404, "NOT_FOUND"),
        ("PUT", "/open", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/raw", 405, "METHOD_NOT_ALLOWED"),
        ("OPTIONS", "/open", 405, "METHOD_NOT_ALLOWED"),
        ("PROPFIND", "/open", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/%ff%00", 404, "NOT_FOUND"),
        ("POST", "/things", 401, "UNAUTHORIZED"),
        ("GET", "/refuses", 400, "BAD_REQUEST"),
        ("GET", "/boom", 500, "INTERNAL_SERVER_ERROR"),
    ]:
        async with client.request(method, path) as answer:
            assert answer.status == status, path
            assert answer.headers["x-request-id"] == "r-1"
            if code is not None:
                assert answer.content_type == "application/problem+json"
                body = await answer.json()
                assert body["error"]["code"] == code
                assert body["error"]["requestId"] == "r-1"
                assert body["status"] == status
    named: Named = gateway.plugin("named")
    assert [o.status for o in named.outcomes] == [200, 404, 405, 405, 405, 405, 404, 401, 400, 500]
    assert all(o.seconds > 0 for o in named.outcomes)


async def test_the_cause_of_a_fault_stays_in_the_log(
    client: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    async with client.get("/boom") as answer:
        assert "secret cause" not in await answer.text()
    assert "secret cause" in caplog.text


async def test_405_names_the_methods_that_are_possible(client: aiohttp.ClientSession) -> None:
    async with client.get("/things") as answer:
        assert answer.headers["allow"] == "POST"


async def test_a_rate_admits_exactly_its_limit_under_concurrency(client: aiohttp.ClientSession) -> None:
    async def one() -> int:
        async with client.post("/things", headers={"x-org": "a"}) as answer:
            return answer.status

    statuses = await asyncio.gather(*(one() for _ in range(20)))
    assert sorted(statuses) == [201] * 3 + [429] * 17
    async with client.post("/things", headers={"x-org": "a"}) as answer:
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["retry-after-ms"] == "1500"
        limit = (await answer.json())["error"]["limit"]
        assert (limit["name"], limit["kind"], limit["used"], limit["limit"]) == ("capped.requests", "rate", 3, 3)
    async with client.post("/things", headers={"x-org": "b"}) as answer:
        assert answer.status == 201


async def test_an_asgi_route_streams_through_both_of_its_paths(client: aiohttp.ClientSession, gateway: Gateway) -> None:
    for path in ("/raw", "/alias/raw", "/alias/raw/"):
        async with client.post(path, headers={"x-org": path}) as answer:
            assert (answer.status, await answer.text()) == (200, "one two")
    named: Named = gateway.plugin("named")
    assert [o.bytes_sent for o in named.outcomes] == [7, 7, 7]
    assert [x.route.route.path for x in named.seen] == ["/raw", "/alias/raw", "/alias/raw"]


@pytest.mark.parametrize(("on_error", "status"), [("deny", 503), ("allow", 401)])
async def test_a_step_that_raises_is_answered_by_its_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_error: str, status: int
) -> None:
    def broken(self: Named, x: Any) -> None:
        raise OSError("disk on fire")

    monkeypatch.setattr(Named, "on_request", _hooked(broken))
    monkeypatch.setattr(Named, "on_response", _hooked(lambda self, x, head: None))
    toml = CONFIG + f'\n[steps.named]\non_error = "{on_error}"\n'
    async with (
        serving(build(configuration(tmp_path, toml=toml, tiers=TIERS))) as url,
        aiohttp.ClientSession(url) as client,
        client.post("/things") as answer,
    ):
        assert answer.status == status
        assert "disk on fire" not in await answer.text()


async def test_a_step_that_overruns_is_cut_at_its_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(self: Known, x: Any) -> None:
        await asyncio.sleep(30)

    monkeypatch.setattr(Known, "on_request", _hooked(slow))
    toml = CONFIG + '\n[steps.known]\ntimeout = "50ms"\n'
    async with (
        serving(build(configuration(tmp_path, toml=toml, tiers=TIERS))) as url,
        aiohttp.ClientSession(url) as client,
        client.post("/things") as answer,
    ):
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1


async def test_a_step_in_shadow_lets_through_what_it_would_refuse(tmp_path: Path, caplog: Any) -> None:
    edit = {
        "steps.known.enforce": False,
        "gateway.pipeline": ["named", "known", "ranked"],
        "gateway.unmetered": ["requests", "messages"],
        "steps.ranked.on_error": "allow",
    }
    gateway = build(configuration(tmp_path, toml=CONFIG, edit=edit, tiers={"basic": ""}))
    async with serving(gateway) as url, aiohttp.ClientSession(url) as client, client.post("/raw") as answer:
        assert answer.status == 503  # nobody knows the caller: admission has no one to charge
    (told,) = (record for record in caplog.records if "would refuse" in record.message)
    assert told.fields == {"step": "known", "enforced": False}


async def test_a_client_that_leaves_completes_its_exchange_once(gateway: Gateway) -> None:
    async with serving(gateway) as url:
        host, port = url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /things HTTP/1.1\r\nHost: x\r\nX-Org: a\r\nContent-Length: 100\r\n\r\nhalf")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.close()
        await asyncio.sleep(0.1)
        named: Named = gateway.plugin("named")
        assert len(named.outcomes) == 1


async def test_two_gateways_of_one_process_do_not_collide(tmp_path: Path) -> None:
    one = build(configuration(tmp_path / "a", toml=CONFIG, tiers=TIERS))
    two = build(configuration(tmp_path / "b", toml=CONFIG, tiers=TIERS))
    async with serving(one) as first, serving(two) as second, aiohttp.ClientSession() as client:
        for url in (first, second, first):
            async with client.get(url + "/open") as answer:
                assert answer.status == 200
    assert (len(one.plugin("named").outcomes), len(two.plugin("named").outcomes)) == (2, 1)


async def test_draining_refuses_new_work_and_says_when_to_come_back(
    client: aiohttp.ClientSession, gateway: Gateway
) -> None:
    gateway.refuse_new_work()
    async with client.get("/open") as answer:
        assert answer.status == 503
        assert answer.headers["retry-after"] == "5"
        assert answer.headers["x-request-id"] == "r-1"
        assert (await answer.json())["error"]["code"] == "SERVICE_UNAVAILABLE"


def _hooked(function: Any) -> Any:
    from openclaw_gateway.api import hookimpl

    return hookimpl(function)


async def test_a_step_that_costs_50_ms_shows_and_to_nobody_unless_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = Named.on_request

    def slow(self: Named, x: Exchange) -> None:
        time.sleep(0.05)  # what a plugin must not do
        quick(self, x)

    monkeypatch.setattr(Named, "on_request", _hooked(slow))
    for shown in (True, False):
        toml = CONFIG.replace("port = 0", f"port = 0\nserver_timing = {str(shown).lower()}")
        gateway = build(configuration(tmp_path / str(shown), toml=toml, tiers=TIERS))
        async with serving(gateway) as url, aiohttp.ClientSession(url) as client:
            for headers, status in (({"x-org": "a"}, 201), ({}, 401)):
                async with client.post("/things", headers=headers) as answer:
                    assert answer.status == status
                    told = answer.headers.get("server-timing")
                assert (told is not None) == shown
                if told is not None:
                    took = {stage: float(ms) for stage, ms in (part.split(";dur=") for part in told.split(", "))}
                    assert took.pop("named") >= 50
                    assert max(took.values(), default=0) < 50
        if shown:  # every request is timed then, and a share of them else
            labels = {"plugin": "named", "stage": "request"}
            assert (gateway.registry.get_sample_value("plugin_stage_duration_seconds_sum", labels) or 0) >= 0.1


async def test_what_each_step_costs_is_visible(tmp_path: Path) -> None:
    toml = CONFIG.replace("port = 0", "port = 0\nserver_timing = true")
    gateway = build(configuration(tmp_path, toml=toml, tiers=TIERS))
    async with (
        serving(gateway) as url,
        aiohttp.ClientSession(url) as client,
        client.post("/things", headers={"x-org": "a"}) as answer,
    ):
        timed = [part.split(";dur=") for part in answer.headers["server-timing"].split(", ")]
    assert [stage for stage, _ in timed] == ["named", "known", "ranked", "admission"]
    assert all(float(milliseconds) >= 0 for _, milliseconds in timed)
    for stage in ("named", "admission"):
        labels = {"plugin": stage, "stage": "request"}
        assert gateway.registry.get_sample_value("plugin_stage_duration_seconds_count", labels) == 1
