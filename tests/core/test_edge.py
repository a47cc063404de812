"""The HTTP edge over raw sockets: what is malformed is refused, what is slow is closed, what is good is served."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from litestar.handlers import asgi
from small import CONFIG, TIERS, Api

from openclaw_gateway.api import declared, hookimpl
from openclaw_gateway.testing import build, configuration, served, serving

pytestmark = pytest.mark.usefixtures("small")

GOOD = b"GET /open HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
async def port(tmp_path: Path, small: None) -> AsyncIterator[int]:
    edit = {
        "gateway.edge": {
            "first_byte": "300ms",
            "headers": "400ms",
            "body_idle": "300ms",
            "body_total": "900ms",
            "max_connections_per_address": 8,
        }
    }
    async with serving(build(configuration(tmp_path, toml=CONFIG, edit=edit, tiers=TIERS))) as url:
        yield int(url.rsplit(":", 1)[1])


async def exchange(port: int, *pieces: bytes | float, wait: float = 3.0) -> bytes:
    """Send pieces (numbers are pauses in seconds) and return all that comes until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            if isinstance(piece, bytes):
                writer.write(piece)
            else:
                await asyncio.sleep(piece)
        return await asyncio.wait_for(reader.read(), wait)
    except ConnectionResetError:
        return b"(reset)"
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /open HTTP/1.1\r\n\r\n", 400),
        (b"GET /open HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /open HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        (b"GET /open HTTP/1.1\r\nHost: \r\n\r\n", 400),
        (b"GET /open HTTP/1.1\r\nHost: a/../b\r\n\r\n", 400),
        (b"POST /things HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello", 400),
        (b"POST /things HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400),
        (b"POST /things HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", 400),
        (b"POST /things HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /things HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /things HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
        (b"POST /things HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /things HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", 400),
        (b"POST /things HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
        (b"GET /open HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n", 400),
        (b"GET /open HTTP/1.1\nHost: a\n\n", 400),
        (b"GET /open HTTP/1.1\r\nHost: a\r\nBad Header: 1\r\n\r\n", 400),
        (b"GET /open HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n", 400),
        (b"GET /open HTTP/9.9\r\nHost: a\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET /open HTTP/1.1\r\nHost: a\r\n" + b"X: 1\r\n" * 120 + b"\r\n", 431),
        (b"GET /open HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 40_000 + b"\r\n\r\n", 431),
        (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
    ],
)
async def test_malformed_requests_are_refused_and_the_connection_closed(
    port: int, request_: bytes, status: int
) -> None:
    # A second request behind the bad one must never be answered: that is how requests are smuggled.
    answer = await exchange(port, request_ + GOOD)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer[:200]
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"application/problem+json" in answer
    assert b"connection: close" in answer
    head, body = answer.split(b"\r\n\r\n", 1)
    (request_id,) = re.findall(rb"\r\nx-request-id: ([0-9a-f-]{36})(?:\r\n|$)", head)
    assert json.loads(body)["error"]["requestId"] == request_id.decode()


@pytest.mark.parametrize(
    ("path", "status", "allow"), [("/open", 405, "GET"), ("/things", 405, "POST"), ("/no", 404, None)]
)
async def test_a_trace_is_told_what_the_route_has_and_never_shown_its_own_headers(
    port: int, path: str, status: int, allow: str | None
) -> None:
    request = f"TRACE {path} HTTP/1.1\r\nHost: a\r\nX-API-Key: hidden\r\nConnection: close\r\n\r\n"
    answer = (await exchange(port, request.encode())).decode()
    assert answer.startswith(f"HTTP/1.1 {status} ")
    assert re.findall(r"\r\nallow: (.*)\r\n", answer) == ([allow] if allow else [])
    assert "x-request-id: r-1" in answer
    assert "hidden" not in answer


@pytest.mark.parametrize(
    "request_",
    [
        GOOD,
        b"GET http://localhost/open HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /open HTTP/1.0\r\n\r\n",
        b"GET /open HTTP/1.1\r\nHost: [::1]:9090\r\n\r\n",
        b"GET /open?q=1 HTTP/1.1\r\nHost: a.example:80\r\nConnection: close\r\n\r\n",
    ],
)
async def test_good_requests_are_served(port: int, request_: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request_)
    assert (await reader.readline()).split(b" ", 1)[1] == b"200 OK\r\n"
    writer.close()


@pytest.mark.parametrize(
    "pieces",
    [
        (),
        (b"G",),
        (b"GET /open HTTP/1.1\r\nHost: a\r\n", 0.1, b"X: 1\r\n", 0.1, b"Y: 1\r\n", 0.1, b"Z: 1\r\n", 0.3),
        (b"POST /things HTTP/1.1\r\nHost: a\r\nX-Org: o\r\nContent-Length: 50\r\n\r\n", b"half"),
        (
            b"POST /things HTTP/1.1\r\nHost: a\r\nX-Org: o\r\nContent-Length: 50\r\n\r\n",
            *[piece for _ in range(5) for piece in (b"x", 0.2)],
        ),
    ],
    ids=["silent", "one byte", "slow headers", "stalled body", "slow body"],
)
async def test_slow_clients_are_closed_on_their_deadline(port: int, pieces: tuple[bytes | float, ...]) -> None:
    begun = time.monotonic()
    await exchange(port, *pieces)
    assert time.monotonic() - begun < 2.5


async def test_a_request_in_small_pieces_within_the_deadline_is_served(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for i in range(len(GOOD)):
        writer.write(GOOD[i : i + 1])
        if i % 10 == 0:
            await asyncio.sleep(0.01)
    assert b" 200 " in await reader.readline()
    writer.close()


async def test_connections_of_one_address_are_capped_and_freed(port: int) -> None:
    held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(8)]
    answer = await exchange(port)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in answer
    for _, writer in held:
        writer.close()
    await asyncio.sleep(0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GOOD)
    assert b" 200 " in await reader.readline()
    writer.close()


async def test_a_client_that_does_not_read_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = asyncio.Event()

    def routes(self: Api) -> list[Any]:
        @asgi("/flood", copy_scope=False, **declared(access="public", methods=("GET",)))
        async def flood(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while await _next(receive) != "http.disconnect":
                await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
            gone.set()

        return [flood]

    async def _next(receive: Any) -> str:
        try:
            async with asyncio.timeout(0.0005):
                return str((await receive())["type"])
        except TimeoutError:
            return ""

    monkeypatch.setattr(Api, "routes", hookimpl(routes))
    edit = {"gateway.edge": {"write_idle": "300ms"}, "gateway.pipeline": ["named"]}
    path = configuration(tmp_path, toml=CONFIG, edit=edit, tiers={"basic": ""})
    async with serving(build(path)) as url:
        with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(b"GET /flood HTTP/1.1\r\nHost: a\r\n\r\n")
            async with asyncio.timeout(20):
                await gone.wait()


async def test_a_body_past_its_bound_is_refused_before_it_is_read(tmp_path: Path) -> None:
    edit = {"gateway.port": 0, "gateway.max_body": "1KB"}
    async with served(build(configuration(tmp_path, edit=edit))) as server:
        port = int(server.gateway.url.rsplit(":", 1)[1])
        token = server.gateway.plugin("jwt").mint(organization="acme", user="ada", tier="teams")
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n".encode()
        declared_ = await exchange(port, head + b"Content-Length: 5000\r\nConnection: close\r\n\r\n" + b"x" * 5000)
        assert declared_.startswith(b"HTTP/1.1 413 "), declared_[:200]
        chunk = b"258\r\n" + b"x" * 600 + b"\r\n"
        chunked = await exchange(
            port, head + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + chunk * 3 + b"0\r\n\r\n"
        )
        assert chunked.startswith(b"HTTP/1.1 413 "), chunked[:200]


async def test_only_the_hosts_that_are_named_are_served(tmp_path: Path) -> None:
    edit = {"gateway.edge": {"allowed_hosts": ["api.example.com"]}}
    async with serving(build(configuration(tmp_path, toml=CONFIG, edit=edit, tiers=TIERS))) as url:
        port = int(url.rsplit(":", 1)[1])
        for host, status in ((b"api.example.com", 200), (b"API.example.com:443", 200), (b"evil.example", 400)):
            request = b"GET /open HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n"
            assert (await exchange(port, request)).startswith(f"HTTP/1.1 {status} ".encode()), host


async def test_the_whole_number_of_connections_is_capped(tmp_path: Path) -> None:
    edit = {"gateway.edge": {"max_connections": 3}}
    async with serving(build(configuration(tmp_path, toml=CONFIG, edit=edit, tiers=TIERS))) as url:
        port = int(url.rsplit(":", 1)[1])
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        assert (await exchange(port)).startswith(b"HTTP/1.1 503 ")
        for _, writer in held:
            writer.close()
            await writer.wait_closed()
        async with asyncio.timeout(10):
            while not (await exchange(port, GOOD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))).startswith(
                b"HTTP/1.1 200 "
            ):
                pass


async def test_a_drain_tells_clients_to_come_back_on_another_connection(tmp_path: Path) -> None:
    edit = {"gateway.lame_duck": "1s"}
    async with served(build(configuration(tmp_path, toml=CONFIG, edit=edit, tiers=TIERS))) as server:
        port = int(server.gateway.url.rsplit(":", 1)[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GOOD)
        first = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(12)
        assert b"connection: close" not in first
        draining = asyncio.create_task(server.drain())
        await asyncio.sleep(0)
        writer.write(GOOD)
        last = await reader.read()
        assert last.startswith(b"HTTP/1.1 200 ") and b"connection: close" in last
        writer.close()
        await draining


async def test_what_runs_when_a_drain_begins_is_the_last_on_its_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    def routes(self: Api) -> list[Any]:
        @asgi("/slow", copy_scope=False, **declared(access="public", methods=("GET",)))
        async def slow(scope: Any, receive: Any, send: Any) -> None:
            begun.set()
            await go.wait()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
            await send({"type": "http.response.body", "body": b"done"})

        return [slow]

    monkeypatch.setattr(Api, "routes", hookimpl(routes))
    edit = {"gateway.pipeline": ["named"], "gateway.lame_duck": "1s"}
    async with served(build(configuration(tmp_path, toml=CONFIG, tiers={"basic": ""}, edit=edit))) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.gateway.url.rsplit(":", 1)[1]))
        writer.write(GOOD.replace(b"/open", b"/slow"))
        await begun.wait()
        draining = asyncio.create_task(server.drain())
        await asyncio.sleep(0)
        go.set()
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"done")
        assert b"\r\nconnection: close\r\n" in answer.lower()
        assert not draining.done()
        writer.close()
        await draining
