"""The socket of a real process that is stopped, paused and killed by signals."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import time
from pathlib import Path

import aiohttp
import pytest
from process_kit import Process, process
from socket_kit import closed, said, say

from openclaw_gateway.testing import configuration

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


async def test_the_stop_signal_says_goodbye_to_every_socket(tmp_path: Path) -> None:
    async with process(tmp_path, **{"gateway.drain_timeout": "5s"}) as here:
        session = await here.session()
        async with here.connect(session) as one, here.connect(session) as two:
            await say(one, "message", content="go")
            await said(one, "message")
            here.process.send_signal(signal.SIGTERM)
            for socket in (one, two):
                await said(socket, "going_away")
                assert (await closed(socket))[0] == 1001
            async with asyncio.timeout(5):
                assert await here.process.wait() in (0, -signal.SIGTERM)


async def test_a_holder_that_was_paused_ends_when_it_wakes(tmp_path: Path) -> None:
    async with (
        process(tmp_path, **{"plugins.counters.lease_ttl": "1s"}) as here,
        here.connect(await here.session()) as socket,
    ):
        await say(socket, "ping")
        await said(socket, "pong")
        here.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(1.5)
        here.process.send_signal(signal.SIGCONT)
        assert await closed(socket) == (1013, "its place was lost; connect again")


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
async def test_a_thousand_stalled_readers_cost_little(tmp_path: Path) -> None:
    tiers = Path(__file__).parents[2] / "tiers" / "government.toml"
    many = tiers.read_text().replace("limit = 100\n", "limit = 2000\n")
    directory = tmp_path / "here"
    configuration(directory, tiers={"government": many})
    async with process(directory) as here:
        session = await here.session()
        host, port = here.url.removeprefix("http://").split(":")
        stalled = []
        for _ in range(1000):
            reader, writer = await asyncio.open_connection(host, int(port), limit=1)
            token = here.headers["Authorization"]
            writer.write(
                f"GET /ws?sessionId={session} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                f"Authorization: {token}\r\n\r\n".encode()
            )
            assert await reader.readexactly(12) == b"HTTP/1.1 101"
            stalled.append(writer)
        before = here.growth()
        most = 0
        started = time.monotonic()
        async with aiohttp.ClientSession(headers=here.headers) as http:
            assert await sockets(here, http) == 1000
            while time.monotonic() - started < 40:
                body = json.dumps({"content": "x" * 20_000})
                async with http.post(f"{here.url}/api/v1/sessions/{session}/messages", data=body) as answer:
                    assert answer.status in (201, 429)
                most = max(most, here.growth())
            assert (most - before) / 2**20 < 64
            assert await sockets(here, http) == 0  # each was felt, and closed
        for writer in stalled:
            writer.transport.abort()


async def sockets(here: Process, http: aiohttp.ClientSession) -> float:
    """Return how many sockets the gateway says are open."""
    async with http.get(f"{here.url}/metrics") as answer:
        active = re.search(r"^websocket_connections_active\{[^}]*\} (.*)$", await answer.text(), re.M)
    assert active is not None
    return float(active[1])
