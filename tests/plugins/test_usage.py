"""Limits over a real server: exactly what is stated is admitted, and headers, refusals and `/usage` say the same."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from openclaw_gateway.testing import build, configuration, serving

TIGHT = """
[ratelimit.requests]
limit = 20
per = "minute"
[ratelimit.ws_messages]
limit = 20
per = "minute"
[quota.sessions]
limit = 3
per = "month"
[quota.messages]
limit = 2
per = "month"
warn_at = 0.5
[concurrency.sessions]
limit = 1
[concurrency.ws_connections]
limit = 1
"""
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}


class Client:
    """One caller over real sockets."""

    def __init__(self, http: aiohttp.ClientSession, key: str) -> None:
        self._http = http
        self._headers = {"x-api-key": key}

    async def call(self, method: str, path: str, json: Any = None) -> tuple[int, dict[str, str], Any]:
        async with self._http.request(method, path, json=json, headers=self._headers) as response:
            body = await response.json(content_type=None) if response.status != 204 else None
            return response.status, {k.lower(): v for k, v in response.headers.items()}, body

    async def usage(self) -> dict[str, Any]:
        status, _, body = await self.call("GET", "/api/v1/usage")
        assert status == 200, body
        return {row["name"]: row for row in body["limits"]}


def _next_month(now: datetime) -> datetime:
    return (now.replace(day=1, hour=0, minute=0, second=0, microsecond=0) + timedelta(days=32)).replace(day=1)


@asynccontextmanager
async def calling(directory: Path, tier: str, **tiers: str) -> AsyncIterator[Client]:
    gateway = build(configuration(directory, tiers=tiers or None))
    async with serving(gateway) as url:
        issued = await gateway.plugin("api_key").create(
            organization="acme", user="ann", tier=tier, scopes=(), name=None, expires_in=None
        )
        connector = aiohttp.TCPConnector(limit=100)
        async with aiohttp.ClientSession(url, connector=connector) as http:
            yield Client(http, issued.key)


async def test_400_concurrent_clients_get_exactly_100_of_100_a_minute(tmp_path: Path) -> None:
    async with calling(tmp_path, "open_source") as client:
        answers = await asyncio.gather(*(client.call("GET", "/v1/models") for _ in range(400)))
    assert Counter(status for status, _, _ in answers) == {200: 100, 429: 300}
    remaining = sorted(int(headers["x-ratelimit-remaining"]) for status, headers, _ in answers if status == 200)
    assert remaining == list(range(100))
    for status, headers, body in answers:
        assert headers["ratelimit-policy"] == '"ratelimit.requests";q=100;w=60'
        assert headers["x-ratelimit-limit"] == headers["x-ratelimit-limit-requests"] == "100"
        if status == 429:
            assert 1 <= int(headers["retry-after"]) <= 61
            assert headers["retry-after"] == headers["x-ratelimit-reset"]
            assert int(headers["retry-after-ms"]) <= 1000 * int(headers["retry-after"])
            error = body["error"]
            assert (error["code"], error["type"]) == ("RATE_LIMIT_EXCEEDED", "rate_limit_error")
            assert (error["limit"]["name"], error["limit"]["used"], error["limit"]["remaining"]) == (
                "ratelimit.requests",
                100,
                0,
            )


async def test_usage_says_the_numbers_of_the_headers(tmp_path: Path) -> None:
    async with calling(tmp_path, "teams") as client:
        for _ in range(7):
            await client.call("POST", "/v1/chat/completions", CHAT)
        status, headers, body = await client.call("GET", "/api/v1/usage")
        assert status == 200
        rows = {row["name"]: row for row in body["limits"]}
        requests = rows["ratelimit.requests"]
        assert (requests["kind"], requests["scope"], requests["limit"]) == ("rate", "organization", 500)
        assert requests["used"] == 8
        assert requests["remaining"] == int(headers["x-ratelimit-remaining"]) == 492
        messages = rows["quota.messages"]
        assert (messages["kind"], messages["used"], messages["limit"], messages["warning"]) == (
            "quota",
            7,
            100_000,
            False,
        )
        resets = datetime.fromisoformat(messages["resetsAt"])
        assert abs(resets - _next_month(datetime.now(UTC))) <= timedelta(seconds=1)
        assert rows["concurrency.ws_connections"]["resetsAt"] is None
        assert {"ratelimit.ws_messages", "quota.sessions", "concurrency.sessions"} <= set(rows)


async def test_a_used_up_quota_is_403_with_the_limit_that_fired(tmp_path: Path) -> None:
    async with calling(tmp_path, "tight", tight=TIGHT) as client:
        status, headers, _ = await client.call("POST", "/v1/chat/completions", CHAT)
        assert (status, headers["x-quota-warning"]) == (200, "quota.messages; used=1; limit=2")
        assert (await client.call("POST", "/v1/chat/completions", CHAT))[0] == 200
        for _ in range(3):
            status, headers, body = await client.call("POST", "/v1/chat/completions", CHAT)
            assert status == 403
            assert headers["x-quota-warning"] == "quota.messages; used=2; limit=2"
            error = body["error"]
            assert (error["code"], error["type"]) == ("QUOTA_EXCEEDED", "insufficient_quota")
            assert {k: error["limit"][k] for k in ("name", "kind", "scope", "used", "limit")} == {
                "name": "quota.messages",
                "kind": "quota",
                "scope": "organization",
                "used": 2,
                "limit": 2,
            }
        rows = await client.usage()
        assert rows["quota.messages"]["used"] == 2
        assert rows["quota.messages"]["warning"] is True
        # A rate counts attempts: the three that the quota refused too, and this look.
        assert rows["ratelimit.requests"]["used"] == 6


async def test_a_refused_request_costs_no_quota(tmp_path: Path) -> None:
    async with calling(tmp_path, "tight", tight=TIGHT) as client:
        for wrong in ({"model": "echo", "messages": []}, {"model": "unknown", "messages": CHAT["messages"]}, {}):
            assert (await client.call("POST", "/v1/chat/completions", wrong))[0] == 400
        assert (await client.usage())["quota.messages"]["used"] == 0
        assert (await client.call("POST", "/v1/chat/completions", CHAT))[0] == 200
        answers = await asyncio.gather(*(client.call("GET", "/v1/models") for _ in range(40)))
        assert Counter(status for status, _, _ in answers) == {200: 15, 429: 25}
        assert (await client.call("POST", "/v1/chat/completions", CHAT))[0] == 429
        status, _, body = await client.call("GET", "/api/v1/usage")
        assert (status, body["error"]["limit"]["used"]) == (429, 20)


async def test_sessions_at_the_same_time_are_limited_and_come_back(tmp_path: Path) -> None:
    async with calling(tmp_path, "tight", tight=TIGHT) as client:
        status, _, session = await client.call("POST", "/api/v1/sessions", {"metadata": {}})
        assert status == 201
        status, _, body = await client.call("POST", "/api/v1/sessions", {"metadata": {}})
        assert (status, body["error"]["code"]) == (403, "CONCURRENCY_EXCEEDED")
        rows = await client.usage()
        assert (rows["concurrency.sessions"]["used"], rows["quota.sessions"]["used"]) == (1, 1)
        assert (await client.call("DELETE", f"/api/v1/sessions/{session['sessionId']}"))[0] == 204
        assert (await client.call("POST", "/api/v1/sessions", {"metadata": {}}))[0] == 201
        rows = await client.usage()
        assert (rows["concurrency.sessions"]["used"], rows["quota.sessions"]["used"]) == (1, 2)


@pytest.mark.parametrize("key", ["nonsense", ""])
async def test_usage_needs_a_credential(tmp_path: Path, key: str) -> None:
    async with serving(build(configuration(tmp_path))) as url, aiohttp.ClientSession(url) as http:
        status, _, body = await Client(http, key).call("GET", "/api/v1/usage")
        assert (status, body["error"]["code"]) == (401, "UNAUTHORIZED")
