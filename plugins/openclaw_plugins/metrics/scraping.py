"""Writes out the numbers of the whole gateway, in a thread, once for all who ask at the same moment.

A worker shows nothing of another that is not in that one's file before: what was once shown outlives a crash.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import Metric, exposition
from prometheus_client.openmetrics import exposition as openmetrics

from openclaw_gateway.api import Host
from openclaw_plugins.metrics.merging import Family, Numbers, counted, merged, of_one_process, read, shown, summed

_TOPIC = "metrics"
#: seconds that others have to write their files; of one that is late the last one counts
_WITHIN = 1.0
#: how often a worker writes its file unasked: a crash loses no more than this
_EVERY = 10.0
_DECODER = msgspec.msgpack.Decoder(Numbers)


class Scrape:
    """The numbers of this process, over all reloads, joined with those of its fellow workers."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._lock = asyncio.Lock()
        self._last: dict[bool, tuple[float, bytes]] = {}
        self._storing = asyncio.Lock()
        #: the gateways that count now, the newest last: after a reload the old one serves the rest of its requests.
        #: And what the closed ones have counted. Read by threads, and so replaced together.
        self._counting: tuple[tuple[Host, ...], list[Family]] = ((host,), [])
        #: what workers counted that had our place before
        self._before: list[Family] = []

    def join(self, host: Host) -> None:
        """Count what a gateway after a reload counts, too."""
        hosts, closed = self._counting
        self._counting = ((*hosts, host), closed)

    async def leave(self, host: Host) -> None:
        """A gateway is closed: its counts are kept, its gauges are not."""
        kept = await asyncio.to_thread(lambda: counted(read(host.registry, {}), process=False))
        hosts, closed = self._counting
        if len(hosts) > 1:
            self._counting = (tuple(h for h in hosts if h is not host), summed([closed, kept]))
        elif host.workers is not None:
            await self.publish()

    async def begin(self) -> None:
        """Take the place of a worker that is no more, and take part in the scrapes of the others."""
        workers = self._host.workers
        if workers is not None:
            left = await asyncio.to_thread(_load, self._file(workers.index))
            if left is not None:
                self._before = counted(summed([left.before, counted(left.families)]))
            workers.answer(_TOPIC, self.publish)

    async def keep_publishing(self) -> None:
        """Write our file again and again, until cancelled."""
        while True:
            await self.publish()
            await asyncio.sleep(_EVERY)

    async def publish(self) -> None:
        """Write our file, for the others and for whoever has our place after us."""
        assert self._host.workers is not None
        file = self._file(self._host.workers.index)
        async with self._storing:
            await asyncio.to_thread(self._store, file)

    async def run(self, open_metrics: bool) -> bytes:
        """Return the text of a scrape."""
        asked = time.monotonic()
        async with self._lock:
            # What was begun after we asked is as good as our own: a crowd costs two scrapes, not one each.
            last = self._last.get(open_metrics)
            if last is not None and last[0] >= asked:
                return last[1]
            began = time.monotonic()
            if self._host.workers is not None:
                await asyncio.gather(self._host.workers.ask(_TOPIC, _WITHIN), self.publish())
            body = await asyncio.to_thread(self._write, open_metrics)
            self._last[open_metrics] = (began, body)
            return body

    def _write(self, open_metrics: bool) -> bytes:
        hosts, closed = self._counting
        registry: Any = hosts[-1].registry
        if self._host.workers is not None:
            registry = _Collected(list(self._of_all_workers()))
        elif closed or len(hosts) > 1:
            registry = _Collected([shown(family) for family in self._own()])
        if open_metrics:
            written: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
            return written
        return exposition.generate_latest(registry)

    def _own(self) -> list[Family]:
        hosts, closed = self._counting
        return of_one_process([read(host.registry, host.gauge_modes()) for host in reversed(hosts)], closed)

    def _of_all_workers(self) -> Iterator[Metric]:
        workers = self._host.workers
        assert workers is not None
        found = {index: _load(self._file(index)) for index in range(workers.count)}
        live = {state.index for state in workers.states if state.serving} | {workers.index}
        yield from merged({index: numbers for index, numbers in found.items() if numbers is not None}, live)
        yield _series("workers_serving", "Worker processes that serve", "gauge", [((), float(len(live)))])
        restarts = [((("worker", str(s.index)),), float(s.restarts)) for s in workers.states]
        yield _series("worker_restarts", "Unexpected ends of a worker, each followed by a restart", "counter", restarts)

    def _store(self, file: Path) -> None:
        fresh = file.with_suffix(".new")
        fresh.write_bytes(msgspec.msgpack.encode(Numbers(self._own(), self._before)))
        fresh.replace(file)

    def _file(self, index: int) -> Path:
        assert self._host.workers is not None
        return self._host.workers.folder / f"metrics-{index}"


class _Collected:
    """What `generate_latest` takes for a registry."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _load(file: Path) -> Numbers | None:
    with suppress(OSError, msgspec.DecodeError):
        return _DECODER.decode(file.read_bytes())
    return None


def _series(name: str, documentation: str, type: str, samples: list[Any]) -> Metric:
    full = f"{name}_total" if type == "counter" else name
    return shown(
        Family(name, documentation, type, "", "max", [(full, labels, value, None) for labels, value in samples])
    )
