"""The clients that people use, as judges: each speaks to the gateway as it would to the vendor.

In front of echo, and of a real model of 135 million weights that the gateway reaches by two protocols. SDKs with an
environment of their own are skipped where it is not cached and no registry is reached.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from anthropic import AsyncAnthropic
from installed import python_with
from openai import AsyncOpenAI
from sdk_kit import judged
from upstreams import smol_model

from openclaw_gateway.testing import build, configuration, serving

LOCK = Path(__file__).parents[2] / ".ci/requirements-sdks.lock"
HELLO: Any = [{"role": "user", "content": "Say hello in one short sentence."}]
#: echo; a real model by OpenAI's protocol; the same by Anthropic's
MODELS = ["echo", "small", "small-messages"]


class Served(NamedTuple):
    url: str
    token: str


@pytest.fixture
async def served(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    """The shipped configuration, with the model behind it."""
    async with smol_model() as model:
        edit = {
            "plugins.up": {"use": "providers.openai", "url": model},
            "plugins.up_messages": {"use": "providers.anthropic", "url": model},
            "models.small": {"provider": "up"},
            "models.small-messages": {"provider": "up_messages", "name": "small"},
        }
        gateway = build(configuration(tmp_path, edit=edit))
        async with serving(gateway) as url:
            yield Served(url, gateway.plugin("jwt").mint(organization="acme", user="ada", tier="teams"))


async def test_openai(served: Served) -> None:
    async with AsyncOpenAI(base_url=served.url + "/v1", api_key=served.token, max_retries=0) as client:
        for model in MODELS:
            await ask_openai(client, model)


async def ask_openai(client: AsyncOpenAI, model: str) -> None:
    answer = await client.chat.completions.create(model=model, messages=HELLO, max_tokens=12)
    assert answer.model == model
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 12
    # Always the same words: llama.cpp names no role in an answer whose first character takes more than one token, a
    # star say, and what an upstream says passes as it is.
    stream = await client.chat.completions.create(
        model=model,
        messages=HELLO,
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in ("stop", "length")
    assert chunks[-1].usage is not None
    assert 0 < chunks[-1].usage.completion_tokens <= 12
    assert {c.model for c in chunks} == {model}


async def test_anthropic(served: Served) -> None:
    async with AsyncAnthropic(base_url=served.url, api_key=served.token, max_retries=0) as client:
        for model in MODELS:
            await ask_anthropic(client, model)


async def ask_anthropic(client: AsyncAnthropic, model: str) -> None:
    answer = await client.messages.create(model=model, messages=HELLO, max_tokens=12, system="Be brief.")
    assert (answer.model, answer.role) == (model, "assistant")
    assert [block.type for block in answer.content] == ["text"]
    assert 0 < answer.usage.output_tokens <= 12
    async with client.messages.stream(model=model, messages=HELLO, max_tokens=12) as stream:
        said = [text async for text in stream.text_stream]
        final = await stream.get_final_message()
    assert said
    assert [block.text for block in final.content if block.type == "text"] == ["".join(said)]
    assert final.stop_reason in ("end_turn", "max_tokens")
    assert 0 < final.usage.output_tokens <= 12


@pytest.fixture(scope="session")
def heavy() -> Path:
    return python_with(LOCK)


@pytest.mark.parametrize("sdk", ["langchain", "litellm"])
async def test_sdks_that_pin_what_the_gateway_uses_newer(tmp_path: Path, heavy: Path, sdk: str) -> None:
    nowhere = "http://127.0.0.1:9"  # nothing but the gateway is asked, whatever a package would like to fetch
    async with judged(tmp_path) as given:
        process = await asyncio.create_subprocess_exec(
            *(heavy, "-P", Path(__file__).parent / f"python/judge_{sdk}.py", *given),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={
                **{"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
                **{"HTTPS_PROXY": nowhere, "HTTP_PROXY": nowhere, "NO_PROXY": "127.0.0.1"},
            },
        )
        said, _ = await asyncio.wait_for(process.communicate(), 90)
    assert process.returncode == 0, said.decode()[-2000:]
