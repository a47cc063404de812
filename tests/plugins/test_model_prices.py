"""A model with a price is counted in tokens and in cost, once a call; one without is not even looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from upstreams import Cut

from openclaw_gateway.errors import ConfigError
from openclaw_gateway.testing import build, configuration

from .test_chat_tokens import ASKED, DONE, HELLO, LIMITS, PROMPT, Place, chunk, place, whole

USAGE = {"prompt_tokens": 1_000, "completion_tokens": 200, "total_tokens": 1_200}
PRICED = {"provider": "up", "retries": 0, "price": {"input": 2.5, "output": 10}}


def counted(place: Place, model: str = "m") -> tuple[float, float, float]:
    """Tokens of prompts, tokens of answers, and what they cost."""

    def value(name: str, **labels: str) -> float:
        return place.gateway.registry.get_sample_value(name, {"model": model, "tier": "teams", **labels}) or 0.0

    directions = (value("model_tokens_total", direction=direction) for direction in ("input", "output"))
    return (*directions, round(value("model_cost_total"), 9))  # type: ignore[return-value]


@pytest.mark.parametrize("limits", ["", LIMITS], ids=["no limit on tokens", "limits on tokens"])
async def test_every_way_in_is_counted_once(tmp_path: Path, limits: str) -> None:
    roomy = limits.replace("1_000", "100_000").replace("5_000", "100_000")
    async with place(tmp_path, limits=roomy, **{"models.m": PRICED}) as here:
        assert counted(here) == (0, 0, 0)
        here.upstream.headers = {"Content-Type": "application/json"}
        here.upstream.script = whole(USAGE)
        assert (await here.chat())[0] == 200
        assert counted(here) == (1_000, 200, 0.0045)
        assert (await here.ask("POST", "/v1/messages", {"model": "m", "max_tokens": 50, "messages": ASKED}))[0] == 200
        assert counted(here) == (2_000, 400, 0.009)
        here.upstream.headers = {"Content-Type": "text/event-stream"}
        here.upstream.script = [chunk("Hello"), chunk(end="stop"), chunk(usage=USAGE), DONE]
        # The upstream is asked for its count, which a client that did not ask for it does not see.
        assert "usage" not in await here.raw(stream=True)
        assert counted(here) == (3_000, 600, 0.0135)
        _, _, session = await here.ask("POST", "/api/v1/sessions", {})
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {here.key}"}) as http,
            http.ws_connect(f"{here.url}/ws?sessionId={session['sessionId']}") as socket,
        ):
            await socket.send_json({"type": "message", "content": "Say something.", "model": "m", "stream": True})
            while (frame := await socket.receive_json(timeout=10))["type"] != "message":
                assert frame["type"] != "error", frame
        assert counted(here) == (4_000, 800, 0.018)
        here.upstream.headers = {"Content-Type": "application/json"}
        vector = {"object": "embedding", "index": 0, "embedding": [0.5]}
        answer = {"object": "list", "model": "m", "data": [vector], "usage": {"prompt_tokens": 7, "total_tokens": 7}}
        here.upstream.script = [json.dumps(answer).encode()]
        assert (await here.ask("POST", "/v1/embeddings", {"model": "m", "input": ["one", "two"]}))[0] == 200
        assert counted(here) == (4_007, 800, 0.0180175)


async def test_what_an_upstream_does_not_count_is_estimated_and_what_failed_costs_nothing(tmp_path: Path) -> None:
    async with place(tmp_path, limits="", **{"models.m": PRICED}) as here:
        here.upstream.script = [chunk(HELLO), Cut]
        assert "UPSTREAM_ERROR" in await here.raw(stream=True)
        answer = -(-len(HELLO) // 4)
        assert counted(here) == (PROMPT, answer, round((PROMPT * 2.5 + answer * 10) / 1e6, 9))
        here.upstream.script = [Cut]
        assert (await here.chat())[0] == 502
        assert counted(here)[:2] == (PROMPT, answer)


async def test_who_answered_is_counted_at_his_own_price(tmp_path: Path) -> None:
    models: dict[str, Any] = {
        "models.m": {"provider": "gone", "retries": 0, "fallbacks": ["dear"]},
        "models.dear": {"provider": "up", "price": {"input": 1_000}},
        "plugins.gone": {"use": "providers.openai", "url": "http://127.0.0.1:9"},
    }
    async with place(tmp_path, limits="", **models) as here:
        here.upstream.headers = {"Content-Type": "application/json"}
        here.upstream.script = whole(USAGE)
        assert (await here.chat())[0] == 200
        assert counted(here) == (0, 0, 0)
        assert counted(here, "dear") == (1_000, 200, 1)


@pytest.mark.parametrize("price", [{}, {"input": -1}, {"input": "2"}, {"input": 1, "outptu": 2}])
def test_a_price_that_is_none_is_told_with_its_place(tmp_path: Path, price: dict[str, Any]) -> None:
    edit = {"models.m": {"provider": "echo", "price": price}}
    with pytest.raises(ConfigError, match=r"openclaw\.toml:\d+:\d+: models\.m\.price"):
        build(configuration(tmp_path, edit=edit))
