"""Every key of `[models.<alias>]` does what the reference says, read from a file and seen by a client."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import chat_kit
import msgspec
import pytest
from chat_kit import Kit, chat_gateway
from upstreams import DONE, Cut, Pause, Received, chunk, event

from openclaw_gateway.config.document import Model

HELLO: Any = [{"role": "user", "content": "Hello there"}]
GOOD = [b'{"choices":[{"index":0,"message":{"role":"assistant","content":"yes"},"finish_reason":"stop"}]}']
#: keys of a table, its upstream's status and script, what the client sees, how often the upstream was asked
KEYS: dict[str, tuple[str, int, list[Any], tuple[int, str], int]] = {
    "provider": ("", 200, GOOD, (200, "yes"), 1),
    "name": ('name = "theirs"', 200, GOOD, (200, "yes"), 1),
    "owned_by": ('owned_by = "them"', 200, GOOD, (200, "yes"), 1),
    "tiers": ('tiers = ["rich"]', 200, GOOD, (400, "BAD_REQUEST"), 0),
    "retries": ("retries = 2", 500, [b"{}"], (502, "UPSTREAM_ERROR"), 3),
    "fallbacks": ('fallbacks = ["echo"]\nretries = 0', 500, [b"{}"], (200, "Hello there"), 1),
    "context": (
        'fallbacks = ["narrow", "wide"]\ncontext = 10',
        400,
        [b'{"error":{"message":"too long","code":"context_length_exceeded"}}'],
        (200, "Hello there"),
        1,
    ),
    "timeouts": ('timeouts = { first_byte = "200ms" }\nretries = 0', 200, [Pause(20)], (504, "UPSTREAM_TIMEOUT"), 1),
    # what it counts is in test_model_prices.py
    "price": ("price = { input = 2.5, output = 10.0 }", 200, GOOD, (200, "yes"), 1),
    # these two are the tests at the end
    "capacity": ("capacity = 2", 200, GOOD, (200, "yes"), 1),
    "capacity_wait": ('capacity = 2\ncapacity_wait = "300ms"', 200, GOOD, (200, "yes"), 1),
}
OTHERS = '[models.narrow]\nprovider = "up"\ncontext = 5\n[models.wide]\nprovider = "echo"\ncontext = 1000\n'


def test_no_key_is_left_out() -> None:
    assert set(KEYS) == {field.name for field in msgspec.structs.fields(Model)}


@pytest.fixture
async def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kit]:
    tables = "".join(f'[models.{key}]\nprovider = "up"\n{keys}\n' for key, (keys, *_) in KEYS.items())
    names = json.dumps(["echo", "wide", "narrow", *KEYS])
    monkeypatch.setattr(chat_kit, "CONFIG", chat_kit.CONFIG + tables + OTHERS)
    monkeypatch.setattr(chat_kit, "TIERS", {"basic": f"models = {names}\n" + chat_kit.LIMITS, "rich": chat_kit.LIMITS})
    async with chat_gateway(tmp_path, monkeypatch) as kit:
        yield kit


async def ask(kit: Kit, model: str) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession(headers=kit.headers) as session,
        session.post(kit.url + "/v1/chat/completions", json={"model": model, "messages": HELLO}) as answer,
    ):
        told = json.loads(await answer.read())
        return answer.status, told["error"]["code"] if "error" in told else told["choices"][0]["message"]["content"]


async def test_each_key_is_seen(kit: Kit) -> None:
    for key, (_, status, script, expected, asked) in KEYS.items():
        kit.upstream.status, kit.upstream.script = status, script
        kit.upstream.received.clear()
        before = len(kit.books.committed)
        assert await ask(kit, key) == expected, key
        named = [received.json["model"] for received in kit.upstream.received]
        assert named == ["theirs" if key == "name" else key] * asked, key
        assert len(kit.books.committed) - before == (expected[0] == 200), key
        assert kit.books.held == {}, key
    async with kit.client() as client:
        owners = {model.id: model.owned_by async for model in client.models.list()}
    assert (owners["owned_by"], owners["name"], "tiers" in owners) == ("them", "openclaw", False)


@pytest.mark.parametrize("end", ["client leaves", "upstream dies", "whole"])
async def test_one_call_more_than_there_are_places_waits_and_is_refused(kit: Kit, end: str) -> None:
    last: list[Any] = [Cut] if end == "upstream dies" else [event(chunk(finish="stop")), DONE]
    over: list[bool] = []

    def script(_: Received) -> Iterator[Any]:
        yield event(chunk("a"))
        while not over:
            yield Pause(0.05)
        yield from last

    kit.upstream.script = script
    asked = {"model": "capacity_wait", "messages": HELLO, "stream": True}
    async with aiohttp.ClientSession(headers=kit.headers) as session:
        running = [await session.post(kit.url + "/v1/chat/completions", json=asked) for _ in range(2)]
        began = time.monotonic()
        async with session.post(kit.url + "/v1/chat/completions", json={**asked, "stream": False}) as refused:
            error = (await refused.json(content_type=None))["error"]
        assert (refused.status, error["code"]) == (503, "SERVICE_UNAVAILABLE")
        assert refused.headers["Retry-After"] == "1"
        assert time.monotonic() - began >= 0.29
        assert len(kit.upstream.received) == 2
        if end != "client leaves":
            over.append(True)
        for answer in running:
            if end == "client leaves":
                answer.close()
            else:
                await answer.read()
    async with asyncio.timeout(5):
        while kit.books.held:
            await asyncio.sleep(0.01)
    kit.upstream.script, kit.upstream.headers = GOOD, {"Content-Type": "application/json"}
    for _ in range(3):
        assert await ask(kit, "capacity_wait") == (200, "yes")
    assert (len(kit.books.committed), len(kit.books.voided), kit.books.held) == (5, 1, {})
