"""Mutated handshakes and frames: each is answered or closed with a code, and none leaves anything behind.

Long form: `pytest tests/fire -m long` (40,000 volleys of frames, 50,000 handshakes; `FIRE_SEED` chooses others).
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from socket_kit import Raw, frame, raw
from websockets.asyncio.client import connect

from openclaw_gateway.gateway import Gateway
from openclaw_gateway.serving.server import Server
from openclaw_gateway.testing import build, served

from .mutation import CREDENTIALS, HEADERS, altered, body, percent, text
from .watch import SEED, Recorder, counts, listening, say, wide

FRAMES: tuple[dict[str, Any], ...] = (
    {"type": "message", "id": "m", "content": "hello", "stream": True, "metadata": {"a": 1}},
    {"type": "message", "content": "hello", "model": "echo", "metadata": {"skillName": "search"}},
    {"type": "cancel", "ref": "m"},
    {"type": "resume", "lastSeq": 0},
    {"type": "ping"},
)


HANDSHAKE = (
    b"Host: 127.0.0.1",
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


class Target:
    """A served gateway as the kit's `raw` wants it, and a credential for it."""

    def __init__(self, gateway: Gateway) -> None:
        self.url = gateway.url
        token = gateway.plugin("jwt").mint(organization="acme", user="ada", tier="wide", ttl=36_000)
        self.credential = f"Authorization: Bearer {token}"

    async def session(self) -> str:
        name, _, value = self.credential.partition(": ")
        async with aiohttp.request("POST", f"{self.url}/api/v1/sessions", json={}, headers={name: value}) as answer:
            return str((await answer.json())["sessionId"])

    def connect(self, session: str) -> connect:
        name, _, value = self.credential.partition(": ")
        return connect(f"ws{self.url[4:]}/ws?sessionId={session}", additional_headers={name: value})


def volley(rng: random.Random) -> bytes:
    """Frames of one connection, good and bad ones."""
    out = b""
    for _ in range(rng.randrange(1, 5)):
        kind = rng.randrange(10)
        if kind < 5:
            out += frame(1, body(rng, rng.choice(FRAMES)))
        elif kind == 5:
            out += frame(rng.randrange(16), rng.randbytes(rng.choice((0, 1, 2, 125, 126, 300))))
        elif kind == 6:
            out += frame(
                8, rng.choice((b"", b"\x03", b"\x03\xe8", b"\x03\xe8ok", b"\xff\xff", b"\x03\xed", b"\x03\xe8\xff"))
            )
        elif kind == 7:
            whole = json.dumps(rng.choice(FRAMES)).encode()
            parts = [whole[i : i + 7] for i in range(0, len(whole), 7)]
            out += frame(1, parts[0], fin=False) + b"".join(frame(0, p, fin=False) for p in parts[1:])
            out += frame(0, b"", fin=rng.random() < 0.8)
        elif kind == 8:
            out += frame(1, b"{}", rsv=rng.randrange(8), masked=rng.random() < 0.5)
        else:
            out += altered(rng, frame(1, json.dumps(rng.choice(FRAMES)).encode()))
    return out


async def end(found: Raw) -> int | str | None:
    """Return the code of the close frame, None for an end without one, "open" where half a frame kept it open."""
    try:
        return await found.close_code(within=0.4)
    except TimeoutError:
        found.writer.write_eof()
        async with asyncio.timeout(10):
            while await found.reader.read(4096):
                pass
        return "open"


@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("count", counts(300, 40_000))
async def test_no_frame_goes_without_an_answer_or_a_code(count: int, tmp_path: Path, record_property: Recorder) -> None:
    gateway = build(wide(tmp_path))
    wrong: list[str] = []
    ends: Counter[Any] = Counter()
    rng = random.Random(f"{SEED}/frames")
    async with served(gateway) as server:
        target = Target(gateway)
        session = await target.session()
        with listening() as heard:
            for _ in range(count):
                fired = volley(rng)
                async with raw(target, f"/ws?sessionId={session}", target.credential) as found:  # type: ignore[arg-type]
                    assert found.status == 101, found.body
                    found.writer.write(fired + frame(8, b"\x03\xe8"))
                    code = await end(found)
                ends[code] += 1
                if code is None or code == 1011:
                    wrong.append(f"{code}: {fired[:300]!r}")
            await nothing_is_left(gateway, server)
        async with target.connect(session) as socket:
            await socket.send('{"type": "ping"}')
            async with asyncio.timeout(10):
                while json.loads(await socket.recv())["type"] != "pong":
                    pass
    say(f"seed {SEED}: {count} volleys, {dict(ends)}")
    record_property("volleys of frames", count)
    record_property("faults", len(wrong) + len(heard.faults))
    assert not wrong, f"seed {SEED}: {len(wrong)} findings\n" + "\n".join(wrong[:10])
    assert not heard.faults, f"seed {SEED}\n" + "\n".join(heard.faults[:10])
    assert {1000, 1002, 1007} <= ends.keys()


@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("count", counts(400, 50_000))
async def test_every_handshake_is_answered(count: int, tmp_path: Path, record_property: Recorder) -> None:
    gateway = build(wide(tmp_path))
    wrong: list[str] = []
    statuses: Counter[int] = Counter()
    rng = random.Random(f"{SEED}/handshakes")
    async with served(gateway) as server:
        target = Target(gateway)
        session = await target.session()
        with listening() as heard:
            for _ in range(count):
                request = handshake(rng, session, target.credential)
                hasty = volley(rng) if rng.random() < 0.2 else b""
                try:
                    statuses[status := await answered(target, request, hasty)] += 1
                except (asyncio.IncompleteReadError, ConnectionError, TimeoutError) as error:
                    wrong.append(f"no answer ({error!r}): {request[:400]!r}")
                else:
                    if status >= 500:
                        wrong.append(f"{status}: {request[:400]!r}")
            await nothing_is_left(gateway, server)
    say(f"seed {SEED}: {count} handshakes, {dict(sorted(statuses.items()))}")
    record_property("handshakes", count)
    record_property("faults", len(wrong) + len(heard.faults))
    assert not wrong, f"seed {SEED}: {len(wrong)} findings\n" + "\n".join(wrong[:10])
    assert not heard.faults, f"seed {SEED}\n" + "\n".join(heard.faults[:10])
    assert {101, 400, 401, 404} <= statuses.keys()


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /ws HTTP/1.1\r\n%s\r\nContent-Length: 5\r\n\r\nhello",
        b"GET /ws HTTP/1.1\r\n%s\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /ws?a=\xff HTTP/1.1\r\n%s\r\n\r\n",
        b"GET /ws HTTP/1.1\r\n%s\r\nX-Long: " + b"a" * 9_000 + b"\r\n\r\n",
        b"POST /ws HTTP/1.1\r\n%s\r\nContent-Length: 2\r\n\r\n{}",
        b"DELETE /ws HTTP/1.1\r\n%s\r\n\r\n",
    ],
    ids=["a body", "a chunked body", "no ASCII", "a long header", "POST", "DELETE"],
)
async def test_a_handshake_that_is_none_is_answered_at_once(request_: bytes, tmp_path: Path) -> None:
    gateway = build(wide(tmp_path))
    async with served(gateway) as server:
        target = Target(gateway)
        status = await answered(target, request_.replace(b"%s", b"\r\n".join(HANDSHAKE)))
        assert status in (400, 401, 404, 405)
        await nothing_is_left(gateway, server)


async def test_a_socket_that_has_ended_counts_no_longer_for_its_address(tmp_path: Path) -> None:
    gateway = build(wide(tmp_path, **{"gateway.edge": {"max_connections_per_address": 3}}))
    async with served(gateway) as server:
        target = Target(gateway)
        session = await target.session()
        for _ in range(6):
            async with target.connect(session) as socket:
                await socket.send('{"type": "ping"}')
            await nothing_is_left(gateway, server)


def handshake(rng: random.Random, session: str, credential: str) -> bytes:
    """A request for an upgrade, with what belongs to it changed, doubled or left out."""
    path = rng.choice((b"/ws", b"/ws", b"/ws", b"/ws/", b"/api/v1/sessions", b"/health", b"/w%73", b"/ws/x", b"/%00"))
    query = [b"sessionId=" + (session.encode() if rng.random() < 0.7 else percent(rng, text(rng)))]
    for name in (b"token", b"lastSeq", b"ticket", b"sessionId", b"x"):
        if rng.random() < 0.15:
            query.append(name + b"=" + percent(rng, text(rng)))
    lines = [line for line in HANDSHAKE if rng.random() < 0.95]
    if rng.random() < 0.3:
        at = rng.randrange(len(lines))
        lines[at] = lines[at].partition(b":")[0] + b": " + one_line(text(rng))
    if rng.random() < 0.8:
        lines.append(credential.encode())
    if rng.random() < 0.2:
        lines.append(": ".join(rng.choice(CREDENTIALS)).encode("latin-1"))
    for name in rng.sample([*HEADERS, "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions"], rng.choice((0, 0, 1, 3))):
        known = HEADERS.get(name, ("permessage-deflate", "a, b,,", "x;y=1;;"))
        plain = rng.choice(known).encode("latin-1") if rng.random() < 0.6 else one_line(text(rng))
        lines.append(name.encode() + b": " + plain)
    rng.shuffle(lines)
    return b"GET " + path + b"?" + b"&".join(query)[:6_000] + b" HTTP/1.1\r\n" + b"\r\n".join(lines) + b"\r\n\r\n"


def one_line(value: str) -> bytes:
    return value.encode("latin-1", "replace").translate(None, b"\r\n\x00")


async def answered(target: Target, request: bytes, hasty: bytes = b"") -> int:
    """Send it, and what should not have been sent before the answer; return the status of the answer."""
    host, port = target.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        if hasty:
            await asyncio.sleep(0)
            writer.write(hasty)
        async with asyncio.timeout(10):
            return int((await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1])
    finally:
        writer.close()


async def nothing_is_left(gateway: Gateway, server: Server) -> None:
    """Wait until no place is held, of the tier's cap or of the address."""
    async with asyncio.timeout(15):
        while gateway.registry.get_sample_value("websocket_connections_active", {"tier": "wide"}) or peers(server):
            await asyncio.sleep(0.02)


def peers(server: Server) -> int:
    edge = server.config.http_protocol_class
    return int(edge.census.total())  # type: ignore[attr-defined]
