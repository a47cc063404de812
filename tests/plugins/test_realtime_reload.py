"""A reload under open sockets: they hear on, what was kept is kept, and tickets that were given out are good."""

from __future__ import annotations

import json
from pathlib import Path

import aiohttp
from socket_kit import said, say
from websockets.asyncio.client import connect

from openclaw_gateway.testing import build, configuration, served


async def test_open_sockets_hear_what_is_said_after_a_reload(tmp_path: Path) -> None:
    async with served(build(configuration(tmp_path))) as server:
        before = server.gateway
        key = await before.plugin("api_key").create(organization="acme", user="ada", tier="teams")
        headers = {"X-API-Key": key.key}
        async with aiohttp.ClientSession(before.url, headers=headers) as http:

            async def post(path: str, body: object) -> dict[str, str]:
                async with http.post(path, data=json.dumps(body)) as answer:
                    assert answer.status == 201
                    found: dict[str, str] = await answer.json()
                    return found

            session = (await post("/api/v1/sessions", {"metadata": {}}))["sessionId"]
            target = f"{before.url.replace('http', 'ws', 1)}/ws?sessionId={session}"
            ticket = (await post("/api/v1/ws-tickets", {"sessionId": session}))["ticket"]
            async with connect(target, additional_headers=headers) as old:
                await post(f"/api/v1/sessions/{session}/messages", {"content": "before"})
                first = await said(old, "message")
                await server.front.reload()
                assert server.gateway is not before
                await post(f"/api/v1/sessions/{session}/messages", {"content": "after"})
                second = await said(old, "message")
                assert (second["content"], second["seq"]) == ("after", first["seq"] + 1)
                async with connect(f"{target}&ticket={ticket}&lastSeq={first['seq'] - 1}") as new:
                    assert [await said(new, "message") for _ in range(2)] == [first, second]
                    await say(old, "message", content="from the old one")
                    assert await said(new, "message") == await said(old, "message")
