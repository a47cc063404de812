"""Calls of models under OpenTelemetry's names: what their upstreams say they took, how long, and how they ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from upstreams import Cut, Pause

from openclaw_gateway.api import ModelUse
from openclaw_plugins.chat.operations import Operation, Operations
from openclaw_plugins.metrics.merging import Numbers, merged, read

from .test_chat_tokens import ASKED, DONE, LIMITS, Place, chunk, place, whole

USAGE = {"prompt_tokens": 1_000, "completion_tokens": 200, "total_tokens": 1_200}
TOKENS = "gen_ai_client_token_usage"
SECONDS = "gen_ai_client_operation_duration_seconds"
FIRST = "gen_ai_client_operation_time_to_first_chunk_seconds"
NAMED: Any = {"models.m": {"provider": "up", "name": "vendor-small", "retries": 0}}
VECTOR = {"object": "embedding", "index": 0, "embedding": [0.5]}
#: tokens that settle a limit or have a price are estimated where nobody says them; here they never are
ROOMY = LIMITS.replace("1_000", "100_000").replace("5_000", "100_000")


def value(here: Place, name: str, operation: str = "chat", model: str = "vendor-small", **labels: str) -> float:
    fixed = {"gen_ai_operation_name": operation, "gen_ai_provider_name": "up", "gen_ai_request_model": model}
    return here.gateway.registry.get_sample_value(name, fixed | labels) or 0.0


def tokens(here: Place, operation: str = "chat") -> list[tuple[float, float]]:
    """Calls whose tokens are known, and how many: of prompts, of answers."""
    return [
        (
            value(here, f"{TOKENS}_count", operation, gen_ai_token_type=kind),
            value(here, f"{TOKENS}_sum", operation, gen_ai_token_type=kind),
        )
        for kind in ("input", "output")
    ]


def ended(here: Place, error_type: str = "", operation: str = "chat", model: str = "vendor-small") -> float:
    return value(here, f"{SECONDS}_count", operation, model, error_type=error_type)


def series(here: Place) -> int:
    """Calls of all models and operations together, however they ended."""
    families = {family.name: family for family in here.gateway.registry.collect()}
    return int(sum(s.value for s in families[SECONDS].samples if s.name.endswith("_count")))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("limits", ["", ROOMY], ids=["no limit on tokens", "limits on tokens"])
async def test_every_way_in_is_counted_once_under_the_names_of_the_span(tmp_path: Path, limits: str) -> None:
    async with place(tmp_path, limits=limits, **NAMED) as here:
        here.upstream.headers = {"Content-Type": "application/json"}
        here.upstream.script = whole(USAGE)
        assert (await here.chat())[0] == 200
        assert tokens(here) == [(1, 1_000), (1, 200)] and ended(here) == 1
        assert (await here.ask("POST", "/v1/messages", {"model": "m", "max_tokens": 50, "messages": ASKED}))[0] == 200
        assert tokens(here) == [(2, 2_000), (2, 400)] and ended(here) == 2
        assert value(here, f"{FIRST}_count") == 0, "a whole answer has no first chunk"
        here.upstream.headers = {"Content-Type": "text/event-stream"}
        here.upstream.script = [chunk("Hello"), chunk(end="stop"), chunk(usage=USAGE), DONE]
        await here.raw(stream=True, stream_options={"include_usage": True})
        assert tokens(here) == [(3, 3_000), (3, 600)]
        assert (ended(here), value(here, f"{FIRST}_count")) == (3, 1)
        _, _, session = await here.ask("POST", "/api/v1/sessions", {})
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {here.key}"}) as http,
            http.ws_connect(f"{here.url}/ws?sessionId={session['sessionId']}") as socket,
        ):
            await socket.send_json({"type": "message", "content": "Say something.", "model": "m", "stream": True})
            while (frame := await socket.receive_json(timeout=10))["type"] != "message":
                assert frame["type"] != "error", frame
        assert tokens(here) == [(4, 4_000), (4, 800)]
        assert (ended(here), value(here, f"{FIRST}_count"), series(here)) == (4, 2, 4)


@pytest.mark.parametrize("limits", ["", ROOMY], ids=["no limit on tokens", "limits on tokens"])
@pytest.mark.parametrize("first", [False, True], ids=["usage last", "usage first"])
async def test_embeddings_are_an_operation_of_their_own(tmp_path: Path, limits: str, first: bool) -> None:
    usage = {"usage": {"prompt_tokens": 7, "total_tokens": 7}}
    answer = {"object": "list", "model": "m", "data": [VECTOR]}
    async with place(tmp_path, limits=limits, **NAMED) as here:
        here.upstream.headers = {"Content-Type": "application/json"}
        here.upstream.script = [json.dumps({**usage, **answer} if first else {**answer, **usage}).encode()]
        assert (await here.ask("POST", "/v1/embeddings", {"model": "m", "input": ["one", "two"]}))[0] == 200
        assert tokens(here, "embeddings") == [(1, 7), (0, 0)]
        assert ended(here, operation="embeddings") == series(here) == 1
        if limits:
            assert await here.used() == (7, 7)
        here.upstream.script = [json.dumps(answer).encode()]
        assert (await here.ask("POST", "/v1/embeddings", {"model": "m", "input": ["one", "two"]}))[0] == 200
        assert tokens(here, "embeddings") == [(1, 7), (0, 0)], "no usage said, and none counted"
        assert ended(here, operation="embeddings") == series(here) == 2


async def test_no_tokens_are_counted_that_nobody_said(tmp_path: Path) -> None:
    async with place(tmp_path, limits=ROOMY, **NAMED) as here:
        here.upstream.headers = {"Content-Type": "application/json"}
        here.upstream.script = whole(None)
        assert (await here.chat())[0] == 200
        here.upstream.headers = {"Content-Type": "text/event-stream"}
        here.upstream.script = [chunk("Hello"), chunk(end="stop"), DONE]
        await here.raw(stream=True)
        assert min(await here.used()) > 0, "the limits have an estimate"
        assert tokens(here) == [(0, 0), (0, 0)] and ended(here) == 2
        here.upstream.headers = {"Content-Type": "application/json"}
        here.upstream.script = whole({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0})
        assert (await here.chat())[0] == 200
        assert tokens(here) == [(1, 0), (1, 0)], "zero is a count"


async def test_a_failure_is_counted_by_its_code(tmp_path: Path) -> None:
    edit: dict[str, Any] = {**NAMED, "models.m": {**NAMED["models.m"], "retries": 1, "timeouts": {"first_byte": "1s"}}}
    async with place(tmp_path, limits="", **edit) as here:
        here.upstream.script = [Cut]
        assert (await here.chat())[0] == 502
        assert ended(here, "upstream_error") == series(here) == 2, "it was asked twice"
        here.upstream.script = [chunk("Hello"), Cut]
        assert "UPSTREAM_ERROR" in await here.raw(stream=True)
        assert ended(here, "upstream_error") == series(here) == 3
        assert value(here, f"{FIRST}_count") == 1
        here.upstream.script = [Pause(5)]
        assert (await here.chat())[0] == 504
        assert ended(here, "upstream_timeout") == 1
        here.upstream.status, here.upstream.script = 400, [b'{"error": {"message": "no"}}']
        assert (await here.chat())[0] == 400
        assert ended(here, "bad_request") == 1
        assert ended(here) == 0 and tokens(here) == [(0, 0), (0, 0)]


async def test_a_fallback_is_a_call_of_its_own_upstream(tmp_path: Path) -> None:
    models: dict[str, Any] = {
        **NAMED,
        "models.m": {"provider": "gone", "retries": 0, "fallbacks": ["other"]},
        "models.other": NAMED["models.m"],
        "plugins.gone": {"use": "providers.openai", "url": "http://127.0.0.1:9"},
    }
    async with place(tmp_path, limits="", **models) as here:
        here.upstream.headers = {"Content-Type": "application/json"}
        here.upstream.script = whole(USAGE)
        assert (await here.chat())[0] == 200
        assert tokens(here) == [(1, 1_000), (1, 200)]
        labels = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "gone", "gen_ai_request_model": "m"}
        failed = here.gateway.registry.get_sample_value(f"{SECONDS}_count", {**labels, "error_type": "upstream_error"})
        assert (failed, ended(here), series(here)) == (1, 1, 2)


async def test_a_client_that_leaves_is_no_fault_of_the_upstream(tmp_path: Path) -> None:
    async with place(tmp_path, limits="", **NAMED) as here:
        here.upstream.script = [chunk("Hello"), Pause(20), DONE]
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {here.key}"}) as http,
            http.post(
                here.url + "/v1/chat/completions", json={"model": "m", "messages": ASKED, "stream": True}
            ) as answer,
        ):
            await answer.content.readany()
        await until(lambda: ended(here, "cancelled") == 1)
        assert series(here) == 1


async def test_a_client_finds_no_way_into_a_label(tmp_path: Path) -> None:
    async with place(tmp_path, limits="", **NAMED) as here:
        here.upstream.headers = {"Content-Type": "application/json"}
        here.upstream.script = [json.dumps(json.loads(whole(USAGE)[0]) | {"model": "upstream's-word"}).encode()]
        assert (await here.ask("POST", "/v1/chat/completions", {"model": "clients-word", "messages": ASKED}))[0] == 400
        assert (await here.chat(user="clients-word"))[0] == 200
        async with aiohttp.ClientSession() as http, http.get(here.url + "/metrics") as answer:
            lines = [line for line in (await answer.text()).splitlines() if "gen_ai_" in line]
    assert not any("word" in line for line in lines)
    counts = {
        sample.labels["le"]: sample.value
        for family in text_string_to_metric_families("\n".join(lines))
        for sample in family.samples
        if sample.name == f"{TOKENS}_bucket" and sample.labels["gen_ai_token_type"] == "input"
    }
    assert list(map(float, counts)) == [*(4**n for n in range(14)), float("inf")]
    assert (counts["256.0"], counts["1024.0"], counts["+Inf"]) == (0, 1, 1)
    bounds = [line.split('le="')[1].split('"')[0] for line in lines if line.startswith(f"{SECONDS}_bucket")]
    assert bounds == [*(str(round(0.01 * 2**n, 2)) for n in range(14)), "+Inf"]


def metrics() -> tuple[CollectorRegistry, Operations]:
    registry = CollectorRegistry()

    def metric(kind: Any, *about: Any, **options: Any) -> Any:
        return kind(*about, registry=registry, **options)

    return registry, Operations(cast(Any, SimpleNamespace(metric=metric)))


def test_an_end_that_is_none_of_ours_is_another() -> None:
    registry, made = metrics()
    operation = Operation(made, "chat", "p", "m")
    for number in range(100):
        operation.ended(1, f"code_{number}")
    labels = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "p", "gen_ai_request_model": "m"}
    assert registry.get_sample_value(f"{SECONDS}_count", {**labels, "error_type": "_OTHER"}) == 100
    assert sum(s.name.endswith("_count") for family in registry.collect() for s in family.samples) == 1


def test_two_names_of_one_upstream_and_two_workers_are_added_up() -> None:
    told = {}
    for worker in (0, 1):
        registry, made = metrics()
        use = ModelUse("m", streamed=True)
        use.prompt_tokens, use.completion_tokens = 5, -1
        for operation in (Operation(made, "chat", "p", "m"), Operation(made, "chat", "p", "m")):
            operation.told(use)
            operation.ended(0.03)
            operation.begun(0.015)
        told[worker] = Numbers(read(registry, {}), [])
    found = {(s.name, s.labels.get("le")): s.value for family in merged(told, live=[0, 1]) for s in family.samples}
    assert (found[f"{TOKENS}_count", None], found[f"{TOKENS}_sum", None]) == (4, 20), "less than nothing is no count"
    assert (found[f"{TOKENS}_bucket", "4.0"], found[f"{TOKENS}_bucket", "16.0"]) == (0, 4)
    assert (found[f"{SECONDS}_bucket", "0.02"], found[f"{SECONDS}_bucket", "0.04"]) == (0, 4)
    assert (found[f"{FIRST}_bucket", "0.01"], found[f"{FIRST}_bucket", "0.02"]) == (0, 4)
