"""What a request costs when it does not go well, on the gateway as it is shipped: quotas and leases cost nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from openclaw_gateway.api import Take
from openclaw_gateway.gateway import Gateway
from openclaw_gateway.testing import build, configuration, serving

TIER = """
[ratelimit.requests]
limit = 1000
per = "minute"
[ratelimit.ws_messages]
limit = 100
per = "minute"
[quota.sessions]
limit = 100
per = "month"
[quota.messages]
limit = 100
per = "month"
[quota.handshakes]
limit = 0
per = "month"
meter = "ws_connections"
[concurrency.sessions]
limit = 100
[concurrency.ws_connections]
limit = 1
[concurrency.running]
limit = 4
meter = "requests"
"""


async def standing(gateway: Gateway, name: str) -> int:
    """What the durable account says is used and held of one quota of acme."""
    limit = next(limit for limit in gateway.admission.whole["t"].limits if limit.name == name)
    (balance,) = await gateway.plugin("accounts").peek("acme", [Take(limit, "-")])
    return int(balance.used)


async def running(gateway: Gateway) -> int:
    """How many requests of acme hold a place in the fast account."""
    limit = next(limit for limit in gateway.admission.whole["t"].limits if limit.name == "concurrency.running")
    (balance,) = await gateway.plugin("counters").peek("acme", [Take(limit, "-")])
    return int(balance.used)


def gateway_in(folder: Path) -> Gateway:
    return build(configuration(folder, tiers={"t": TIER}))


def bearer(gateway: Gateway) -> dict[str, str]:
    token = gateway.plugin("jwt").mint(organization="acme", user="ada", tier="t")
    return {"Authorization": f"Bearer {token}"}


async def test_a_request_that_its_handler_refuses_costs_nothing(tmp_path: Path) -> None:
    gateway = gateway_in(tmp_path)
    async with serving(gateway) as url, aiohttp.ClientSession(headers=bearer(gateway)) as http:
        async with http.post(url + "/api/v1/sessions", json={"ttl": -1}) as answer:
            assert answer.status == 400
        async with http.post(url + "/v1/chat/completions", json={"model": "none", "messages": []}) as answer:
            assert answer.status == 400
        assert (await standing(gateway, "quota.sessions"), await standing(gateway, "quota.messages")) == (0, 0)
        assert await standing(gateway, "concurrency.sessions") == 0
        async with http.post(url + "/api/v1/sessions", json={}) as answer:
            assert answer.status == 201
        assert await standing(gateway, "quota.sessions") == 1


def posted(gateway: Gateway, path: str) -> dict[str, Any]:
    """The scope of a request, as the server makes it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in bearer(gateway).items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "state": {},
    }


@pytest.mark.parametrize(("model", "status", "used"), [("echo", 200, 1), ("none", 400, 0)])
async def test_what_is_held_is_settled_before_the_answer_is_whole(
    tmp_path: Path, model: str, status: int, used: int
) -> None:
    gateway = gateway_in(tmp_path)
    async with serving(gateway):
        scope = posted(gateway, "/v1/chat/completions")
        body = b'{"model": "%s", "messages": [{"role": "user", "content": "x"}]}' % model.encode()
        seen: list[Any] = []

        async def receive() -> Any:
            if seen:
                await asyncio.Event().wait()  # the client has said all, and stays
            seen.append(scope["exchange"].receipt.pending)
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            seen.append(message.get("status", scope["exchange"].receipt.pending))

        await gateway.runner(scope, receive, send)
        assert seen[0] is True, "it is held while the handler runs"
        assert [each for each in seen if each is not True] == [status, False]
        assert await standing(gateway, "quota.messages") == used


async def test_a_request_that_is_cancelled_twice_gives_back_what_it_held(tmp_path: Path) -> None:
    gateway = gateway_in(tmp_path)
    async with serving(gateway):
        scope = posted(gateway, "/api/v1/sessions")
        silent = asyncio.Event()

        async def send(message: Any) -> None:
            raise AssertionError("there is nothing to say")

        request = asyncio.create_task(gateway.runner(scope, silent.wait, send))
        async with asyncio.timeout(10):
            while await standing(gateway, "quota.sessions") == 0:
                await asyncio.sleep(0.01)
        request.cancel()
        for _ in range(20):  # by now it is settling, and is told to stop once more, wherever it is
            await asyncio.sleep(0)
            request.cancel()
        await asyncio.wait([request])
        async with asyncio.timeout(10):
            while await standing(gateway, "quota.sessions") or await running(gateway):
                await asyncio.sleep(0.01)


async def test_a_refused_quota_gives_back_the_lease_beside_it(tmp_path: Path) -> None:
    gateway = gateway_in(tmp_path)
    async with serving(gateway) as url, aiohttp.ClientSession(headers=bearer(gateway)) as http:
        async with http.post(url + "/api/v1/sessions", json={}) as answer:
            session = (await answer.json())["sessionId"]
        codes = []
        for _ in range(3):
            async with http.get(
                url + f"/ws?sessionId={session}",
                headers={
                    "Upgrade": "websocket",
                    "Connection": "Upgrade",
                    "Sec-WebSocket-Version": "13",
                    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
                },
            ) as answer:
                codes.append((await answer.json(content_type=None))["error"]["code"])
        assert codes == ["QUOTA_EXCEEDED"] * 3
