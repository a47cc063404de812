"""Tools and refusals through Python's SDKs: what they make of a call of a tool, and of a limit that is reached."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from sdk_kit import Judged, judged

ASKED: Any = [{"role": "user", "content": "Weather in Bonn?"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
]


@pytest.fixture
async def given(tmp_path: Path) -> AsyncIterator[Judged]:
    async with judged(tmp_path) as given:
        yield given


async def test_openai_is_told_of_tools_whole_and_streamed(given: Judged) -> None:
    async with AsyncOpenAI(base_url=given.url + "/v1", api_key=given.token, max_retries=0) as client:
        whole = await client.chat.completions.create(model="tools", messages=ASKED, tools=TOOLS)
        (choice,) = whole.choices
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        async with client.chat.completions.stream(model="tools", messages=ASKED, tools=TOOLS) as stream:
            kinds = [event.type async for event in stream]
            (streamed,) = (await stream.get_final_completion()).choices
        assert "tool_calls.function.arguments.delta" in kinds
        assert streamed.finish_reason == "tool_calls"
        for message in (choice.message, streamed.message):
            (call,) = message.tool_calls or ()
            assert call.type == "function"
            assert (call.id, call.function.name) == ("call_1", "weather")
            assert json.loads(call.function.arguments) == {"city": "Bonn"}
            # the SDK's own message goes back as it is, and every null that it writes with it
            after: Any = [*ASKED, message.model_dump(), {"role": "tool", "tool_call_id": "call_1", "content": "rain"}]
            for piece in after[1].get("tool_calls"):
                piece["function"].pop("parsed_arguments", None)
            told = await client.chat.completions.create(model="tools", messages=after, tools=TOOLS)
            assert told.choices[0].message.content == "It is rain."


async def test_openai_is_told_of_a_limit_and_when_to_come_again(given: Judged) -> None:
    async with AsyncOpenAI(base_url=given.url + "/v1", api_key=given.tight, max_retries=0) as client:
        await client.chat.completions.create(model="echo", messages=ASKED)
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError) as caught:
                await client.chat.completions.create(model="echo", messages=ASKED, stream=stream)
            assert (caught.value.code, caught.value.type) == ("RATE_LIMIT_EXCEEDED", "rate_limit_error")
            assert 1 <= int(caught.value.response.headers["retry-after"]) <= 61


async def test_anthropic_is_told_of_a_limit_and_when_to_come_again(given: Judged) -> None:
    async with AsyncAnthropic(base_url=given.url, api_key=given.tight, max_retries=0) as client:
        await client.messages.create(model="echo", max_tokens=5, messages=ASKED)
        for stream in (False, True):
            with pytest.raises(anthropic.RateLimitError) as caught:
                await client.messages.create(model="echo", max_tokens=5, messages=ASKED, stream=stream)
            body: Any = caught.value.body
            assert (body["type"], body["error"]["type"]) == ("error", "rate_limit_error")
            assert 1 <= int(caught.value.response.headers["retry-after"]) <= 61
