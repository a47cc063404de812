"""Starts the workers of one gateway, keeps them running, and speaks for all of them: signals, reloads, the exit status.

It serves no request and opens no store. uvicorn has a supervisor too; it knows no drain, restarts where we reload, and
tells nobody why a worker ended.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from openclaw_gateway.config.document import GatewaySettings
from openclaw_gateway.serving import listeners
from openclaw_gateway.serving.notify import VARIABLES, keep_alive, notify
from openclaw_gateway.serving.presence import present
from openclaw_gateway.serving.shared_folder import emptied
from openclaw_gateway.serving.supervised import Place
from openclaw_gateway.serving.workers import Order

logger = logging.getLogger("openclaw.supervisor")

#: seconds before a worker is started again; the first when the last one has served for `_STEADY`
_DELAYS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_STEADY = 10.0
#: seconds for a worker to end, on top of its drain
_MARGIN = 10.0


class Supervisor:
    """Serves one configuration with `settings.workers` processes.

    `environ` is theirs; `ready` is told the URLs and the notices of the first, once all serve.
    """

    def __init__(
        self,
        config: Path,
        shown: str,
        settings: GatewaySettings,
        *,
        environ: Mapping[str, str],
        ready: Callable[[str, str | None, list[str]], None],
    ) -> None:
        self._config = config
        self._shown = shown
        self._settings = settings
        self._environ = {name: value for name, value in environ.items() if name not in VARIABLES}
        self._ready = ready
        self._generation = 1
        self._stopping = asyncio.Event()
        #: a worker gives one report at a time
        self._reloading = asyncio.Lock()
        self._places: list[Place] = []
        #: (index of who asked, its number) → the workers that have not answered yet
        self._asked: dict[tuple[int, int], set[int]] = {}

    async def run(self) -> int:
        """Serve until a stop signal; return the exit status. Raises StartFailed where an address cannot be had."""
        settings = self._settings
        public = listeners.bind(settings.host, settings.port, settings.workers)
        operations: list[list[Any]] = [[] for _ in public]
        if (apart := settings.operations) is not None:
            operations = listeners.bind(apart.host, apart.port, settings.workers)
        self._places = [Place(i, *sockets) for i, sockets in enumerate(zip(public, operations, strict=True))]
        loop = asyncio.get_running_loop()
        for stop in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(stop, self._stop)
        directory = self._config.parent
        data = directory / settings.data_dir
        files = (self._config, directory / settings.tiers)
        with emptied(data) as folder:
            async with present(data, self._reload, self._rehearse, files=files, watch=settings.watch):
                return await self._serve(folder)

    async def _serve(self, folder: Path) -> int:
        first, *others = self._places
        # Alone at first: it may upgrade a schema, and make secrets that all of them then find.
        keeping = [asyncio.create_task(self._keep(first, folder))]
        if not await self._wait_for(first):
            self._stopping.set()
            await asyncio.wait(keeping)
            return first.returncode or 0
        keeping += [asyncio.create_task(self._keep(place, folder)) for place in others]
        for place in others:
            await self._wait_for(place)
        if not self._stopping.is_set():
            said = first.said
            self._ready(said["url"], said["operationsUrl"], said["notices"])
            notify(READY="1", STATUS=f"serving configuration {self._generation}")
        watchdog = asyncio.create_task(keep_alive(lambda: any(place.serving.is_set() for place in self._places)))
        await self._stopping.wait()
        within = self._settings.lame_duck + self._settings.drain_timeout + _MARGIN
        _, late = await asyncio.wait(keeping, timeout=within)
        if late:
            logger.error("%d workers did not end in time and are killed", len(late))
            self._signal(signal.SIGKILL)
            await asyncio.wait(late)
        watchdog.cancel()
        return 0

    async def _wait_for(self, place: Place) -> bool:
        """Wait until it serves, has ended once, or a stop was asked for."""
        waits = [asyncio.create_task(event.wait()) for event in (place.serving, place.ended, self._stopping)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return place.serving.is_set()

    async def _keep(self, place: Place, folder: Path) -> None:
        """Run a worker in its place again whenever it ends, until a stop."""
        quick = 0
        while not self._stopping.is_set():
            order = Order(
                config=str(self._config),
                shown=self._shown,
                index=place.index,
                count=len(self._places),
                folder=str(folder),
                generation=self._generation,
            )
            began = time.monotonic()
            try:
                place.open()
                how = _how(await place.run(order, self._environ, self._hear))
            except OSError as error:  # no process to be had, or no address any more
                how = (error.strerror or str(error)).lower()
                place.ended.set()
            for token in [token for token, waited in self._asked.items() if place.index in waited]:
                self._answered(token, place.index)
            if self._stopping.is_set():
                break
            place.restarts += 1
            quick = 0 if time.monotonic() - began > _STEADY else min(quick + 1, len(_DELAYS) - 1)
            if quick:
                place.close()
            logger.error("worker %d ended (%s); the next is started in %gs", place.index, how, _DELAYS[quick])
            self._tell_states()
            if quick:
                await self._pause(_DELAYS[quick])

    async def _pause(self, seconds: float) -> None:
        """Wait so long, or until a stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    # --- what workers say -----------------------------------------------------------------------

    def _hear(self, place: Place, message: dict[str, Any]) -> None:
        if "ready" in message:
            self._tell_states()
            if self._stopping.is_set():
                place.signal(signal.SIGTERM)
        elif "ask" in message:
            token = (place.index, message["id"])
            others = [other for other in self._places if other is not place and other.serving.is_set()]
            self._asked[token] = {other.index for other in others}
            for other in others:
                other.tell({"do": message["ask"], "token": token})
            asyncio.get_running_loop().call_later(message["within"], self._asked.pop, token, None)
            self._answered(token, place.index)
        elif "done" in message:
            index, number = message["done"]
            self._answered((index, number), place.index)

    def _answered(self, token: tuple[int, int], index: int) -> None:
        waited = self._asked.get(token)
        if waited is not None:
            waited.discard(index)
            if not waited:
                del self._asked[token]
                self._places[token[0]].tell({"asked": token[1]})

    def _tell_states(self) -> None:
        states = msgspec.to_builtins([place.state for place in self._places])
        for place in self._places:
            place.tell({"workers": states})

    # --- all of them ----------------------------------------------------------------------------

    async def _reload(self) -> dict[str, Any]:
        """Have one worker reload, and only where it could the others: a bad file changes nothing."""
        async with self._reloading:
            return await self._reload_all()

    async def _reload_all(self) -> dict[str, Any]:
        serving = [place for place in self._places if place.serving.is_set()]
        if not serving:
            return {"ok": False, "generation": self._generation, "problems": ["no worker serves"]}
        first, *others = serving
        report = await first.reload()
        reports = {first.index: report}
        if report["ok"]:
            found = await asyncio.gather(*(place.reload() for place in others))
            reports |= {place.index: one for place, one in zip(others, found, strict=True)}
        self._generation = max(self._generation, *(one["generation"] for one in reports.values()))
        ok = all(one["ok"] for one in reports.values())
        problems = [
            f"worker {index}: {problem}" if report["ok"] else problem
            for index, one in reports.items()
            for problem in one["problems"]
        ]
        logger.info("reload: %s", "done" if ok else "; ".join(problems))
        told = [{"index": index, "ok": one["ok"], "generation": one["generation"]} for index, one in reports.items()]
        return {**report, "ok": ok, "generation": self._generation, "problems": problems, "workers": told}

    async def _rehearse(self) -> dict[str, Any]:
        """Have one worker say what a reload would do: all of them serve the same files."""
        async with self._reloading:
            for place in self._places:
                if place.serving.is_set():
                    return await place.reload("rehearsal")
        return {"ok": False, "generation": self._generation, "problems": ["no worker serves"]}

    def _stop(self) -> None:
        if not self._stopping.is_set():
            logger.info("stopping: running requests have %gs", self._settings.drain_timeout)
            notify(STOPPING="1")
        self._stopping.set()
        for place in self._places:
            place.close()  # ours: connections are refused when the workers have closed theirs
        self._signal(signal.SIGTERM)  # to a worker that drains already, the second one means at once

    def _signal(self, how: signal.Signals) -> None:
        for place in self._places:
            place.signal(how)


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"


class _Line(logging.Formatter):
    """The form of the gateway's own log, which only a process with its plugins can write."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"timestamp": stamp, "level": record.levelname.lower(), "event": "log"}
        return msgspec.json.encode({**line, "logger": record.name, "message": record.getMessage()}).decode()


def run(supervisor: Supervisor) -> int:
    """Run the workers until a stop signal; return the exit status."""
    handler = logging.StreamHandler()
    if not sys.stderr.isatty():
        handler.setFormatter(_Line())
    logging.getLogger("openclaw").addHandler(handler)
    logging.getLogger("openclaw").setLevel(logging.INFO)
    with asyncio.Runner() as runner:
        return runner.run(supervisor.run())
