"""A gateway as clients' SDKs judge it: echo, a model that calls a tool, and a tier of one call a minute."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from upstreams import DONE, Received, Script, ScriptedUpstream, chunk, event, scripted

from openclaw_gateway.testing import asset, build, configuration, serving

ASKED = [
    {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":'}},
    {"index": 0, "function": {"arguments": '"Bonn"}'}},
]


class Judged(NamedTuple):
    """Where it is served, an API key, and one of the narrow tier."""

    url: str
    token: str
    tight: str


@asynccontextmanager
async def judged(directory: Path) -> AsyncIterator[Judged]:
    """Serve it."""
    tiers = {file.stem: file.read_text() for file in asset("tiers").glob("*.toml")}
    tiers["tight"] = tiers["open_source"].replace("limit = 100\n", "limit = 1\n", 1)
    async with scripted() as upstream:
        upstream.script = lambda received: _weather(upstream, received)
        edit = {"plugins.up": {"use": "providers.openai", "url": upstream.url}, "models.tools": {"provider": "up"}}
        gateway = build(configuration(directory, edit=edit, tiers=tiers))
        async with serving(gateway) as url:
            keys = gateway.plugin("api_key")
            token = await keys.create(organization="acme", user="ada", tier="teams")
            tight = await keys.create(organization="small", user="ada", tier="tight")
            yield Judged(url, token.key, tight.key)


def _weather(upstream: ScriptedUpstream, received: Received) -> Script:
    """Call the tool, and speak once its result has come."""
    told = [m["content"] for m in received.json["messages"] if m["role"] == "tool"]
    words, finish = (f"It is {told[0]}.", "stop") if told else (None, "tool_calls")
    if received.json.get("stream"):
        upstream.headers = {"Content-Type": "text/event-stream"}
        opening = {"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None}
        head = event(chunk(choices=[opening]))
        if told:
            return [head, event(chunk(words)), event(chunk(finish=finish)), DONE]
        pieces = [
            {"choices": [{"index": 0, "delta": {"tool_calls": [piece]}, "finish_reason": None}]} for piece in ASKED
        ]
        return [head, *(event(chunk(**piece)) for piece in pieces), event(chunk(finish=finish)), DONE]
    upstream.headers = {"Content-Type": "application/json"}
    message: dict[str, Any] = {"role": "assistant", "content": words}
    if not told:
        call = {"name": "weather", "arguments": '{"city":"Bonn"}'}
        message["tool_calls"] = [{"id": "call_1", "type": "function", "function": call}]
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return [
        json.dumps({"id": "c", "object": "chat.completion", "created": 1, "model": "x", "choices": [choice]}).encode()
    ]
