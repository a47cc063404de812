"""Sockets: what an idle one costs, messages a second beside a bare echo, and what readers that stall may cost.

Clients are bare `asyncio.Protocol`s of this process; memory and CPU are those of the servers' processes alone.
"""

from __future__ import annotations

import asyncio
import base64
import os
import resource
import socket
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from benchmarks.load import cpu_of
from benchmarks.subjects import Subject, bare, beside_the_load, gateway, upstream

#: connections of the closed loop, and at once while many are opened
_LOOP, _AT_ONCE = 16, 50
#: what a socket's client sends: a frame that is checked, admitted and answered, and a whole turn
_PING = b'{"type":"ping"}'
_TURN = b'{"type":"message","model":"mock","content":"Say in one sentence what a gateway is for."}'


class Sockets(msgspec.Struct, kw_only=True):
    """What one run showed."""

    idle: int
    #: KiB an idle socket, by subject
    each: dict[str, float]
    #: MiB of the gateway with all of them open
    whole: float
    #: the rounds' (messages a second, CPU microseconds a message), by subject
    rates: dict[str, list[tuple[float, float]]]
    stalled: int
    #: MiB by which the gateway grew meanwhile, and how many of them it closed
    growth: float
    closed: int


def measure(folder: Path, *, short: bool, say: Callable[[str], None]) -> Sockets:
    """Run all three. Raises RuntimeError where a socket was refused or went unanswered."""
    idle, stalled = (2_000, 1_000) if short else (10_000, 1_000)
    _allow_files(idle + 1_000)
    edits = {"gateway.edge": {"max_connections": 2 * idle, "max_connections_per_address": 2 * idle}}
    with ExitStack() as stack:
        echo = stack.enter_context(bare("websockets", "echo of the library websockets"))
        name = "gateway, embedded"
        # A gateway for each question: what one load has left behind is nothing of the next.
        to = stack.enter_context(upstream()).port
        ours = [stack.enter_context(gateway(folder / f"s{n}", name, "", to, edits)) for n in range(3)]
        with beside_the_load():
            return asyncio.run(_measured(ours, echo, idle=idle, stalled=stalled, short=short, say=say))


async def _measured(
    ours: list[Subject], echo: Subject, *, idle: int, stalled: int, short: bool, say: Callable[[str], None]
) -> Sockets:
    say(f"{idle:,} idle sockets")
    each, whole = {}, 0.0
    for subject, targets in ((ours[0], await _targets(ours[0], idle + _AT_ONCE)), (echo, ["/"] * (idle + _AT_ONCE))):
        # The first ones show what the process needs once, whoever connects.
        async with _opened(subject, targets[:_AT_ONCE]):
            before = subject.memory()
            async with _opened(subject, targets[_AT_ONCE:]) as peers:
                await asyncio.sleep(1.0)
                after = subject.memory()
                if any(peer.closed for peer in peers):
                    raise RuntimeError(f"{subject.name}: an idle socket was closed")
        each[subject.name] = (after - before) * 1024 / idle
        whole = whole or after
    say("messages a second")
    rates: dict[str, list[tuple[float, float]]] = {}
    targets = await _targets(ours[1], _LOOP)
    for _ in range(3 if short else 7):
        for what, subject, places, frame in (
            (f"{echo.name}: echo", echo, ["/"] * _LOOP, _PING),
            (f"{ours[1].name}: `ping` to `pong`", ours[1], targets, _PING),
            (f"{ours[1].name}: `message` to its answer, by the mock upstream", ours[1], targets, _TURN),
        ):
            rates.setdefault(what, []).append(await _rate(subject, places, frame, 1.0 if short else 2.0))
    say(f"{stalled:,} stalled readers")
    growth, closed = await _stalled(ours[2], stalled, 15.0 if short else 30.0)
    return Sockets(
        idle=idle, each=each, whole=whole, rates=rates, stalled=stalled, growth=growth, closed=closed
    )  # fmt: skip


async def _rate(subject: Subject, targets: list[str], frame: bytes, seconds: float) -> tuple[float, float]:
    async with _opened(subject, targets) as peers:
        for peer in peers:
            peer.ask(frame)
        await asyncio.sleep(seconds / 4)
        done, spent, began = sum(p.answers for p in peers), cpu_of(subject.pids), time.perf_counter()
        await asyncio.sleep(seconds)
        done, spent = sum(p.answers for p in peers) - done, cpu_of(subject.pids) - spent
        if not done or any(peer.closed or peer.errors for peer in peers):
            raise RuntimeError(f"{subject.name}: a message was not answered")
        return done / (time.perf_counter() - began), spent / done * 1e6


async def _stalled(subject: Subject, count: int, seconds: float) -> tuple[float, int]:
    """Have so many readers of one session take nothing, while long messages are said in it."""
    target = (await _targets(subject, 1))[0]
    async with _opened(subject, [target] * count) as peers:
        for peer in peers:
            peer.transport.pause_reading()
        before = most = subject.memory()
        async with _session(subject) as http:
            until = time.monotonic() + seconds
            path = f"/api/v1/sessions/{target.partition('=')[2]}/messages"
            while time.monotonic() < until:
                async with http.post(path, json={"content": "x" * 20_000}) as answer:
                    if answer.status not in (201, 429):
                        raise RuntimeError(f"a message was answered by {answer.status}")
                most = max(most, subject.memory())
        for peer in peers:
            peer.transport.resume_reading()
        await asyncio.sleep(2.0)
        return most - before, sum(peer.closed for peer in peers)


async def _targets(subject: Subject, count: int) -> list[str]:
    """A session for each socket, and its target."""
    found: list[str] = []
    async with _session(subject) as http:

        async def some(number: int) -> None:
            for _ in range(number, count, _AT_ONCE):
                async with http.post("/api/v1/sessions", json={"metadata": {}}) as answer:
                    found.append(f"/ws?sessionId={(await answer.json())['sessionId']}")

        await asyncio.gather(*(some(number) for number in range(_AT_ONCE)))
    return found


def _session(subject: Subject) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(f"http://127.0.0.1:{subject.port}", headers=dict(subject.headers))


@asynccontextmanager
async def _opened(subject: Subject, targets: list[str]) -> AsyncIterator[list[Peer]]:
    loop = asyncio.get_running_loop()
    peers: list[Peer] = []
    try:
        for first in range(0, len(targets), _AT_ONCE):
            some = [Peer(subject, target) for target in targets[first : first + _AT_ONCE]]
            peers += some
            await asyncio.gather(
                *(loop.create_connection(lambda peer=peer: peer, sock=_dialled(subject.port)) for peer in some)
            )
            async with asyncio.timeout(60):
                await asyncio.gather(*(peer.opened for peer in some))
        yield peers
    finally:
        for peer in peers:
            if peer.transport is not None:
                peer.transport.abort()


def _dialled(port: int) -> socket.socket:
    """A connection whose kernel takes little by itself: a reader that stalls is then felt by the server."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
    found.connect(("127.0.0.1", port))
    found.setblocking(False)
    return found


class Peer(asyncio.Protocol):
    """One client. Once asked, it sends the same frame again whenever it has its answer."""

    def __init__(self, subject: Subject, target: str) -> None:
        self._subject = subject
        self._target = target
        self._data = b""
        self._frame = b""
        self.transport: Any = None
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.answers = self.errors = 0
        self.closed = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        headers = {
            "Host": f"127.0.0.1:{self._subject.port}",
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            **self._subject.headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        transport.write(f"GET {self._target} HTTP/1.1\r\n{lines}\r\n".encode())

    def ask(self, payload: bytes) -> None:
        # RFC 6455 5.3: a client masks; by zeros, which leaves the payload as it is.
        self._frame = bytes([0x81, 0x80 | len(payload)]) + bytes(4) + payload
        self.transport.write(self._frame)

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self.opened.done():
            head, end, self._data = self._data.partition(b"\r\n\r\n")
            if not end:
                self._data = head
                return
            if not head.startswith(b"HTTP/1.1 101"):
                self.opened.set_exception(RuntimeError(f"a handshake was answered by {head[:60]!r}"))
                return
            self.opened.set_result(None)
        while (frame := self._next()) is not None:
            opcode, payload = frame
            if opcode == 8:
                self.closed = True
            elif opcode == 1 and self._frame:
                self.errors += b'"type":"error"' in payload
                self.answers += 1
                self.transport.write(self._frame)

    def _next(self) -> tuple[int, bytes] | None:
        data = self._data
        if len(data) < 2:
            return None
        length, at = data[1] & 0x7F, 2
        if length == 126:
            length, at = int.from_bytes(data[2:4], "big"), 4
        elif length == 127:
            length, at = int.from_bytes(data[2:10], "big"), 10
        if len(data) < at + length:
            return None
        self._data = data[at + length :]
        return data[0] & 0x0F, data[at : at + length]

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if not self.opened.done():
            self.opened.set_exception(RuntimeError("a handshake was not answered"))


def _allow_files(count: int) -> None:
    """Raise the soft limit, for this process and those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise RuntimeError(f"{count} open files are needed; `ulimit -Hn` is {hard}")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def section(found: Sockets) -> list[str]:
    """The section of the page."""
    base = next(iter(found.rates.values()))
    rows = [
        (
            what,
            f"{statistics.median(rate for rate, _ in rounds):,.0f}",
            f"{statistics.median(cpu for _, cpu in rounds):,.1f}",
            f"{statistics.median(cpu / other for (_, cpu), (_, other) in zip(rounds, base, strict=True)):.2f}",
        )
        for what, rounds in found.rates.items()
    ]
    lines = [
        f"{_LOOP} sockets, each sends its next message when it has its answer. CPU is the server's, in microseconds "
        "a message; the ratio is to the bare echo in the same round.",
        "",
        "| what | messages/s | CPU µs | x echo |",
        "| --- | --- | --- | --- |",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        "Memory is the proportional share (PSS) of the server's process.",
        "",
        "| what | measured |",
        "| --- | --- |",
        *(f"| an idle socket of {name}, mean of {found.idle:,} | {kib:.1f} KiB |" for name, kib in found.each.items()),
        f"| the gateway with {found.idle:,} idle sockets, each of its own session | {found.whole:.0f} MiB |",
        f"| growth by {found.stalled:,} stalled readers of one session, of which {found.closed:,} were closed "
        f"| {found.growth:.0f} MiB |",
    ]
    return lines
