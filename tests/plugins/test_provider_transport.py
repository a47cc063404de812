"""How calls travel to an upstream: what each transport does alike, and the answers that the direct one refuses."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from openclaw_plugins.providers.direct import DirectTransport
from openclaw_plugins.providers.proxied import ProxiedTransport
from openclaw_plugins.providers.transport import (
    ConnectionLost,
    ConnectTimeout,
    Destination,
    Malformed,
    Transport,
    TransportFailed,
    Unreachable,
)

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
#: a body that is whole as chunks
CHUNKS = b"2\r\nok\r\n0\r\n\r\n"

Play = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Peer:
    """A server that answers each request by the next of `plays`, the last for ever; bytes are sent as they are."""

    def __init__(self, *plays: bytes | Play) -> None:
        self.plays = plays
        self.heads: list[bytes] = []
        self.connections = 0
        self.open = 0
        self.url = ""
        self.left = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                self.heads.append(head)
                play = self.plays[min(len(self.heads), len(self.plays)) - 1]
                if isinstance(play, bytes):
                    writer.write(play)
                    await writer.drain()
                else:
                    await play(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left.set()
        finally:
            self.open -= 1
            writer.close()
            with suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()


@asynccontextmanager
async def serving(*plays: bytes | Play, tls: ssl.SSLContext | None = None) -> AsyncIterator[Peer]:
    peer = Peer(*plays)
    server = await asyncio.start_server(peer.serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    peer.url = f"https://localhost:{port}/v1" if tls else f"http://127.0.0.1:{port}/v1"
    try:
        yield peer
    finally:
        server.close()


@pytest.fixture(params=[DirectTransport, ProxiedTransport], ids=["direct", "aiohttp"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def to(kind: Any, url: str, **more: Any) -> Transport:
    given: dict[str, Any] = {"headers": {"X-Team": "t"}, "max_connections": 8, "verify_tls": True, **more}
    made: Transport = kind(Destination(url=url, **given))
    return made


async def ask(transport: Transport, body: bytes = b"{}", *, within: float = 5.0, connect: float = 5.0) -> Any:
    deadline = asyncio.get_running_loop().time() + within
    return await transport.ask("chat", {"Accept": "x"}, body, connect_within=connect, deadline=deadline)


async def whole(answer: Any, within: float = 5.0) -> bytes:
    parts = []
    try:
        while piece := await answer.read(asyncio.get_running_loop().time() + within):
            parts.append(piece)
    finally:
        answer.close()
    return b"".join(parts)


@pytest.mark.parametrize(
    ("sent", "body"),
    [
        pytest.param(OK, b"ok", id="length"),
        pytest.param(CHUNKED + b"2\r\nok\r\n0\r\n\r\n", b"ok", id="chunked"),
        pytest.param(CHUNKED + b"2;a=b\r\nok\r\n0\r\nX-Trailer: 1\r\n\r\n", b"ok", id="extension-and-trailer"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"ok", id="100"),
        pytest.param(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK, b"ok", id="103"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"", id="empty"),
    ],
)
async def test_a_whole_answer_leaves_its_connection_for_the_next(kind: Any, sent: bytes, body: bytes) -> None:
    async with serving(sent) as peer:
        transport = to(kind, peer.url)
        async with transport.opened():
            for _ in range(3):
                answer = await ask(transport)
                assert (answer.status, await whole(answer)) == (200, body)
                await asyncio.sleep(0)
        assert peer.connections == 1
        assert peer.heads[0].startswith(b"POST /v1/chat HTTP/1.1\r\n")
        assert b"X-Team: t\r\n" in peer.heads[0]
        assert b"Accept: x\r\n" in peer.heads[0]


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), id="connection-close"),
        pytest.param(OK.replace(b"1.1", b"1.0"), id="http-1.0"),
    ],
)
async def test_a_connection_that_the_upstream_gives_up_is_not_used_again(kind: Any, sent: bytes) -> None:
    async with serving(sent) as peer:
        transport = to(kind, peer.url)
        async with transport.opened():
            for _ in range(2):
                assert await whole(await ask(transport)) == b"ok"
        assert peer.connections == 2


async def test_an_answer_may_end_with_its_connection(kind: Any) -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nfirst ")
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(b"last")
        writer.close()

    async with serving(play) as peer:
        transport = to(kind, peer.url)
        async with transport.opened():
            assert await whole(await ask(transport)) == b"first last"


@pytest.mark.parametrize("sent", [OK[:-1], CHUNKED + b"5\r\nok", CHUNKED + b"2\r\nok\r\n", OK[:20], b""])
async def test_a_cut_answer_is_lost_and_never_looks_whole(kind: Any, sent: bytes) -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        writer.close()

    async with serving(play) as peer:
        transport = to(kind, peer.url)
        async with transport.opened():
            with pytest.raises(ConnectionLost):
                await whole(await ask(transport))


async def test_times_run_out_before_the_head_and_within_the_body(kind: Any) -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"2\r\nok\r\n")
        await reader.read(1)
        raise ConnectionResetError

    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        raise ConnectionResetError

    async with serving(silence, play) as peer:
        transport = to(kind, peer.url)
        async with transport.opened():
            with pytest.raises(TimeoutError):
                await ask(transport, within=0.05)
            answer = await ask(transport)
            loop = asyncio.get_running_loop()
            assert await answer.read(loop.time() + 5) == b"ok"
            with pytest.raises(TimeoutError):
                await answer.read(loop.time() + 0.05)
            answer.close()
            await asyncio.wait_for(peer.left.wait(), 2)
        assert len(peer.heads) == 2  # nothing was sent again


async def test_closing_or_cancelling_ends_the_connection_at_once(kind: Any) -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(peer.heads) == 1:
            writer.write(CHUNKED + b"2\r\nok\r\n")
        await reader.read(1)
        raise ConnectionResetError

    async with serving(play) as peer:
        transport = to(kind, peer.url)
        async with transport.opened():
            answer = await ask(transport)
            answer.close()
            await asyncio.wait_for(peer.left.wait(), 2)
            peer.left.clear()
            waiting = asyncio.create_task(ask(transport))
            while len(peer.heads) < 2:
                await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await asyncio.wait_for(peer.left.wait(), 2)


async def test_a_slow_reader_holds_the_upstream_back(kind: Any) -> None:
    sent = 0

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 64000000\r\n\r\n")
        for _ in range(1000):
            writer.write(b"x" * 64_000)
            await writer.drain()
            sent += 64_000

    async with serving(play) as peer:
        transport = to(kind, peer.url)
        async with transport.opened():
            answer = await ask(transport)
            before = -1
            while sent != before:  # until nothing more goes through
                before = sent
                await asyncio.sleep(0.1)
            assert sent < 32_000_000
            assert len(await whole(answer)) == 64_000_000


async def test_no_more_connections_than_allowed_and_nobody_starves(kind: Any) -> None:
    most = 0

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal most
        most = max(most, peer.open)
        await asyncio.sleep(0.005)
        writer.write(OK)

    async with serving(play) as peer:
        transport = to(kind, peer.url, max_connections=3)
        async with transport.opened():

            async def one() -> bytes:
                return await whole(await ask(transport))

            assert await asyncio.gather(*(one() for _ in range(30))) == [b"ok"] * 30
            assert most <= 3
            late = [asyncio.create_task(ask(transport, within=0.02)) for _ in range(9)]
            await asyncio.wait(late)
            for task in late:
                task.exception()  # some had no turn in time
            assert await asyncio.wait_for(one(), 5) == b"ok"


async def test_a_port_that_nobody_listens_on_is_unreachable(kind: Any) -> None:
    transport = to(kind, "http://127.0.0.1:9/v1")
    async with transport.opened():
        with pytest.raises(Unreachable):
            await ask(transport)


async def test_a_connection_that_does_not_open_in_time_is_named_so(kind: Any) -> None:
    # A full queue of connections that nobody accepts: the next one is not answered.
    import socket

    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        address = deaf.getsockname()
        fillers = [socket.socket() for _ in range(8)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        transport = to(kind, f"http://127.0.0.1:{address[1]}")
        async with transport.opened():
            with pytest.raises(ConnectTimeout):
                await ask(transport, connect=0.1)
            with pytest.raises(TimeoutError):
                await ask(transport, within=0.1)
        for filler in fillers:
            filler.close()


async def test_tls_is_checked_unless_it_is_switched_off(kind: Any, tmp_path: Path) -> None:
    async with serving(OK, tls=_own_certificate(tmp_path / "server.pem")) as peer:
        checked = to(kind, peer.url)
        async with checked.opened():
            with pytest.raises(Unreachable):
                await ask(checked)
        trusting = to(kind, peer.url, verify_tls=False)
        async with trusting.opened():
            for _ in range(2):
                assert await whole(await ask(trusting)) == b"ok"
    assert len(peer.heads) == 2


HOSTILE = {
    "length-and-chunked": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    "chunked-and-length": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n" + CHUNKS,
    "two-lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
    "two-lengths-alike": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    "negative-length": b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
    "signed-length": b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
    "huge-length": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\nok",
    "another-coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKS,
    "identity-coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nok",
    "hexadecimal-prefix": CHUNKED + b"0x2\r\nok\r\n0\r\n\r\n",
    "negative-chunk": CHUNKED + b"-2\r\nok\r\n0\r\n\r\n",
    "huge-chunk": CHUNKED + b"f" * 20 + b"\r\nok",
    "chunk-too-long": CHUNKED + b"2\r\nokay\r\n0\r\n\r\n",
    "bare-line-feeds": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "folded-header": b"HTTP/1.1 200 OK\r\nX-A: b\r\n c\r\nContent-Length: 2\r\n\r\nok",
    "space-before-colon": b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
    "nul-in-header": b"HTTP/1.1 200 OK\r\nX-A: a\x00b\r\nContent-Length: 2\r\n\r\nok",
    "return-in-header": b"HTTP/1.1 200 OK\r\nX-A: a\rX-B: c\r\nContent-Length: 2\r\n\r\nok",
    "endless-header": b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 500_000,
    "endless-headers": b"HTTP/1.1 200 OK\r\n" + b"X-A: a\r\n" * 100_000,
    "endless-interim": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 50_000,
    "endless-trailers": CHUNKED + b"2\r\nok\r\n0\r\n" + b"X-A: a\r\n" * 100_000,
    "endless-extension": CHUNKED + b"2;" + b"a" * 500_000,
    "switching-protocols": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
    "another-version": b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "another-protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "compressed": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok",
}


@pytest.mark.parametrize("sent", HOSTILE.values(), ids=HOSTILE)
async def test_framing_that_could_be_read_in_two_ways_is_refused(sent: bytes) -> None:
    async with serving(sent) as peer:
        transport = to(DirectTransport, peer.url)
        async with transport.opened():
            with pytest.raises(Malformed):
                await whole(await ask(transport))
            await asyncio.wait_for(_until(lambda: peer.open == 0), 2)  # nothing more is read from it


@pytest.mark.parametrize("more", [OK, b"HTTP/1.1 200 OK\r\nContent-Le", b"garbage"], ids=["answer", "part", "garbage"])
async def test_what_nobody_asked_for_is_never_the_next_callers_answer(more: bytes) -> None:
    async with serving(OK + more.replace(b"ok", b"no"), OK) as peer:
        transport = to(DirectTransport, peer.url)
        async with transport.opened():
            assert await whole(await ask(transport)) == b"ok"
            assert await whole(await ask(transport)) == b"ok"
        assert peer.connections == 2


async def test_a_connection_that_spoke_while_it_rested_is_not_used_again() -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        if len(peer.heads) == 1:
            await writer.drain()
            await asyncio.sleep(0.02)
            writer.write(OK.replace(b"ok", b"no"))

    async with serving(play) as peer:
        transport = to(DirectTransport, peer.url)
        async with transport.opened():
            assert await whole(await ask(transport)) == b"ok"
            await asyncio.wait_for(_until(lambda: peer.open == 0), 2)
            assert await whole(await ask(transport)) == b"ok"


async def test_a_kept_connection_that_ends_under_a_call_says_so() -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK if len(peer.heads) % 2 else b"")
        if len(peer.heads) % 2 == 0:
            writer.transport.abort()

    async with serving(play) as peer:
        transport = to(DirectTransport, peer.url)
        async with transport.opened():
            assert await whole(await ask(transport)) == b"ok"
            with pytest.raises(ConnectionLost) as lost:
                await ask(transport)
            assert lost.value.stale
            assert await whole(await ask(transport)) == b"ok"
        assert len(peer.heads) == 3  # whether to send again is not the transport's to decide


async def test_a_fresh_connection_that_ends_is_not_called_stale() -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with serving(play) as peer:
        transport = to(DirectTransport, peer.url)
        async with transport.opened():
            with pytest.raises(ConnectionLost) as lost:
                await ask(transport)
            assert not lost.value.stale


async def test_an_end_mark_that_comes_late_does_not_cost_the_connection() -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"2\r\nok\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(b"0\r\n\r\n")

    async with serving(play) as peer:
        transport = to(DirectTransport, peer.url)
        async with transport.opened():
            for _ in range(3):
                answer = await ask(transport)
                assert await answer.read(asyncio.get_running_loop().time() + 5) == b"ok"
                answer.release()
                await asyncio.sleep(0.1)
        assert peer.connections == 1


async def test_an_end_mark_that_never_comes_does_not_hold_a_connection() -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"2\r\nok\r\n")
        await reader.read(1)
        raise ConnectionResetError

    async with serving(play) as peer:
        transport = to(DirectTransport, peer.url)
        async with transport.opened():
            answer = await ask(transport)
            assert await answer.read(asyncio.get_running_loop().time() + 5) == b"ok"
            answer.release()
            await asyncio.wait_for(peer.left.wait(), 2)


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\x00", "a\rb"])
async def test_a_header_that_would_be_two_is_never_sent(value: str) -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        to(DirectTransport, "http://127.0.0.1:9/v1", headers={"X-A": value})
    async with serving(OK) as peer:
        transport = to(DirectTransport, peer.url)
        async with transport.opened():
            with pytest.raises(ValueError, match="cannot be sent"):
                await transport.ask("chat", {"X-A": value}, b"{}", connect_within=1, deadline=1e9)
        assert peer.heads == []


@pytest.mark.parametrize(
    "url", ["http://u:p@h/v1", "http://h/v1?key=1", "http://h/a b", "http://h/\r\nX: 1", "http://"]
)
def test_a_url_that_is_more_than_a_place_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="url"):
        to(DirectTransport, url)


def test_every_failure_has_a_name_for_the_metrics() -> None:
    kinds = {cls.kind for cls in (Unreachable, ConnectTimeout, ConnectionLost, Malformed)}
    assert kinds == {"unreachable", "connect_timeout", "connection_lost", "malformed"}
    assert issubclass(Malformed, TransportFailed)


async def _until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.01)


def _own_certificate(file: Path) -> ssl.SSLContext:
    """Make a certificate for localhost that nobody has signed but itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(file)
    return tls


async def test_a_call_goes_through_a_proxy() -> None:
    async with serving(OK) as proxy:
        transport = to(ProxiedTransport, "http://model.invalid/v1", proxy=proxy.url.removesuffix("/v1"))
        async with transport.opened():
            assert await whole(await ask(transport)) == b"ok"
        assert proxy.heads[0].startswith(b"POST http://model.invalid/v1/chat HTTP/1.1\r\n")
