"""Tools of a real MCP server as skills, over both transports: what they do, and what a server may do to the gateway."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from skill_kit import execute, rows, used
from socket_kit import Place, place, said
from tool_loop_kit import Round, call, model

from openclaw_gateway.testing import build, configuration

SERVER = str(Path(__file__).parent.parent / "mcp_server.py")
SOURCES = ["python_skills", "http_skills", "folder_skills", "mcp_skills"]
TOOLS = ["add", "crash", "environment", "fails", "hang", "large", "learn", "steps"]


def settings(**more: Any) -> dict[str, Any]:
    given = {"use": "skills.mcp", "start_wait": "20s", "refresh": "60s", **more}
    return {"plugins.skills.sources": SOURCES, **{f"plugins.mcp_skills.{key}": value for key, value in given.items()}}


def stdio(notes: Path, **more: Any) -> dict[str, Any]:
    table = {"command": [sys.executable, SERVER, "stdio"], "env.NOTES": str(notes), "timeout": "15s", **more}
    return {f"servers.demo.{key}": value for key, value in table.items()}


def http(port: int, **more: Any) -> dict[str, Any]:
    table = {"url": "/mcp", "target": "demo", "timeout": "15s", **more}
    return {f"servers.demo.{key}": value for key, value in table.items()}


class Web:
    """The server behind a port; it may be killed and started again."""

    def __init__(self, notes: Path) -> None:
        self._notes = notes
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port: int = found.getsockname()[1]
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        environment = {**os.environ, "NOTES": str(self._notes)}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, SERVER, str(self.port), env=environment, stderr=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    await writer.wait_closed()
                    return

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def served(
    directory: Path, transport: str, edit: dict[str, Any] | None = None, **more: Any
) -> AsyncIterator[Place]:
    notes = directory / "notes"
    if transport == "stdio":
        async with place(directory / "home", edit={**settings(**stdio(notes, **more)), **(edit or {})}) as here:
            yield here
        return
    web = Web(notes)
    await web.start()
    try:
        target = {"targets.demo.url": f"http://127.0.0.1:{web.port}", "targets.demo.private": True}
        async with place(
            directory / "home", edit={**settings(**http(web.port, **more)), **target, **(edit or {})}
        ) as here:
            here.web = web  # type: ignore[attr-defined]
            yield here
    finally:
        await web.kill()


async def until(condition: Callable[[], Any], within: float = 10.0) -> None:
    end = time.monotonic() + within
    while not (await found if asyncio.iscoroutine(found := condition()) else found):
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.02)


async def names(here: Place) -> dict[str, bool]:
    _, body = await here.ask("GET", "/api/v1/skills")
    return {skill["name"]: skill["eligible"] for skill in body["skills"] if skill["kind"] == "mcp"}


async def problem(here: Place) -> str | None:
    checks = [check for check in here.gateway.plugin("mcp_skills").health() if check.name == "mcp:demo"]
    try:
        await checks[0].probe()
    except ConnectionError as error:
        return str(error)
    return None


@pytest.mark.parametrize("transport", ["stdio", "http"])
async def test_tools_are_skills_with_all_that_skills_have(tmp_path: Path, transport: str) -> None:
    async with served(tmp_path, transport, timeout="3s", max_message="300KB") as here:
        assert await names(here) == {f"demo.{tool}": True for tool in TOOLS}
        status, shown = await here.ask("GET", "/api/v1/skills/demo.add")
        assert (status, shown["description"], shown["kind"]) == (200, "Adds two numbers.", "mcp")
        session = await here.session()
        status, body = await execute(here, "demo.add", session, a=2, b=3)
        assert (status, body["status"]) == (200, "completed")
        assert body["result"] == {"text": "5", "structured": {"result": 5}}
        status, body = await execute(here, "demo.add", session, a="two")
        assert (status, body["error"]["code"]) == (400, "BAD_REQUEST")
        assert {each["param"] for each in body["error"]["problems"]} == {"params.a", "params.b"}

        async with here.connect(session) as listener:
            assert (await execute(here, "demo.steps", session, count=2))[1]["result"]["text"] == "there"
            frames = [await said(listener, "skill") for _ in range(4)]
        assert [(f["state"], f["detail"]) for f in frames] == [
            ("started", None),
            ("progress", "step 1"),
            ("progress", "step 2"),
            ("completed", None),
        ]
        _, body = await execute(here, "demo.fails", session)
        assert body["status"] == "failed" and "not today" in body["error"]
        assert here.metric("skill_execution_errors_total", skill_name="demo.fails", error_type="tool") == 1

        # a tool that hangs is cancelled, and the server hears of it
        started = time.monotonic()
        status, body = await execute(here, "demo.hang", session)
        assert (status, body["error"]["code"]) == (504, "UPSTREAM_TIMEOUT")
        assert time.monotonic() - started < 9
        await until(lambda: (tmp_path / "notes").read_text().endswith("began\ncancelled\n"))

        # a new tool is there as soon as the server says so
        assert (await execute(here, "demo.learn", session, name="juggle"))[1]["status"] == "completed"
        await until(lambda: _there(here, "demo.juggle"))
        assert (await execute(here, "demo.juggle", session))[1]["result"]["text"] == "I know juggle"

        # more than a message may hold is refused, and the server is there again
        _, body = await execute(here, "demo.large", session, size=400_000)
        assert body["status"] == "failed", body
        if transport == "stdio":
            await until(lambda: len(started_of(tmp_path)) == 2)
        await until(lambda: _there(here, "demo.add"))
        assert (await execute(here, "demo.add", session, a=1, b=1))[1]["result"]["text"] == "2"
        statuses = [row["status"] for row in await rows(here)]
        assert statuses.count("completed") == 5 and set(statuses) == {"completed", "failed", "timeout"}
        assert await used(here, session) == 5
        assert here.metric("external_service_duration_seconds_count", target="demo", operation="tool") == 8


def started_of(directory: Path) -> list[int]:
    """The processes of the server, in the order of their start."""
    return [int(line.split()[1]) for line in (directory / "notes").read_text().splitlines() if "started" in line]


async def _there(here: Place, name: str) -> bool:
    return (await names(here)).get(name, False)


async def test_a_process_that_crashes_fails_its_run_and_is_started_again(tmp_path: Path) -> None:
    async with served(tmp_path, "stdio") as here:
        session = await here.session()
        _, body = await execute(here, "demo.crash", session)
        assert (body["status"], body["error"]) == ("failed", "the connection to the server was lost")
        await until(lambda: len(started_of(tmp_path)) == 2)
        await until(lambda: _there(here, "demo.add"))
        assert (await execute(here, "demo.add", session, a=1, b=1))[1]["status"] == "completed"
        pids = started_of(tmp_path)
        assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_a_server_that_goes_away_takes_its_tools_along_until_it_is_back(tmp_path: Path) -> None:
    async with served(tmp_path, "http", {"plugins.mcp_skills.refresh": "300ms"}) as here:
        web: Web = here.web  # type: ignore[attr-defined]
        session = await here.session()
        assert await problem(here) is None
        await web.kill()
        await until(lambda: problem(here))
        found = await names(here)
        assert found and not any(found.values())
        status, body = await execute(here, "demo.add", session, a=1, b=1)
        assert status == 409 and "server:demo" in body["error"]["message"]
        assert (await here.ask("GET", "/health/ready"))[
            0
        ] == 200  # a server that is away takes no replica out of rotation
        await web.start()
        await until(lambda: _there(here, "demo.add"), within=20)
        assert (await execute(here, "demo.add", session, a=1, b=1))[1]["status"] == "completed"


async def test_a_process_gets_the_environment_that_it_was_given_and_models_may_call_its_tools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_GATEWAY", "hunter2")
    loop = {"plugins.chat.tool_loop.skills": ["demo.a*"]}
    async with served(tmp_path, "stdio", loop, tools=["env*", "add"]) as here:
        assert await names(here) == {"demo.add": True, "demo.environment": True}
        _, body = await execute(here, "demo.environment", await here.session())
        assert set(body["result"]["structured"]["result"]) - {"LC_CTYPE", "PWD"} == {"PATH", "NOTES"}

        here.upstream.script = model(Round(calls=[call("demo_add", a=20, b=22)]), Round("It is 42."))
        asked = {"model": "slow", "messages": [{"role": "user", "content": "add"}]}
        status, body = await here.ask("POST", "/v1/chat/completions", asked)
        assert (status, body["choices"][0]["message"]["content"]) == (200, "It is 42.")
        assert here.upstream.received[1].json["messages"][-1]["content"] == "42"
        assert [t["function"]["name"] for t in here.upstream.received[0].json["tools"]] == ["demo_add"]


@pytest.mark.parametrize(
    ("private", "path", "says"),
    [
        (False, "/mcp", "no address that may be reached"),
        (True, "/redirect", "redirects, which is not followed"),
        (True, "/silent", "did not answer in time"),
        (True, "/endless", "more than 100000 bytes"),
        (True, "/html", ""),
    ],
)
async def test_a_server_that_may_not_or_does_not_serve_keeps_nobody_from_starting(
    tmp_path: Path, private: bool, path: str, says: str
) -> None:
    met: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            met.append(head.decode())
            if b"/redirect" in head:
                writer.write(b"HTTP/1.1 307 X\r\nLocation: /mcp\r\nContent-Length: 0\r\n\r\n")
            elif b"/endless" in head:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
                for _ in range(200):
                    writer.write(b"400\r\n" + b" " * 1024 + b"\r\n")
                    await writer.drain()
            elif b"/html" in head:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\nhey!")
            elif b"/silent" in head:
                await reader.read()
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    more = {"url": path, "connect": "500ms", "max_message": "100KB", "headers.Authorization": "Bearer of-the-server"}
    edit = {
        **settings(**http(port, **more), start_wait="100ms"),
        "targets.demo.url": f"http://localhost:{port}",
        "targets.demo.private": private,
    }
    async with place(tmp_path, edit=edit) as here:
        await until(lambda: _says(here, says))
        assert await names(here) == {}
        assert (await execute(here, "demo.add", await here.session()))[0] == 404
    listener.close()
    mcp = [head for head in met if path in head.split("\r\n")[0]]
    assert bool(mcp) is private
    assert all(f"host: localhost:{port}" in head.lower() and "Bearer of-the-server" in head for head in mcp)


async def _says(here: Place, says: str) -> bool:
    found = await problem(here)
    return found is not None and found != "not connected yet" and says in found


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({}, "servers.demo: expected either `url` or `command`"),
        ({"url": "https://x.example/mcp", "command": ["true"]}, "servers.demo: expected either `url` or `command`"),
        ({"url": "https://x.example/mcp", "env": {"A": "b"}}, "servers.demo.env: it is for servers with a `command`"),
        ({"command": ["true"], "headers": {"A": "b"}}, "servers.demo.headers: it is for servers with a `url`"),
        ({"command": ["no-such-program-anywhere"]}, "there is no program 'no-such-program-anywhere'"),
        ({"url": "/mcp", "target": "nowhere"}, r"servers.demo.target: there is no \[targets.nowhere\]"),
        ({"url": "https://user@x.example/mcp"}, "servers.demo.url: credentials are not taken from a URL"),
    ],
)
def test_a_table_that_makes_no_sense_stops_the_start(tmp_path: Path, table: dict[str, Any], says: str) -> None:
    edit = settings(**{f"servers.demo.{key}": value for key, value in table.items()} or {"servers.demo.timeout": "1s"})
    with pytest.raises(Exception, match=says):
        build(configuration(tmp_path, edit=edit))
