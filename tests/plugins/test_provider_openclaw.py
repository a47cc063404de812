"""The provider for a real OpenClaw: against a script that answers as one does, and against one that runs."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from upstreams import DONE, Pause, Received, ScriptedUpstream, chunk, event, scripted

from openclaw_gateway.api import ModelCall
from openclaw_gateway.errors import GatewayError
from openclaw_gateway.gateway import Gateway
from openclaw_gateway.testing import build, configuration, serving
from openclaw_plugins.providers.session_turns import SessionTurns

TOKEN = "an-openclaw-gateway-token"
SECRET = "a secret for session keys, long enough"
HELLO: Any = [{"role": "user", "content": "Hello there"}]
KEY = "x-openclaw-session-key"

#: what it sends when its model fails after the stream has begun: a role, an error, and a proper end
ROLE = event(chunk(None, choices=[{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]))
LATE_ERROR = [ROLE, event(b'{"error":{"message":"internal error","type":"api_error"}}'), DONE]


def answer(received: Received) -> list[bytes]:
    """Answer as OpenClaw does: its agent's name for the model, usage by its own count."""
    usage = {"prompt_tokens": 12357, "completion_tokens": 1, "total_tokens": 12358}
    if received.json.get("stream"):
        return [ROLE, event(chunk("Hi")), event(chunk(finish="stop")), event(chunk(choices=[], usage=usage)), DONE]
    message = {"role": "assistant", "content": "Hi"}
    whole = {
        "id": "chatcmpl_1",
        "object": "chat.completion",
        "created": 1,
        "model": received.json["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": usage,
    }
    return [json.dumps(whole).encode()]


class Place:
    """A gateway in front of one OpenClaw, and a client of two organisations."""

    def __init__(self, gateway: Gateway, url: str) -> None:
        self.gateway = gateway
        self.url = url

    def client(self, organization: str = "acme", **options: Any) -> AsyncOpenAI:
        token = self.gateway.plugin("jwt").mint(organization=organization, user="ada", tier="teams")
        return AsyncOpenAI(base_url=self.url + "/v1", api_key=token, max_retries=0, **options)

    async def session(self, client: AsyncOpenAI) -> str:
        made = await client.post(self.url + "/api/v1/sessions", cast_to=object, body={"metadata": {}})
        assert isinstance(made, dict)
        return str(made["sessionId"])


def edit(url: str, **settings: Any) -> dict[str, Any]:
    plugin = {"use": "providers.openclaw", "url": url, "api_key": "env:OPENCLAW_GATEWAY_TOKEN", **settings}
    return {
        "plugins.claw": plugin,
        "plugins.chat.rest_after": 20,
        "models.assistant": {"provider": "claw", "name": "openclaw/default", "retries": 0},
        "models.spare": {"provider": "echo"},
        "models.backed": {"provider": "claw", "name": "openclaw/main", "retries": 0, "fallbacks": ["spare"]},
    }


@asynccontextmanager
async def place(directory: Path, url: str, **settings: Any) -> AsyncIterator[Place]:
    gateway = build(configuration(directory, edit=edit(url, **settings)))
    async with serving(gateway) as served:
        yield Place(gateway, served)


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    if "OPENCLAW_GATEWAY_TOKEN" not in os.environ:
        monkeypatch.setenv("OPENCLAW_GATEWAY_TOKEN", TOKEN)
    monkeypatch.setenv("OPENCLAW_SESSION_SECRET", SECRET)


@pytest.fixture
async def upstream(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ScriptedUpstream]:
    monkeypatch.setenv("OPENCLAW_GATEWAY_TOKEN", TOKEN)
    async with scripted() as upstream:
        upstream.script = answer
        yield upstream


@pytest.mark.parametrize(
    ("settings", "name", "said"),
    [
        ({}, "openclaw", "shared"),
        ({"shared": True, "organization": "acme"}, "openclaw", "not both"),
        ({"shared": True, "history": "openclaw"}, "openclaw", "session_secret"),
        ({"shared": True}, "gpt-4o", "openclaw/<agent>"),
        ({"shared": True}, "openclaw/", "openclaw/<agent>"),
    ],
)
def test_what_would_mix_tenants_or_never_work_stops_the_start(
    tmp_path: Path, settings: dict[str, Any], name: str, said: str
) -> None:
    edited = edit("http://127.0.0.1:9/v1", **settings)
    edited["models.assistant"]["name"] = name
    with pytest.raises(GatewayError, match=said):
        build(configuration(tmp_path, edit=edited))


async def test_an_agent_answers_under_the_alias_and_no_client_names_a_session(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    forged = {KEY: "agent:main:main", "x-openclaw-scopes": "operator.admin", "X-Forwarded-For": "203.0.113.9"}
    async with place(tmp_path, upstream.url, shared=True) as here, here.client(default_headers=forged) as client:
        whole = await client.chat.completions.create(model="assistant", messages=HELLO, user="1", seed=7)
        assert (whole.model, whole.choices[0].message.content) == ("assistant", "Hi")
        assert whole.usage is not None
        assert whole.usage.prompt_tokens == 12357
        chunks = [
            c
            async for c in await client.chat.completions.create(
                model="assistant", messages=HELLO, stream=True, stream_options={"include_usage": True}
            )
        ]
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hi"
        assert {c.model for c in chunks} == {"assistant"}
        session = await here.session(client)
        await client.chat.completions.create(model="assistant", messages=HELLO, extra_body={"sessionId": session})
    assert len(upstream.received) == 3
    for received in upstream.received:
        assert received.json["model"] == "openclaw/default"
        assert received.json["messages"] == HELLO
        # its API makes a session of `user`: two organisations' user "1" would share it
        assert "user" not in received.json
        assert received.headers["authorization"] == f"Bearer {TOKEN}"
        assert not [name for name in received.headers if "openclaw" in name or "forwarded" in name]
    assert upstream.received[0].json["seed"] == 7


async def test_a_kept_session_gets_the_new_turn_and_a_key_of_its_own(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    keeping = {"shared": True, "history": "openclaw", "session_secret": "env:OPENCLAW_SESSION_SECRET"}
    talk: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": [{"type": "text", "text": "two"}]},
    ]
    keys = []
    async with place(tmp_path, upstream.url, **keeping) as here:
        for organization in ("acme", "acme", "other"):
            async with here.client(organization) as client:
                session = await here.session(client)
                for _ in range(2):
                    await client.chat.completions.create(
                        model="assistant", messages=talk, extra_body={"sessionId": session}
                    )
                    sent = upstream.received[-1]
                    assert sent.json["messages"] == [talk[0], talk[3]]
                    assert "sessionId" not in sent.json
                    assert session not in sent.headers[KEY]
                    keys.append(sent.headers[KEY])
        async with here.client() as client:
            await client.chat.completions.create(model="assistant", messages=talk)
    assert KEY not in upstream.received[-1].headers
    assert upstream.received[-1].json["messages"] == talk
    assert keys[::2] == keys[1::2]
    assert len(set(keys)) == 3


@pytest.fixture
async def kept(tmp_path: Path, upstream: ScriptedUpstream) -> AsyncIterator[Place]:
    keeping = {"shared": True, "history": "openclaw", "session_secret": "env:OPENCLAW_SESSION_SECRET"}
    async with place(tmp_path, upstream.url, **keeping) as here:
        yield here


def slow_until_left(received: Received) -> list[Any]:
    if received.json["messages"][-1]["content"] == "slow":
        return [ROLE, event(chunk("Hi")), Pause(20)]
    return answer(received)


async def ask(client: AsyncOpenAI, session: str, text: str = "Hello there", **more: Any) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    return await client.chat.completions.create(
        model="assistant", messages=messages, extra_body={"sessionId": session}, **more
    )


@pytest.mark.parametrize("stream", [False, True])
async def test_turns_of_a_kept_session_wait_for_one_another_and_of_others_do_not(
    kept: Place, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.script = slow_until_left
    turns = kept.gateway.plugin("claw")._turns
    async with kept.client() as client:
        session, other = await kept.session(client), await kept.session(client)
        first = await ask(client, session, "slow", stream=True)
        await anext(first)
        second = asyncio.create_task(ask(client, session, stream=stream))
        async with asyncio.timeout(3):
            while [count for _, count in turns._sessions.values()] != [2]:
                await asyncio.sleep(0.01)
        for again in (False, True):  # one runs, one waits
            with pytest.raises(openai.ConflictError) as caught:
                await ask(client, session, stream=again)
            assert (caught.value.code, caught.value.param) == ("CONFLICT", "sessionId")
            assert caught.value.response.headers["retry-after"] == "1"
        assert (await ask(client, other)).choices[0].message.content == "Hi"
        assert len(upstream.received) == 2  # the slow one, and that of the other session
        await first.close()
        told = await second
        if stream:
            assert "".join([part.choices[0].delta.content or "" async for part in told if part.choices]) == "Hi"
        else:
            assert told.choices[0].message.content == "Hi"
        assert (await ask(client, session)).choices[0].message.content == "Hi"
    assert len(upstream.received) == 4
    assert turns._sessions == {}


async def test_who_leaves_while_he_waits_leaves_his_place(kept: Place, upstream: ScriptedUpstream) -> None:
    upstream.script = slow_until_left
    turns = kept.gateway.plugin("claw")._turns
    async with kept.client() as client:
        session = await kept.session(client)
        first = await ask(client, session, "slow", stream=True)
        await anext(first)
        for _ in range(2):
            with pytest.raises(openai.APITimeoutError):
                await ask(client, session, timeout=0.3)
            async with asyncio.timeout(3):
                while [count for _, count in turns._sessions.values()] != [1]:
                    await asyncio.sleep(0.01)
        await first.close()
        assert (await ask(client, session)).choices[0].message.content == "Hi"
    assert (len(upstream.received), turns._sessions) == (2, {})


async def test_a_turn_waits_no_longer_than_its_time(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """And no fallback is asked then, which would lack the history."""
    upstream.script = slow_until_left
    keeping = {"history": "openclaw", "session_secret": "env:OPENCLAW_SESSION_SECRET"}
    edited = edit(upstream.url, shared=True, **keeping)
    edited["models.assistant"] |= {"timeouts": {"first_byte": "400ms", "total": "30s"}, "fallbacks": ["spare"]}
    gateway = build(configuration(tmp_path, edit=edited))
    async with serving(gateway) as served, Place(gateway, served).client() as client:
        session = await Place(gateway, served).session(client)
        first = await ask(client, session, "slow", stream=True)
        await anext(first)
        with pytest.raises(openai.ConflictError, match="did not end in time"):
            await ask(client, session)
        await first.close()
        assert (await ask(client, session)).model == "assistant"
    assert len(upstream.received) == 2


async def test_what_a_wait_took_is_not_had_again() -> None:
    call = ModelCall(
        **{"model": "m", "upstream_model": "m", "body": b"{}", "request": {}, "stream": False, "request_id": None},
        **{"first_byte_timeout": 5.0, "idle_timeout": 5.0, "total_timeout": 6.0},
    )
    turns, begun = SessionTurns(1), asyncio.Event()

    async def hold() -> None:
        async with turns.turn("s", call):
            begun.set()
            await asyncio.sleep(1.5)

    holder = asyncio.create_task(hold())
    await begun.wait()
    async with turns.turn("s", call) as timed:
        assert timed.total_timeout <= 4.6
        assert timed.first_byte_timeout == timed.total_timeout
    await holder


async def test_another_organisation_is_refused_before_it_is_asked(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with place(tmp_path, upstream.url, organization="acme") as here:
        async with here.client("other") as client:
            with pytest.raises(openai.PermissionDeniedError) as caught:
                await client.chat.completions.create(model="assistant", messages=HELLO)
            assert "acme" not in str(caught.value.body)
        assert upstream.received == []
        async with here.client("acme") as client:
            await client.chat.completions.create(model="assistant", messages=HELLO)
    assert len(upstream.received) == 1


REFUSALS: list[tuple[int, Any, int]] = [
    (400, {"error": {"message": "Unknown agent 'nobody'.", "type": "invalid_request_error"}}, 400),
    (401, {"error": {"message": "Unauthorized", "type": "unauthorized"}}, 502),
    (401, {"error": {"message": "its model's key", "type": "authentication_error"}}, 502),
    (403, {"error": {"message": "no", "type": "proxy_attribution_required"}}, 502),
    (404, "Not Found", 502),
    (405, "Method Not Allowed", 502),
    (429, {"error": {"message": "slow", "type": "rate_limited"}}, 502),
    (500, {"error": {"message": "internal error", "type": "api_error"}}, 502),
    (503, {"error": {"message": "draining", "type": "gateway_unavailable"}}, 502),
]


async def test_its_errors_are_the_clients_only_where_he_made_them(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with place(tmp_path, upstream.url, shared=True) as here, here.client() as client:
        for status, body, expected in REFUSALS:
            upstream.status = status
            upstream.script = [json.dumps(body).encode() if isinstance(body, dict) else body.encode()]
            for stream in (False, True):
                with pytest.raises(openai.APIStatusError) as caught:
                    await client.chat.completions.create(model="assistant", messages=HELLO, stream=stream)
                assert (status, caught.value.status_code) == (status, expected)
            if expected != 400:
                backed = await client.chat.completions.create(model="backed", messages=HELLO)
                assert backed.model == "spare"
    assert len(upstream.received) == 3 * len(REFUSALS) - 1


async def test_an_error_after_the_role_falls_back_or_is_told(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.script = LATE_ERROR
    async with place(tmp_path, upstream.url, shared=True) as here, here.client() as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="assistant", messages=HELLO, stream=True)
        assert caught.value.status_code == 502
        chunks = [c async for c in await client.chat.completions.create(model="backed", messages=HELLO, stream=True)]
    assert {c.model for c in chunks} == {"spare"}


@pytest.mark.long
async def test_a_real_one(tmp_path: Path) -> None:
    """OPENCLAW_UPSTREAM_URL is its base URL (`.../v1`), OPENCLAW_GATEWAY_TOKEN its token."""
    url = os.environ.get("OPENCLAW_UPSTREAM_URL")
    if url is None:
        pytest.skip("OPENCLAW_UPSTREAM_URL names no OpenClaw")
    keeping = {"shared": True, "history": "openclaw", "session_secret": "env:OPENCLAW_SESSION_SECRET"}
    async with place(tmp_path, url, **keeping) as here, here.client() as client:
        whole = await client.chat.completions.create(model="assistant", messages=HELLO, user="1")
        assert (whole.model, whole.object) == ("assistant", "chat.completion")
        assert whole.choices[0].message.content
        session = await here.session(client)
        used = []
        for _ in range(3):
            stream = await client.chat.completions.create(
                model="assistant",
                messages=HELLO,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"sessionId": session},
            )
            chunks = [c async for c in stream]
            assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert chunks[-1].usage is not None
            used.append(chunks[-1].usage.prompt_tokens)
        # it remembers: one new turn a time, and a prompt that grows
        assert used[0] < used[1] < used[2]
