"""The provider for Anthropic's Messages API: what goes out, what comes back, and how it fails, over a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from logging import getLogger
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from upstreams import Cut, Pause, ScriptedUpstream, scripted

from openclaw_gateway.api import ModelCall, Secret, UpstreamFailed
from openclaw_plugins.providers.anthropic import Anthropic

KEY = "sk-upstream-secret-value"
HELLO = [{"role": "user", "content": "hi"}]
PIXEL = "iVBORw0KGgo="


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with scripted() as upstream:
        yield upstream


@asynccontextmanager
async def opened(url: str, **config: Any) -> AsyncIterator[Anthropic]:
    registry = CollectorRegistry()

    def metric(kind: Any, name: str, documentation: str, labels: Any = (), **options: Any) -> Any:
        return kind(name, documentation, labels, registry=registry, **options)

    host: Any = SimpleNamespace(id="up", metric=metric, logger=getLogger("test"), document=SimpleNamespace(models={}))
    provider = Anthropic(Anthropic.Config(url=url, api_key=Secret(KEY), **config), host)
    async with provider.lifespan():
        yield provider


def call(*, stream: bool = False, **request: Any) -> ModelCall:
    whole = {"model": "m", "messages": HELLO, **request}
    return ModelCall(
        model="m",
        upstream_model="m",
        body=json.dumps(whole).encode(),
        request=whole,
        stream=stream,
        request_id="req-1",
        first_byte_timeout=2,
        idle_timeout=2,
        total_timeout=5,
    )


def message(**more: Any) -> bytes:
    whole = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 5, "output_tokens": 2, "cache_read_input_tokens": 3},
        **more,
    }
    return json.dumps(whole).encode()


def told(type: str, **fields: Any) -> bytes:
    return f"event: {type}\ndata: {json.dumps({'type': type, **fields})}\n\n".encode()


START = told("message_start", message=json.loads(message(content=[], usage={"input_tokens": 5, "output_tokens": 1})))
OPEN = told("content_block_start", index=0, content_block={"type": "text", "text": ""})
HI = told("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hi ✓"})
TOOL = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
CLOSE = told("content_block_stop", index=0)
END = told("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": 9})
STOP = told("message_stop")


async def sent(upstream: ScriptedUpstream, **request: Any) -> Any:
    upstream.script = [message()]
    async with opened(upstream.url) as provider:
        await provider.complete(call(**request))
    return upstream.received[-1]


async def test_a_plain_request_and_its_credential(upstream: ScriptedUpstream) -> None:
    received = await sent(upstream, max_completion_tokens=7, temperature=1.5, stop="END", user="u-1", top_p=0.5)
    assert (received.method, received.path) == ("POST", "/v1/messages")
    assert received.headers["x-api-key"] == KEY
    assert received.headers["anthropic-version"] == "2023-06-01"
    assert "authorization" not in received.headers
    assert received.json == {
        "model": "m",
        "max_tokens": 7,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "temperature": 1.0,
        "top_p": 0.5,
        "stop_sequences": ["END"],
        "metadata": {"user_id": "u-1"},
    }


async def test_system_images_tools_and_results_have_their_places(upstream: ScriptedUpstream) -> None:
    function = {"name": "find", "description": "finds", "parameters": {"type": "object", "properties": {}}}
    received = await sent(
        upstream,
        messages=[
            {"role": "system", "content": "be brief"},
            {"role": "developer", "content": [{"type": "text", "text": "be kind"}]},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "look"},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
                    {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
                ],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"q": 1}'}},
                    {"id": "c2", "type": "function", "function": {"name": "find", "arguments": ""}},
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "one"},
            {"role": "tool", "tool_call_id": "c2", "content": "two"},
            {"role": "user", "content": "and now?"},
        ],
        tools=[{"type": "function", "function": function}],
        tool_choice="required",
        parallel_tool_calls=False,
    )
    asked = received.json
    assert asked["max_tokens"] == 4096
    assert asked["system"] == [{"type": "text", "text": "be brief"}, {"type": "text", "text": "be kind"}]
    assert asked["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "look"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
                {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "c1", "name": "find", "input": {"q": 1}},
                {"type": "tool_use", "id": "c2", "name": "find", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": "one"},
                {"type": "tool_result", "tool_use_id": "c2", "content": "two"},
                {"type": "text", "text": "and now?"},
            ],
        },
    ]
    assert asked["tools"] == [
        {"name": "find", "description": "finds", "input_schema": {"type": "object", "properties": {}}}
    ]
    assert asked["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"n": 2}, "n"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "ftp://x"}}]}]},
            "messages[0].content[0].image_url.url",
        ),
        ({"tools": [{"type": "custom"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "all"}, "tool_choice"),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "[1]"}}],
                    }
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
async def test_what_has_no_counterpart_is_refused_with_its_path(
    upstream: ScriptedUpstream, request_: Any, param: str
) -> None:
    async with opened(upstream.url) as provider:
        with pytest.raises(UpstreamFailed) as caught:
            await provider.complete(call(**request_))
    assert (caught.value.status, caught.value.param, caught.value.reason) == (400, param, "request")
    assert upstream.received == []


@pytest.mark.parametrize(
    ("stop_reason", "finish_reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
        ("a new one", "stop"),
    ],
)
async def test_a_whole_answer_is_a_completion(upstream: ScriptedUpstream, stop_reason: str, finish_reason: str) -> None:
    upstream.script = [message(stop_reason=stop_reason)]
    async with opened(upstream.url) as provider:
        answer = json.loads(await provider.complete(call()))
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hello", "refusal": None}
    assert choice["finish_reason"] == finish_reason
    assert (answer["object"], answer["model"], answer["id"]) == ("chat.completion", "m", "msg_1")
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (8, 2, 10)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 3}


async def test_tool_use_becomes_tool_calls(upstream: ScriptedUpstream) -> None:
    block = {"type": "tool_use", "id": "t1", "name": "find", "input": {"q": "ü"}}
    upstream.script = [message(content=[{"type": "thinking", "thinking": "hm"}, block], stop_reason="tool_use")]
    async with opened(upstream.url) as provider:
        (choice,) = json.loads(await provider.complete(call()))["choices"]
    assert choice["finish_reason"] == "tool_calls"
    (made,) = choice["message"]["tool_calls"]
    assert (made["id"], made["type"], made["function"]["name"]) == ("t1", "function", "find")
    assert json.loads(made["function"]["arguments"]) == {"q": "ü"}
    assert choice["message"]["content"] is None


async def test_a_stream_of_text_and_tools_cut_into_bytes(upstream: ScriptedUpstream) -> None:
    whole = b"".join(
        [
            START,
            told("ping"),
            OPEN,
            HI,
            CLOSE,
            told(
                "content_block_start", index=1, content_block={"type": "tool_use", "id": "t1", "name": "f", "input": {}}
            ),
            told("content_block_delta", index=1, delta={"type": "input_json_delta", "partial_json": '{"a"'}),
            told("content_block_delta", index=1, delta={"type": "input_json_delta", "partial_json": ": 1}"}),
            told("content_block_stop", index=1),
            told("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 9}),
            STOP,
        ]
    )
    upstream.script = [whole[i : i + 1] for i in range(len(whole))]
    async with opened(upstream.url) as provider:
        options = {"include_usage": True}
        chunks = [json.loads(c) async for c in provider.stream(call(stream=True, stream_options=options))]
    assert upstream.received[0].json["stream"] is True
    deltas = [choice["delta"] for c in chunks for choice in c["choices"]]
    assert deltas[:2] == [{"role": "assistant", "content": ""}, {"content": "Hi ✓"}]
    calls = [piece for delta in deltas for piece in delta.get("tool_calls", ())]
    assert calls[0] == {"index": 0, "id": "t1", "type": "function", "function": {"name": "f", "arguments": ""}}
    assert "".join(piece["function"]["arguments"] for piece in calls) == '{"a": 1}'
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"
    assert (chunks[-1]["usage"]["prompt_tokens"], chunks[-1]["usage"]["completion_tokens"]) == (5, 9)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ([START, OPEN, HI], "broken"),
        ([START, OPEN, HI, Cut], "broken"),
        ([START, OPEN, HI, b"data: {\n\n"], "broken"),
        ([START, HI, told("error", error={"type": "overloaded_error", "message": "Overloaded"})], "failed"),
        ([START, HI, told("error", error={"type": "rate_limit_error", "message": "slow"})], "rate_limited"),
        ([], "broken"),
    ],
)
async def test_a_cut_stream_never_looks_whole(upstream: ScriptedUpstream, script: list[Any], reason: str) -> None:
    upstream.script = script
    async with opened(upstream.url) as provider:
        with pytest.raises(UpstreamFailed) as caught:
            async for _ in provider.stream(call(stream=True)):
                pass
    assert (caught.value.status, caught.value.reason) == (502, reason)


async def test_a_stream_cut_at_any_byte_is_a_failure_after_what_had_come(upstream: ScriptedUpstream) -> None:
    """Its text counts once its event is whole, and nothing short of a proper end is one."""
    before, whole = START + OPEN + HI, START + OPEN + HI + CLOSE + END + STOP
    async with opened(upstream.url) as provider:
        for at in range(1, len(whole)):
            upstream.script = [whole[:at], Cut]
            said = ""
            with pytest.raises(UpstreamFailed) as caught:
                async for data in provider.stream(call(stream=True)):
                    said += "".join(c["delta"].get("content") or "" for c in json.loads(data)["choices"])
            assert (said, caught.value.status) == ("Hi \u2713" if at >= len(before) else "", 502), at


async def test_closing_the_iterator_closes_the_upstream(upstream: ScriptedUpstream) -> None:
    upstream.script = [START, OPEN, HI, Pause(20)]
    async with opened(upstream.url) as provider:
        stream = provider.stream(call(stream=True))
        async for data in stream:
            if b"Hi" in data:
                break
        await stream.aclose()  # type: ignore[attr-defined]
        await asyncio.wait_for(upstream.left.wait(), 1)


async def test_a_stream_without_its_last_event_has_lost_nothing(upstream: ScriptedUpstream) -> None:
    upstream.script = [START, OPEN, HI, CLOSE, END]
    async with opened(upstream.url) as provider:
        chunks = [json.loads(c) async for c in provider.stream(call(stream=True))]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (400, {"type": "invalid_request_error", "message": "prompt is too long: 9 tokens > 8"}, (400, "too_long")),
        (400, {"type": "invalid_request_error", "message": "tools: bad"}, (400, "request")),
        (400, {"type": "invalid_request_error", "message": "Your credit balance is too low"}, (502, "credential")),
        (401, {"type": "authentication_error", "message": "invalid x-api-key"}, (502, "credential")),
        (429, {"type": "rate_limit_error", "message": "slow down"}, (502, "rate_limited")),
        (529, {"type": "overloaded_error", "message": "Overloaded"}, (502, "failed")),
    ],
)
async def test_errors_are_translated(
    upstream: ScriptedUpstream, status: int, error: Any, expected: tuple[int, str]
) -> None:
    upstream.status = status
    upstream.script = [json.dumps({"type": "error", "error": error}).encode()]
    async with opened(upstream.url) as provider:
        for stream in (False, True):
            with pytest.raises(UpstreamFailed) as caught:
                if stream:
                    async for _ in provider.stream(call(stream=True)):
                        pass
                else:
                    await provider.complete(call())
            assert (caught.value.status, caught.value.reason) == expected
