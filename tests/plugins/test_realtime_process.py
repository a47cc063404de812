"""The socket of a real process that is stopped, paused and killed by signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from socket_kit import closed, said, say
from websockets.asyncio.client import connect

from openclaw_gateway.testing import configuration

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


COMMAND = (sys.executable, "-c", "from openclaw_gateway.cli import main; main()")


class Process:
    """`openclaw-gateway serve`, and a token for it."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, token: str) -> None:
        self.process = process
        self.url = url
        self.headers = {"Authorization": f"Bearer {token}"}

    async def session(self) -> str:
        async with (
            aiohttp.ClientSession(headers=self.headers) as http,
            http.post(self.url + "/api/v1/sessions", json={"metadata": {}}) as answer,
        ):
            assert answer.status == 201
            found: str = (await answer.json())["sessionId"]
            return found

    def connect(self, session: str) -> connect:
        target = f"{self.url.replace('http', 'ws', 1)}/ws?sessionId={session}"
        return connect(target, additional_headers=self.headers, max_size=2**22)

    def growth(self) -> int:
        """Resident memory in bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@asynccontextmanager
async def process(directory: Path, *, tier: str = "government", **edit: Any) -> AsyncIterator[Process]:
    port = _free_port()
    edit = {"gateway.port": port, "plugins.access_log.level": "error", **edit}
    path = configuration(directory, edit=edit)
    command = (*COMMAND, "serve", "--config", str(path))
    started = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        async with asyncio.timeout(60), aiohttp.ClientSession() as http:
            while True:
                try:
                    async with http.get(url + "/health/live") as answer:
                        if answer.status == 200:
                            break
                except aiohttp.ClientError:
                    assert started.returncode is None
                    await asyncio.sleep(0.1)
        minted = await asyncio.create_subprocess_exec(
            *(*COMMAND, "token", "--config", str(path)),
            *("--org", "acme", "--user", "ada", "--tier", tier),
            stdout=asyncio.subprocess.PIPE,
        )
        token = (await minted.communicate())[0].decode().strip().splitlines()[-1]
        yield Process(started, url, token)
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


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
        for i in range(1000):
            reader, writer = await asyncio.open_connection(host, int(port), limit=1)
            token = here.headers["Authorization"]
            writer.write(
                f"GET /ws?sessionId={session} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                f"Authorization: {token}\r\n\r\n".encode()
            )
            stalled.append((reader, writer))
            if i % 100 == 99:
                await asyncio.sleep(0.5)
        before = here.growth()
        most = 0
        started = time.monotonic()
        async with aiohttp.ClientSession(headers=here.headers) as http:
            while time.monotonic() - started < 20:
                body = json.dumps({"content": "x" * 20_000})
                async with http.post(f"{here.url}/api/v1/sessions/{session}/messages", data=body) as answer:
                    assert answer.status in (201, 429)
                most = max(most, here.growth())
        assert (most - before) / 2**20 < 64
        for _, writer in stalled:
            writer.transport.abort()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
