"""Spans arrive at a real OTLP receiver, one an exchange, joined to the caller's trace; off they cost nearly nothing."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from opentelemetry import trace
from oteltap import OtelTapHttpProtobufReceiver, OtelTapHttpProtobufReceiverSettings
from servers import free_port

from openclaw_gateway.api import TRACE_ID, Exchange, Outcome, ResponseHead, Route
from openclaw_gateway.errors import ConfigError
from openclaw_gateway.gateway import Gateway
from openclaw_gateway.spans import TRACER, end_span, start_span, trace_headers
from openclaw_gateway.testing import build, configuration, serving
from openclaw_plugins import tracing

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"


class Received:
    """What has arrived at the receiver, as plain values."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    async def named(self, name: str, count: int = 1) -> list[Any]:
        async with asyncio.timeout(15):
            while len(found := [s for s in self.spans if s.name == name]) < count:
                await asyncio.sleep(0.05)
        return found


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


@asynccontextmanager
async def receiving(port: int) -> AsyncIterator[Received]:
    received = Received()

    async def collect(receiver: OtelTapHttpProtobufReceiver) -> None:
        async for span in receiver.stream_traces():
            received.spans.append(span)

    async with OtelTapHttpProtobufReceiver(OtelTapHttpProtobufReceiverSettings(http_port=port)) as receiver:
        task = asyncio.create_task(collect(receiver))
        try:
            yield received
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def traced(directory: Path, port: int | None, **settings: Any) -> Gateway:
    given = {} if port is None else {"endpoint": f"http://127.0.0.1:{port}"}
    pipeline = ["request_id", "tracing", "access_log", "metrics", "auth", "tier", "ratelimit", "quota", "concurrency"]
    edit = {
        "gateway.pipeline": pipeline,
        "plugins.tracing": {**given, **settings},
        "plugins.access_log.file": "gateway.log",
        "plugins.access_log.format": "json",
    }
    return build(configuration(directory, edit=edit))


@pytest.fixture(autouse=True)
def quick_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")


async def test_one_span_an_exchange_with_the_template_and_no_path_in_its_name(tmp_path: Path) -> None:
    port = free_port()
    async with receiving(port) as received:
        async with serving(traced(tmp_path, port)) as url, aiohttp.ClientSession() as client:
            await client.get(f"{url}/api/v1/sessions/0198f6a0-0000-7000-8000-000000000000?ticket=hush")
            await client.get(f"{url}/nowhere/at/all", headers={"User-Agent": "curious"})
            await client.get(f"{url}/health/live")
        (refused,) = await received.named("GET /api/v1/sessions/{session_id}")
        (lost,) = await received.named("GET")
    said = attributes(refused)
    assert said["http.route"] == "/api/v1/sessions/{session_id}"
    assert (said["http.request.method"], said["http.response.status_code"]) == ("GET", 401)
    assert said["url.path"] == "/api/v1/sessions/0198f6a0-0000-7000-8000-000000000000"
    assert "hush" not in str(refused)
    assert said["openclaw.refused_by"] == "auth"
    assert (refused.kind, refused.status.code) == (2, 0), "a server's span, and the client's fault is no error of it"
    assert attributes(lost)["user_agent.original"] == "curious" and "http.route" not in attributes(lost)
    assert len(received.spans) == 2, "probes are not traced"


async def test_a_stream_is_one_span_however_many_chunks(tmp_path: Path) -> None:
    port = free_port()
    async with receiving(port) as received:
        gateway = traced(tmp_path, port)
        async with serving(gateway) as url, aiohttp.ClientSession() as client:
            headers = {"X-API-Key": await development_key(gateway), "traceparent": SAMPLED}
            body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "word " * 200}]}
            async with client.post(f"{url}/v1/chat/completions", json=body, headers=headers) as response:
                assert response.status == 200
                assert (await response.text()).count("data: ") > 200
        (span,) = await received.named("POST /v1/chat/completions")
    assert len([s for s in received.spans if s.kind == 2]) == 1
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    said = attributes(span)
    assert (said["openclaw.tier"], said["http.response.status_code"]) == ("open_source", 200)
    assert "word" not in str(span), "contents stay out"


async def test_the_log_line_names_the_trace(tmp_path: Path) -> None:
    port = free_port()
    async with receiving(port), serving(traced(tmp_path, port)) as url, aiohttp.ClientSession() as client:
        await client.get(f"{url}/api/v1/usage", headers={"traceparent": SAMPLED})
    lines = [json.loads(line) for line in (tmp_path / "gateway.log").read_text().splitlines()]
    assert TRACE in [line.get("traceId") for line in lines if line.get("route") == "/api/v1/usage"]


async def test_strangers_name_the_trace_and_do_not_decide_what_is_recorded(tmp_path: Path) -> None:
    port = free_port()
    async with receiving(port) as received:
        async with serving(traced(tmp_path / "none", port, sample=0.0)) as url, aiohttp.ClientSession() as client:
            await client.get(f"{url}/api/v1/usage", headers={"traceparent": SAMPLED})
        async with serving(traced(tmp_path / "all", port, sample=1.0)) as url, aiohttp.ClientSession() as client:
            await client.get(f"{url}/api/v1/skills-not-there", headers={"traceparent": UNSAMPLED})
        (span,) = await received.named("GET")
    assert span.trace_id.hex() == TRACE
    assert [s.name for s in received.spans] == ["GET"], "sample = 0 records nothing, whatever a stranger asks for"


@pytest.mark.parametrize(
    ("obey", "flag", "recorded"), [("everyone", "00", 0), ("everyone", "01", 1), ("nobody", "01", 0)]
)
async def test_who_is_obeyed_is_a_setting(tmp_path: Path, obey: str, flag: str, recorded: int) -> None:
    port = free_port()
    async with receiving(port) as received:
        gateway = traced(tmp_path, port, obey_sampled=obey, sample=0.0 if obey == "nobody" else 1.0)
        async with serving(gateway) as url, aiohttp.ClientSession() as client:
            await client.get(f"{url}/api/v1/usage", headers={"traceparent": f"00-{TRACE}-{PARENT}-{flag}"})
        await asyncio.sleep(0.3)  # the gateway has flushed when it stopped; the receiver hands on in a thread
    assert len(received.spans) == recorded


async def test_work_inside_an_exchange_is_its_child_and_the_callee_can_join(tmp_path: Path) -> None:
    port = free_port()
    carried: dict[str, str] = {}

    async def call_upstream() -> None:
        span = start_span("chat small", {"gen_ai.operation.name": "chat", "gen_ai.request.model": "small"})
        carried.update(trace_headers(span))
        end_span(span, "upstream_timeout")

    async with receiving(port) as received:
        gateway = traced(tmp_path, port)
        plugin: tracing.Tracing = gateway.plugin("tracing")
        async with gateway.running():
            x = exchange(gateway, "/v1/chat/completions", "POST")

            async def one_exchange() -> None:
                plugin.on_request(x)
                await asyncio.create_task(call_upstream())
                x.outcome.status = 502
                plugin.on_complete(x, x.outcome)

            await asyncio.create_task(one_exchange())
            (child,) = await received.named("chat small")
            (server,) = await received.named("POST /v1/chat/completions")
    assert (child.trace_id, child.parent_span_id, child.kind) == (server.trace_id, server.span_id, 3)
    assert carried["traceparent"].startswith(f"00-{child.trace_id.hex()}-{child.span_id.hex()}-")
    assert int(carried["traceparent"][-2:], 16) & 1, "the callee is told that it is recorded"
    assert (attributes(child)["error.type"], child.status.code) == ("upstream_timeout", 2)
    assert (attributes(server)["error.type"], server.status.code) == ("502", 2)
    assert TRACER.get() is None, "what an exchange's task was given stays in it"


async def test_a_handshake_ends_when_it_is_accepted_and_messages_are_of_its_trace(tmp_path: Path) -> None:
    port = free_port()
    async with receiving(port) as received:
        gateway = traced(tmp_path, port)
        plugin: tracing.Tracing = gateway.plugin("tracing")
        async with gateway.running():
            x = exchange(gateway, "/v1/models", "GET", kind="websocket")

            async def one_socket() -> None:
                plugin.on_request(x)
                plugin.on_response(x, ResponseHead(101, []))
                await received.named("GET /v1/models")  # while the socket is still open
                for _ in range(2):
                    message = Exchange("message", "MESSAGE", x.path, x.route, x.scope, 0.0)
                    message.inherit(x)
                    plugin.on_message(message)
                    plugin.on_complete(message, message.outcome)
                plugin.on_complete(x, x.outcome)

            await asyncio.create_task(one_socket())
            messages = await received.named("message /v1/models", 2)
    (handshake,) = await received.named("GET /v1/models")
    assert {m.trace_id for m in messages} == {handshake.trace_id}
    assert {m.parent_span_id for m in messages} == {handshake.span_id}
    assert attributes(handshake)["http.response.status_code"] == 101
    assert plugin._open == {}


async def test_a_dead_collector_costs_requests_nothing_and_a_stop_little(tmp_path: Path) -> None:
    gateway = traced(tmp_path, free_port())  # nobody listens there
    async with serving(gateway) as url, aiohttp.ClientSession() as client:
        began = time.perf_counter()
        for _ in range(20):
            async with client.get(f"{url}/api/v1/usage") as response:
                assert response.status == 401
        assert time.perf_counter() - began < 2
        stopping = time.perf_counter()
    assert time.perf_counter() - stopping < 6


async def test_without_an_exporter_the_callers_trace_still_stands_in_the_log(tmp_path: Path) -> None:
    async with serving(traced(tmp_path, None)) as url, aiohttp.ClientSession() as client:
        await client.get(f"{url}/api/v1/usage", headers={"traceparent": SAMPLED})
        await client.get(f"{url}/api/v1/usage", headers={"traceparent": "00-zzz-1-01"})
    lines = [json.loads(line) for line in (tmp_path / "gateway.log").read_text().splitlines()]
    assert [line.get("traceId") for line in lines if line.get("route") == "/api/v1/usage"] == [TRACE, None]


def test_off_it_costs_a_look_at_the_headers(tmp_path: Path) -> None:
    gateway = traced(tmp_path, None)
    plugin: tracing.Tracing = gateway.plugin("tracing")
    x = exchange(gateway, "/v1/models", "GET")
    best = 1.0
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(5_000):
            plugin.on_request(x)
            plugin.on_complete(x, x.outcome)
        best = min(best, (time.perf_counter() - began) / 5_000)
    assert best < 10e-6  # about 1 µs on an idle machine
    assert TRACE_ID not in x
    assert start_span("nothing") is None
    assert trace_headers(None) == {}


async def test_a_provider_that_the_process_already_has_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    async with serving(traced(tmp_path, None)) as url, aiohttp.ClientSession() as client:
        await client.get(f"{url}/api/v1/usage")
    assert [span.name for span in kept.get_finished_spans()] == ["GET /api/v1/usage"]


def test_an_endpoint_without_the_extra_is_a_problem_of_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    monkeypatch.setattr(tracing, "_available", hidden(tracing._available))
    with pytest.raises(ConfigError) as refused:
        traced(tmp_path, 4318)
    assert "openclaw-gateway[tracing]" in str(refused.value.problems[0])


def hidden(available: Callable[[str], bool]) -> Callable[[str], bool]:
    def look(module: str) -> bool:
        try:
            return available(module)
        except ValueError:  # what find_spec says of a module that a test has hidden
            return False

    return look


def exchange(gateway: Gateway, path: str, method: str, *, kind: Any = "http") -> Exchange:
    route, _ = gateway.runner.match(path, method)
    scope = {"type": "http", "method": method, "headers": [], "scheme": "http", "server": ("127.0.0.1", 9090)}
    assert isinstance(route.route, Route)
    x = Exchange(kind, method, path, route, scope, 0.0)
    x.outcome = Outcome()
    return x


async def development_key(gateway: Gateway) -> str:
    keys = gateway.plugin("api_key")
    made = await keys.create(organization="acme", user="ann", tier="open_source")
    return str(made.key)


async def test_what_the_stores_do_for_an_exchange_is_in_its_trace(tmp_path: Path, valkey_url: str) -> None:
    port = free_port()
    async with receiving(port) as received:
        pipeline = ["request_id", "tracing", "metrics", "auth", "tier", "ratelimit", "quota", "concurrency"]
        edit = {
            "gateway.pipeline": pipeline,
            "plugins.tracing": {"endpoint": f"http://127.0.0.1:{port}"},
            "plugins.access_log": None,
            "plugins.counters.use": "counters.redis",
            "plugins.redis": {"url": valkey_url, "prefix": "traced:"},
        }
        gateway = build(configuration(tmp_path, edit=edit))
        async with serving(gateway) as url, aiohttp.ClientSession(url) as client:
            headers = {"X-API-Key": await development_key(gateway), "traceparent": SAMPLED}
            async with client.post("/api/v1/sessions", json={}, headers=headers) as response:
                id = (await response.json())["sessionId"]
            body = {"content": "a secret of the user"}
            async with client.post(f"/api/v1/sessions/{id}/messages", json=body, headers=headers) as response:
                assert response.status == 201
        (server,) = await received.named("POST /api/v1/sessions/{session_id}/messages")
        mine = [s for s in received.spans if s.parent_span_id == server.span_id]
        script = next(s for s in mine if s.name == "EVALSHA")
        assert attributes(script) == {"db.system.name": "redis", "db.operation.name": "EVALSHA"}
        assert {"accounts reserve", "sessions append"} <= {s.name for s in mine}
        (made,) = await received.named("POST /api/v1/sessions")
        inserted = [s for s in received.spans if s.parent_span_id == made.span_id and s.name.startswith("INSERT")]
        assert attributes(inserted[0]) == {
            "db.system.name": "sqlite",
            "db.operation.name": "INSERT",
            "db.collection.name": "openclaw_sessions",
        }
    assert "secret of the user" not in str(received.spans) and id not in str([attributes(s) for s in mine])
