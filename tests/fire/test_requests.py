"""Mutated requests to every route of the shipped configuration: none is answered by a fault, none by silence.

Long form: `pytest tests/fire -m long` (900,000 requests; `FIRE_SEED` chooses others).
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from openclaw_gateway.routes import Route
from openclaw_gateway.testing import build, serving

from .mutation import CREDENTIALS, HEADERS, METHODS, body, percent, sample, text
from .watch import SEED, Recorder, counts, listening, say, wide

KNOWN: dict[str, Any] = {
    "model": "echo",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
    "input": ["hello"],
    "content": "hello",
    "metadata": {"a": {"b": [1, "c"]}},
    "max_tokens": 8,
    "stream": True,
    "temperature": 0.5,
    "stop": ["x"],
    "params": {"query": "hello"},
    "organizationId": "acme",
    "userId": "ada",
    "tier": "wide",
    "scopes": ["keys"],
    "name": "a name",
    "overlap": "1h",
    "expiresIn": "1d",
    "status": "active",
}
LANES = 4


class Wire:
    """One kept connection on which anything may be written; answers are read to their end."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes, head: bool) -> tuple[int, bytes, bytes]:
        """Return status, headers and body of the answer. Raises where there is none, or half of one."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        try:
            writer.write(request)
            async with asyncio.timeout(15):
                status, headers = 100, b""
                while status in (100, 102, 103):
                    headers = (await reader.readuntil(b"\r\n\r\n")).lower()
                    status = int(headers.split(b" ", 2)[1])
                found = b"" if head or status in (101, 204, 304) else await _body(reader, headers)
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            await self.close()
            raise
        if b"\r\nconnection: close" in headers or status == 101:
            await self.close()
        return status, headers, found

    async def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _body(reader: asyncio.StreamReader, headers: bytes) -> bytes:
    length = re.search(rb"\r\ncontent-length: (\d+)", headers)
    if length:
        return await reader.readexactly(int(length[1]))
    if b"\r\ntransfer-encoding: chunked" not in headers:
        return await reader.read()
    found = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        found += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return found


class Gunner:
    """Makes requests for the routes of a gateway."""

    def __init__(
        self, seed: str, routes: tuple[Route, ...], good: list[tuple[str, str]], ids: dict[str, list[str]]
    ) -> None:
        self._rng = random.Random(seed)
        self._routes = routes
        self._good = good
        self._ids = ids

    def next(self) -> tuple[str, bytes, bool]:
        """Return the route, the bytes of a request for it, and whether its answer has no body."""
        rng = self._rng
        route = rng.choice(self._routes)
        own = {**KNOWN, "sessionId": rng.choice(self._ids["session_id"])}
        methods = [m for m in route.methods if m != "WEBSOCKET"] or ["GET"]
        method = rng.choice(methods) if rng.random() < 0.9 else rng.choice(METHODS)
        target = self._target(route)
        content = b""
        if method in ("POST", "PUT", "PATCH") or rng.random() < 0.05:
            seed = sample(route.body, own)
            # A body as it should be keeps the rest of the request worth its while.
            plain = rng.random() < 0.25 and seed is not None
            content = json.dumps(seed).encode() if plain else body(rng, seed)
        headers: list[tuple[str, str]] = [("Host", "127.0.0.1")]
        if rng.random() < 0.85:
            headers.append(rng.choice(self._good))
        if rng.random() < 0.15:
            headers.append(rng.choice(CREDENTIALS))
        for name in rng.sample(list(HEADERS), rng.choice((0, 0, 0, 1, 2, 5))):
            if name in ("Content-Length", "Transfer-Encoding", "Host") and rng.random() < 0.8:
                continue
            headers.append((name, rng.choice(HEADERS[name]) if rng.random() < 0.8 else _one_line(text(rng))))
        if content or method in ("POST", "PUT"):
            headers.append(("Content-Length", str(len(content))))
        lines = [f"{method} ".encode() + target + b" HTTP/1.1"]
        lines += [f"{name}: {value}".encode("latin-1", "replace") for name, value in headers]
        return f"{method} {route.path}", b"\r\n".join(lines) + b"\r\n\r\n" + content, method == "HEAD"

    def _target(self, route: Route) -> bytes:
        rng = self._rng
        path = b""
        for part in re.split(r"({\w+})", route.path):
            name = part.strip("{}")
            if part == name:
                path += part.encode()
            elif rng.random() < 0.5:
                path += rng.choice(self._ids.get(name, ["search" if name == "name" else "echo"])).encode()
            else:
                path += percent(rng, text(rng))
        if rng.random() < 0.05:
            path += rng.choice(
                (b"/", b"//", b"/.", b"/%2e", b";x", b"\xff", b"%ff", b"#", b"/" + percent(rng, text(rng)))
            )
        if rng.random() < 0.03:
            path = rng.choice((b"*", b"//evil.example/", b"/", b"/" + b"a/" * 500, b"http://127.0.0.1" + path))
        pairs = []
        for name in [*route.query, "token", "x"] if "WEBSOCKET" in route.methods else [*route.query]:
            if rng.random() < 0.5:
                pairs.append(name.encode() + rng.choice((b"=", b"==", b"[]=")) + percent(rng, text(rng)))
        if rng.random() < 0.1:
            pairs.append(percent(rng, text(rng)) + b"=" + percent(rng, text(rng)))
        if pairs and rng.random() < 0.1:
            pairs.append(pairs[0])
        return (path + (b"?" + b"&".join(pairs) if pairs else b""))[:8_000]


def _one_line(value: str) -> str:
    return value.replace("\r", "").replace("\n", "").replace("\x00", "")


def _wrong(status: int, headers: bytes, found: bytes) -> str | None:
    if status == 503:
        try:
            reason = json.loads(found).get("detail") or json.loads(found)["error"]["message"]
        except (ValueError, KeyError, TypeError, AttributeError):
            reason = None
        return None if reason and b"\r\nretry-after:" in headers else "503 without a reason"
    if status >= 500:
        return f"{status} {found[:200]!r}"
    if b"Traceback (most" in found or b"site-packages" in found:
        return f"{status} with our insides: {found[:200]!r}"
    return "an injected header" if b"\r\nx-injected:" in headers else None


@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("count", counts(2_000, 900_000))
async def test_no_request_is_answered_by_a_fault_or_by_silence(
    count: int, tmp_path: Path, record_property: Recorder
) -> None:
    gateway = build(wide(tmp_path))
    wrong: list[str] = []
    statuses: Counter[int] = Counter()
    async with serving(gateway) as url:
        key = await gateway.plugin("api_key").create(organization="acme", user="ada", tier="wide", scopes=("keys",))
        token = gateway.plugin("jwt").mint(
            organization="acme", user="ada", tier="wide", scopes=("admin", "keys"), ttl=36_000
        )
        good = [("X-API-Key", key.key), ("Authorization", f"Bearer {token}")]
        port = int(url.rsplit(":", 1)[1])
        # many, because some of what is fired at them ends them; and never the key that the fire itself uses
        sessions = [await _session(port, good[1]) for _ in range(count // 100)]
        targets = [
            (await gateway.plugin("api_key").create(organization="acme", user="bob", tier="wide")).record.key_id
            for _ in range(10)
        ]
        ids = {"session_id": sessions, "key_id": targets}

        async def lane(number: int) -> None:
            gunner = Gunner(f"{SEED}/{number}", gateway.routes, good, ids)
            wire = Wire(port)
            for _ in range(count // LANES):
                name, request, head = gunner.next()
                try:
                    status, headers, found = await wire.ask(request, head)
                    statuses[status] += 1
                    problem = _wrong(status, headers, b"" if head else found)
                except (asyncio.IncompleteReadError, ConnectionError, TimeoutError) as error:
                    problem = f"no whole answer: {error!r}"
                if problem is not None:
                    wrong.append(f"{name}: {problem}\n    {request[:600]!r}")
            await wire.close()

        with listening() as heard:
            await asyncio.gather(*(lane(i) for i in range(LANES)))
        # whatever came before, a good request is still served
        assert await _session(port, good[1])
    say(f"seed {SEED}: {count} requests, {dict(sorted(statuses.items()))}")
    record_property("requests", count)
    record_property("faults", len(wrong) + len(heard.faults))
    assert not wrong, f"seed {SEED}: {len(wrong)} findings\n" + "\n".join(wrong[:20])
    assert not heard.faults, f"seed {SEED}: {len(heard.faults)} faults\n" + "\n".join(heard.faults[:20])
    # the fire went through every door, and not into one wall
    assert {200, 201, 400, 401, 404, 405} <= statuses.keys()
    assert statuses[200] + statuses[201] > count / 20


async def _session(port: int, credential: tuple[str, str]) -> str:
    content = b'{"metadata": {}}'
    wire = Wire(port)
    request = (
        f"POST /api/v1/sessions HTTP/1.1\r\nHost: a\r\n{credential[0]}: {credential[1]}\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    status, _, found = await wire.ask(request.encode() + content, head=False)
    await wire.close()
    assert status == 201, found
    made: str = json.loads(found)["sessionId"]
    return made
