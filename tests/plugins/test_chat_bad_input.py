"""Bodies that no client should send, to each surface: refused with the place, no upstream asked, nothing charged."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from chat_kit import Kit, chat_gateway

SAID = b'[{"role":"user","content":"hi"}]'
SURFACES = {
    "/v1/chat/completions": b'{"model":"same","messages":%s}',
    "/v1/messages": b'{"model":"same","max_tokens":5,"messages":%s}',
    "/v1/embeddings": b'{"model":"same","input":%s}',
}
surfaces = pytest.mark.parametrize("path", SURFACES)


@pytest.fixture
async def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kit]:
    async with chat_gateway(tmp_path, monkeypatch) as kit:
        yield kit


async def refused(kit: Kit, path: str, body: bytes, status: int = 400) -> dict[str, Any]:
    """Send the body; return the error after seeing that it cost nothing and reached no upstream."""
    before = len(kit.upstream.received)
    async with (
        aiohttp.ClientSession(headers={**kit.headers, "Content-Type": "application/json"}) as session,
        session.post(kit.url + path, data=BytesIO(body)) as answer,
    ):
        assert answer.status == status, body[:200]
        said: dict[str, Any] = json.loads(await answer.read())
    assert (kit.books.committed, kit.books.held) == ([], {})
    assert len(kit.upstream.received) == before
    error: dict[str, Any] = said["error"]
    return error


#: a name, what stands in the place of the messages, and what is said of it
NO_JSON: list[tuple[str, bytes, str]] = [
    ("cut", SAID[:-2], "not valid JSON"),
    ("trailing", SAID + b"} x", "not valid JSON"),
    ("not a number", SAID + b',"temperature":NaN', "not valid JSON"),
    ("infinite", SAID + b',"temperature":1e999', "not valid JSON"),
    ("lone surrogate", rb'[{"role":"user","content":"\ud800"}]', "not valid JSON"),
    ("no UTF-8", b'[{"role":"user","content":"\xff"}]', "not valid UTF-8"),
    ("deep", SAID + b',"x":' + b"[" * 900 + b"]" * 900, "nested deeper than 64 levels"),
    ("deeper", SAID + b',"x":' + b"[" * 100_000 + b"]" * 100_000, "nested deeper than 64 levels"),
    ("deep content", b'[{"role":"user","content":' + b"[" * 5_000 + b"]" * 5_000 + b"}]", "nested deeper than 64"),
]


@surfaces
async def test_what_is_no_json_at_all(kit: Kit, path: str) -> None:
    for name, value, words in NO_JSON:
        assert words in (await refused(kit, path, SURFACES[path] % value))["message"], name


@surfaces
async def test_a_body_that_is_no_table(kit: Kit, path: str) -> None:
    for body in (b"null", b"1", b'"text"', b"[]"):
        assert "expected an object" in (await refused(kit, path, body))["message"], body


@surfaces
async def test_the_place_of_a_character_that_no_store_keeps(kit: Kit, path: str) -> None:
    error = await refused(kit, path, SURFACES[path] % rb'[{"role":"user","content":"a\u0000b"}]')
    field = "input" if path == "/v1/embeddings" else "messages"
    assert f"{field}[0].content" in error["message"]


@surfaces
async def test_models_that_are_none(kit: Kit, path: str) -> None:
    value = b'"hi"' if path == "/v1/embeddings" else SAID
    for model in (b"7", b"null", b'""', b'"nope"'):
        error = await refused(kit, path, SURFACES[path].replace(b'"same"', model) % value)
        assert error["message"].startswith("model: "), model


@surfaces
async def test_wrong_types_are_told_by_their_path(kit: Kit, path: str) -> None:
    if path == "/v1/embeddings":
        wrong = {"input": (b"{}", b"[]", b"[5.5]", b"null")}
    else:
        wrong = {
            "messages: ": (b"{}", b"[]", b"null"),
            "messages[0]: ": (b'["hi"]', b"[5]"),
            "messages[0].content: ": (b'[{"role":"user","content":5}]',),
            "messages[0].content[0]: ": (b'[{"role":"user","content":[5]}]',),
            "messages[0].content[0].type: ": (b'[{"role":"user","content":[{"text":"a"}]}]',),
            "messages[0].role: ": (b'[{"role":7,"content":"a"}]',),
            "stream: ": (SAID + b',"stream":"yes"',),
            "metadata: ": (SAID + b',"metadata":5',),
        }
    for place, values in wrong.items():
        for value in values:
            assert (await refused(kit, path, SURFACES[path] % value))["message"].startswith(place), value


HUGE = b"1" + b"0" * 23
CALL = b'[{"role":"assistant","tool_calls":%s}]'
#: a place, and what is put after the messages, or after the input, of each surface's body
CHAT_WRONG: list[tuple[str, bytes, list[bytes]]] = [
    ("temperature", b'"temperature":%s', [b'"hot"', b"true", b"[]"]),
    ("top_p", b'"top_p":%s', [b'"all"', b"false"]),
    ("presence_penalty", b'"presence_penalty":%s', [b'"a"', b"true"]),
    ("frequency_penalty", b'"frequency_penalty":%s', [b"{}"]),
    ("n", b'"n":%s', [b'"two"', b"-1", b"0", b"1.5", b"true", b"129", HUGE]),
    ("max_tokens", b'"max_tokens":%s', [b'"5"', b"0", b"-1", b"1.5", b"true", HUGE, b"1e23"]),
    ("max_completion_tokens", b'"max_completion_tokens":%s', [b"[5]", b"0", b"-7", HUGE, b"2147483648"]),
    ("stop", b'"stop":%s', [b"5", b"true", b"{}", b"[5]"]),
    ("stream_options", b'"stream_options":%s', [b"5", b'"usage"', b"[]", b"true"]),
    ("stream_options.include_usage", b'"stream_options":{"include_usage":%s}', [b"1", b'"yes"', b"[]"]),
    ("tools", b'"tools":%s', [b"5", b'"weather"', b"{}", b"true"]),
    ("tools[0]", b'"tools":[%s]', [b"5", b'"weather"', b"null"]),
    ("tools[0].function", b'"tools":[{"type":"function","function":%s}]', [b"5", b'"weather"', b"[]"]),
    ("tools[0].function.name", b'"tools":[{"type":"function","function":{"name":%s}}]', [b"5", b"null"]),
    ("tool_choice", b'"tool_choice":%s', [b"5", b"true", b"[]"]),
    ("parallel_tool_calls", b'"parallel_tool_calls":%s', [b"1", b'"yes"']),
    ("response_format", b'"response_format":%s', [b"5", b'"json"', b"[]"]),
    ("response_format.type", b'"response_format":{"type":%s}', [b"5", b"null"]),
    ("logit_bias", b'"logit_bias":%s', [b"5", b"[]", b'{"5":"a"}']),
    ("logprobs", b'"logprobs":%s', [b"5", b'"yes"']),
    ("top_logprobs", b'"top_logprobs":%s', [b"-2", b'"5"', HUGE]),
    ("seed", b'"seed":%s', [b'"a"', b"true", HUGE]),
    ("user", b'"user":%s', [b"5", b"{}"]),
    ("functions", b'"functions":%s', [b"5", b"{}"]),
    ("function_call", b'"function_call":%s', [b"5", b"[]"]),
    ("modalities", b'"modalities":%s', [b"5", b'"text"']),
    ("reasoning_effort", b'"reasoning_effort":%s', [b"5", b"{}"]),
    ("service_tier", b'"service_tier":%s', [b"5"]),
    ("store", b'"store":%s', [b"1", b'"yes"']),
]
MESSAGES_WRONG: list[tuple[str, bytes, list[bytes]]] = [
    ("max_tokens", b'"max_tokens":%s', [b'"5"', b"0", b"-1", b"true", b"null", HUGE, b"1e23"]),
    ("temperature", b'"temperature":%s', [b'"hot"', b"true"]),
    ("top_p", b'"top_p":%s', [b'"all"']),
    ("stop_sequences", b'"stop_sequences":%s', [b"5", b'"end"', b"[5]"]),
    ("tools", b'"tools":%s', [b"5", b"{}"]),
    ("tools[0].name", b'"tools":[{"name":%s}]', [b"5", b"null"]),
    ("tool_choice", b'"tool_choice":%s', [b"5", b'"auto"']),
    ("tool_choice.type", b'"tool_choice":{"type":%s}', [b"5", b'"all"']),
    ("system", b'"system":%s', [b"5", b"{}"]),
    ("metadata.user_id", b'"metadata":{"user_id":%s}', [b"5"]),
    ("metadata.skillName", b'"metadata":{"skillName":%s}', [b"5", b"[]"]),
]
EMBEDDING_WRONG: list[tuple[str, bytes, list[bytes]]] = [
    ("dimensions", b'"dimensions":%s', [b'"5"', b"0", b"-1", b"1.5", HUGE]),
    ("encoding_format", b'"encoding_format":%s', [b"5", b'"hex"']),
    ("user", b'"user":%s', [b"5"]),
]
WRONG = {
    "/v1/chat/completions": (SAID, CHAT_WRONG),
    "/v1/messages": (SAID, MESSAGES_WRONG),
    "/v1/embeddings": (b'"hi"', EMBEDDING_WRONG),
}


@surfaces
async def test_parameters_of_a_wrong_type_or_an_impossible_value(kit: Kit, path: str) -> None:
    given, wrong = WRONG[path]
    for place, form, values in wrong:
        for value in values:
            error = await refused(kit, path, SURFACES[path] % (given + b"," + form % value))
            assert error["message"].startswith(place), (form % value, error)
            assert error["param"].startswith(place), (form % value, error)


async def test_calls_of_tools_that_are_none(kit: Kit) -> None:
    for calls in (b"5", b"{}", b"[5]", b'["a"]'):
        error = await refused(kit, "/v1/chat/completions", SURFACES["/v1/chat/completions"] % (CALL % calls))
        assert error["param"].startswith("messages[0].tool_calls"), calls


#: null wherever OpenAI takes it, the ends of every range, numbers as JavaScript and Python write them, vendors' own
FINE = [
    b",".join(
        b'"%s":null' % form.split(b'"')[1] for place, form, _ in CHAT_WRONG if "." not in place and "[" not in place
    ),
    b'"temperature":0,"top_p":1,"n":1,"max_tokens":1,"presence_penalty":-2,"frequency_penalty":2.0,"seed":-1',
    b'"temperature":2,"top_p":0.0,"n":128,"max_completion_tokens":2147483647,"seed":9223372036854775807',
    b'"temperature":-1,"top_p":1.5,"presence_penalty":3,"frequency_penalty":-3.5,"top_logprobs":-1',
    b'"stop":[],"tools":[],"logit_bias":{},"stream_options":{}',
    b'"stop":"end","logit_bias":{"50256":-100},"tool_choice":"any","reasoning_effort":"minimal","service_tier":"flex"',
    b'"stop":["a","b"],"tool_choice":{"type":"function","function":{"name":"f"}},"function_call":{"name":"f"}',
    b'"tools":[{"type":"function","function":{"name":"f","description":null,"parameters":null,"strict":null}}]',
    b'"tools":[{"type":"custom","custom":{"name":"f"}},{"type":"web_search"},{"google_search":{}}]',
    b'"response_format":{"type":"json_schema","json_schema":{"name":"a","schema":{}}},"user":"ada","store":false',
    b'"top_k":-1,"min_p":0.1,"repetition_penalty":1.1,"guided_json":{"a":[1.50]},"chat_template_kwargs":{"x":1e2}',
    b'"audio":{"voice":"a"},"modalities":["text"],"prediction":{"type":"content","content":"x"},"safety_identifier":"a"',
]


async def test_what_clients_do_send_passes_byte_for_byte(kit: Kit) -> None:
    kit.upstream.headers = {"Content-Type": "application/json"}
    kit.upstream.script = [
        b'{"id":"c","object":"chat.completion","created":1,"model":"same",'
        b'"choices":[{"index":0,"message":{"role":"assistant","content":"yes"},"finish_reason":"stop"}]}'
    ]
    async with aiohttp.ClientSession(headers={**kit.headers, "Content-Type": "application/json"}) as session:
        for fields in FINE:
            body = SURFACES["/v1/chat/completions"] % (SAID + b", " + fields)
            async with session.post(kit.url + "/v1/chat/completions", data=BytesIO(body)) as answer:
                assert answer.status == 200, (fields, await answer.text())
            assert kit.upstream.received[-1].body == body
    assert len(kit.books.committed) == len(FINE)


@surfaces
async def test_twenty_megabytes(kit: Kit, path: str) -> None:
    body = SURFACES[path] % (b'[{"role":"user","content":"' + b"a" * 20_000_000 + b'"}]')
    assert (await refused(kit, path, body, 413))["message"] == "the request body is larger than 20MB"


FORGED = "a\n\ndata: [DONE]\r\n\r\nevent: error\rid: 5\u2028data: x\u2029\x85\x0b\x0cb"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_no_content_forges_an_event_and_nobody_keeps_a_stream(kit: Kit, path: str) -> None:
    whole = json.dumps({"choices": [{"index": 0, "delta": {"content": FORGED}, "finish_reason": None}]}, indent=1)
    # An event of several lines, as the format allows: its newlines are the format's, those of the content are escaped.
    kit.upstream.script = [b"".join(b"data: %s\n" % line.encode() for line in whole.split("\n")) + b"\n"]
    kit.upstream.script += [
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
        b"data: [DONE]\n\n",
    ]
    for model in ("same", "echo"):
        body = {"model": model, "stream": True, "max_tokens": 500, "messages": [{"role": "user", "content": FORGED}]}
        headers = {**kit.headers, "Accept-Encoding": "gzip, deflate, br"}
        async with (
            aiohttp.ClientSession(headers=headers, auto_decompress=False) as session,
            session.post(kit.url + path, json=body) as answer,
        ):
            assert answer.status == 200, await answer.text()
            assert "content-encoding" not in answer.headers
            assert answer.headers["cache-control"] in ("no-cache", "no-store", "no-cache, no-transform")
            lines = [line for line in (await answer.read()).split(b"\n") if line]
        assert {line.split(b":")[0] for line in lines} <= {b"data", b"event", b""}, lines
        assert not any(b"\r" in line for line in lines)
        data = [line.removeprefix(b"data: ") for line in lines if line.startswith(b"data: ")]
        if path == "/v1/messages":
            texts = [event["delta"].get("text", "") for event in map(json.loads, data) if "delta" in event]
            assert [line for line in lines if line.startswith(b"event:")].count(b"event: message_stop") == 1
        else:
            assert data.count(b"[DONE]") == 1 and data[-1] == b"[DONE]"
            chunks = [choice for event in map(json.loads, data[:-1]) for choice in event["choices"]]
            texts = [choice["delta"].get("content") or "" for choice in chunks]
        assert "".join(texts) == FORGED, model
