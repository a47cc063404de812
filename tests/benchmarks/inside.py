"""One gateway, called in this process without a socket: what is left is its own work, and nothing of a network's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from openclaw_gateway.gateway import Gateway
from openclaw_gateway.testing import build, configuration

#: limits that no measurement reaches, of the kinds that the shipped tiers set
TIER = """
[ratelimit.requests]
limit = 1_000_000_000
per = "minute"

[ratelimit.ws_messages]
limit = 1_000_000_000
per = "minute"

[quota.sessions]
limit = 1_000_000_000
per = "month"

[quota.messages]
limit = 1_000_000_000
per = "month"

[quota.skills]
limit = 1_000_000_000
per = "session"

[concurrency.sessions]
limit = 1_000_000

[concurrency.ws_connections]
limit = 1_000_000
"""
#: the same without a quota on messages: nothing of a request is written to the database
NO_QUOTA = TIER.replace('[quota.messages]\nlimit = 1_000_000_000\nper = "month"\n', "")

PROMPT = "Say in one sentence what a gateway in front of language models is for, and what it is not for."


def question(model: str = "echo", *, stream: bool = False) -> bytes:
    """The body that every subject is sent."""
    return msgspec.json.encode(
        {"model": model, "messages": [{"role": "user", "content": PROMPT}], "stream": stream, "temperature": 0.2}
    )


class _Answered:
    """What the server's `send` offers; nobody has to be waited for."""

    status = 0

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]

    def whole(self, status: int, headers: Any, body: bytes) -> bool:
        self.status = status
        return True

    def takes(self) -> bool:
        return True

    def piece(self, data: bytes) -> bool:
        return True


class Client:
    """Calls one gateway as its server would."""

    def __init__(self, gateway: Gateway, keys: Sequence[str], *, body: bytes, path: str = "/v1/chat/completions"):
        self.gateway = gateway
        self._keys = keys
        self._body = body
        self._path = path
        self._headers = [
            [
                (b"host", b"127.0.0.1"),
                (b"authorization", b"Bearer " + key.encode()),
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
            ]
            for key in keys
        ]
        self._request = {"type": "http.request", "body": body, "more_body": False}

    def asking(self, body: bytes) -> Client:
        """The same callers with another body."""
        return Client(self.gateway, self._keys, body=body, path=self._path)

    def when_left(self, call: Any) -> None:
        """What the server's connection offers; this client never leaves."""

    async def call(self, number: int = 0) -> int:
        """Send one request by the key of this number; return the status."""
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": self._path,
            "raw_path": self._path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": self._headers[number % len(self._headers)],
            "client": ("127.0.0.1", 50_000),
            "server": ("127.0.0.1", 9090),
            "state": {},
            "openclaw.connection": self,
        }
        given = False

        async def receive() -> Any:
            nonlocal given
            if not given:
                given = True
                return self._request
            await asyncio.Event().wait()

        answered = _Answered()
        await self.gateway(scope, receive, answered)
        return answered.status

    async def cost(self, requests: int, *, at_once: int = 1) -> float:
        """Microseconds of CPU a request, of all threads of this process; every answer must be a 200."""
        begun = time.process_time()

        async def some(first: int) -> None:
            for number in range(first, requests, at_once):
                status = await self.call(number)
                assert status == 200, status

        await asyncio.gather(*(some(first) for first in range(at_once)))
        return (time.process_time() - begun) / requests * 1e6


@asynccontextmanager
async def opened(
    folder: Path,
    *,
    body: bytes | None = None,
    organizations: int = 1,
    tier: str = TIER,
    edit: Mapping[str, Any] | None = None,
    tokens: bool = False,
) -> AsyncIterator[Client]:
    """A gateway of the shipped configuration and a tier that limits nobody, with a credential for each organisation.

    That of a single one is a key, unless `tokens` are wanted.
    """
    log = {"plugins.access_log.file": str(folder / "access.log"), "plugins.access_log.format": "json"}
    gateway = build(configuration(folder, tiers={"bench": tier}, edit={**log, **(edit or {})}))
    async with gateway.running():
        if organizations == 1 and not tokens:
            issued = await gateway.plugin("api_key").create(organization="o0", user="u", tier="bench")
            credentials = [issued.key]
        else:
            # Tokens, since a key is looked up in the store again each second, and that is another question.
            mint = gateway.plugin("jwt").mint
            credentials = [mint(organization=f"o{n}", user="u", tier="bench") for n in range(organizations)]
        yield Client(gateway, credentials, body=body if body is not None else question())
