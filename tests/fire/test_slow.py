"""Clients that send nothing, or by the byte: each is closed on its deadline, and good requests are served meanwhile."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from small import CONFIG, TIERS

from openclaw_gateway.testing import build, configuration, served

from .watch import SEED, Recorder, counts, say

GOOD = b"GET /open HTTP/1.1\r\nHost: a\r\n\r\n"
HEAD = b"POST /things HTTP/1.1\r\nHost: a\r\nX-Org: o\r\nContent-Length: 5000\r\n\r\n"
#: what a client sends at once, what it goes on sending, and how often in a second
KINDS: dict[str, tuple[bytes, bytes, float]] = {
    "silent": (b"", b"", 0),
    "one byte": (b"G", b"", 0),
    "empty lines only": (b"", b"\r\n", 2),
    "empty lines after an answer": (GOOD, b"\r\n", 2),
    "silent after an answer": (GOOD, b"", 0),
    "half a request line": (b"GET /op", b"", 0),
    "a header a while": (b"GET /open HTTP/1.1\r\nHost: a\r\n", b"X: 1\r\n", 2),
    "a byte of a header a while": (b"GET /open HTTP/1.1\r\nHost: a\r\nX: ", b"a", 2),
    "no body": (HEAD, b"", 0),
    "a byte of the body a while": (HEAD, b"x", 2),
    "half a chunk": (
        b"POST /things HTTP/1.1\r\nHost: a\r\nX-Org: o\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe",
        b"",
        0,
    ),
    "half a handshake": (b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n", b"", 0),
}
EDGE = {
    "first_byte": "2s",
    "headers": "2s",
    "body_idle": "2s",
    "body_total": "4s",
    "keep_alive": "2s",
    "max_connections": 20_000,
    "max_connections_per_address": 20_000,
}
#: the longest of these, and what a machine that others share may add
WITHIN = 4.0 + 6.0


async def slow(port: int, kind: str) -> float | None:
    """Be slow; return after how long the server closed the connection, None where it did not."""
    first, then, rate = KINDS[kind]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    begun = time.monotonic()
    try:
        writer.write(first)
        async with asyncio.timeout(WITHIN + 10):
            reading = asyncio.ensure_future(reader.read(-1))
            while not reading.done():
                await asyncio.wait([reading], timeout=1 / rate if rate else None)
                if not reading.done() and then:
                    writer.write(then)
            return time.monotonic() - begun
    except ConnectionError:
        return time.monotonic() - begun
    except TimeoutError:
        return None
    finally:
        writer.transport.abort()


async def good(port: int, stop: asyncio.Event, times: list[float]) -> None:
    """A good client of one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while not stop.is_set():
        begun = time.monotonic()
        writer.write(GOOD)
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head.split(b"\r\n")[0]
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        times.append(time.monotonic() - begun)
        await asyncio.sleep(0.01)
    writer.close()


@pytest.mark.usefixtures("small")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", counts(120, 5_000))
async def test_slow_clients_are_closed_and_harm_nobody(count: int, tmp_path: Path, record_property: Recorder) -> None:
    rng = random.Random(f"{SEED}/slow")
    kinds = [list(KINDS)[i % len(KINDS)] for i in range(count)]
    rng.shuffle(kinds)
    stop = asyncio.Event()
    alone: list[float] = []
    beside: list[float] = []
    async with served(build(configuration(tmp_path, toml=CONFIG, edit={"gateway.edge": EDGE}, tiers=TIERS))) as server:
        port = int(server.gateway.url.rsplit(":", 1)[1])
        first = asyncio.create_task(good(port, stop, alone))
        await asyncio.sleep(1)
        stop.set()
        await first
        stop.clear()
        second = asyncio.create_task(good(port, stop, beside))
        clients = []
        for start in range(0, count, 100):
            clients += [asyncio.create_task(slow(port, kind)) for kind in kinds[start : start + 100]]
            await asyncio.sleep(0.05)
        took = await asyncio.gather(*clients)
        stop.set()
        await second
        open_still = Counter(kind for kind, seconds in zip(kinds, took, strict=True) if seconds is None)
        late = Counter(kind for kind, s in zip(kinds, took, strict=True) if s is not None and s > WITHIN)
        async with asyncio.timeout(5):
            while len(server.server_state.connections) > 1:
                await asyncio.sleep(0.02)
    worst = max((seconds for seconds in took if seconds is not None), default=0.0)
    say(f"seed {SEED}: {count} slow clients, the last closed after {worst:.1f} s; {len(beside)} good requests")
    record_property("slow clients", count)
    record_property("not closed in time", open_still.total() + late.total())
    record_property("worst seconds until closed (deadlines of 2 and 4 s)", round(worst, 1))
    record_property("good requests meanwhile", len(beside))
    record_property("worst ratio of their median, beside to alone", round(middle(beside) / middle(alone), 1))
    assert not open_still and not late, (open_still, late)
    assert len(beside) > 20


def middle(times: list[float]) -> float:
    return sorted(times)[len(times) // 2]
