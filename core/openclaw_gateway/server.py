"""The HTTP server with our drain: uvicorn, told by us when to stop and what to wait for."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn

from openclaw_gateway.collecting import settle
from openclaw_gateway.edge import Edge
from openclaw_gateway.front import Front, reload_and_report
from openclaw_gateway.gateway import Gateway
from openclaw_gateway.sockets import Socket

logger = logging.getLogger("openclaw.server")

#: in data_dir: the process that serves, and what became of its last reload
PID_FILE, OUTCOME_FILE = "gateway.pid", "reload.json"


class Server(uvicorn.Server):
    """Serves one gateway. The first stop signal drains, the second ends at once."""

    def __init__(self, gateway: Gateway, *, ready: Callable[[], None] = lambda: None) -> None:
        settings = gateway.document.gateway
        self.front = Front(gateway)
        self._ready = ready
        self._drain: asyncio.Task[None] | None = None
        super().__init__(
            uvicorn.Config(
                app=self.front,
                host=settings.host,
                port=settings.port,
                http=Edge.for_settings(settings.edge),
                ws=Socket,
                loop="none",
                lifespan="off",
                log_config=None,
                # Below this uvicorn logs the query of every handshake, and that may hold a token.
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws_per_message_deflate=False,
                ws_max_size=2**20,
                ws_ping_interval=20.0,
                ws_ping_timeout=20.0,
                timeout_keep_alive=max(1, round(settings.edge.keep_alive)),
                ssl_certfile=gateway.config_dir / settings.tls.certificate if settings.tls else None,
                ssl_keyfile=gateway.config_dir / settings.tls.key if settings.tls else None,
                timeout_graceful_shutdown=max(1, round(settings.drain_timeout)),
            )
        )

    @property
    def gateway(self) -> Gateway:
        """The gateway that serves now."""
        return self.front.gateway

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.should_exit:
            return
        host = self.gateway.document.gateway.host
        port = self.servers[0].sockets[0].getsockname()[1]
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104 - only names what is listened on
        scheme = "https" if self.gateway.document.gateway.tls is not None else "http"
        self.gateway.url = f"{scheme}://{shown}:{port}"
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._drain is not None:
            self.should_exit = True
            self.force_exit = True
            return
        loop = asyncio.get_running_loop()
        self._drain = loop.create_task(self.drain())

    async def drain(self) -> None:
        """Turn readiness, go on accepting for the lame-duck time, then let the server finish what runs."""
        settings = self.gateway.document.gateway
        logger.info("stopping: running requests have %gs", settings.drain_timeout)
        self.gateway.begin_drain()
        if settings.lame_duck:
            await asyncio.sleep(settings.lame_duck)
        self.gateway.refuse_new_work()
        started = time.monotonic()
        await self.gateway.drain(settings.drain_timeout)
        left = settings.drain_timeout - (time.monotonic() - started)
        self.config.timeout_graceful_shutdown = max(1, round(left))
        self.should_exit = True

    async def serve_in_this_loop(self) -> None:
        """Serve without touching signals, for tests and for programs that embed a gateway."""
        await self._serve()


def run(gateway: Gateway, *, ready: Callable[[], None]) -> int:
    """Open the gateway and serve until a stop signal; return the exit status."""
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_run(gateway, ready))
    except KeyboardInterrupt:
        return 0


async def _run(gateway: Gateway, ready: Callable[[], None]) -> int:
    server = Server(gateway, ready=ready)
    async with server.front.serving():
        settle()
        server.front.after_reload = settle
        with _presence(server):
            await server.serve()
        return 0 if server.started else 1


@contextmanager
def _presence(server: Server) -> Iterator[None]:
    """Say where the process is, and reload on SIGHUP; the outcome is left for the command `reload` to read."""
    settings = server.gateway.document.gateway
    folder = server.gateway.config_dir / settings.data_dir
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    pid, outcome = folder / PID_FILE, folder / OUTCOME_FILE
    running: set[asyncio.Task[None]] = set()

    async def reload() -> None:
        report = await reload_and_report(server.front)
        fresh = outcome.with_suffix(".new")
        fresh.write_text(json.dumps(report))
        fresh.replace(outcome)

    def on_hangup() -> None:
        task = asyncio.ensure_future(reload())
        running.add(task)
        task.add_done_callback(running.discard)

    loop = asyncio.get_running_loop()
    if hasattr(signal, "SIGHUP"):
        loop.add_signal_handler(signal.SIGHUP, on_hangup)
    pid.write_text(str(os.getpid()))
    try:
        yield
    finally:
        pid.unlink(missing_ok=True)
        if hasattr(signal, "SIGHUP"):
            loop.remove_signal_handler(signal.SIGHUP)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    factory: Any = uvloop.new_event_loop
    made: Callable[[], asyncio.AbstractEventLoop] = factory
    return made
