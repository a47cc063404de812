"""A client that does not wait for the answer to its handshake loses nothing, and is told nothing before it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from errno import ENOTCONN
from pathlib import Path

import pytest
from socket_kit import Place, Raw, frame, place, said, say

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Place]:
    async with place(tmp_path) as found:
        yield found


async def _sent(here: Place, parts: Sequence[bytes], session: str) -> tuple[Raw, asyncio.StreamWriter]:
    """Write the handshake and what follows it in these pieces; `%s` is the handshake. Reads the answer to it."""
    host, port = here.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    request = (
        f"GET /ws?sessionId={session} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-API-Key: {here.key}\r\n\r\n"
    ).encode()
    for part in parts:
        # Masked bytes may hold anything, the placeholder too.
        writer.write(request + part[2:] if part.startswith(b"%s") else part)
        await writer.drain()
        await asyncio.sleep(0)
    found = Raw(reader, writer)
    async with asyncio.timeout(5):
        found.status = int((await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1])
    return found, writer


_HELLO = frame(TEXT, b'{"type": "message", "content": "hello", "id": "first"}')


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([b"%s" + _HELLO], id="in one segment"),
        pytest.param([b"%s" + _HELLO[:5], _HELLO[5:]], id="a frame across two segments"),
        pytest.param([b"%s", _HELLO], id="right behind it"),
        pytest.param([b"%s" + frame(PING, b"?") + _HELLO], id="behind a protocol ping"),
    ],
)
async def test_a_frame_that_comes_with_the_handshake_is_served(here: Place, parts: list[bytes]) -> None:
    found, writer = await _sent(here, parts, await here.session())
    assert found.status == 101
    async with asyncio.timeout(5):
        while True:
            opcode, payload = await found.frame()
            if opcode == TEXT and json.loads(payload)["type"] == "message":
                break
    assert json.loads(payload)["ref"] == "first"
    writer.close()


async def test_many_frames_with_the_handshake_are_served_in_order(here: Place) -> None:
    """More than is read ahead, so that reading is paused and begins again."""
    frames = [frame(PING, f"{n}".encode().rjust(120)) for n in range(2_000)]
    found, writer = await _sent(here, [b"%s" + b"".join(frames[:5]), b"".join(frames[5:])], await here.session())
    assert found.status == 101
    async with asyncio.timeout(10):
        answers = [await found.frame() for _ in frames]
    assert [(opcode, int(payload)) for opcode, payload in answers] == [(PONG, n) for n in range(2_000)]
    writer.close()


async def test_a_broken_frame_with_the_handshake_ends_it_behind_the_answer(here: Place) -> None:
    found, writer = await _sent(here, [b"%s" + frame(TEXT, b"x", rsv=7)], await here.session())
    assert found.status == 101
    assert await found.close_code() == 1002
    writer.close()


async def test_a_peer_that_resets_the_connection_behind_a_broken_frame_is_nobodys_fault(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may have its reset before we end our side; the loop's transport raises what the kernel says then."""
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    asked: list[object] = []

    def write_eof(transport: object) -> None:
        asked.append(transport)
        raise OSError(ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr("asyncio.selector_events._SelectorSocketTransport.write_eof", write_eof)
    # more than is parsed in one turn, so that the loop itself calls what parses the broken frame
    ahead = [frame(PING, b"?" * 100)] * 200
    found, writer = await _sent(here, [b"%s" + b"".join(ahead) + frame(TEXT, b"\x96")], await here.session())
    assert found.status == 101
    assert await found.close_code() == 1007
    writer.close()
    assert asked and not told


async def test_nothing_of_it_is_answered_where_the_handshake_is_refused(here: Place) -> None:
    found, writer = await _sent(here, [b"%s" + frame(PING, b"?") + _HELLO], "none")
    assert found.status == 404
    rest = await found.reader.read()
    assert json.loads(rest)["error"]["code"]
    writer.close()


async def test_the_deadlines_of_requests_are_none_of_a_sockets(tmp_path: Path) -> None:
    edge = {"first_byte": "200ms", "keep_alive": "200ms"}
    async with (
        place(tmp_path, edit={"gateway.edge": edge}) as here,
        here.connect(await here.session()) as socket,
    ):
        await asyncio.sleep(0.8)
        await say(socket, "ping")
        await said(socket, "pong")
