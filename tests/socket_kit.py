"""What the tests of the socket share: the gateway as shipped with a slow model beside echo, clients and raw frames."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
from upstreams import DONE, Pause, Received, Script, ScriptedUpstream, chunk, event, scripted
from websockets.asyncio.client import ClientConnection, connect

from openclaw_gateway.gateway import Gateway
from openclaw_gateway.serving.server import Server
from openclaw_gateway.testing import build, configuration

SLOW: dict[str, Any] = {
    "plugins.upstream.use": "providers.openai",
    "plugins.upstream.api_key": "sk-not-a-real-one",
    "models.slow.provider": "upstream",
    "plugins.access_log.level": "error",
}


class Place:
    """A served gateway, and the credentials of one organisation."""

    def __init__(self, gateway: Gateway, server: Server, key: Any, session: aiohttp.ClientSession) -> None:
        self.gateway = gateway
        self.server = server
        self.url = gateway.url
        self.key: str = key.key
        self.key_id: str = key.record.key_id
        self.http = session
        self.upstream: ScriptedUpstream

    async def session(self) -> str:
        status, body = await self.ask("POST", "/api/v1/sessions", {"metadata": {}})
        assert status == 201, body
        found: str = body["sessionId"]
        return found

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        async with self.http.request(method, self.url + path, json=body, headers=headers) as answer:
            data = await answer.read()
            return answer.status, json.loads(data) if data else None

    def at(self, session: str | None, **query: str) -> str:
        pairs = {**({"sessionId": session} if session is not None else {}), **query}
        return self.url.replace("http", "ws", 1) + "/ws?" + "&".join(f"{k}={v}" for k, v in pairs.items())

    def connect(self, session: str | None, *, key: str | None = None, query: dict[str, str] | None = None) -> connect:
        headers = {} if key == "" else {"X-API-Key": key or self.key}
        return connect(self.at(session, **(query or {})), additional_headers=headers, max_size=2**22)

    def metric(self, name: str, **labels: str) -> float:
        return self.gateway.registry.get_sample_value(name, labels) or 0.0

    async def drain(self) -> None:
        """What the first stop signal does."""
        await self.server.drain()


@asynccontextmanager
async def place(
    directory: Path,
    *,
    tier: str = "open_source",
    edit: dict[str, Any] | None = None,
    tiers: dict[str, str] | None = None,
) -> AsyncIterator[Place]:
    """Serve the shipped configuration; the model `slow` is a scripted upstream that says a word every 20 ms."""
    async with scripted() as upstream:
        upstream.script = slowly(words=50)
        edit = {**SLOW, "plugins.upstream.url": upstream.url, **(edit or {})}
        gateway = build(configuration(directory, edit=edit, tiers=tiers))
        async with gateway.running():
            ready = asyncio.Event()
            server = Server(gateway, ready=ready.set)
            serving = asyncio.create_task(server.serve_in_this_loop())
            await ready.wait()
            key = await gateway.plugin("api_key").create(organization="acme", user="ada", tier=tier)
            try:
                async with aiohttp.ClientSession(headers={"X-API-Key": key.key}) as session:
                    found = Place(gateway, server, key, session)
                    found.upstream = upstream
                    yield found
            finally:
                server.should_exit = True
                await serving


def slowly(*, words: int, pause: float = 0.02) -> Any:
    """A script of so many words, streamed or whole as the client asked."""

    def script(received: Received) -> Script:
        said = [f"w{i} " for i in range(words)]
        if not received.json.get("stream"):
            message = {"role": "assistant", "content": "".join(said)}
            answer = {
                "id": "c",
                "object": "chat.completion",
                "created": 1,
                "model": "slow",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            }
            return [Pause(pause * words), json.dumps(answer).encode()]
        items: list[Any] = []
        for word in said:
            items += [event(chunk(word)), Pause(pause)]
        return [*items, event(chunk(finish="stop")), DONE]

    return script


async def said(socket: ClientConnection, *types: str, within: float = 5.0) -> dict[str, Any]:
    """Return the next frame of one of these types."""
    async with asyncio.timeout(within):
        while True:
            frame: dict[str, Any] = json.loads(await socket.recv())
            if frame["type"] in types:
                return frame


async def say(socket: ClientConnection, type: str, **fields: Any) -> None:
    await socket.send(json.dumps({"type": type, **fields}))


async def closed(socket: ClientConnection, within: float = 5.0) -> tuple[int, str]:
    """Wait for the server's close; return code and reason."""
    async with asyncio.timeout(within):
        await socket.wait_closed()
    assert socket.protocol.close_rcvd is not None
    return socket.protocol.close_rcvd.code, socket.protocol.close_rcvd.reason


class Raw:
    """A client that writes what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""

    async def close_code(self, within: float = 5.0) -> int | None:
        """Read frames up to the close frame; None where the connection ends without one."""
        try:
            async with asyncio.timeout(within):
                while True:
                    opcode, payload = await self.frame()
                    if opcode == 8:
                        return int.from_bytes(payload[:2], "big") if payload else 1005
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def frame(self) -> tuple[int, bytes]:
        first, second = await self.reader.readexactly(2)
        length = second & 0x7F
        if length == 126:
            length = int.from_bytes(await self.reader.readexactly(2), "big")
        elif length == 127:
            length = int.from_bytes(await self.reader.readexactly(8), "big")
        return first & 0x0F, await self.reader.readexactly(length)


@asynccontextmanager
async def raw(place: Place, target: str, *headers: str, limit: int = 2**16, ahead: bytes = b"") -> AsyncIterator[Raw]:
    """Ask for an upgrade on a plain TCP connection, send what should have waited for it, and read the answer."""
    host, port = place.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=limit)
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [
        f"GET {target} HTTP/1.1",
        f"Host: {host}:{port}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
        *headers,
    ]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + ahead)
    found = Raw(reader, writer)
    try:
        async with asyncio.timeout(5):
            status, *rest = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            found.status = int(status.split(" ")[1])
            found.headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in rest if line)}
            if found.status != 101:
                found.body = await reader.readexactly(int(found.headers["content-length"]))
        yield found
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    masked: bool = True,
    length: bytes | None = None,
) -> bytes:
    """One frame as a client would send it, or as it should not."""
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    mask_bit = 0x80 if masked else 0
    if length is None:
        if len(payload) < 126:
            length = bytes([mask_bit | len(payload)])
        elif len(payload) < 2**16:
            length = bytes([mask_bit | 126]) + len(payload).to_bytes(2, "big")
        else:
            length = bytes([mask_bit | 127]) + len(payload).to_bytes(8, "big")
    if not masked:
        return head + length + payload
    key = os.urandom(4)
    return head + length + key + bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))
