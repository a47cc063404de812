"""How a call finds a model that answers: places, rests, deadlines, and who may fall back to what."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import chat_kit
import msgspec
import pytest
from chat_kit import CONFIG, OFFERED, TIERS, Offered, chat_gateway
from openai import InternalServerError
from prometheus_client import CollectorRegistry, Counter
from upstreams import Pause, chunk

from openclaw_gateway import loader
from openclaw_gateway.api import MODEL_USE, ModelCall, ModelUse, UpstreamFailed
from openclaw_gateway.errors import ConfigError
from openclaw_gateway.testing import build, configuration
from openclaw_plugins.chat.attempts import Asked, Attempts, Candidate, Measures
from openclaw_plugins.chat.lanes import Breaker, Lane
from openclaw_plugins.chat.models import order_of
from openclaw_plugins.chat.operations import Operation, Operations
from openclaw_plugins.chat.requests import Alias

GOOD = b'{"model":"x","choices":[]}'


class Scripted:
    """A provider whose every call is one function."""

    def __init__(self, *answers: Callable[[], Any]) -> None:
        self.answers = list(answers)
        self.calls: list[ModelCall] = []

    async def complete(self, call: ModelCall) -> bytes:
        self.calls.append(call)
        found = self.answers[min(len(self.calls), len(self.answers)) - 1]()
        answer: bytes = await found if asyncio.iscoroutine(found) else found
        return answer

    async def stream(self, call: ModelCall) -> AsyncIterator[bytes]:
        yield await self.complete(call)

    embed = complete


def fails(**fields: Any) -> Callable[[], Any]:
    def fail() -> Any:
        raise UpstreamFailed("no", **fields)

    return fail


def breaker(now: Callable[[], float] = time.monotonic, failures: int = 5) -> Breaker:
    return Breaker(failures, 10, now)


def candidate(alias: str, provider: Any, *, lane: Lane | None = None, retries: int = 2, **more: Any) -> Candidate:
    lane = lane or Lane(provider, "p", Alias(alias).put, None, 1.0, breaker())

    def call(_: Asked) -> ModelCall:
        return ModelCall(
            model=alias,
            upstream_model=alias,
            body=b"{}",
            request={},
            stream=False,
            request_id=None,
            first_byte_timeout=more.get("first_byte", 1.0),
            idle_timeout=1,
            total_timeout=more.get("total", 2.0),
        )

    metrics = Operations(cast(Any, SimpleNamespace(metric=partial(_metric, CollectorRegistry()))))
    chat, embeddings = (Operation(metrics, name, "p", alias) for name in ("chat", "embeddings"))
    return Candidate(alias, lane, retries, more.get("context"), more.get("first_byte", 1.0), call, chat, embeddings)


def _metric(registry: CollectorRegistry, kind: Any, *about: Any, **options: Any) -> Any:
    return kind(*about, registry=registry, **options)


def attempts(*candidates: Candidate, total: float = 2.0) -> Attempts:
    registry = CollectorRegistry()
    measures = Measures(
        Counter("r", "r", ("model", "reason"), registry=registry),
        Counter("f", "f", ("model", "fallback", "reason"), registry=registry),
    )
    asked = Asked(b"{}", {}, False, None, "acme", None)
    return Attempts(candidates, asked, total, ModelUse(candidates[0].alias, streamed=False), measures)


async def test_the_one_that_answered_is_known() -> None:
    first, second = Scripted(fails()), Scripted(lambda: GOOD)
    made = attempts(candidate("a", first), candidate("b", second))
    assert msgspec.json.decode(await made.complete())["model"] == "b"
    use = made.use
    assert (use.asked, use.answered, use.upstream_model, use.attempts, use.provider) == ("a", "b", "b", 4, "p")
    assert use.first_content is not None


async def test_no_retries_means_none() -> None:
    provider = Scripted(fails())
    with pytest.raises(UpstreamFailed):
        await attempts(candidate("a", provider, retries=0)).complete()
    assert len(provider.calls) == 1


async def test_deadlines_hold_for_a_provider_that_has_none() -> None:
    provider = Scripted(lambda: asyncio.sleep(30))
    started = time.monotonic()
    with pytest.raises(UpstreamFailed) as caught:
        await attempts(candidate("a", provider, total=0.3), total=0.3).complete()
    assert (caught.value.status, caught.value.reason) == (504, "silent")
    assert time.monotonic() - started < 10  # of the 30 that the provider would take
    assert len(provider.calls) == 1


async def test_a_fallback_has_only_what_is_left_of_the_total() -> None:
    async def slow() -> Any:
        await asyncio.sleep(0.3)
        raise UpstreamFailed("no", reason="silent")

    second = Scripted(lambda: GOOD)
    await attempts(candidate("a", Scripted(slow)), candidate("b", second, total=60), total=1.0).complete()
    assert 0.4 < second.calls[0].total_timeout < 0.75
    assert second.calls[0].first_byte_timeout <= second.calls[0].total_timeout


async def test_another_name_of_a_silent_upstream_is_not_asked() -> None:
    provider = Scripted(fails(reason="silent"))
    shared = breaker()
    lanes = [Lane(provider, "p", bytes, None, 1.0, shared) for _ in range(2)]
    good = Scripted(lambda: GOOD)
    await attempts(
        candidate("a", provider, lane=lanes[0]), candidate("b", provider, lane=lanes[1]), candidate("c", good)
    ).complete()
    assert (len(provider.calls), len(good.calls)) == (1, 1)


async def test_a_place_is_waited_for_and_then_refused_or_found_elsewhere() -> None:
    gate = asyncio.Event()

    async def held() -> bytes:
        await gate.wait()
        return GOOD

    provider = Scripted(held)
    lane = Lane(provider, "p", Alias("a").put, 1, 0.1, breaker())
    running = asyncio.create_task(attempts(candidate("a", provider, lane=lane)).complete())
    await asyncio.sleep(0)
    with pytest.raises(UpstreamFailed) as caught:
        await attempts(candidate("a", provider, lane=lane)).complete()
    assert (caught.value.status, caught.value.code, caught.value.reason) == (503, "SERVICE_UNAVAILABLE", "busy")
    assert caught.value.retry_after == 1
    other = Scripted(lambda: GOOD)
    assert b'"b"' in await attempts(candidate("a", provider, lane=lane), candidate("b", other)).complete()
    waiting = asyncio.create_task(attempts(candidate("a", provider, lane=lane)).complete())
    await asyncio.sleep(0.02)
    gate.set()
    assert b'"a"' in await running
    assert b'"a"' in await waiting


@pytest.mark.parametrize("end", ["closed", "cancelled", "failed", "whole"])
async def test_a_place_comes_back_however_a_stream_ends(end: str) -> None:
    class Streams(Scripted):
        async def stream(self, call: ModelCall) -> AsyncIterator[bytes]:
            yield chunk("a")
            if end == "failed":
                raise UpstreamFailed("no")
            if end != "whole":
                await asyncio.sleep(30)

    lane = Lane(Streams(), "p", bytes, 1, 0.05, breaker())
    for _ in range(3):
        stream = attempts(candidate("a", None, lane=lane)).stream()
        assert await anext(stream)
        if end == "cancelled":
            task = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
        elif end == "closed":
            await stream.aclose()
        elif end == "failed":
            with pytest.raises(UpstreamFailed):
                await anext(stream)
        else:
            assert [c async for c in stream] == []


class Clock:
    def __init__(self) -> None:
        self.now = 100.0


def test_a_breaker_opens_on_half_of_the_last_calls_probes_once_and_closes() -> None:
    clock = Clock()
    made = breaker(lambda: clock.now, failures=3)
    for well in (True, False, True, True, False):
        made.went(well)
    assert made.ask() is None  # two failures are not three
    made.went(False)
    assert made.ask() == 10
    clock.now += 10
    assert made.ask() is None  # the probe
    assert made.ask() == 1  # nobody beside it
    made.went(False)
    assert made.ask() == 10
    clock.now += 10
    assert made.ask() is None
    made.went(None)  # its client left: that says nothing
    assert made.ask() is None
    made.went(True)
    assert (made.ask(), made.resting) == (None, 0)


def test_few_failures_among_many_calls_rest_nothing() -> None:
    made = breaker(failures=3)
    for i in range(100):
        made.went(i % 4 != 0)
    assert made.resting == 0


def test_fallbacks_are_met_in_order_each_once() -> None:
    order = order_of("a", {"a": ("b", "c"), "b": ("d",), "c": ("d",), "d": ()})
    assert order == ["a", "b", "d", "c"]
    with pytest.raises(ValueError, match="a → b → a"):
        order_of("a", {"a": ("b",), "b": ("a",)})


@pytest.mark.parametrize(
    ("fallbacks", "problem"),
    [
        ('[models.echo]\nfallbacks = ["same"]\n[models.same]\nfallbacks = ["echo"]', "they lead in a circle"),
        ('[models.echo]\nfallbacks = ["echo"]', "they lead in a circle: echo → echo"),
        ('[models.echo]\nfallbacks = ["ecco"]', "there is no model 'ecco'"),
    ],
)
def test_circles_and_unknown_names_stop_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fallbacks: str, problem: str
) -> None:
    real = loader.installed()
    extra = {name: [Offered(name, f"chat_kit:{cls.__name__}", loader.GROUP)] for name, cls in OFFERED.items()}
    monkeypatch.setattr(loader, "installed", lambda: {**real, **extra})
    toml = CONFIG.replace("URL", "http://127.0.0.1:9/v1").replace("DRAIN", "5s")
    for table in fallbacks.split("\n[")[0:]:
        name, _, rest = table.removeprefix("[").partition("]\n")
        toml = toml.replace(f"[{name}]\n", f"[{name}]\n{rest}\n")
    with pytest.raises(ConfigError) as caught:
        build(configuration(tmp_path, toml=toml, tiers=TIERS))
    assert problem in str(caught.value)


async def test_a_failure_is_no_way_to_a_model_that_the_tier_may_not_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    closed = chat_kit.CONFIG.replace("[models.same]\n", '[models.same]\nfallbacks = ["closed", "dear"]\n')
    monkeypatch.setattr(chat_kit, "CONFIG", closed)
    async with chat_gateway(tmp_path, monkeypatch) as kit, kit.client() as client:
        kit.upstream.status = 500
        kit.upstream.script = [b"", Pause(0)]

        with pytest.raises(InternalServerError) as caught:
            await client.chat.completions.create(model="same", messages=[{"role": "user", "content": "hi"}])
        assert caught.value.status_code == 502


async def test_embeddings_fall_back_too() -> None:
    made = attempts(candidate("a", Scripted(fails())), candidate("b", Scripted(lambda: GOOD)))
    assert b'"b"' in await made.embed()


@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_call_came_to_is_a_fact_of_its_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    async with chat_gateway(tmp_path, monkeypatch) as kit, kit.client() as client:
        options: Any = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        answer: Any = await client.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": "one two three"}], max_tokens=2, **options
        )
        if stream:
            _ = [chunk async for chunk in answer]
        for _ in range(200):
            if kit.named.seen:
                break
            await asyncio.sleep(0.005)
        use = kit.named.seen[-1][MODEL_USE]
    assert (use.asked, use.answered, use.provider, use.attempts, use.streamed) == ("echo", "echo", "echo", 1, stream)
    assert (use.prompt_tokens, use.completion_tokens, use.finish_reason) == (3, 2, "length")


@pytest.mark.parametrize("spaced", [True, False])
def test_every_chunk_of_a_stream_bears_the_alias_and_nothing_else_changes(spaced: bool) -> None:
    alias = Alias("fast")

    def said(model: str, text: str) -> bytes:
        shape = {"model": model, "choices": [{"delta": {"content": text, "role": "x"}}]}
        return json.dumps(shape).encode() if spaced else msgspec.json.encode(shape)

    for text in ("a", "b", '"model":"vendor/large-7"', "vendor/large-7", "é"):
        put = json.loads(alias.put(said("vendor/large-7", text)))
        assert put == json.loads(said("fast", text))
    assert json.loads(alias.put(said("another", "c"))) == json.loads(said("fast", "c"))
    assert alias.put(said("fast", "d")) == said("fast", "d")
