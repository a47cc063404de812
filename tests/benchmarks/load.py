"""The load: a closed loop of HTTP/1.1 connections in a process of its own, on a core of its own.

`python load.py SPEC` prints one JSON object. It keeps the CPU account of the server's processes itself, so that time
and CPU are of the same window. An answer that is not a whole 200 is an error, and is never counted as a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec


class Spec(msgspec.Struct, kw_only=True):
    """What to send, and whose CPU to count."""

    port: int
    requests: list[str]
    connections: int
    seconds: float
    warm: float
    pids: list[int] = []
    core: int | None = None


class Sample(msgspec.Struct, kw_only=True):
    """What one window showed. Times are in milliseconds, `cpu` is microseconds a request."""

    requests: int
    errors: int
    rate: float
    p50: float
    p99: float
    first_p50: float
    first_p99: float
    chunks: int
    stall: float
    cpu: float


class Connection(asyncio.Protocol):
    """Sends the next request once the answer to the last is whole."""

    def __init__(self, load: Load, number: int) -> None:
        self._load = load
        self._number = number
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._data = b""
        self._ends = -1
        self._body_at = -1
        self._streams = False
        self._first = self._last = 0.0
        self._chunks = 0
        self._stall = 0.0
        self._started = time.perf_counter()
        requests = self._load.requests
        self._transport.write(requests[self._number % len(requests)])
        self._number += self._load.connections

    def data_received(self, data: bytes) -> None:
        self._data += data
        if self._body_at < 0 and not self._read_head():
            return
        if self._streams:
            now = time.perf_counter()
            events = data.count(b"data: ")
            if events:
                if not self._first:
                    self._first = now
                else:
                    self._stall = max(self._stall, now - self._last)
                self._last = now
                self._chunks += events
            whole = self._data.endswith(b"\r\n0\r\n\r\n")
        else:
            whole = len(self._data) >= self._ends
        if whole:
            self._answered()

    def _read_head(self) -> bool:
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = self._data[:end].lower()
        self._body_at = end + 4
        at = head.find(b"\r\ncontent-length:")
        if at < 0:
            self._streams = True
        else:
            self._ends = self._body_at + int(head[at + 17 :].split(b"\r\n", 1)[0])
        return True

    def _answered(self) -> None:
        good = self._data[9:12] == b"200" and (not self._streams or b"data: [DONE]" in self._data[-64:])
        self._load.ended(good, self._started, self._first, self._chunks, self._stall)
        if self._load.running:
            self._ask()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if self._load.running:
            self._load.ended(False, self._started, 0.0, 0, 0.0)
            self._load.lost += 1
        self._load.closed()


class Load:
    """All connections, and what they saw in the window."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self.requests = [request.encode() for request in spec.requests]
        self.connections = spec.connections
        self.running = True
        self.lost = 0
        self._open = spec.connections
        self._all_closed = asyncio.Event()
        self._begin = float("inf")
        self._times: list[float] = []
        self._firsts: list[float] = []
        self._errors = self._chunks = 0
        self._stall = 0.0

    def ended(self, good: bool, started: float, first: float, chunks: int, stall: float) -> None:
        if started < self._begin or not self.running:
            return
        if not good:
            self._errors += 1
            return
        self._times.append(time.perf_counter() - started)
        self._chunks += chunks
        self._stall = max(self._stall, stall)
        if first:
            self._firsts.append(first - started)

    def closed(self) -> None:
        self._open -= 1
        if self._open == 0:
            self._all_closed.set()

    async def run(self) -> Sample:
        spec = self._spec
        loop = asyncio.get_running_loop()
        for number in range(spec.connections):
            await loop.create_connection(lambda number=number: Connection(self, number), "127.0.0.1", spec.port)
        await asyncio.sleep(spec.warm)
        before = cpu_of(spec.pids)
        self._begin = time.perf_counter()
        await asyncio.sleep(spec.seconds)
        spent = cpu_of(spec.pids) - before
        elapsed = time.perf_counter() - self._begin
        self.running = False
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_closed.wait(), 10)
        done = len(self._times)
        return Sample(
            requests=done,
            errors=self._errors + self.lost,
            rate=done / elapsed,
            p50=_share(self._times, 0.5),
            p99=_share(self._times, 0.99),
            first_p50=_share(self._firsts, 0.5),
            first_p99=_share(self._firsts, 0.99),
            chunks=self._chunks,
            stall=self._stall * 1000,
            cpu=spent / done * 1e6 if done else 0.0,
        )


def cpu_of(pids: list[int]) -> float:
    """Seconds that the scheduler gave to these processes and their children, of all their threads."""
    return sum(_ran(Path(f"/proc/{pid}")) for pid in family(pids))


def family(pids: list[int]) -> list[int]:
    """These processes and all their descendants."""
    found = []
    for pid in pids:
        found.append(pid)
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += family([int(child) for child in children.read_text().split()])
    return found


def _ran(process: Path) -> float:
    total = 0
    for task in (process / "task").glob("*/schedstat"):
        with contextlib.suppress(OSError):
            total += int(task.read_text().split()[0])
    return total / 1e9


def _share(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] * 1000 if values else 0.0


def main() -> None:
    import uvloop

    spec = msgspec.json.decode(sys.argv[1], type=Spec)
    if spec.core is not None:
        os.sched_setaffinity(0, {spec.core})
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:

        async def run() -> Sample:
            return await Load(spec).run()

        sys.stdout.write(msgspec.json.encode(runner.run(run())).decode() + "\n")


if __name__ == "__main__":
    main()
