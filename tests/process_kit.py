"""What tests of a real process share: `openclaw-gateway serve`, started, waited for, and killed in the end."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from websockets.asyncio.client import connect

from openclaw_gateway.testing import configuration

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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
