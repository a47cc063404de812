"""Limits of which each session has its own share: over every way in that names a session, and over no other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from socket_kit import Place, place, said, say, slowly
from websockets.exceptions import InvalidStatus

from openclaw_gateway.errors import ConfigError
from openclaw_gateway.testing import build, configuration

TIER = """
[ratelimit.requests]
limit = 200
per = "minute"
[ratelimit.requests_of_session]
meter = "requests"
scope = "session"
limit = 4
per = "hour"
[ratelimit.ws_messages]
limit = 100
per = "minute"
[ratelimit.frames_of_session]
meter = "ws_messages"
scope = "session"
limit = 3
per = "hour"
[ratelimit.tokens]
scope = "session"
limit = 10_000
per = "hour"
[quota.messages]
limit = 100
per = "month"
[quota.messages_of_session]
meter = "messages"
limit = 2
per = "session"
[quota.sessions]
limit = 100
per = "month"
[concurrency.sessions]
limit = 50
[concurrency.ws_connections]
limit = 50
[concurrency.sockets_of_session]
meter = "ws_connections"
scope = "session"
limit = 1
"""
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[Place]:
    async with place(tmp_path, tier="t", tiers={"t": TIER}) as found:
        yield found


async def fired(at: Place, method: str, path: str, body: Any = None) -> tuple[int, str | None]:
    status, answer = await at.ask(method, path, body)
    return status, answer["error"]["limit"]["name"] if answer is not None and status in (403, 429) else None


async def used(at: Place, session: str) -> dict[str, int]:
    _, answer = await at.ask("GET", f"/api/v1/usage?sessionId={session}")
    return {row["name"]: row["used"] for row in answer["limits"] if row["scope"] == "session" or "_of_" in row["name"]}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/api/v1/sessions/{}", None),
        ("PUT", "/api/v1/sessions/{}", {"metadata": {}}),
        ("GET", "/api/v1/sessions/{}/messages", None),
        ("POST", "/api/v1/ws-tickets", {"sessionId": "$"}),
        ("POST", "/api/v1/skills/search/execute", {"sessionId": "$", "params": {"query": "x"}}),
    ],
)
async def test_a_rate_counts_the_requests_of_each_session_by_itself(
    at: Place, method: str, path: str, body: Any
) -> None:
    for _ in range(2):
        session = await at.session()
        spellings = [session, session.upper()]
        for i in range(5):
            spelt = spellings[i % 2]  # one session, however its id is written
            given = json.loads(json.dumps(body).replace("$", spelt))
            status, name = await fired(at, method, path.format(spelt), given)
            if i < 4:
                assert status < 300, i
            else:
                assert (status, name) == (429, "ratelimit.requests_of_session")
        assert (await used(at, session))["ratelimit.requests_of_session"] == 4


async def test_a_session_that_is_not_there_has_no_share(at: Place) -> None:
    for _ in range(6):
        status, _ = await at.ask("GET", "/api/v1/sessions/01a222b4-4b70-724b-8807-0150dfe11fee")
        assert status == 404


async def test_a_quota_of_a_session_counts_completions_and_posted_messages_alike(at: Place) -> None:
    session, other = await at.session(), await at.session()
    posted = ("POST", f"/api/v1/sessions/{session}/messages", {"content": "x"})
    assert await fired(at, *posted) == (201, None)
    chat = {**CHAT, "sessionId": session.upper()}
    assert await fired(at, "POST", "/v1/chat/completions", chat) == (200, None)
    assert await fired(at, "POST", "/v1/chat/completions", chat) == (403, "quota.messages_of_session")
    assert await fired(at, *posted) == (403, "quota.messages_of_session")
    counted = await used(at, session)
    assert counted["quota.messages_of_session"] == 2
    assert counted["ratelimit.requests_of_session"] == 4
    assert counted["ratelimit.tokens"] > 0
    _, stored = await at.ask("GET", f"/api/v1/sessions/{other}/messages")
    assert stored["messages"] == []
    # What names no session is not counted by one, and what was refused costs the organisation nothing.
    assert await fired(at, "POST", "/v1/chat/completions", CHAT) == (200, None)
    _, answer = await at.ask("GET", "/api/v1/usage")
    assert [row["used"] for row in answer["limits"] if row["name"] == "quota.messages"] == [3]


async def test_a_failed_turn_costs_its_session_nothing(at: Place) -> None:
    session = await at.session()
    chat = {"model": "echo", "sessionId": session, "messages": [], "metadata": {}}
    assert (await at.ask("POST", "/v1/chat/completions", chat))[0] == 400
    chat = {**CHAT, "sessionId": session, "metadata": {"skillName": "none"}}
    assert (await at.ask("POST", "/v1/chat/completions", chat))[0] == 400
    assert (await used(at, session))["quota.messages_of_session"] == 0


@pytest.mark.parametrize("by", ["DELETE", "the end of its time"])
async def test_a_session_that_ends_while_it_is_answered_is_charged_for_what_was_delivered(at: Place, by: str) -> None:
    """Or whoever ends a session before the last word of a stream would have it for nothing."""
    _, made = await at.ask("POST", "/api/v1/sessions", {"ttl": 1} if by != "DELETE" else {})
    chat = {**CHAT, "model": "slow", "stream": True, "sessionId": made["sessionId"]}
    at.upstream.script = slowly(words=20, pause=0.02 if by == "DELETE" else 0.08)
    async with at.http.post(at.url + "/v1/chat/completions", json=chat) as answer:
        first = await answer.content.readline()
        if by == "DELETE":
            assert (await at.ask("DELETE", f"/api/v1/sessions/{made['sessionId']}"))[0] == 204
        told = (first + await answer.content.read()).decode()
    assert "w19 " in told
    assert '"code":"NOT_FOUND"' in told
    assert "[DONE]" not in told  # for it is kept nowhere
    _, answer = await at.ask("GET", "/api/v1/usage")
    assert {row["name"]: row["used"] for row in answer["limits"]}["quota.messages"] == 1


async def test_a_session_that_is_deleted_while_a_socket_hears_its_answer_is_charged(at: Place) -> None:
    session = await at.session()
    at.upstream.script = slowly(words=20)
    async with at.connect(session) as socket:
        await say(socket, "message", content="hello", id="m", stream=True, model="slow")
        await said(socket, "stream")
        assert (await at.ask("DELETE", f"/api/v1/sessions/{session}"))[0] == 204
        assert (await said(socket, "error"))["code"] == "NOT_FOUND"
    _, answer = await at.ask("GET", "/api/v1/usage")
    assert {row["name"]: row["used"] for row in answer["limits"]}["quota.messages"] == 1


async def test_a_whole_answer_that_its_session_did_not_live_to_keep_is_not_given_and_costs_nothing(at: Place) -> None:
    _, made = await at.ask("POST", "/api/v1/sessions", {})
    chat = {**CHAT, "model": "slow", "sessionId": made["sessionId"]}
    at.upstream.script = slowly(words=20)
    asked = asyncio.create_task(at.ask("POST", "/v1/chat/completions", chat))
    async with asyncio.timeout(20):
        while not at.upstream.received:
            await asyncio.sleep(0.01)
    assert (await at.ask("DELETE", f"/api/v1/sessions/{made['sessionId']}"))[0] == 204
    assert (await asked)[0] == 404
    _, answer = await at.ask("GET", "/api/v1/usage")
    assert {row["name"]: row["used"] for row in answer["limits"]}["quota.messages"] == 0


async def test_a_socket_counts_its_frames_its_turns_and_itself_by_its_session(at: Place) -> None:
    session, other = await at.session(), await at.session()
    async with at.connect(session) as socket:
        with pytest.raises(InvalidStatus) as refused:
            await at.connect(session)
        assert refused.value.response.status_code == 429
        async with at.connect(other) as second:
            await say(second, "message", content="hello", id="m")
            assert (await said(second, "message", "error"))["type"] == "message"
        for expected in (None, None, "QUOTA_EXCEEDED", "RATE_LIMIT_EXCEEDED"):
            await say(socket, "message", content="hello", id="m")
            assert (await said(socket, "message", "error")).get("code") == expected
    counted = await used(at, session)
    assert counted["ratelimit.frames_of_session"] == 3
    assert counted["quota.messages_of_session"] == 2
    assert (await used(at, other))["ratelimit.frames_of_session"] == 1


def test_a_share_for_each_session_of_what_no_session_is_named_for_stops_the_start(tmp_path: Path) -> None:
    tier = TIER + '[concurrency.odd]\nmeter = "sessions"\nscope = "session"\nlimit = 1\n'
    with pytest.raises(ConfigError) as refused:
        build(configuration(tmp_path, tiers={"t": tier}))
    (problem,) = refused.value.problems
    assert problem.path == "concurrency.odd"
    assert problem.message == "counts nothing: no route whose requests name a session meters 'sessions'"
    assert problem.expected == "one of: messages, requests, skills, tokens, ws_connections, ws_messages"
