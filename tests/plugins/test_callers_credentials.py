"""What a caller proves himself with goes to nobody behind the gateway: upstreams, services of skills, MCP servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
from fault_proxy import faulty
from socket_kit import Place, place, said, say
from upstreams import Received, Script, chunk, event, scripted
from websockets.asyncio.client import connect

from .test_skills_http import declared
from .test_skills_mcp import SOURCES, Web

#: what a client may send beside its credential, none of it meant for anybody else
BESIDE = {
    "Cookie": "session=canary-cookie",
    "Proxy-Authorization": "Basic canary-proxy",
    "OpenAI-Organization": "canary-organization",
    "anthropic-beta": "canary-beta",
    "Mcp-Session-Id": "canary-mcp",
    "X-Forwarded-For": "canary-forwarded",
}


def answers(received: Received) -> Script:
    if received.path.startswith("/w/"):
        return [b'{"sky": "blue"}']
    if received.path.endswith("/messages"):
        usage = {"input_tokens": 1, "output_tokens": 1}
        said_back = [{"type": "text", "text": "hello"}]
        whole = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": said_back, "usage": usage}
        return [json.dumps({**whole, "stop_reason": "end_turn"}).encode()]
    if received.json.get("stream"):
        return [event(chunk("hello")), event(chunk(finish="stop")), b"data: [DONE]\n\n"]
    choice = {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
    return [json.dumps({"id": "c", "object": "chat.completion", "created": 1, "choices": [choice]}).encode()]


async def test_a_callers_credential_goes_nowhere_else(tmp_path: Path) -> None:
    web = Web(tmp_path / "notes")
    await web.start()
    try:
        async with scripted() as service, faulty(web.port) as tools:
            service.script = answers
            service.headers = {"Content-Type": "application/json"}
            tools.heard = bytearray()
            edit: dict[str, Any] = {
                "plugins.upstream.api_key": "sk-of-the-gateway",
                "plugins.other": {"use": "providers.openai", "url": service.url, "transport": "aiohttp"},
                "plugins.claude": {"use": "providers.anthropic", "url": service.url, "api_key": "sk-of-the-gateway"},
                **{f"models.{name}.provider": name for name in ("other", "claude")},
                "targets.inside": {"url": service.url.removesuffix("/v1"), "private": True},
                "targets.demo": {"url": f"http://127.0.0.1:{tools.port}", "private": True},
                "plugins.skills.sources": SOURCES,
                "plugins.mcp_skills.use": "skills.mcp",
                "plugins.mcp_skills.start_wait": "20s",
                "plugins.mcp_skills.servers.demo": {"url": "/mcp", "target": "demo", "timeout": "15s"},
                **declared("weather"),
            }
            async with place(tmp_path / "home", edit=edit) as here:
                here.upstream.script = answers
                token = here.gateway.plugin("jwt").mint(organization="acme", user="ada", tier="open_source")
                for credential in (
                    {"X-API-Key": here.key},
                    {"Authorization": f"Bearer {here.key}"},
                    {"Authorization": f"Bearer {token}"},
                ):
                    await everything(here, credential)
                async with connect(here.at(await here.session(), token=token), additional_headers=BESIDE) as socket:
                    await say(socket, "message", content="hello", model="slow")
                    await said(socket, "message")
            asked = [*service.received, *here.upstream.received]
            assert len(asked) == 3 * 8 + 1 and tools.heard.count(b"tools/call") >= 3
            sent = "".join(f"{one.path} {one.headers} {one.body!r}" for one in asked) + tools.heard.decode()
            assert "sk-of-the-gateway" in sent
            assert here.key not in sent and token not in sent and "canary" not in sent
    finally:
        await web.kill()


async def everything(here: Place, credential: dict[str, str]) -> None:
    """Each kind of call that makes the gateway call somebody else."""
    async with aiohttp.ClientSession(headers={**credential, **BESIDE}) as http:

        async def post(path: str, body: Any) -> Any:
            async with http.post(here.url + path, json=body) as answer:
                assert answer.status < 300, await answer.text()
                return await answer.read()

        session = json.loads(await post("/api/v1/sessions", {}))["sessionId"]
        for model in ("slow", "other", "claude"):
            turn = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 9}
            for path in ("/v1/chat/completions", "/v1/messages"):
                await post(path, turn)
        await post("/v1/chat/completions", {**turn, "model": "slow", "stream": True})
        for skill, params in (("weather", {"city": "Bonn"}), ("demo.add", {"a": 2, "b": 3})):
            run = await post(f"/api/v1/skills/{skill}/execute", {"sessionId": session, "params": params})
            assert json.loads(run)["status"] == "completed", run
