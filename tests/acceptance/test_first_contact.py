"""What a newcomer meets: one command in an empty folder, its banner, its first answer, its end."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from servers import free_port
from upstreams import Pause, chunk, event, scripted

from openclaw_gateway.testing import configuration

COMMAND = (sys.executable, "-c", "from openclaw_gateway.cli import main; main()", "serve")


class Started:
    """A gateway process; `banner` is what it printed by the time it was ready."""

    def __init__(self, process: asyncio.subprocess.Process, banner: str) -> None:
        self.process = process
        self.banner = banner
        self.url = re.search(r"http://[\d.:]+", banner).group()  # type: ignore[union-attr]

    @property
    def curl(self) -> str:
        return next(line for line in self.banner.splitlines() if "curl" in line).split(": ", 1)[1]

    async def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), 30)


@asynccontextmanager
async def started(folder: Path, *arguments: str) -> AsyncIterator[Started]:
    with (folder / "log").open("a") as log:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, *arguments, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=log
        )
    assert process.stdout is not None
    try:
        lines = []
        while not lines or "try it" not in lines[-1]:
            line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
            assert line, (folder / "log").read_text()
            lines.append(line)
            if "first start" in line:
                break
        yield Started(process, "".join(lines))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_first_answer_is_one_pasted_line_away(tmp_path: Path) -> None:
    port = str(free_port())
    async with started(tmp_path, "--port", port) as gateway:
        assert "embedded defaults" in gateway.banner
        assert gateway.banner.count("ocg_") == 3  # the key, and once more in each line to paste
        done = await asyncio.to_thread(
            subprocess.run, ["bash", "-c", gateway.curl], capture_output=True, text=True, check=True
        )
        answer = json.loads(done.stdout)
        assert "choices" in answer, (answer, (tmp_path / "log").read_text())
        assert answer["choices"][0]["message"]["content"] == "hello"
        (given,) = re.findall(r"for an SDK: (.*)", gateway.banner)
        asks = "from openai import OpenAI; print(OpenAI().models.list().data[0].id)"
        done = await asyncio.to_thread(
            subprocess.run,
            ["bash", "-c", f'{given}; exec "$0" -c "$1"', sys.executable, asks],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout == "echo\n"
        assert await gateway.stop() == 0
    key = re.search(r"ocg_\w+", gateway.banner).group()  # type: ignore[union-attr]
    assert key not in (tmp_path / "log").read_text()
    database = next((tmp_path / ".openclaw").glob("*.db")).read_bytes()
    assert key.encode() not in database
    async with started(tmp_path, "--port", port) as again:
        assert "ocg_" not in again.banner.replace(key[:16], "")
        async with (
            aiohttp.ClientSession(again.url, headers={"X-API-Key": key}) as client,
            client.get("/v1/models") as models,
        ):
            assert models.status == 200


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/startup", "/health/ready", "/metrics", "/info"])
async def test_operations_need_no_credential_and_have_no_limit(tmp_path: Path, path: str) -> None:
    from openclaw_gateway.testing import build, serving

    async with (
        serving(build(configuration(tmp_path))) as url,
        aiohttp.ClientSession(url) as client,
    ):
        for method in ("GET", "HEAD"):
            for _ in range(120 if path == "/health/live" else 2):
                async with client.request(method, path) as answer:
                    assert answer.status == 200
                    assert "ratelimit" not in answer.headers
                    assert bool(await answer.read()) == (method == "GET")


async def test_a_stop_with_an_open_stream_loses_nothing(tmp_path: Path) -> None:
    words = [f"word{i} " for i in range(12)]
    port = free_port()
    async with scripted() as upstream:
        script: list[bytes | Pause] = []
        for word in words:
            script += [event(chunk(word)), Pause(0.1)]
        upstream.script = [*script, event(chunk(None, finish="stop")), b"data: [DONE]\n\n"]
        edit = {
            "gateway.port": port,
            "gateway.drain_timeout": "10s",
            "plugins.openai": {"use": "providers.openai", "url": upstream.url},
            "models.slow": {"provider": "openai"},
        }
        configuration(tmp_path, edit=edit)
        async with started(tmp_path) as gateway:
            key = re.search(r"ocg_\w+", gateway.banner).group()  # type: ignore[union-attr]
            headers = {"X-API-Key": key}
            async with aiohttp.ClientSession(gateway.url, headers=headers) as client:
                async with client.post("/api/v1/sessions", json={"metadata": {}}) as answer:
                    session = (await answer.json())["sessionId"]
                body = {
                    "model": "slow",
                    "stream": True,
                    "sessionId": session,
                    "messages": [{"role": "user", "content": "go"}],
                }
                async with client.post("/v1/chat/completions", json=body) as answer:
                    first = await answer.content.readline()
                    assert first.startswith(b"data: ")
                    gateway.process.send_signal(signal.SIGTERM)
                    rest = await answer.content.read()
            assert await asyncio.wait_for(gateway.process.wait(), 15) == 0
        assert rest.endswith(b"data: [DONE]\n\n")
        text = "".join(
            json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
            for line in (first + rest).splitlines()
            if line.startswith(b"data: {")
        )
        assert text == "".join(words)
        # What was acknowledged is there after the restart.
        async with started(tmp_path) as again, aiohttp.ClientSession(again.url, headers=headers) as client:
            async with client.get(f"/api/v1/sessions/{session}/messages") as answer:
                stored = [m["content"] for m in (await answer.json())["messages"]]
            async with client.get("/api/v1/usage") as answer:
                used = {row["name"]: row["used"] for row in (await answer.json())["limits"]}
        assert stored == ["go", text]
        assert used["quota.messages"] == 1


async def test_commands_beside_a_gateway_take_nothing_from_it(tmp_path: Path) -> None:
    """From its first start on, and after a reload: what a command writes is seen, and what is answered is stored."""

    async def command(*words: str) -> str:
        done = await asyncio.to_thread(
            subprocess.run, [*COMMAND[:-1], *words], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout

    async def status(url: str, key: str) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        async with aiohttp.ClientSession(headers=headers) as http, http.get(url + "/v1/models") as answer:
            return answer.status

    port = str(free_port())
    async with started(tmp_path, "--port", port) as gateway:
        kept = re.search(r"ocg_\w+", gateway.banner).group()  # type: ignore[union-attr]
        for name in ("first", "after a reload"):
            made = json.loads(await command("keys", "create", "--org", "a", "--user", "u", "--tier", "teams", "--json"))
            assert await status(gateway.url, made["key"]) == 200, name
            await command("keys", "revoke", made["id"])
            async with asyncio.timeout(10):
                while await status(gateway.url, made["key"]) != 401:
                    await asyncio.sleep(0.05)
            await command("reload")
        headers = {"Authorization": f"Bearer {kept}"}
        async with aiohttp.ClientSession(gateway.url, headers=headers) as http:
            async with http.post("/api/v1/sessions", json={"metadata": {}}) as answer:
                session = (await answer.json())["sessionId"]
            await command("keys", "list")
            gateway.process.kill()
            await gateway.process.wait()
    async with started(tmp_path, "--port", port) as gateway, aiohttp.ClientSession(headers=headers) as http:
        async with http.get(f"{gateway.url}/api/v1/sessions/{session}") as answer:
            assert answer.status == 200, await answer.text()
        assert await gateway.stop() == 0
