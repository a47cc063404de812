"""The echo model: shows its prompt back, cuts at the bound, and counts its own tokens honestly."""

from __future__ import annotations

import base64
import json
import math
import struct
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclaw_gateway.api import ModelCall, UpstreamFailed
from openclaw_plugins.providers.echo import Echo, tokens

ECHO = Echo(Echo.Config(), SimpleNamespace())  # type: ignore[arg-type]


def call(**request: Any) -> ModelCall:
    return ModelCall(
        model="echo",
        upstream_model="echo",
        body=b"",
        request=request,
        stream=bool(request.get("stream")),
        request_id=None,
        first_byte_timeout=1,
        idle_timeout=1,
        total_timeout=1,
    )


PROMPT = [
    {"role": "system", "content": "Be  brief."},
    {"role": "user", "content": [{"type": "text", "text": "I am Ada"}, {"type": "image_url", "image_url": {}}]},
    {"role": "assistant", "content": None, "tool_calls": []},
    {"role": "user", "content": "Who am I?"},
]


@given(st.text())
def test_the_tokens_of_a_text_joined_are_the_text(text: str) -> None:
    assert "".join(tokens(text)) == text


async def test_answers_with_every_message_in_order() -> None:
    answer = json.loads(await ECHO.complete(call(messages=PROMPT)))
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["choices"][0]["message"]["content"] == "Be  brief.\nI am Ada\nWho am I?"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 8, "completion_tokens": 8, "total_tokens": 16}


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_is_cut_at_the_bound_and_says_so(field: str) -> None:
    answer = json.loads(await ECHO.complete(call(messages=PROMPT, **{field: 3})))
    assert answer["choices"][0]["message"]["content"] == "Be  brief.\nI"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 3


async def test_a_stream_is_the_same_answer_token_by_token() -> None:
    request = {"messages": PROMPT, "max_tokens": 5, "stream": True, "stream_options": {"include_usage": True}}
    chunks = [json.loads(chunk) async for chunk in ECHO.stream(call(**request))]
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1
    *parts, usage = chunks
    assert parts[0]["choices"][0]["delta"]["role"] == "assistant"
    texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in parts]
    assert texts == ["", "Be", "  brief.", "\nI", " am", " Ada", ""]
    assert [chunk["choices"][0]["finish_reason"] for chunk in parts] == [None] * 6 + ["length"]
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 8, "completion_tokens": 5, "total_tokens": 13}


async def test_without_include_usage_a_stream_has_none() -> None:
    chunks = [json.loads(chunk) async for chunk in ECHO.stream(call(messages=PROMPT, stream=True))]
    assert all("usage" not in chunk for chunk in chunks)


async def test_embeddings_are_unit_vectors_that_depend_on_the_input_alone() -> None:
    answer = json.loads(await ECHO.embed(call(input=["a b", "c", "a b"], dimensions=10)))
    first, other, again = (item["embedding"] for item in answer["data"])
    assert first == again != other
    assert len(first) == 10
    assert math.isclose(sum(v * v for v in first), 1.0, rel_tol=1e-9)
    assert answer["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


async def test_embeddings_in_base64_are_the_same_floats() -> None:
    plain = json.loads(await ECHO.embed(call(input=[1, 2, 3], dimensions=4)))
    coded = json.loads(await ECHO.embed(call(input=[1, 2, 3], dimensions=4, encoding_format="base64")))
    values = struct.unpack("<4f", base64.b64decode(coded["data"][0]["embedding"]))
    assert values == pytest.approx(plain["data"][0]["embedding"], abs=1e-6)
    assert plain["usage"]["prompt_tokens"] == 3


async def test_more_dimensions_than_there_are_is_the_clients_fault() -> None:
    with pytest.raises(UpstreamFailed) as caught:
        await ECHO.embed(call(input="a", dimensions=100_000))
    assert (caught.value.status, caught.value.param) == (400, "dimensions")
