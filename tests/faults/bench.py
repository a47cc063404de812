"""A gateway in front of an upstream that fails, a client that asks it, and what the client saw."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from chat_kit import CONFIG, LIMITS, OFFERED, Kit, Offered

from openclaw_gateway import loader
from openclaw_gateway.testing import build, configuration, serving


class Seen:
    """What a client saw: the status, the text, the model named, an error, and whether the end was marked."""

    def __init__(self, status: int, body: str) -> None:
        self.status = status
        self.text = ""
        self.model: str | None = None
        self.error: Any = None
        self.done = False
        if body.startswith("{"):
            answer = json.loads(body)
            self.error = answer.get("error")
            if self.error is None:
                self.text = answer["choices"][0]["message"]["content"]
                self.model = answer["model"]
                self.done = True
            return
        for event in body.split("\n\n"):
            if event == "data: [DONE]":
                self.done = True
            elif event.startswith("data: "):
                chunk = json.loads(event.removeprefix("data: "))
                self.error = chunk.get("error", self.error)
                for choice in chunk.get("choices", ()):
                    self.model = chunk["model"]
                    self.text += choice["delta"].get("content") or ""

    @property
    def verdict(self) -> str:
        if self.error is not None:
            where = "after what had come" if self.text else ""
            return f"{self.status} {self.error['code']} {where}".strip()
        return f"{self.status}, whole, from `{self.model}`" if self.done else f"{self.status}, TRUNCATED"


class Client:
    """One who asks `primary` unless told otherwise; `seconds` is how long the last answer took."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self.seconds = 0.0

    async def ask(self, stream: bool, **more: Any) -> Seen:
        body = {"model": "primary", "messages": [{"role": "user", "content": "hi"}], "stream": stream, **more}
        started = time.monotonic()
        async with (
            aiohttp.ClientSession(headers=self.kit.headers) as session,
            session.post(self.kit.url + "/v1/chat/completions", json=body) as answer,
        ):
            seen = Seen(answer.status, await answer.text())
        self.seconds = time.monotonic() - started
        return seen

    @property
    def charged(self) -> int:
        assert self.kit.books.held == {}
        return len(self.kit.books.committed)


@asynccontextmanager
async def failing(
    directory: Path, monkeypatch: pytest.MonkeyPatch, models: str, upstream: Any, provider: str
) -> AsyncIterator[Kit]:
    """Serve the models in front of `upstream`, whose `url` stands where they say URL."""
    real = loader.installed()
    extra = {name: [Offered(name, f"chat_kit:{cls.__name__}", loader.GROUP)] for name, cls in OFFERED.items()}
    monkeypatch.setattr(loader, "installed", lambda: {**real, **extra})
    toml = (CONFIG + models).replace("URL", upstream.url).replace("DRAIN", "5s").replace('"200ms"', '"10s"')
    toml = toml.replace("[plugins.chat]", '[plugins.chat]\nrest = "1s"').replace('"providers.openai"', provider)
    gateway = build(configuration(directory, toml=toml, tiers={"basic": LIMITS, "rich": LIMITS}))
    async with serving(gateway) as url:
        yield Kit(gateway, url, upstream)
