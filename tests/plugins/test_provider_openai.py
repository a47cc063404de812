"""The provider for OpenAI-compatible upstreams, against a scripted one over a real socket, by each transport."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from logging import getLogger
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from upstreams import DONE, WAYS, Cut, Pause, ScriptedUpstream, chunk, event, scripted

from openclaw_gateway.api import ModelCall, Secret, UpstreamFailed
from openclaw_plugins.providers.openai import OpenAI

KEY = "sk-upstream-secret-value"
BODY = b'{ "model":"m",  "messages":[{"role":"user","content":"hi"}], "unknown": 1e3 }'


#: the transport of the test that runs, and the way in which it reads streams
TRANSPORT = ""
WAY: Any = None


@pytest.fixture(autouse=True, params=["direct", "aiohttp"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "TRANSPORT", request.param)


@pytest.fixture(autouse=True, params=WAYS, ids=lambda way: way.__name__)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "WAY", request.param)


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with scripted() as upstream:
        yield upstream


class Provided:
    def __init__(self, provider: OpenAI, registry: CollectorRegistry) -> None:
        self.provider = provider
        self.registry = registry

    def errors(self, operation: str, error_type: str) -> float | None:
        labels = {"target": "up", "operation": operation, "error_type": error_type}
        return self.registry.get_sample_value("external_service_errors_total", labels)


def small_host(registry: CollectorRegistry) -> Any:
    def metric(kind: Any, name: str, documentation: str, labels: Any = (), **options: Any) -> Any:
        return kind(name, documentation, labels, registry=registry, **options)

    return SimpleNamespace(id="up", metric=metric, logger=getLogger("test"), document=SimpleNamespace(models={}))


@asynccontextmanager
async def opened(url: str, **config: Any) -> AsyncIterator[Provided]:
    registry = CollectorRegistry()
    host = small_host(registry)
    provider = OpenAI(OpenAI.Config(url=url, api_key=Secret(KEY), transport=TRANSPORT, **config), host)
    async with provider.lifespan():
        yield Provided(provider, registry)


def call(*, stream: bool = False, first: float = 2, idle: float = 2, total: float = 5) -> ModelCall:
    return ModelCall(
        model="m",
        upstream_model="m",
        body=BODY,
        request=json.loads(BODY),
        stream=stream,
        request_id="req-1",
        first_byte_timeout=first,
        idle_timeout=idle,
        total_timeout=total,
    )


async def collected(provided: Provided, call: ModelCall) -> list[bytes]:
    chunks: list[bytes] = []
    await WAY(provided.provider.stream(call), chunks)
    return chunks


async def test_the_body_goes_out_byte_for_byte_with_our_credential(upstream: ScriptedUpstream) -> None:
    upstream.script = [b'{"choices": ', b'[], "x": 1}']
    async with opened(upstream.url, headers={"X-Team": Secret("gateway")}) as provided:
        answer = await provided.provider.complete(call())
    assert answer == b'{"choices": [], "x": 1}'
    (received,) = upstream.received
    assert (received.method, received.path, received.body) == ("POST", "/v1/chat/completions", BODY)
    assert received.headers["authorization"] == f"Bearer {KEY}"
    assert received.headers["x-team"] == "gateway"
    assert received.headers["x-request-id"] == "req-1"
    seconds = provided.registry.get_sample_value(
        "external_service_duration_seconds_count", {"target": "up", "operation": "chat"}
    )
    assert seconds == 1


async def test_a_stream_in_pieces_of_one_byte_is_the_same_chunks(upstream: ScriptedUpstream) -> None:
    chunks = [chunk("grüße ✓"), chunk(" b"), chunk(finish="stop")]
    whole = b": hi\r\n\r\n" + b"".join(event(c) for c in chunks) + DONE
    upstream.script = [whole[i : i + 1] for i in range(len(whole))]
    async with opened(upstream.url) as provided:
        assert await collected(provided, call(stream=True, first=20, total=30)) == chunks


async def test_an_event_of_several_lines_becomes_one(upstream: ScriptedUpstream) -> None:
    upstream.script = [b'data: {"choices":\ndata: []}\n\n', DONE]
    async with opened(upstream.url) as provided:
        assert await collected(provided, call(stream=True)) == [b'{"choices":[]}']


@pytest.mark.parametrize(
    ("script", "good"),
    [
        ([event(chunk("a")), event(chunk(finish="stop")), DONE], True),
        ([event(chunk("a")), event(chunk(finish="stop")), b"data: [DONE]"], True),
        ([event(chunk("a")), event(chunk(finish="stop"))], True),  # nothing of the answer can be missing
        ([event(chunk("a"))], False),
        ([event(chunk("a")), event(chunk(finish="stop"))[:-20]], False),
        ([event(chunk("a")), Cut], False),
        ([event(chunk("a")), event(b'{"choices": [')], False),
        ([event(chunk("a")), event(b'{"error": {"message": "no"}}'), DONE], False),
        ([event(chunk("a")), b"event: error\ndata: {}\n\n", DONE], False),
        ([event(b'{"choices":"\xff"}'), DONE], False),
        ([], False),
    ],
)
async def test_a_cut_or_broken_stream_never_looks_whole(
    upstream: ScriptedUpstream, script: list[Any], good: bool
) -> None:
    upstream.script = script
    async with opened(upstream.url) as provided:
        if good:
            assert len(await collected(provided, call(stream=True))) == 2
            return
        with pytest.raises(UpstreamFailed) as caught:
            await collected(provided, call(stream=True))
        assert (caught.value.status, caught.value.code) == (502, "UPSTREAM_ERROR")


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, {"error": {"message": "maximum context length is 8 tokens", "param": "messages"}}, (400, "BAD_REQUEST")),
        (422, {"error": {"message": "blocked by the content filter"}}, (400, "BAD_REQUEST")),
        (404, {"error": {"message": "the model does not exist"}}, (400, "BAD_REQUEST")),
        (404, "nothing here", (502, "UPSTREAM_ERROR")),
        (401, {"error": {"message": "Incorrect API key provided"}}, (502, "UPSTREAM_ERROR")),
        (403, {"error": {"message": "not in your country"}}, (502, "UPSTREAM_ERROR")),
        (429, {"error": {"message": "slow down"}}, (502, "UPSTREAM_ERROR")),
        (307, "", (502, "UPSTREAM_ERROR")),
        (500, "Traceback", (502, "UPSTREAM_ERROR")),
        (504, "", (504, "UPSTREAM_TIMEOUT")),
    ],
)
async def test_statuses_are_translated(
    upstream: ScriptedUpstream, status: int, body: Any, expected: tuple[int, str]
) -> None:
    upstream.status = status
    upstream.headers = {"Retry-After": "7", "Location": upstream.url + "/elsewhere"}
    upstream.script = [json.dumps(body).encode()]
    async with opened(upstream.url) as provided:
        for run in (provided.provider.complete(call()), collected(provided, call(stream=True))):
            with pytest.raises(UpstreamFailed) as caught:
                await run
            assert (caught.value.status, caught.value.code) == expected
            if expected[0] == 400:
                assert str(caught.value) == body["error"]["message"]
            elif isinstance(body, dict):
                assert body["error"]["message"] not in str(caught.value)
            if status == 429:
                assert caught.value.retry_after == 7
    assert len(upstream.received) == 2  # no redirect was followed, nothing was sent again


@pytest.mark.parametrize(
    "message",
    [
        f"bad key {KEY}",
        "see http://models.internal/help",
        "10.0.0.7 refused the prompt",
        "model-7.svc said no",
        "node-3:8080 said no",
        "x" * 501,
        "two\nlines",
        "127.0.0.1",
    ],
)
async def test_what_could_name_a_machine_or_a_key_never_leaves(upstream: ScriptedUpstream, message: str) -> None:
    upstream.status = 400
    upstream.script = [json.dumps({"error": {"message": message}}).encode()]
    async with opened(upstream.url) as provided:
        with pytest.raises(UpstreamFailed) as caught:
            await provided.provider.complete(call())
    assert caught.value.status == 400
    assert str(caught.value) == "the model's upstream did not accept the request"


async def test_an_unreachable_upstream_is_a_502_without_its_address() -> None:
    async with opened("http://127.0.0.1:9/v1") as provided:
        with pytest.raises(UpstreamFailed) as caught:
            await provided.provider.complete(call())
        assert caught.value.status == 502
        assert "127.0.0.1" not in str(caught.value)
        assert provided.errors("chat", "unreachable") == 1


@pytest.mark.parametrize(
    ("script", "limits", "error_type"),
    [
        ([Pause(9)], {"first": 0.1}, "first_byte_timeout"),
        ([event(chunk("a")), Pause(9)], {"idle": 0.1}, "idle_timeout"),
        ([event(chunk("a")), Pause(0.1)] * 20, {"total": 0.3}, "total_timeout"),
    ],
)
async def test_each_time_that_runs_out_is_a_504(
    upstream: ScriptedUpstream, script: list[Any], limits: dict[str, float], error_type: str
) -> None:
    upstream.script = script
    async with opened(upstream.url) as provided:
        with pytest.raises(UpstreamFailed) as caught:
            await collected(provided, call(stream=True, **limits))
        assert (caught.value.status, caught.value.code) == (504, "UPSTREAM_TIMEOUT")
        assert provided.errors("stream", error_type) == 1


async def test_closing_the_iterator_closes_the_upstream(upstream: ScriptedUpstream) -> None:
    upstream.script = [event(chunk("a")), Pause(20)]
    async with opened(upstream.url) as provided:
        stream = provided.provider.stream(call(stream=True))
        await anext(stream)
        started = time.perf_counter()
        await stream.aclose()  # type: ignore[attr-defined]
        await asyncio.wait_for(upstream.left.wait(), 1)
        assert time.perf_counter() - started < 1


async def test_answers_and_events_are_bounded(upstream: ScriptedUpstream) -> None:
    from openclaw_gateway.api import Size

    upstream.script = [b"data: " + b"x" * 4000]
    async with opened(upstream.url, max_answer=Size(1000)) as provided:
        for run in (provided.provider.complete(call()), collected(provided, call(stream=True))):
            with pytest.raises(UpstreamFailed) as caught:
                await run
            assert caught.value.status == 502


async def test_an_answer_that_is_no_json_is_a_502(upstream: ScriptedUpstream) -> None:
    upstream.script = [b"<html>"]
    async with opened(upstream.url) as provided:
        with pytest.raises(UpstreamFailed) as caught:
            await provided.provider.complete(call())
        assert caught.value.status == 502


async def test_connections_are_used_again_and_end_with_the_provider(upstream: ScriptedUpstream) -> None:
    upstream.script = [event(chunk(finish="stop")), DONE]
    async with opened(upstream.url) as provided:
        for _ in range(5):
            await collected(provided, call(stream=True))
            await asyncio.sleep(0.01)
        assert upstream.connections == 1
    async with asyncio.timeout(2):
        while upstream.connections:
            await asyncio.sleep(0.01)


def test_a_proxy_needs_the_transport_that_speaks_to_it() -> None:
    config = OpenAI.Config(url="http://h/v1", proxy=Secret("http://proxy:3128"))
    with pytest.raises(ValueError, match="transport"):
        OpenAI(config, small_host(CollectorRegistry()))
