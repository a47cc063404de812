"""The OpenAI surface over a real socket, driven by OpenAI's own SDK: answers, models, embeddings, refusals."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from chat_kit import MINE, THEIRS, Kit, chat_gateway
from upstreams import DONE, chunk, event, smol_model

from openclaw_gateway.errors import ConfigError
from openclaw_gateway.testing import build, configuration

HELLO: Any = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello there"}]


@pytest.fixture
async def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kit]:
    async with chat_gateway(tmp_path, monkeypatch) as kit:
        yield kit


async def post(kit: Kit, body: bytes | dict[str, Any], path: str = "/v1/chat/completions") -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with (
        aiohttp.ClientSession(headers=kit.headers) as session,
        session.post(kit.url + path, data=data) as answer,
    ):
        return answer.status, json.loads(await answer.read())


async def test_the_sdk_completes_a_chat(kit: Kit) -> None:
    async with kit.client() as client:
        answer = await client.chat.completions.create(model="echo", messages=HELLO, temperature=0.3)
    assert answer.choices[0].message.content == "Be kind.\nHello there"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.model, answer.object) == ("echo", "chat.completion")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 8
    assert (len(kit.books.committed), kit.books.voided, kit.books.held) == (1, [], {})
    assert kit.metric("messages_total", tier="basic", direction="inbound") == 1
    assert kit.metric("messages_total", tier="basic", direction="outbound") == 1
    assert kit.metric("message_processing_duration_seconds_count") == 1


async def test_the_sdk_streams_a_chat(kit: Kit) -> None:
    async with kit.client() as client:
        stream = await client.chat.completions.create(
            model="echo", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Be kind.\nHello there"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4
    assert (len(kit.books.committed), kit.books.voided, kit.books.held) == (1, [], {})


async def test_a_stream_on_the_wire(kit: Kit) -> None:
    async with (
        aiohttp.ClientSession(headers=kit.headers) as session,
        session.post(
            kit.url + "/api/v1/chat/completions", json={"model": "echo", "messages": HELLO, "stream": True}
        ) as answer,
    ):
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        assert answer.headers["cache-control"] == "no-cache, no-transform"
        assert answer.headers["x-accel-buffering"] == "no"
        assert "content-encoding" not in answer.headers
        text = (await answer.read()).decode()
    events = text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(e.startswith("data: {") for e in events[:-2])
    assert all({"id", "object", "created", "model", "choices"} <= json.loads(e[6:]).keys() for e in events[:-2])


async def test_models_are_those_of_the_tier(kit: Kit) -> None:
    async with kit.client() as client:
        models = [model async for model in client.models.list()]
        assert [(m.id, m.owned_by) for m in models] == [
            ("echo", "openclaw"),
            ("vendor/fast", "vendor"),
            ("same", "openclaw"),
        ]
        assert (await client.models.retrieve("vendor/fast")).id == "vendor/fast"
        for name in ("dear", "closed", "nothing", "vendor"):
            with pytest.raises(openai.NotFoundError):
                await client.models.retrieve(name)
    async with (
        aiohttp.ClientSession(headers=kit.headers) as session,
        session.get(kit.url + "/api/v1/models/vendor/fast") as answer,
    ):
        assert (await answer.json())["object"] == "model"


async def test_the_sdk_embeds_in_both_encodings(kit: Kit) -> None:
    async with kit.client() as client:
        plain = await client.embeddings.create(model="echo", input=["a", "b"], dimensions=8, encoding_format="float")
        coded = await client.embeddings.create(model="echo", input=["a", "b"], dimensions=8)  # base64 on the wire
    assert len(plain.data) == 2
    for a, b in zip(plain.data, coded.data, strict=True):
        assert a.embedding == pytest.approx(b.embedding, abs=1e-6)


@pytest.mark.parametrize("name", ["ech0", "dear", "closed", "nonsense"])
async def test_an_unknown_model_and_one_of_another_tier_are_refused_alike(kit: Kit, name: str) -> None:
    async with kit.client() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model=name, messages=HELLO)
        with pytest.raises(openai.BadRequestError):
            await client.embeddings.create(model=name, input="a")
    error = caught.value
    assert (error.status_code, error.code, error.param, error.type) == (
        400,
        "BAD_REQUEST",
        "model",
        "invalid_request_error",
    )
    assert isinstance(error.body, dict)
    assert error.body["requestId"] == "r-1"
    assert ("did you mean 'echo'" in error.message) == (name == "ech0")
    assert (kit.books.committed, kit.books.held) == ([], {})


async def test_other_typed_errors(kit: Kit) -> None:
    async with kit.client(default_headers={}) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.chat.completions.create(model="echo", messages=HELLO)
    kit.gateway.plugin("tally").used["acme capped.requests"] = 1000
    async with kit.client() as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="echo", messages=HELLO)
    assert caught.value.code == "RATE_LIMIT_EXCEEDED"
    assert int(caught.value.response.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"[]", None),
        (b"{", None),
        (b"\xff\xfe", None),
        ({"messages": HELLO}, "model"),
        ({"model": "echo"}, "messages"),
        ({"model": "echo", "messages": []}, "messages"),
        ({"model": "echo", "messages": [{"role": "king", "content": "a"}]}, "messages[0].role"),
        ({"model": "echo", "messages": [{"role": "user"}]}, "messages[0].content"),
        ({"model": "echo", "messages": [{"role": "tool", "content": "1"}]}, "messages[0].tool_call_id"),
        ({"model": "echo", "messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"model": "echo", "messages": HELLO, "max_tokens": 0}, "max_tokens"),
        ({"model": "echo", "messages": HELLO, "stream": "yes"}, "stream"),
        ({"model": "echo", "messages": HELLO, "metadata": {"skillName": "nope"}}, "metadata.skillName"),
        ({"model": "echo", "messages": HELLO, "sessionId": 5}, "sessionId"),
    ],
)
async def test_bad_bodies_name_the_place_and_cost_nothing(kit: Kit, body: Any, param: str | None) -> None:
    status, answer = await post(kit, body)
    assert status == 400
    assert answer["error"]["code"] == "BAD_REQUEST"
    assert (answer["error"]["param"] or None) == param
    assert (kit.books.committed, kit.books.held) == ([], {})


async def test_all_problems_of_a_body_are_told_at_once(kit: Kit) -> None:
    status, answer = await post(kit, {"messages": [{"role": "king"}], "max_tokens": "many"})
    assert status == 400
    assert {p["param"] for p in answer["error"]["problems"]} == {"model", "messages[0].role", "max_tokens"}


@pytest.mark.parametrize(
    "given", [{"input": []}, {"input": [1, "a"]}, {"input": [[]]}, {"input": {}}, {"input": "a", "dimensions": 0}]
)
async def test_bad_embeddings_are_refused(kit: Kit, given: dict[str, Any]) -> None:
    status, answer = await post(kit, {"model": "echo", **given}, "/v1/embeddings")
    assert status == 400
    assert answer["error"]["param"] in ("input", "dimensions")


async def test_a_body_goes_through_byte_for_byte(kit: Kit) -> None:
    kit.upstream.script = [b'{"choices":[],"model":"same"}']
    body = b'{ "messages":[{"role":"user","content":"\\u00fc","x":1}],"model":"same" ,"seed":1e2,"new_field":{"a":[ ]}}'
    status, _ = await post(kit, body)
    assert status == 200
    assert kit.upstream.received[0].body == body


async def test_chunks_go_through_byte_for_byte(kit: Kit) -> None:
    """Of tools, of reasoning and of what nobody here knows; and the content parts and tools of the request."""
    chunks = [
        b'{"id":"1", "model":"same" ,"choices":[{"index":0,"delta":{"role":"assistant","reasoning":"\\u00fc "}}]}',
        b'{"id":"1","model":"same","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c","type":"function",'
        b'"function":{"name":"find","arguments":"{\\"q\\": 1}"}}]},"logprobs":{"content":[ ]}}],"x_vendor":{"a": 1.0}}',
        b'{"id":"1","model":"same","choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}],"usage":null}',
        b'{"id":"1","model":"same","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}',
    ]
    kit.upstream.script = [*map(event, chunks), DONE]
    body = (
        b'{"model":"same", "stream":true,"stream_options":{"include_usage":true,"x": 1},"max_completion_tokens":50,'
        b'"messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":'
        b'"data:image/png;base64,AA=="}},{"type":"x_vendor","x":[1e2]}]}],"tools":[{"type":"function","function":'
        b'{"name":"find","parameters":{"type":"object","properties":{}},"strict":true}}],"tool_choice":"auto" }'
    )
    async with (
        aiohttp.ClientSession(headers=kit.headers) as session,
        session.post(kit.url + "/v1/chat/completions", data=body) as answer,
    ):
        assert (answer.status, await answer.read()) == (200, b"".join([*map(event, chunks), DONE]))
    assert kit.upstream.received[0].body == body


async def test_vectors_in_base64_go_through_byte_for_byte(kit: Kit) -> None:
    """What is asked, whatever is unknown of it, and what is answered; the SDK unpacks what its upstream packed."""
    packed = base64.b64encode(struct.pack("<3f", 0.25, -0.5, 1.0)).decode()
    vector = '{"object":"embedding","index":0, "embedding":"' + packed + '"}'
    answer = '{"object": "list","data":[' + vector + '],"model":"same","usage":{"prompt_tokens":1,"total_tokens":1}}'
    kit.upstream.headers = {"Content-Type": "application/json"}
    kit.upstream.script = [answer.encode()]
    body = b'{ "input":["\\u00fc"],"model":"same" ,"encoding_format":"base64","dimensions":3,"input_type":"query"}'
    async with (
        aiohttp.ClientSession(headers=kit.headers) as session,
        session.post(kit.url + "/v1/embeddings", data=body) as answered,
    ):
        assert (answered.status, await answered.text()) == (200, answer)
    assert kit.upstream.received[0].body == body
    async with kit.client() as client:
        told = await client.embeddings.create(model="same", input="a")
    assert kit.upstream.received[1].json["encoding_format"] == "base64"
    assert told.data[0].embedding == [0.25, -0.5, 1.0]


async def test_only_what_must_change_is_changed(kit: Kit) -> None:
    kit.upstream.script = [b'{"id":"1","choices":[],"model":"upstream-name","extra":{"a": 1.0}}']
    messages = b'[ {"role":"user","content":"\\u00fc"} ]'
    body = b'{"sessionId":"' + MINE.encode() + b'","messages":' + messages + b',"model":"vendor/fast","top_k":1e2}'
    status, answer = await post(kit, body)
    assert status == 200
    sent = kit.upstream.received[0]
    assert sent.body == b'{"messages":' + messages + b',"model":"upstream-name","top_k":1e2}'
    assert answer == {"id": "1", "choices": [], "model": "vendor/fast", "extra": {"a": 1.0}}
    assert "x-org" not in sent.headers


@pytest.mark.parametrize("first", [b'"model"', b'"mod\\u0065l"'])
async def test_a_model_named_twice_is_the_same_here_and_upstream(kit: Kit, first: bytes) -> None:
    kit.upstream.script = [b'{"choices":[]}']
    body = b"{" + first + b':"dear","messages":[{"role":"user","content":"a"}],"model":"same"}'
    status, _ = await post(kit, body)
    assert status == 200
    assert kit.upstream.received[0].body.count(b"dear") == 0


async def test_vectors_are_made_of_as_many_texts_as_openai_takes(kit: Kit) -> None:
    for count, expected in ((2048, 200), (2049, 400)):
        body = json.dumps({"model": "echo", "input": ["a"] * count}).encode()
        status, answer = await post(kit, body, "/v1/embeddings")
        assert status == expected and (status == 200 or answer["error"]["param"] == "input")


@pytest.mark.parametrize("key", ["Model", "MODEL", "mod\\u0045l"])
async def test_a_model_in_another_spelling_is_refused(kit: Kit, key: str) -> None:
    """An upstream that reads keys in any case would run a model that no tier was asked about."""
    body = f'{{"model":"same","messages":[{{"role":"user","content":"a"}}],"{key}":"dear"}}'
    status, answer = await post(kit, body.encode())
    assert (status, answer["error"]["param"]) == (400, json.loads(f'"{key}"'))
    assert kit.upstream.received == []


async def test_a_session_keeps_the_turn_and_its_charge_together(kit: Kit) -> None:
    for stream in (False, True):
        async with kit.client() as client:
            answer = await client.chat.completions.create(
                model="echo", messages=HELLO, stream=stream, extra_body={"sessionId": MINE}
            )
            if stream:
                _ = [chunk async for chunk in answer]
    kept = [(m.role, m.content) for m in kit.shelf.messages_of]
    assert kept == [("user", "Hello there"), ("assistant", "Be kind.\nHello there")] * 2
    assert kit.shelf.messages_of[1].metadata == {"model": "echo", "finishReason": "stop"}
    assert (len(kit.books.committed), kit.books.held) == (2, {})


async def test_tool_results_and_tool_calls_are_kept(kit: Kit) -> None:
    calls = [
        {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a"'}},
        {"index": 0, "function": {"arguments": ":1}"}},
    ]
    kit.upstream.script = [
        *(event(json.dumps({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}).encode()) for call in calls),
        event(chunk(finish="tool_calls")),
        DONE,
    ]
    messages: Any = [
        {"role": "user", "content": "old"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "42", "tool_call_id": "c0"},
    ]
    async with kit.client() as client:
        stream = await client.chat.completions.create(
            model="same", messages=messages, stream=True, extra_body={"sessionId": MINE}
        )
        assert len([c async for c in stream]) == 3
    result, answer = kit.shelf.messages_of
    assert (result.role, result.content, result.metadata) == ("tool", "42", {"toolCallId": "c0"})
    assert answer.content == ""
    assert answer.metadata["toolCalls"] == [{"id": "c1", "type": "function", "name": "f", "arguments": '{"a":1}'}]


@pytest.mark.parametrize(("session", "status"), [(THEIRS, 403), ("nonsense", 404)])
async def test_a_session_that_is_not_the_callers_stops_before_the_upstream(kit: Kit, session: str, status: int) -> None:
    given, _ = await post(kit, {"model": "same", "messages": HELLO, "sessionId": session})
    assert given == status
    assert kit.upstream.received == []
    assert (kit.books.committed, kit.books.held) == ([], {})


async def test_upstream_errors_before_content_are_real_statuses_and_cost_nothing(kit: Kit) -> None:
    for stream in (False, True):
        for status, kind in [(400, openai.BadRequestError), (401, openai.InternalServerError)]:
            kit.upstream.status = status
            kit.upstream.script = [b'{"error":{"message":"too long","param":"messages"}}']
            async with kit.client() as client:
                with pytest.raises(kind) as caught:
                    await client.chat.completions.create(model="same", messages=HELLO, stream=stream)
            assert caught.value.status_code == (400 if status == 400 else 502)
            assert caught.value.code == ("BAD_REQUEST" if status == 400 else "UPSTREAM_ERROR")
    assert (kit.books.committed, kit.books.held, len(kit.books.voided)) == ([], {}, 4)


async def test_a_role_alone_is_no_content(kit: Kit) -> None:
    opening = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    kit.upstream.script = [event(json.dumps(opening).encode()), event(b'{"error":{"message":"overloaded"}}'), DONE]
    status, answer = await post(kit, {"model": "same", "messages": HELLO, "stream": True})
    assert (status, answer["error"]["code"]) == (502, "UPSTREAM_ERROR")
    assert (kit.books.committed, kit.books.held) == ([], {})


async def test_names_that_open_nothing_stop_the_start(tmp_path: Path) -> None:
    for edit, named in [({"models.echo.tiers": ["tems"]}, "'tems'"), ({}, '"ech"')]:
        path = configuration(tmp_path / named[1:-1], edit=edit)
        if not edit:
            file = path.parent / "tiers" / "teams.toml"
            file.write_text('models = ["ech"]\n' + file.read_text())
        with pytest.raises(ConfigError) as caught:
            build(path)
        assert any(named in str(problem) for problem in caught.value.problems)


async def test_the_real_small_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the protocol is judged, not the words."""
    async with smol_model() as url, chat_gateway(tmp_path, monkeypatch, url=url) as kit:
        async with kit.client(timeout=60) as client:
            answer = await client.chat.completions.create(model="same", messages=HELLO, max_tokens=8)
            assert answer.model == "same"
            assert answer.choices[0].message.content
            assert answer.usage is not None
            assert 0 < answer.usage.completion_tokens <= 8
            stream = await client.chat.completions.create(
                model="same",
                messages=HELLO,
                max_tokens=8,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"sessionId": MINE},
            )
            chunks = [chunk async for chunk in stream]
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text
        assert kit.shelf.messages_of[-1].content == text
        usage = [c.usage for c in chunks if c.usage is not None]
        assert usage
        assert usage[-1].completion_tokens <= 8
        assert (len(kit.books.committed), kit.books.held) == (2, {})
