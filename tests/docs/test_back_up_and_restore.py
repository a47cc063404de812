"""The drill of the page on backups: its own blocks, beside writers, and a gateway that goes on from what they saved."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from servers import Postgres

from openclaw_gateway.testing import build, configuration, serving

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "back-up-and-restore.md"
BLOCKS = dict(re.findall(r"^<!-- drill: (.+?) -->\n```sh\n(.*?)^```$", PAGE.read_text(), re.M | re.S))


async def drill(name: str, folder: Path, **environment: str) -> None:
    """Run a block of the page as an operator would, in the folder of the configuration."""
    path = os.pathsep.join([str(Path(sys.executable).parent), environment.pop("BIN", ""), os.environ["PATH"]])
    done = await asyncio.to_thread(
        subprocess.run,
        ["bash", "-euo", "pipefail", "-c", BLOCKS[name]],
        cwd=folder,
        env={"PATH": path, "HOME": str(folder), "LC_ALL": "C.UTF-8", **environment},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


class Client:
    """A user with a key, and what the gateway acknowledged to him."""

    def __init__(self) -> None:
        self.key = ""
        self.session = ""
        self.stored: list[str] = []

    async def __call__(self, url: str, method: str, path: str, body: Any = None, **headers: str) -> Any:
        headers = headers or {"X-API-Key": self.key}
        async with aiohttp.request(method, url + path, json=body, headers=headers) as answer:
            assert answer.status < 300, await answer.text()
            return await answer.json()

    async def arrive(self, gateway: Any, url: str) -> None:
        token = gateway.plugin("jwt").mint(organization="acme", user="ada", tier="government", scopes=("keys",))
        made = await self(url, "POST", "/api/v1/keys", {"userId": "ada"}, Authorization=f"Bearer {token}")
        self.key = made["key"]
        self.session = (await self(url, "POST", "/api/v1/sessions", {"metadata": {"kept": True}}))["sessionId"]

    async def write(self, url: str) -> None:
        path = f"/api/v1/sessions/{self.session}/messages"
        self.stored.append((await self(url, "POST", path, {"content": "x"}))["messageId"])

    async def history(self, url: str) -> list[str]:
        page = await self(url, "GET", f"/api/v1/sessions/{self.session}/messages?limit=200")
        return [message["messageId"] for message in page["messages"]]


@asynccontextmanager
async def writing(client: Client, url: str) -> AsyncIterator[None]:
    async def write() -> None:
        while len(client.stored) < 150:
            await client.write(url)

    task = asyncio.create_task(write())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or task.exception() is None


async def saved_and_used_again(url: str, client: Client, acknowledged: list[str]) -> None:
    history = await client.history(url)
    assert history[: len(acknowledged)] == acknowledged
    assert (await client(url, "GET", f"/api/v1/sessions/{client.session}"))["metadata"] == {"kept": True}
    await client.write(url)
    assert (await client.history(url))[:-1] == history


async def test_the_embedded_default(tmp_path: Path) -> None:
    file = configuration(tmp_path, edit={"plugins.access_log.level": "error"})
    client = Client()
    async with serving(gateway := build(file)) as url:
        await client.arrive(gateway, url)
        for _ in range(20):
            await client.write(url)
        async with writing(client, url):
            acknowledged = list(client.stored)
            await drill("back up sqlite", tmp_path)
    (tmp_path / ".openclaw" / "gateway.db").write_bytes(b"ruined" * 1000)
    await drill("restore sqlite", tmp_path)
    assert all(found.stat().st_mode & 0o077 == 0 for found in (tmp_path / ".openclaw").iterdir())
    async with serving(build(file)) as url:
        await saved_and_used_again(url, client, acknowledged)


async def test_postgresql_with_an_owner_whom_row_security_binds(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not postgres.sql("SELECT 1 FROM pg_roles WHERE rolname = 'gateway_owner'"):
        postgres.sql("CREATE ROLE gateway_owner LOGIN")
    names = [postgres.create(), postgres.create()]
    for name in names:
        postgres.sql(f"ALTER DATABASE {name} OWNER TO gateway_owner")
    before, after = (postgres.url(name, "gateway_owner") for name in names)
    file = configuration(
        tmp_path, edit={"plugins.database.url": "env:DATABASE_URL", "plugins.access_log.level": "error"}
    )
    client = Client()
    environment = {"DATABASE_URL": before, "RESTORED_URL": after, "BIN": str(postgres._bin)}
    monkeypatch.setenv("DATABASE_URL", before)
    gateway = build(file)
    await gateway.plugin("database").upgrade()
    async with serving(gateway) as url:
        await client.arrive(gateway, url)
        for _ in range(20):
            await client.write(url)
        async with writing(client, url):
            acknowledged = list(client.stored)
            await drill("back up postgresql", tmp_path, **environment)
    postgres.drop(names[0])
    await drill("restore postgresql", tmp_path, **environment)
    monkeypatch.setenv("DATABASE_URL", after)
    async with serving(build(file)) as url:
        await saved_and_used_again(url, client, acknowledged)
    postgres.drop(names[1])
