"""Tokens as a rate and as a quota: estimated before a call, settled after it, whatever becomes of it in between."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from openai import AsyncOpenAI
from upstreams import Cut, Pause, ScriptedUpstream, scripted

from openclaw_gateway.api import StoreUnavailable
from openclaw_gateway.gateway import Gateway
from openclaw_gateway.testing import build, configuration, serving
from openclaw_plugins.chat.lanes import Breaker

BASE = Path(__file__).resolve().parents[2] / "tiers" / "teams.toml"
LIMITS = """
[ratelimit.tokens]
limit = 1_000
per = "minute"

[quota.tokens]
limit = 5_000
per = "month"
"""
ASKED = [{"role": "user", "content": "Say something."}]
#: four for the message, and a quarter of the bytes of its text
PROMPT = 4 + 4
HELLO = "Hello there, "


def whole(usage: dict[str, int] | None) -> list[bytes]:
    message = {"index": 0, "message": {"role": "assistant", "content": HELLO * 4}, "finish_reason": "stop"}
    answer: dict[str, Any] = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [message]}
    return [json.dumps(answer | ({"usage": usage} if usage is not None else {})).encode()]


def chunk(content: str | None = None, *, usage: dict[str, int] | None = None, end: str | None = None) -> bytes:
    head: dict[str, Any] = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    if usage is not None:
        return b"data: " + json.dumps(head | {"choices": [], "usage": usage}).encode() + b"\n\n"
    choice = {"index": 0, "delta": {"content": content} if content is not None else {}, "finish_reason": end}
    return b"data: " + json.dumps(head | {"choices": [choice]}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


class Place:
    def __init__(self, gateway: Gateway, url: str, upstream: ScriptedUpstream, key: str, client: AsyncOpenAI) -> None:
        self.gateway, self.url, self.upstream, self.key = gateway, url, upstream, key
        self.client = client

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, Any]:
        sent = {"Authorization": f"Bearer {self.key}", **headers}
        async with (
            aiohttp.ClientSession() as http,
            http.request(method, self.url + path, json=body, headers=sent) as answer,
        ):
            return answer.status, answer.headers, await answer.json(content_type=None)

    async def chat(self, **more: Any) -> tuple[int, Any, Any]:
        return await self.ask("POST", "/v1/chat/completions", {"model": "m", "messages": ASKED, **more})

    async def raw(self, **more: Any) -> str:
        """The body of an answer as it came."""
        sent = {"Authorization": f"Bearer {self.key}"}
        asked = {"model": "m", "messages": ASKED, **more}
        async with (
            aiohttp.ClientSession(headers=sent) as http,
            http.post(self.url + "/v1/chat/completions", json=asked) as answer,
        ):
            return await answer.text()

    async def used(self) -> tuple[int, int]:
        """Tokens that the rate and the quota have counted."""
        _, _, body = await self.ask("GET", "/api/v1/usage")
        rows = {row["name"]: row["used"] for row in body["limits"]}
        return rows["ratelimit.tokens"], rows["quota.tokens"]

    async def settled(self, expected: tuple[int, int]) -> None:
        """A cut turn is settled a moment after the client has gone."""
        async with asyncio.timeout(5):
            while await self.used() != expected:
                await asyncio.sleep(0.02)


@asynccontextmanager
async def place(
    folder: Path, *, limits: str = LIMITS, base: str = BASE.read_text(), **edit: Any
) -> AsyncIterator[Place]:
    async with scripted() as upstream:
        edits = {
            "plugins.up.use": "providers.openai",
            "plugins.up.url": upstream.url,
            "models.m": {"provider": "up", "retries": 0},
            "plugins.chat.answer_tokens": 100,
            **edit,
        }
        gateway = build(configuration(folder, tiers={"teams": base + limits}, edit=edits))
        async with serving(gateway) as url:
            issued = await gateway.plugin("api_key").create(organization=uuid4().hex, user="u", tier="teams")
            async with AsyncOpenAI(base_url=f"{url}/v1", api_key=issued.key, max_retries=0) as client:
                yield Place(gateway, url, upstream, issued.key, client)


@pytest.fixture(params=["memory", "valkey"])
async def tokens(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    edit: dict[str, Any] = {}
    if request.param == "valkey":
        url = request.getfixturevalue("valkey_url")
        edit = {
            "plugins.counters.use": "counters.redis",
            "plugins.redis": {"url": url, "prefix": f"{uuid4().hex[:12]}:"},
        }
    async with place(tmp_path, **edit) as opened:
        yield opened


async def test_a_whole_answer_is_charged_what_the_upstream_counted(tokens: Place) -> None:
    tokens.upstream.headers = {"Content-Type": "application/json"}
    tokens.upstream.script = whole({"prompt_tokens": 12, "completion_tokens": 30, "total_tokens": 42})
    status, headers, _ = await tokens.chat()
    assert status == 200
    # What the headers say is from before the answer, when only the estimate was known.
    assert headers["x-ratelimit-limit-tokens"] == "1000"
    assert headers["x-ratelimit-remaining-tokens"] == str(1000 - PROMPT - 100)
    assert headers["x-ratelimit-limit-requests"] == "500"
    # Where nothing is refused, requests speak for the whole.
    assert headers["x-ratelimit-limit"] == "500"
    assert '"ratelimit.tokens";q=1000;w=60' in headers["ratelimit-policy"]
    assert await tokens.used() == (42, 42)


async def test_zero_is_a_count_and_missing_is_not_zero(tokens: Place) -> None:
    tokens.upstream.headers = {"Content-Type": "application/json"}
    tokens.upstream.script = whole({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0})
    assert (await tokens.chat())[0] == 200
    assert await tokens.used() == (0, 0)
    tokens.upstream.script = whole(None)
    assert (await tokens.chat())[0] == 200
    told = PROMPT + len(HELLO) * 4 // 4
    assert await tokens.used() == (told, told)


async def test_a_stream_is_asked_for_its_usage_and_the_client_sees_it_only_if_it_wants(tokens: Place) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
    tokens.upstream.script = [chunk("Hello"), chunk(end="stop"), chunk(usage=usage), DONE]
    seen = [c async for c in await tokens.client.chat.completions.create(model="m", messages=ASKED, stream=True)]
    assert all(c.usage is None and c.choices for c in seen)
    assert tokens.upstream.received[-1].json["stream_options"] == {"include_usage": True}
    assert await tokens.used() == (13, 13)
    wanted = await tokens.client.chat.completions.create(
        model="m", messages=ASKED, stream=True, stream_options={"include_usage": True}
    )
    seen = [c async for c in wanted]
    assert seen[-1].usage is not None and seen[-1].usage.total_tokens == 13
    assert await tokens.used() == (26, 26)


async def test_what_fails_before_its_first_content_costs_nothing(tokens: Place) -> None:
    tokens.upstream.status = 500
    tokens.upstream.script = [b"{}"]
    assert (await tokens.chat())[0] == 502
    assert await tokens.used() == (0, 0)
    tokens.upstream.status = 200
    tokens.upstream.script = [Cut]
    assert (await tokens.chat(stream=True))[0] == 502
    assert await tokens.used() == (0, 0)


@pytest.mark.parametrize("cut_after", range(1, 6))
async def test_a_stream_that_the_client_cuts_is_charged_for_what_was_delivered(tmp_path: Path, cut_after: int) -> None:
    async with place(tmp_path) as tokens:
        script: list[Any] = []
        for number in range(6):
            script += [chunk(HELLO), *([Pause(30)] if number + 1 == cut_after else [])]
        tokens.upstream.script = script
        stream = await tokens.client.chat.completions.create(model="m", messages=ASKED, stream=True)
        seen = 0
        async for _ in stream:
            seen += 1
            if seen == cut_after:
                break
        await stream.close()
        told = PROMPT + -(-len(HELLO) * cut_after // 4)
        await tokens.settled((told, told))
        # The upstream has been let go, and nothing is held any more.
        async with asyncio.timeout(2):
            await tokens.upstream.left.wait()
        balances = await tokens.gateway.plugin("accounts").standings()
        assert {row.limit: row.used for row in balances}["quota.tokens"] == told


@pytest.mark.parametrize(
    ("sent", "charged"),
    [
        pytest.param(2, PROMPT + -(-len(HELLO) * 2 // 4), id="before the finish"),
        pytest.param(3, PROMPT + -(-len(HELLO) * 2 // 4), id="before the count"),
        pytest.param(4, 12, id="before the marker"),
    ],
)
async def test_a_client_that_leaves_between_the_last_word_and_done(tmp_path: Path, sent: int, charged: int) -> None:
    """What was delivered is estimated, until the upstream's own count has come."""
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    events = [chunk(HELLO), chunk(HELLO), chunk(end="stop"), chunk(usage=usage), DONE]
    async with place(tmp_path) as tokens:
        tokens.upstream.script = [*events[:sent], Pause(30), *events[sent:]]
        stream = await tokens.client.chat.completions.create(
            model="m", messages=ASKED, stream=True, stream_options={"include_usage": True}
        )
        for _ in range(sent):
            await anext(stream)
        await stream.close()
        await tokens.settled((charged, charged))
        await asyncio.wait_for(tokens.upstream.left.wait(), 2)
        assert {row.limit: row.used for row in await tokens.gateway.plugin("accounts").standings()} == {
            "quota.tokens": charged,
            "quota.messages": 1,
        }


async def test_an_upstream_that_dies_in_the_middle_is_charged_for_what_was_delivered(tmp_path: Path) -> None:
    async with place(tmp_path) as tokens:
        tokens.upstream.script = [chunk(HELLO), chunk(HELLO), Cut]
        with pytest.raises(Exception, match=r"."):
            async for _ in await tokens.client.chat.completions.create(model="m", messages=ASKED, stream=True):
                pass
        told = PROMPT + -(-len(HELLO) * 2 // 4)
        await tokens.settled((told, told))


async def test_an_upstream_cut_at_any_byte_is_charged_for_what_was_delivered_or_counted(tmp_path: Path) -> None:
    """Each event counts once it is whole: content by its estimate, until the upstream's own count has come."""
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    events = [chunk(HELLO), chunk(HELLO), chunk(end="stop"), chunk(usage=usage), DONE]
    body = b"".join(events)
    ends = [sum(map(len, events[: number + 1])) for number in range(4)]
    spent = 0
    async with place(
        tmp_path,
        limits='[quota.tokens]\nlimit = 5_000_000\nper = "month"\n',
        base=BASE.read_text().replace("limit = ", "limit = 1_000"),
    ) as tokens:
        lane = tokens.gateway.plugin("chat")._models._candidates["m"].lane
        for at in range(1, len(body)):
            lane.breaker = Breaker(20, 1, time.monotonic)  # so many faults in a row would rest it
            tokens.upstream.script = [body[:at], Cut]
            answer = await tokens.raw(stream=True)
            heard = sum(at >= end for end in ends[:2])
            assert answer.count(HELLO) == heard, (at, answer)
            if at >= ends[3]:
                spent += 12
            elif heard:
                spent += PROMPT + -(-len(HELLO) * heard // 4)
            balances = await tokens.gateway.plugin("accounts").standings()
            assert {row.limit: row.used for row in balances}.get("quota.tokens", 0) == spent, at


async def test_a_request_that_can_never_fit_is_told_so_and_costs_nothing(tokens: Place) -> None:
    status, headers, body = await tokens.chat(max_tokens=2_000)
    assert status == 400
    assert "Retry-After" not in headers
    assert "ratelimit.tokens" in body["error"]["message"] and "smaller" in body["error"]["message"]
    assert body["error"]["limit"]["limit"] == 1_000
    assert await tokens.used() == (0, 0)
    assert not tokens.upstream.received


async def test_a_rate_that_is_used_up_says_when_and_nothing_reaches_the_upstream(tokens: Place) -> None:
    tokens.upstream.headers = {"Content-Type": "application/json"}
    tokens.upstream.script = whole({"prompt_tokens": 400, "completion_tokens": 550, "total_tokens": 950})
    assert (await tokens.chat())[0] == 200
    status, headers, body = await tokens.chat()
    assert status == 429
    assert body["error"]["limit"]["name"] == "ratelimit.tokens"
    assert int(headers["Retry-After"]) >= 1
    assert headers["x-ratelimit-remaining-tokens"] == "50"
    assert headers["x-ratelimit-limit"] == "1000"
    assert len(tokens.upstream.received) == 1
    # The turn was not made, so neither its message nor its tokens count.
    _, _, usage = await tokens.ask("GET", "/api/v1/usage")
    rows = {row["name"]: row["used"] for row in usage["limits"]}
    assert (rows["quota.messages"], rows["quota.tokens"]) == (1, 950)


async def test_a_quota_that_is_used_up_gives_the_rate_back(tmp_path: Path) -> None:
    async with place(tmp_path, limits=LIMITS.replace("5_000", "150")) as tokens:
        tokens.upstream.headers = {"Content-Type": "application/json"}
        tokens.upstream.script = whole({"prompt_tokens": 12, "completion_tokens": 80, "total_tokens": 92})
        assert (await tokens.chat())[0] == 200
        status, _, body = await tokens.chat()
        assert (status, body["error"]["code"]) == (403, "QUOTA_EXCEEDED")
        assert await tokens.used() == (92, 92)


async def test_a_quota_that_a_request_can_never_fit_says_so(tmp_path: Path) -> None:
    async with place(tmp_path, limits=LIMITS.replace("5_000", "100")) as tokens:
        status, _, body = await tokens.chat()
        assert (status, body["error"]["limit"]["name"]) == (400, "quota.tokens")
        assert "smaller" in body["error"]["message"]
        assert await tokens.used() == (0, 0)


async def test_a_turn_of_a_session_commits_its_tokens_with_its_messages(tmp_path: Path) -> None:
    async with place(tmp_path) as tokens:
        tokens.upstream.headers = {"Content-Type": "application/json"}
        tokens.upstream.script = whole({"prompt_tokens": 12, "completion_tokens": 30, "total_tokens": 42})
        _, _, session = await tokens.ask("POST", "/api/v1/sessions", {})
        id = session["sessionId"]
        assert (await tokens.chat(sessionId=id))[0] == 200
        _, _, history = await tokens.ask("GET", f"/api/v1/sessions/{id}/messages")
        assert [message["role"] for message in history["messages"]] == ["user", "assistant"]
        assert await tokens.used() == (42, 42)


async def test_messages_and_embeddings_are_counted_too(tmp_path: Path) -> None:
    async with place(tmp_path) as tokens:
        tokens.upstream.headers = {"Content-Type": "application/json"}
        tokens.upstream.script = whole({"prompt_tokens": 12, "completion_tokens": 30, "total_tokens": 42})
        body = {"model": "m", "max_tokens": 50, "messages": ASKED}
        assert (await tokens.ask("POST", "/v1/messages", body))[0] == 200
        assert await tokens.used() == (42, 42)
        vector = {"object": "embedding", "index": 0, "embedding": [0.5]}
        answer = {"object": "list", "model": "m", "data": [vector], "usage": {"prompt_tokens": 7, "total_tokens": 7}}
        tokens.upstream.script = [json.dumps(answer).encode()]
        assert (await tokens.ask("POST", "/v1/embeddings", {"model": "m", "input": ["one", "two"]}))[0] == 200
        assert await tokens.used() == (49, 49)


async def test_a_skill_asks_no_model_and_takes_no_tokens(tmp_path: Path) -> None:
    async with place(tmp_path) as tokens:
        _, _, session = await tokens.ask("POST", "/api/v1/sessions", {})
        more = {"sessionId": session["sessionId"], "metadata": {"skillName": "search"}}
        assert (await tokens.chat(**more))[0] == 200
        assert await tokens.used() == (0, 0)


async def test_a_turn_over_the_socket_is_counted(tmp_path: Path) -> None:
    async with place(tmp_path) as tokens:
        tokens.upstream.script = [chunk("Hello"), chunk(end="stop"), DONE]
        _, _, session = await tokens.ask("POST", "/api/v1/sessions", {})
        headers = {"Authorization": f"Bearer {tokens.key}"}
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(f"{tokens.url}/ws?sessionId={session['sessionId']}", headers=headers) as socket,
        ):
            await socket.send_json({"type": "message", "content": "Say something.", "model": "m", "stream": True})
            while (frame := await socket.receive_json(timeout=10))["type"] != "message":
                assert frame["type"] != "error", frame
            await tokens.settled((PROMPT + 2, PROMPT + 2))
            await socket.send_json({"type": "message", "content": "x" * 8_000, "model": "m", "id": "big"})
            while (frame := await socket.receive_json(timeout=10))["type"] != "error":
                pass
            assert (frame["code"], frame["ref"]) == ("BAD_REQUEST", "big")
        assert await tokens.used() == (PROMPT + 2, PROMPT + 2)


async def test_without_a_limit_on_tokens_a_body_passes_byte_for_byte(tmp_path: Path) -> None:
    async with place(tmp_path, limits="") as tokens:
        tokens.upstream.script = [chunk("Hello"), chunk(end="stop"), DONE]
        async for _ in await tokens.client.chat.completions.create(model="m", messages=ASKED, stream=True):
            pass
        assert "stream_options" not in tokens.upstream.received[-1].json


async def test_a_correction_that_the_store_does_not_take_fails_no_request(tmp_path: Path) -> None:
    """The estimate then leaves with its window."""
    async with place(tmp_path) as tokens:
        tokens.upstream.headers = {"Content-Type": "application/json"}
        tokens.upstream.script = whole({"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2})

        async def down(*_: Any) -> None:
            raise StoreUnavailable("counters", "gone")

        tokens.gateway.plugin("counters").correct = down
        assert (await tokens.chat())[0] == 200
        assert await tokens.used() == (PROMPT + 100, 2)


async def test_what_n_answers_may_take_is_estimated_for_each(tmp_path: Path) -> None:
    async with place(tmp_path) as tokens:
        assert (await tokens.chat(n=9, max_completion_tokens=200))[0] == 400
        assert (await tokens.chat(n=11))[0] == 400
