"""Frames as no good client sends them: each ends the socket with a code of its own, or is answered by an error."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from socket import SO_RCVBUF, SO_SNDBUF, SOL_SOCKET
from typing import Any

import msgspec
import pytest
from socket_kit import Place, Raw, closed, frame, place, raw, said, say

from openclaw_gateway.assets import asset
from openclaw_gateway.serving.sockets import Socket

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
PINGED = b'{"type":"ping"}'


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Place]:
    async with place(tmp_path) as found:
        yield found


@asynccontextmanager
async def opened(here: Place, ahead: bytes = b"") -> AsyncIterator[Raw]:
    async with raw(here, f"/ws?sessionId={await here.session()}", f"X-API-Key: {here.key}", ahead=ahead) as client:
        assert client.status == 101
        yield client


BROKEN = [
    ("reserved bit 1", frame(TEXT, PINGED, rsv=4), 1002),
    ("reserved bit 2", frame(TEXT, PINGED, rsv=2), 1002),
    ("reserved bit 3", frame(TEXT, PINGED, rsv=1), 1002),
    ("reserved opcode 3", frame(3, b"x"), 1002),
    ("reserved opcode 11", frame(11, b"x"), 1002),
    ("unmasked", frame(TEXT, PINGED, masked=False), 1002),
    ("ping of 126 bytes", frame(PING, bytes(126)), 1002),
    ("fragmented ping", frame(PING, b"x", fin=False), 1002),
    ("continuation of nothing", frame(CONT, b"x"), 1002),
    ("text inside a fragmented text", frame(TEXT, b"{", fin=False) + frame(TEXT, b"}"), 1002),
    ("length of 63 bits", frame(TEXT, b"", length=b"\xff" + (2**63 - 1).to_bytes(8, "big")), 1009),
    ("length with its top bit set", frame(TEXT, b"", length=b"\xff" + (2**64 - 1).to_bytes(8, "big")), 1009),
    ("one byte over the limit", frame(TEXT, bytes(2**20 + 1)), 1009),
    ("too big in fragments", frame(TEXT, b"a" * 2**20, fin=False) + frame(CONT, b"a"), 1009),
    ("too many fragments", frame(TEXT, b"{", fin=False) + frame(CONT, b"", fin=False) * 4096, 1009),
    ("bad UTF-8", frame(TEXT, b'{"type":"\xc3\x28"}'), 1007),
    ("UTF-8 cut off", frame(TEXT, b"\xf0\x9f\x98"), 1007),
    ("a surrogate in UTF-8", frame(TEXT, b"\xed\xa0\x80"), 1007),
    ("close with one byte", frame(CLOSE, b"\x03"), 1002),
    ("close 1005", frame(CLOSE, (1005).to_bytes(2, "big")), 1002),
    ("close 1006", frame(CLOSE, (1006).to_bytes(2, "big")), 1002),
    ("close 999", frame(CLOSE, (999).to_bytes(2, "big")), 1002),
    ("close with bad UTF-8", frame(CLOSE, (1000).to_bytes(2, "big") + b"\xff"), 1007),
    ("binary", frame(BINARY, PINGED), 1003),
    ("empty binary", frame(BINARY, b""), 1003),
    ("binary in fragments", frame(BINARY, b"a", fin=False) + frame(CONT, b"b"), 1003),
]


@pytest.mark.parametrize(("what", "bytes", "code"), BROKEN, ids=[what for what, _, _ in BROKEN])
async def test_a_broken_frame_ends_the_socket_with_its_code(here: Place, what: str, bytes: bytes, code: int) -> None:
    async with opened(here) as client:
        client.writer.write(bytes)
        assert await client.close_code() == code
    async with asyncio.timeout(5):
        while here.metric("websocket_connections_active", tier="open_source"):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("with_handshake", [False, True], ids=["open", "with the handshake"])
@pytest.mark.parametrize(("what", "bytes", "code"), BROKEN, ids=[what for what, _, _ in BROKEN])
async def test_what_comes_behind_a_broken_frame_is_nobodys_fault(
    here: Place, caplog: pytest.LogCaptureFixture, what: str, bytes: bytes, code: int, with_handshake: bool
) -> None:
    behind = frame(PING, b"p") + frame(PONG) + frame(PING)
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    async with opened(here, bytes + behind if with_handshake else b"") as client:
        if not with_handshake:
            client.writer.write(bytes + behind)
        assert await client.close_code() == code
    async with asyncio.timeout(5):
        while here.metric("websocket_connections_active", tier="open_source"):
            await asyncio.sleep(0.01)
    assert not told
    assert not [record.message for record in caplog.records if record.levelname == "ERROR"]


GOOD = [
    ("in fragments", frame(TEXT, PINGED[:5], fin=False) + frame(CONT, PINGED[5:])),
    ("in empty fragments", frame(TEXT, b"", fin=False) + frame(CONT, b"", fin=False) + frame(CONT, PINGED)),
    (
        "in as many fragments as may be",
        frame(TEXT, PINGED, fin=False) + frame(CONT, b"", fin=False) * 4094 + frame(CONT, b""),
    ),
    ("a ping between fragments", frame(TEXT, PINGED[:5], fin=False) + frame(PING, b"p") + frame(CONT, PINGED[5:])),
    ("an unsolicited pong", frame(PONG, b"nobody asked") + frame(TEXT, PINGED)),
    ("a ping of 125 bytes", frame(PING, bytes(125)) + frame(TEXT, PINGED)),
    ("unknown fields", frame(TEXT, b'{"type":"ping","more":[1,{"a":null}]}')),
]


@pytest.mark.parametrize(("what", "bytes"), GOOD, ids=[what for what, _ in GOOD])
async def test_an_unusual_frame_is_served(here: Place, what: str, bytes: bytes) -> None:
    async with opened(here) as client, asyncio.timeout(5):
        client.writer.write(bytes)
        while (found := await client.frame())[0] != TEXT:
            assert found[0] == PONG
        assert json.loads(found[1]) == {"type": "pong"}


async def test_bytes_that_come_one_by_one_are_served(here: Place) -> None:
    async with opened(here) as client, asyncio.timeout(5):
        for byte in frame(TEXT, PINGED):
            client.writer.write(bytes([byte]))
            await client.writer.drain()
        assert await client.frame() == (TEXT, b'{"type":"pong"}')


async def test_a_peer_that_takes_no_pongs_is_read_no_further(here: Place) -> None:
    """What is owed to it would else grow for as long as it sends."""
    async with raw(here, f"/ws?sessionId={await here.session()}", f"X-API-Key: {here.key}", limit=2**10) as client:
        (socket,) = [one for one in here.server.server_state.connections if isinstance(one, Socket)]
        client.writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_RCVBUF, 2**17)
        socket.transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_SNDBUF, 2**17)
        pings = 40_000
        client.writer.write(frame(PING, bytes(125)) * pings)
        most, until = 0, time.monotonic() + 1
        while time.monotonic() < until:
            most = max(most, socket.transport.get_write_buffer_size())
            await asyncio.sleep(0)
        assert 0 < most < 2**16
        async with asyncio.timeout(30):
            for _ in range(pings):
                assert await client.frame() == (PONG, bytes(125))


@pytest.mark.parametrize(
    ("handled", "flood"),
    [("handle_pong", frame(PONG, b"")), ("handle_cont", frame(CONT, b"", fin=False))],
    ids=["pongs", "fragments"],
)
async def test_a_flood_of_tiny_frames_keeps_nobody_waiting(
    here: Place, monkeypatch: pytest.MonkeyPatch, handled: str, flood: bytes
) -> None:
    """Between two turns of the loop no more frames are taken than a slice holds, however many have come."""
    taken = most = 0
    kept = getattr(Socket, handled)

    def counted(self: Socket, event: Any) -> None:
        nonlocal taken
        taken += 1
        kept(self, event)

    monkeypatch.setattr(Socket, handled, counted)
    monkeypatch.setattr("openclaw_gateway.serving.sockets._FRAGMENTS", 10**9)
    async with opened(here) as client, asyncio.timeout(30):
        client.writer.write(frame(TEXT, b"{", fin=False) + flood * 100_000)
        seen = 0
        while taken < 100_000:
            await asyncio.sleep(0)
            most, seen = max(most, taken - seen), taken
    assert 1_000 < most <= 2**14 / len(flood) + 1


async def test_a_frame_of_the_whole_limit_is_read(here: Place) -> None:
    async with here.connect(await here.session()) as socket:
        text = json.dumps({"type": "message", "content": ""})
        padded = json.dumps({"type": "message", "content": "a" * (2**20 - len(text))})
        assert len(padded) == 2**20
        await socket.send(padded)
        assert (await said(socket, "message", "error"))["type"] == "message"


BAD = [
    ("{", "BAD_REQUEST", None),
    ("", "BAD_REQUEST", None),
    ("[]", "BAD_REQUEST", None),
    ("null", "BAD_REQUEST", None),
    ("{}", "BAD_REQUEST", "type"),
    ('{"type":"nothing"}', "BAD_REQUEST", "type"),
    ('{"type":7}', "BAD_REQUEST", "type"),
    ('{"type":"message"}', "BAD_REQUEST", "content"),
    ('{"type":"message","content":""}', "BAD_REQUEST", "content"),
    ('{"type":"message","content":7}', "BAD_REQUEST", "content"),
    ('{"type":"message","content":"x\\u0000"}', "BAD_REQUEST", None),
    ('{"type":"message","content":"\\ud800"}', "BAD_REQUEST", None),
    ('{"type":"message","content":"x","model":"none-such"}', "BAD_REQUEST", "model"),
    ('{"type":"message","content":"x","metadata":{"skillName":"none-such"}}', "BAD_REQUEST", "metadata.skillName"),
    ('{"type":"message","content":"x","metadata":[]}', "BAD_REQUEST", "metadata"),
    ('{"type":"cancel"}', "BAD_REQUEST", "ref"),
    ('{"type":"cancel","ref":"nothing"}', "NOT_FOUND", None),
    ('{"type":"resume"}', "BAD_REQUEST", "lastSeq"),
    ('{"type":"resume","lastSeq":-1}', "BAD_REQUEST", "lastSeq"),
    ('{"type":"resume","lastSeq":1e400}', "BAD_REQUEST", None),
    ("[" * 100_000, "BAD_REQUEST", None),
    ('{"type":"message","content":' + "9" * 5000 + "}", "BAD_REQUEST", None),
]


@pytest.mark.parametrize(("text", "code", "param"), BAD, ids=[text[:40] for text, _, _ in BAD])
async def test_a_bad_message_is_answered_and_the_socket_stays(
    here: Place, text: str, code: str, param: str | None
) -> None:
    async with here.connect(await here.session()) as socket:
        await socket.send(text)
        error = await said(socket, "error")
        assert error["code"] == code
        assert error["message"]
        assert error["retryable"] is False
        if param is not None:
            assert error["param"] == param
        await say(socket, "ping")
        await said(socket, "pong")


async def test_frames_of_every_kind_count_for_the_rate(tmp_path: Path) -> None:
    text = (asset("tiers") / "open_source.toml").read_text()
    few = text.replace("limit = 200\n", "limit = 4\n", 1)
    assert few != text
    async with place(tmp_path, tiers={"open_source": few}) as here:
        realtime = here.gateway.plugin("realtime")
        realtime._limits = msgspec.structs.replace(realtime._limits, beat=60.0)
        async with here.connect(await here.session()) as socket:
            await say(socket, "ping")  # the one that is free
            await said(socket, "pong")
            for sent in ("{", '{"type":"nothing"}', '{"type":"ping"}', '{"type":"cancel","ref":"x"}'):
                await socket.send(sent)
                answer = await said(socket, "error", "pong")
                assert answer.get("code") in (None, "BAD_REQUEST", "NOT_FOUND"), answer
            for sent in ("{", '{"type":"ping"}'):
                await socket.send(sent)
                assert (await said(socket, "error", "pong")).get("code") == "RATE_LIMIT_EXCEEDED"


async def test_who_is_over_the_rate_still_sees_that_the_link_lives(tmp_path: Path) -> None:
    few = (asset("tiers") / "open_source.toml").read_text().replace("limit = 200\n", "limit = 1\n", 1)
    async with (
        place(tmp_path, tiers={"open_source": few}) as here,
        here.connect(await here.session()) as socket,
    ):
        for code in ("BAD_REQUEST", "RATE_LIMIT_EXCEEDED"):
            await socket.send("{")
            assert (await said(socket, "error"))["code"] == code
        for _ in range(2):
            await say(socket, "ping")
            await said(socket, "pong")
            await asyncio.sleep(1.1)
        for _ in range(20):
            await say(socket, "ping")
        codes = [(await said(socket, "error", "pong")).get("code") for _ in range(20)]
        # As many as there were seconds, and no more of them.
        assert codes[0] is None and codes.count("RATE_LIMIT_EXCEEDED") >= 10


async def test_an_error_names_the_message_that_it_is_about(here: Place) -> None:
    async with here.connect(await here.session()) as socket:
        await say(socket, "message", id="m7", content=7)
        assert (await said(socket, "error"))["ref"] == "m7"


async def test_a_clients_close_is_answered(here: Place) -> None:
    async with opened(here) as client:
        client.writer.write(frame(CLOSE, (1000).to_bytes(2, "big") + b"bye"))
        assert await client.close_code() == 1000


async def test_closing_with_a_binary_frame_says_why(here: Place) -> None:
    async with here.connect(await here.session()) as socket:
        await socket.send(b"bytes")
        assert await closed(socket) == (1003, "binary frames are not understood")


async def test_what_waits_for_a_peer_that_then_breaks_the_protocol_is_nobodys_fault(
    here: Place, caplog: pytest.LogCaptureFixture
) -> None:
    session = await here.session()
    async with raw(here, f"/ws?sessionId={session}", f"X-API-Key: {here.key}", limit=1024) as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        (socket,) = [each for each in here.server.server_state.connections if isinstance(each, Socket)]
        transport: Any = socket.transport
        while not transport.get_write_buffer_size():
            await here.ask("POST", f"/api/v1/sessions/{session}/messages", {"content": "x" * 200_000})
        for _ in range(3):
            await here.ask("POST", f"/api/v1/sessions/{session}/messages", {"content": "x"})
        client.writer.write(frame(BINARY, b"x"))  # it is to be closed, behind what waits
        await asyncio.sleep(0.2)
        client.writer.write(frame(3, b"x"))  # an opcode that is none
        async with asyncio.timeout(10):
            while not socket.close_sent:
                await asyncio.sleep(0.01)
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert await client.close_code() == 1002
    async with asyncio.timeout(10):
        while here.metric("websocket_connections_active", tier="open_source"):
            await asyncio.sleep(0.01)
    assert not [record.message for record in caplog.records if record.levelname == "ERROR"]
