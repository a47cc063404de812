"""Health answers in time whatever hangs, tells strangers nothing, and turns readiness for what matters only."""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from openclaw_gateway.api import HealthCheck, StoreUnavailable
from openclaw_gateway.facts import PRINCIPAL, Principal
from openclaw_gateway.gateway import Gateway
from openclaw_gateway.hooks import hookimpl
from openclaw_gateway.testing import build, configuration, serving
from openclaw_plugins.health.checks import memory_use

from .operators_kit import small_gateway


class Part:
    """A part whose health a test turns."""

    def __init__(self, gate: Any = "ready") -> None:
        self.calls = 0
        self.error: BaseException | None = None
        self.hangs = False
        self.check = HealthCheck("part", self.probe, gate)

    async def probe(self) -> Mapping[str, Any]:
        self.calls += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        return {"rows": 3}


def with_part(directory: Path, part: Part, edit: dict[str, Any] | None = None) -> Gateway:
    gateway = small_gateway(
        directory,
        {
            "plugins.health.cache": "0s",
            "plugins.health.timeout": "200ms",
            "plugins.health.fall": 1,
            "plugins.health.rise": 1,
            **(edit or {}),
        },
    )
    gateway.health_checks.append(part.check)
    return gateway


def as_admin(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, scopes: frozenset[str] = frozenset({"admin"})) -> None:
    """Let the first step of the pipeline state who calls, in place of an auth step."""
    principal = Principal(organization="ops", user="ada", tier="free", scopes=scopes, method="test", credential="test")
    step = gateway.plugin("request_id")
    before: Callable[[Any], None] = step.on_request

    @hookimpl
    def on_request(x: Any) -> None:
        before(x)
        x[PRINCIPAL] = principal

    for compiled in gateway.runner._matching._routes.values():
        for call in compiled.request:
            if call.step.id == "request_id":
                monkeypatch.setattr(call, "function", on_request)


async def get(url: str, path: str) -> tuple[int, dict[str, Any]]:
    async with aiohttp.ClientSession() as client, client.get(url + path) as response:
        return response.status, json.loads(await response.read())


async def test_all_of_them_answer_get_and_head_without_a_credential(tmp_path: Path) -> None:
    async with serving(small_gateway(tmp_path)) as url, aiohttp.ClientSession() as client:
        for path in ("/health", "/health/live", "/health/startup", "/health/ready", "/info"):
            async with client.get(url + path) as response:
                assert response.status == 200
                assert response.headers["cache-control"] == "no-store"
                assert response.headers["content-type"] == "application/json"
            async with client.head(url + path) as response:
                assert (response.status, await response.read()) == (200, b"")


async def test_strangers_see_a_status_and_no_part(tmp_path: Path) -> None:
    part = Part()
    part.error = RuntimeError("password=hunter2 at 10.0.0.7")
    async with serving(with_part(tmp_path, part)) as url:
        status, report = await get(url, "/health")
        assert (status, set(report), report["status"]) == (503, {"status", "timestamp"}, "unhealthy")
        assert await get(url, "/health/ready") == (503, {"status": "unready"})
        assert "plugins" not in (await get(url, "/info"))[1]


async def test_administrators_see_every_part_in_our_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = Part()
    gateway = with_part(tmp_path, part)
    as_admin(gateway, monkeypatch)
    async with serving(gateway) as url:
        _, report = await get(url, "/health")
        assert report["checks"]["part"]["facts"] == {"rows": 3}
        assert {"disk", "memory", "event_loop", "part"} <= set(report["checks"])
        assert report["checks"]["disk"]["facts"]["freeBytes"] > 0
        for error, text in (
            (StoreUnavailable("database", "password=hunter2"), "the database does not answer"),
            (RuntimeError("password=hunter2"), "RuntimeError"),
        ):
            part.error = error
            _, report = await get(url, "/health")
            assert report["checks"]["part"]["message"] == text
        assert "hunter2" not in json.dumps(report)
        assert "health" in (await get(url, "/info"))[1]["plugins"]


async def test_another_scope_is_no_administrator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = small_gateway(tmp_path)
    as_admin(gateway, monkeypatch, frozenset({"administrate", "read"}))
    async with serving(gateway) as url:
        assert "checks" not in (await get(url, "/health"))[1]


async def test_a_part_of_gate_info_degrades_and_leaves_readiness(tmp_path: Path) -> None:
    part = Part("info")
    part.error = RuntimeError()
    async with serving(with_part(tmp_path, part)) as url:
        status, report = await get(url, "/health")
        assert (status, report["status"]) == (200, "degraded")
        assert await get(url, "/health/ready") == (200, {"status": "ready"})


async def test_live_looks_at_nothing_and_ready_not_at_info(tmp_path: Path) -> None:
    part = Part("info")
    async with serving(with_part(tmp_path, part)) as url:
        assert await get(url, "/health/live") == (200, {"status": "alive"})
        await get(url, "/health/ready")
        assert part.calls == 0


async def test_a_check_that_hangs_is_answered_in_time_and_looked_at_anew(tmp_path: Path) -> None:
    part = Part()
    part.hangs = True
    async with serving(with_part(tmp_path, part)) as url:
        began = asyncio.get_running_loop().time()
        assert (await get(url, "/health/ready"))[0] == 503
        assert (await get(url, "/health/live"))[0] == 200
        assert asyncio.get_running_loop().time() - began < 1.5
        part.hangs = False
        assert (await get(url, "/health/ready"))[0] == 200


async def test_readiness_does_not_flap(tmp_path: Path) -> None:
    part = Part()
    edit = {"plugins.health.fall": 3, "plugins.health.rise": 2}

    async def looks(url: str, *errors: BaseException | None) -> list[int]:
        seen = []
        for part.error in errors:
            seen.append((await get(url, "/health/ready"))[0])
        return seen

    bad = StoreUnavailable("database", "gone")
    async with serving(with_part(tmp_path, part, edit)) as url:
        assert await looks(url, None, bad, bad, None, bad, bad) == [200] * 6
        assert await looks(url, bad) == [503]
        assert await looks(url, None, bad, None) == [503] * 3
        # What it is now is told at once, and is not what the balancer is told.
        assert (await get(url, "/health"))[1]["status"] == "healthy"
        assert await looks(url, None) == [200]


async def test_a_replica_that_starts_ill_is_not_ready(tmp_path: Path) -> None:
    part = Part()
    part.error = StoreUnavailable("database", "gone")
    async with serving(with_part(tmp_path, part, {"plugins.health.fall": 3})) as url:
        assert (await get(url, "/health/ready"))[0] == 503


async def test_a_crowd_is_one_look_and_a_second_look_waits_for_the_cache(tmp_path: Path) -> None:
    part = Part()
    async with serving(with_part(tmp_path, part, {"plugins.health.cache": "10s"})) as url:
        await asyncio.gather(*(get(url, "/health/ready") for _ in range(30)))
        await get(url, "/health")
        assert part.calls == 1


async def test_what_has_started_stays_so_whatever_readiness_says(tmp_path: Path) -> None:
    part = Part()
    part.error = RuntimeError("away")
    gateway = with_part(tmp_path, part)
    async with serving(gateway) as url:
        assert (await get(url, "/health/ready"))[0] == 503
        calls = part.calls
        assert await get(url, "/health/startup") == (200, {"status": "started"})
        assert part.calls == calls, "it asks no part"
        gateway.begin_drain()
        assert (await get(url, "/health/startup"))[0] == 200


async def test_draining_turns_readiness_and_not_life(tmp_path: Path) -> None:
    gateway = small_gateway(tmp_path)
    async with serving(gateway) as url:
        gateway.begin_drain()
        assert await get(url, "/health/ready") == (503, {"status": "draining"})
        assert (await get(url, "/health/live"))[0] == 200
        gateway.refuse_new_work()
        assert (await get(url, "/health/ready"))[0] == 503
        assert (await get(url, "/health/live"))[0] == 200


async def test_a_change_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    part = Part()
    with caplog.at_level(logging.INFO, "openclaw.health"):
        async with serving(with_part(tmp_path, part)) as url:
            part.error = RuntimeError("the cause")
            for _ in range(3):
                await get(url, "/health/ready")
            part.error = None
            await get(url, "/health/ready")
    told = [r.getMessage() for r in caplog.records if r.name == "openclaw.health"]
    assert told == ["the check part fails: RuntimeError", "the check part is well again"]
    assert caplog.records[0].exc_info is not None


async def test_two_plugins_of_one_class_are_both_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"use": "database", "url": f"sqlite:///{tmp_path / 'archive.db'}", "auto_upgrade": True}
    gateway = small_gateway(tmp_path, {"plugins.database": {}, "plugins.archive": other})
    as_admin(gateway, monkeypatch)
    async with serving(gateway) as url:
        checks = (await get(url, "/health"))[1]["checks"]
    assert {"database", "archive"} <= set(checks)


@pytest.mark.parametrize(("required", "ready"), [(True, 503), (False, 200)])
async def test_declared_services_are_asked(tmp_path: Path, required: bool, ready: int) -> None:
    seen: list[str] = []
    status = 200

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.path)
        return web.Response(status=status)

    app = web.Application()
    app.router.add_get("/base/well", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    edit = {
        "plugins.health.fall": 1,
        "plugins.health.cache": "0s",
        "targets.search.url": f"http://127.0.0.1:{port}/base/",
        "targets.search.health_path": "/well",
        "targets.search.required": required,
    }
    try:
        async with serving(small_gateway(tmp_path, edit)) as url:
            assert (await get(url, "/health"))[1]["status"] == "healthy"
            assert seen == ["/base/well"]
            status = 503
            assert (await get(url, "/health/ready"))[0] == ready
            assert (await get(url, "/health"))[1]["status"] == ("unhealthy" if required else "degraded")
            await runner.cleanup()
            assert (await get(url, "/health/ready"))[0] == ready
    finally:
        await runner.cleanup()


async def test_too_little_disk_and_too_much_memory_degrade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = small_gateway(tmp_path, {"plugins.health.min_disk": "1000000GB"})
    monkeypatch.setattr("openclaw_plugins.health.checks.memory_use", lambda: (99, 100))
    as_admin(gateway, monkeypatch)
    async with serving(gateway) as url:
        status, report = await get(url, "/health")
    assert (status, report["status"]) == (200, "degraded")
    assert "min_disk" in report["checks"]["disk"]["message"]
    assert "99 of 100 bytes" in report["checks"]["memory"]["message"]


async def test_a_late_event_loop_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = small_gateway(tmp_path, {"plugins.health.max_lag": "300ms"})
    as_admin(gateway, monkeypatch)
    async with serving(gateway) as url:
        await asyncio.sleep(0.3)
        time.sleep(0.8)
        await asyncio.sleep(0.05)
        _, report = await get(url, "/health")
    assert report["checks"]["event_loop"]["status"] == "unhealthy"


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_health_and_metrics_answer_while_every_connection_is_held(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A request would wait 20 s for a connection: whatever is answered within 5 has not."""
    edit: dict[str, Any] = {
        "plugins.database.pool_size": 2,
        "plugins.database.pool_timeout": "20s",
        "plugins.health.cache": "50ms",
        "plugins.health.fall": 1,
    }
    if kind == "postgresql":
        edit |= {"plugins.database.url": request.getfixturevalue("postgres_url"), "plugins.database.auto_upgrade": True}
    gateway = build(configuration(tmp_path, edit=edit))
    store = gateway.plugin("database")

    async def hold(held: AsyncExitStack, operation: str) -> None:
        async with asyncio.timeout(0.3):
            await held.enter_async_context(store.transaction(None, operation=operation, table="t"))

    async with serving(gateway) as url, AsyncExitStack() as held:
        # SQLite has one connection that writes, beside two that read.
        for operation in ("insert", "select", "select") if kind == "sqlite" else ("insert", "select"):
            await hold(held, operation)
        for operation in ("insert", "select"):
            with pytest.raises((TimeoutError, StoreUnavailable)):
                await hold(held, operation)
        for _ in range(5):
            async with asyncio.timeout(5):
                for path in ("/health/live", "/health/ready", "/health"):
                    assert (await get(url, path))[0] == 200, path
            await asyncio.sleep(0.06)  # so that the next is a look of its own and not the last one's result
        async with asyncio.timeout(5), aiohttp.ClientSession() as client, client.get(f"{url}/metrics") as response:
            samples = (await response.text()).splitlines()
    taken = {line.split(" ")[0]: float(line.split(" ")[1]) for line in samples if line.startswith("database_conn")}
    assert response.status == 200 and sum(v for k, v in taken.items() if "active" in k) >= 2, taken


def test_memory_use_reads_both_kinds_of_control_group(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 200\n")
    assert memory_use(tmp_path) == (500, 1000)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_use(tmp_path) == (None, None)
    old = tmp_path / "memory"
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text("2000")
    (old / "memory.usage_in_bytes").write_text("900")
    (old / "memory.stat").write_text("total_inactive_file 100\n")
    assert memory_use(tmp_path) == (800, 2000)
    (old / "memory.limit_in_bytes").write_text("9223372036854771712")
    assert memory_use(tmp_path) == (None, None)


async def test_a_required_service_that_is_away_does_not_hinder_the_start(tmp_path: Path) -> None:
    edit = {"targets.gone.url": "http://127.0.0.1:9", "targets.gone.required": True}
    async with serving(small_gateway(tmp_path, edit)) as url:
        assert (await get(url, "/health/live"))[0] == 200
        assert (await get(url, "/health/ready"))[0] == 503


async def test_the_shipped_configuration_is_ready(tmp_path: Path) -> None:
    async with serving(build(configuration(tmp_path))) as url:
        assert await get(url, "/health/ready") == (200, {"status": "ready"})
