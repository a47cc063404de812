"""The Messages surface: Anthropic's own client in front of echo, a scripted OpenAI upstream, and its errors."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import pytest
from anthropic import AsyncAnthropic
from chat_kit import Kit, chat_gateway
from upstreams import DONE, Cut, chunk, event

HELLO: Any = [{"role": "user", "content": "Hello there"}]


@pytest.fixture
async def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kit]:
    async with chat_gateway(tmp_path, monkeypatch) as kit:
        yield kit


@pytest.fixture
async def client(kit: Kit) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=kit.url, api_key="unused", default_headers=kit.headers, max_retries=0) as client:
        yield client


async def post(kit: Kit, body: Any, path: str = "/v1/messages", **headers: str) -> tuple[int, Any, Any]:
    async with (
        aiohttp.ClientSession(headers={**kit.headers, **headers}) as session,
        session.post(kit.url + path, json=body) as answer,
    ):
        return answer.status, await answer.json(), answer.headers


async def test_a_message_of_echo(client: AsyncAnthropic, kit: Kit) -> None:
    answer = await client.messages.create(model="echo", max_tokens=50, system="Be kind", messages=HELLO)
    assert (answer.type, answer.role, answer.model, answer.stop_reason) == ("message", "assistant", "echo", "end_turn")
    assert [block.text for block in answer.content if block.type == "text"] == ["Be kind\nHello there"]
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (4, 4)
    assert len(kit.books.committed) == 1


async def test_max_tokens_is_told(client: AsyncAnthropic) -> None:
    answer = await client.messages.create(model="echo", max_tokens=1, messages=HELLO)
    assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 1)


async def test_a_stream_of_echo(client: AsyncAnthropic, kit: Kit) -> None:
    types = []
    async with client.messages.stream(model="echo", max_tokens=50, messages=HELLO) as stream:
        async for told in stream:
            types.append(told.type)
        final = await stream.get_final_message()
    raw = [type for type in types if type != "text"]
    assert raw[:2] == ["message_start", "content_block_start"]
    assert raw[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert [block.text for block in final.content if block.type == "text"] == ["Hello there"]
    assert (final.stop_reason, final.usage.input_tokens, final.usage.output_tokens) == ("end_turn", 2, 2)
    assert (len(kit.books.committed), kit.books.held) == (1, {})


async def test_the_request_reaches_an_openai_upstream_in_its_shape(client: AsyncAnthropic, kit: Kit) -> None:
    whole = {"id": "c", "object": "chat.completion", "created": 1, "model": "x"}
    call = {"id": "c9", "type": "function", "function": {"name": "find", "arguments": '{"q": 2}'}}
    choice = {"index": 0, "message": {"content": "See", "tool_calls": [call]}, "finish_reason": "tool_calls"}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    kit.upstream.script = [json.dumps({**whole, "choices": [choice], "usage": usage}).encode()]
    answer = await client.messages.create(
        model="vendor/fast",
        max_tokens=9,
        extra_body={"temperature": 0.5},  # which clients of older versions still send
        stop_sequences=["END"],
        system=[{"type": "text", "text": "one"}, {"type": "text", "text": "two"}],
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "look"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
                    {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "I look"},
                    {"type": "tool_use", "id": "c1", "name": "find", "input": {"q": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "found"}]},
                    {"type": "text", "text": "and?"},
                ],
            },
        ],
        tools=[{"name": "find", "description": "finds", "input_schema": {"type": "object"}}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        metadata={"user_id": "u-1"},
    )
    assert kit.upstream.received[0].path == "/v1/chat/completions"
    assert kit.upstream.received[0].json == {
        "model": "upstream-name",
        "max_tokens": 9,
        "messages": [
            {"role": "system", "content": "one\ntwo"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "look"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
                    {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
                ],
            },
            {
                "role": "assistant",
                "content": "I look",
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"q":1}'}}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "found"},
            {"role": "user", "content": "and?"},
        ],
        "stop": ["END"],
        "temperature": 0.5,
        "user": "u-1",
        "tools": [
            {
                "type": "function",
                "function": {"name": "find", "parameters": {"type": "object"}, "description": "finds"},
            }
        ],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    text, tool = answer.content
    assert (text.type, tool.type, answer.stop_reason, answer.model) == ("text", "tool_use", "tool_use", "vendor/fast")
    assert tool.type == "tool_use"
    assert (tool.id, tool.name, tool.input) == ("c9", "find", {"q": 2})
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (7, 3)


def piece(index: int, arguments: str, **first: Any) -> bytes:
    name = {"name": first.pop("name")} if "name" in first else {}
    call = {"index": index, "function": {**name, "arguments": arguments}, **first}
    return event(json.dumps({"model": "x", "choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}).encode())


async def test_two_tools_streamed_even_where_their_pieces_alternate(client: AsyncAnthropic, kit: Kit) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    kit.upstream.script = [
        event(chunk("Let me ")),
        event(chunk("see")),
        piece(0, "", id="c0", type="function", name="first"),
        piece(0, '{"a"'),
        piece(1, "", id="c1", type="function", name="second"),
        piece(0, ": 1}"),
        piece(1, '{"b": 2}'),
        event(chunk(finish="tool_calls")),
        event(json.dumps({"model": "x", "choices": [], "usage": usage}).encode()),
        DONE,
    ]
    async with client.messages.stream(model="same", max_tokens=9, messages=HELLO) as stream:
        final = await stream.get_final_message()
    assert [block.type for block in final.content] == ["text", "tool_use", "tool_use"]
    assert [(b.id, b.name, b.input) for b in final.content if b.type == "tool_use"] == [
        ("c0", "first", {"a": 1}),
        ("c1", "second", {"b": 2}),
    ]
    assert (final.stop_reason, final.usage.input_tokens, final.usage.output_tokens) == ("tool_use", 7, 3)
    assert kit.upstream.received[0].json["stream_options"] == {"include_usage": True}


async def test_a_stream_that_dies_is_an_error_of_the_sdk(client: AsyncAnthropic, kit: Kit) -> None:
    kit.upstream.script = [event(chunk("half")), Cut]
    said = ""
    with pytest.raises(anthropic.APIStatusError) as caught:
        async with client.messages.stream(model="same", max_tokens=9, messages=HELLO) as stream:
            async for text in stream.text_stream:
                said += text
    assert said == "half"
    assert caught.value.body["error"]["code"] == "UPSTREAM_ERROR"  # type: ignore[index]
    assert (len(kit.books.committed), kit.books.held) == (1, {})


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "echo", "messages": HELLO}, "max_tokens"),
        ({"model": "echo", "messages": [], "max_tokens": 1}, "messages"),
        ({"model": "nope", "messages": HELLO, "max_tokens": 1}, "model"),
        ({"model": "echo", "messages": [{"role": "system", "content": "x"}], "max_tokens": 1}, "messages[0].role"),
        ({"model": "echo", "messages": [{"role": "user", "content": []}], "max_tokens": 1}, "messages[0].content"),
        (
            {"model": "echo", "messages": [{"role": "user", "content": [{"type": "document"}]}], "max_tokens": 1},
            "messages[0].content[0].type",
        ),
        (
            {
                "model": "echo",
                "messages": HELLO,
                "max_tokens": 1,
                "tools": [{"type": "web_search_20250305", "name": "web_search"}],
            },
            "tools[0].type",
        ),
    ],
)
async def test_bad_requests_are_told_in_anthropics_envelope_and_cost_nothing(kit: Kit, body: Any, param: str) -> None:
    status, told, headers = await post(kit, body, **{"anthropic-version": "2023-06-01"})
    assert (status, headers["content-type"]) == (400, "application/json")
    assert (told["type"], told["error"]["type"], told["error"]["param"]) == ("error", "invalid_request_error", param)
    assert told["request_id"] == headers["x-request-id"]
    assert (kit.books.committed, kit.books.held) == ([], {})


async def test_the_sdk_sees_classes_and_texts(client: AsyncAnthropic, kit: Kit) -> None:
    with pytest.raises(anthropic.BadRequestError) as refused:
        await client.messages.create(model="nope", max_tokens=1, messages=HELLO)
    assert "there is no model" in str(refused.value)
    kit.upstream.status = 401
    kit.upstream.script = [b'{"error": {"message": "bad key"}}']
    with pytest.raises(anthropic.InternalServerError) as failed:
        await client.messages.create(model="same", max_tokens=1, messages=HELLO)
    assert failed.value.status_code == 502
    with pytest.raises(anthropic.AuthenticationError) as unknown:
        async with AsyncAnthropic(base_url=kit.url, api_key="x", max_retries=0) as stranger:
            await stranger.messages.create(model="echo", max_tokens=1, messages=HELLO)
    assert "who are you?" in str(unknown.value)


async def test_both_paths_are_served(kit: Kit) -> None:
    body = {"model": "echo", "max_tokens": 9, "messages": HELLO}
    for path in ("/v1/messages", "/api/v1/messages"):
        status, answer, _ = await post(kit, body, path)
        assert (status, answer["content"]) == (200, [{"type": "text", "text": "Hello there"}])
