"""A real gateway under real trouble, scraped by a real Prometheus: panels fill, alerts fire, the others stay quiet.

The rules are those of alerts.yaml from the same source, with every window and every `for` shortened by SPEED.
"""

from __future__ import annotations

import asyncio
import json
import math
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from monitoring.generate.alerts import groups
from monitoring.generate.catalogue import BESIDES, Catalogue
from monitoring.generate.files import alert_rules, recording_rules
from monitoring.generate.options import Options
from monitoring.generate.panels import panels, plain
from servers import Valkey, free_port, start_valkey
from upstreams import Cut, Pause, scripted

from openclaw_gateway.gateway import Gateway
from openclaw_gateway.testing import build, configuration, serving

SPEED = Options(speed=30)  # 5 minutes are 10 seconds
MOST = 85.0

DRIVEN = {
    "HighHTTPErrorRate",
    "CriticalHTTPErrorRate",
    "HighHTTPLatency",
    "LowSkillSuccessRate",
    "CriticalSkillSuccessRate",
    "QuotaNearLimit",
    "QuotaExceeded",
    "HighRateLimitHits",
    "HighExternalServiceErrorRate",
    "HighRedisErrorRate",
}
QUIET = {
    "CriticalHTTPLatency",
    "HighSkillExecutionLatency",
    "CriticalMemoryUsage",
    "PodRestartLoop",
    "PodNotReady",
    "HighWebSocketConnectionCount",
    "WebSocketMessageBacklog",
    "HighExternalServiceLatency",
    "HighActiveSessionCount",
}


def tier(requests: int = 1_000_000, messages: int = 1_000_000) -> str:
    rate = 'per = "minute"\non_backend_failure = "local"\n'
    return (
        f"[ratelimit.requests]\nlimit = {requests}\n{rate}[ratelimit.ws_messages]\nlimit = 1000000\n{rate}"
        f'[quota.sessions]\nlimit = 1000000\nper = "month"\n[quota.messages]\nlimit = {messages}\nper = "month"\n'
        '[quota.skills]\nlimit = 1000000\nper = "session"\n'
        "[concurrency.sessions]\nlimit = 1000000\n[concurrency.ws_connections]\nlimit = 1000\n"
    )


TIERS = {"wide": tier(), "narrow": tier(requests=5), "poor": tier(messages=5)}


class Seen(NamedTuple):
    """What the scenario left behind."""

    fired: dict[str, str]
    filled: dict[str, bool]
    recorded: dict[str, bool]
    scraped: set[str]


def test_a_gateway_in_trouble(prometheus_binary: Path, tmp_path: Path, subtests: pytest.Subtests) -> None:
    with start_valkey() as valkey:
        seen = asyncio.run(play(prometheus_binary, tmp_path, valkey))
    catalogue = Catalogue.of_all_plugins()
    with subtests.test("alerts fire"):
        assert DRIVEN - set(seen.fired) == set()
    with subtests.test("they say what they mean"):
        assert "quota.messages in the tier poor stands at" in seen.fired["QuotaNearLimit"]
        assert "counters does not reach its store" in seen.fired["HighRedisErrorRate"]
        assert "/v1/chat/completions" in seen.fired["HighHTTPLatency"]
    with subtests.test("nothing else is said"):
        assert QUIET & set(seen.fired) == set()
    with subtests.test("every panel has data"):
        queries = [(panel.title, query.expr) for panel in panels(catalogue, SPEED) for query in panel.queries]
        without = {expr for _, expr in queries if catalogue.without_call_site(plain(expr))}
        assert {expr for _, expr in queries if not seen.filled[expr]} == without, (
            "what nothing writes yet is in catalogue.AWAITED, another program's in catalogue.EXTERNAL"
        )
    with subtests.test("every recording rule records"):
        assert seen.recorded and all(seen.recorded.values()), seen.recorded
    with subtests.test("every metric that is asked for was scraped"):
        asked = {name for _, expr in queries for name in catalogue.asked(plain(expr))}
        asked |= {name for g in groups(catalogue, SPEED) for alert in g.alerts for name in catalogue.asked(alert.expr)}
        written = {name for name in asked if not catalogue.without_call_site(name)}
        assert len(written) > 20
        # A counter of failures is there once something has failed.
        assert written - seen.scraped - {"database_errors_total"} == set()


# --- the scenario -------------------------------------------------------------------------------


async def play(prometheus: Path, folder: Path, valkey: Valkey) -> Seen:
    deadline = time.monotonic() + MOST
    catalogue = Catalogue.of_all_plugins()
    port = free_port()
    async with watching(prometheus, folder, catalogue, port) as watch, scripted() as broken, scripted() as slow:
        broken.script = (Cut,)
        slow.headers = {"Content-Type": "application/json"}
        slow.script = (Pause(1.6), whole_answer())
        gateway = build(configuration(folder, edit=edits(port, valkey, broken.url, slow.url), tiers=TIERS))
        async with serving(gateway) as url, aiohttp.ClientSession(url) as client:
            trouble = Trouble(client, {name: await key(gateway, name) for name in TIERS})
            async with trouble.running():
                await until(lambda: DRIVEN - {"HighRedisErrorRate"} <= set(watch.fired), deadline - 25)
                filled = await watch.fill(catalogue)
                recorded = {r: await watch.has_data(r) for r in recording_names(catalogue)}
                valkey.stop(signal.SIGKILL)
                await until(lambda: set(watch.fired) >= DRIVEN, deadline)
            async with client.get("/metrics") as response:
                scraped = {line.split("{")[0].split(" ")[0] for line in (await response.text()).splitlines()}
        return Seen(dict(watch.fired), filled, recorded, scraped)


def edits(port: int, valkey: Valkey, broken: str, slow: str) -> dict[str, Any]:
    return {
        **BESIDES,
        "gateway.port": port,
        "plugins.access_log.file": "gateway.log",
        "plugins.redis.url": valkey.url,
        "plugins.upstream": {"use": "providers.openai", "url": broken},
        "models.upstream": {"provider": "upstream", "retries": 0},
        "plugins.slow_upstream": {"use": "providers.openai", "url": slow},
        "models.slow": {"provider": "slow_upstream", "retries": 0},
        "targets.tickets": {"url": broken.removesuffix("/v1"), "private": True},
        "skills.broken": {"provider": "http_skills", "description": "Fails.", "target": "tickets", "url": "/find"},
    }


async def key(gateway: Gateway, name: str) -> dict[str, str]:
    made = await gateway.plugin("api_key").create(organization=name, user="ann", tier=name)
    return {"X-API-Key": str(made.key)}


def whole_answer() -> bytes:
    message = {"role": "assistant", "content": "at last"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps(
        {"id": "1", "object": "chat.completion", "created": 1, "model": "slow", "choices": [choice]}
    ).encode()


class Trouble:
    """Everything that goes on at once: good traffic, and each kind of bad."""

    def __init__(self, client: aiohttp.ClientSession, keys: dict[str, dict[str, str]]) -> None:
        self._client = client
        self._keys = keys

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self._client.post("/api/v1/sessions", json={}, headers=self._keys["wide"]) as response:
            session = (await response.json())["sessionId"]
        run = {"sessionId": session, "params": {}}
        tasks = [
            asyncio.create_task(each)
            for each in (
                self._again(0.1, lambda: self._chat("echo")),
                self._again(0.15, lambda: self._chat("upstream")),
                *(self._again(0.0, lambda: self._chat("slow")) for _ in range(6)),
                self._again(0.3, lambda: self._chat("echo", "poor")),
                self._again(0.2, lambda: self._post("/api/v1/ws-tickets", {"sessionId": session}, "narrow")),
                self._again(0.5, lambda: self._post("/api/v1/sessions", {"metadata": {}})),
                self._again(0.4, lambda: self._post("/api/v1/skills/broken/execute", run)),
                self._socket(session),
            )
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        broken = [error for error in ended if not isinstance(error, asyncio.CancelledError)]
        assert not broken, broken

    async def _again(self, pause: float, call: Callable[[], Awaitable[None]]) -> None:
        while True:
            await call()
            await asyncio.sleep(pause)

    async def _chat(self, model: str, who: str = "wide") -> None:
        body = {"model": model, "messages": [{"role": "user", "content": "hello there"}]}
        await self._post("/v1/chat/completions", body, who)

    async def _post(self, path: str, body: Any, who: str = "wide") -> None:
        async with self._client.post(path, json=body, headers=self._keys[who]) as response:
            await response.read()

    async def _socket(self, session: str) -> None:
        async with self._client.ws_connect(f"/ws?sessionId={session}", headers=self._keys["wide"]) as socket:
            for number in range(10_000):
                await socket.send_json({"type": "message", "id": str(number), "content": "hello", "model": "echo"})
                async for frame in socket:
                    if json.loads(frame.data)["type"] in ("message", "error"):
                        break
                await asyncio.sleep(0.3)


# --- Prometheus ---------------------------------------------------------------------------------


class Watch:
    """Notes which alerts fire, and asks what the panels ask."""

    def __init__(self, client: aiohttp.ClientSession) -> None:
        self._client = client
        self.fired: dict[str, str] = {}

    async def keep_looking(self) -> None:
        while True:
            with suppress(aiohttp.ClientError):
                for alert in (await self._ask("/api/v1/alerts"))["alerts"]:
                    if alert["state"] == "firing":
                        self.fired.setdefault(alert["labels"]["alertname"], alert["annotations"]["description"])
            await asyncio.sleep(0.5)

    async def fill(self, catalogue: Catalogue) -> dict[str, bool]:
        queries = [query.expr for panel in panels(catalogue, SPEED) for query in panel.queries]
        return {query: await self.has_data(plain(query, window=SPEED.minutes(5))) for query in queries}

    async def has_data(self, query: str) -> bool:
        now = time.time()
        parameters = {"query": query, "start": f"{now - 20:.3f}", "end": f"{now:.3f}", "step": "1"}
        result = (await self._ask("/api/v1/query_range", parameters))["result"]
        return any(not math.isnan(float(value)) for series in result for _, value in series["values"])

    async def _ask(self, path: str, parameters: dict[str, str] | None = None) -> Any:
        async with self._client.get(path, params=parameters) as response:
            answer = await response.json()
            assert response.status == 200, answer
            return answer["data"]


@asynccontextmanager
async def watching(prometheus: Path, folder: Path, catalogue: Catalogue, gateway: int) -> AsyncIterator[Watch]:
    port = free_port()
    (folder / "alerts.yaml").write_text(alert_rules(groups(catalogue, SPEED), SPEED))
    (folder / "recordings.yaml").write_text(recording_rules(catalogue, SPEED))
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
        "rule_files: [alerts.yaml, recordings.yaml]\n"
        f"scrape_configs: [{{job_name: {SPEED.job}, static_configs: [{{targets: ['127.0.0.1:{gateway}']}}]}}]\n"
    )
    command = [prometheus, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
    with (folder / "prometheus.log").open("w") as log:
        server = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
            watch = Watch(client)
            looking = asyncio.create_task(watch.keep_looking())
            try:
                yield watch
            finally:
                looking.cancel()
                await asyncio.wait([looking])
            if (error := None if looking.cancelled() else looking.exception()) is not None:
                raise error
    finally:
        server.terminate()
        server.wait(20)


def recording_names(catalogue: Catalogue) -> list[str]:
    text = recording_rules(catalogue, SPEED)
    return [line.split("record: ")[1].strip().strip('"') for line in text.splitlines() if "record: " in line]


async def until(condition: Callable[[], bool], deadline: float) -> None:
    while not condition() and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
