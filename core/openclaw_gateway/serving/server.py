"""The HTTP server with our drain: uvicorn, told by us when to stop and what to wait for."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from openclaw_gateway.config.effective import leave
from openclaw_gateway.gateway import Gateway
from openclaw_gateway.serving import listeners
from openclaw_gateway.serving.collecting import settle
from openclaw_gateway.serving.edge import Edge
from openclaw_gateway.serving.front import Front, rehearse_and_report, reload_and_report
from openclaw_gateway.serving.notify import keep_alive, notify
from openclaw_gateway.serving.presence import present
from openclaw_gateway.serving.sockets import Socket

logger = logging.getLogger("openclaw.server")


class Server(uvicorn.Server):
    """Serves one gateway. The first stop signal drains, the second ends at once.

    `public` and `operations` are bound sockets to serve on; without them the server binds what is configured.
    """

    def __init__(
        self,
        gateway: Gateway,
        *,
        ready: Callable[[], None] = lambda: None,
        public: Sequence[socket.socket] = (),
        operations: Sequence[socket.socket] = (),
    ) -> None:
        self.front = Front(gateway, swapped=self._renew)
        self._ready = ready
        self._drain: asyncio.Task[None] | None = None
        #: where what is served is told to operators
        self._left: Path | None = None
        self._public = list(public)
        self._operations = list(operations)
        tls = gateway.document.gateway.tls
        self._context = listeners.context_of(tls, gateway.config_dir) if tls is not None else None
        super().__init__(_config(gateway, self.front))
        self.config.load()
        self.config.ssl = self._context

    @property
    def gateway(self) -> Gateway:
        """The gateway that serves now."""
        return self.front.gateway

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen. Raises StartFailed where an address cannot be had."""
        gateway = self.gateway
        settings = gateway.document.gateway
        apart = settings.operations
        if not self._public:
            (self._public,) = listeners.bind(settings.host, settings.port)
            if apart is not None:
                (self._operations,) = listeners.bind(apart.host, apart.port)
        gateway.url = listeners.url(settings.host, self._public, tls=settings.tls is not None)
        await super().startup(self._public)
        if self.should_exit:
            return
        if apart is not None:
            await self._listen_apart(self._operations)
            gateway.operations_url = listeners.url(apart.host, self._operations, tls=False)
        self._ready()

    async def serve_until_stopped(self) -> int:
        """Open the gateway and serve until a stop signal; return the exit status. Raises StartFailed."""
        async with self.front.serving():
            settle()
            self.front.after_reload = settle
            self._left = self.gateway.config_dir / self.gateway.document.gateway.data_dir
            leave(self.gateway, self._left)
            await self.serve()
            return 0 if self.started else 1

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
        notify(STOPPING="1")
        self.gateway.begin_drain()
        self.config.http_protocol_class.leaving = True  # type: ignore[attr-defined]
        for connection in self.server_state.connections:
            if isinstance(connection, Edge):
                connection.leave()
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

    async def _listen_apart(self, sockets: Sequence[socket.socket]) -> None:
        config = _config(self.gateway, self.front.operations)
        config.load()
        state, protocol = self.server_state, config.http_protocol_class

        def connection() -> asyncio.Protocol:
            made: Any = protocol
            served: asyncio.Protocol = made(config=config, server_state=state, app_state={})
            return served

        loop = asyncio.get_running_loop()
        for one in sockets:
            self.servers.append(await loop.create_server(connection, sock=one, backlog=listeners.BACKLOG))

    def _renew(self, gateway: Gateway) -> None:
        """Take the certificate of a configuration that serves from now on; boot has proved that it can be used.

        And leave it where `config diff` finds it.
        """
        tls = gateway.document.gateway.tls
        if tls is not None and self._context is not None:
            listeners.load_pair(self._context, tls, gateway.config_dir)
        if self._left is not None:
            leave(gateway, self._left)


def _config(gateway: Gateway, app: Any) -> uvicorn.Config:
    settings = gateway.document.gateway
    return uvicorn.Config(
        app=app,
        # Each listener has its own caps: probes are answered while the public port is full.
        http=Edge.for_settings(settings.edge),
        ws=Socket,
        loop="none",
        interface="asgi3",
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
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout)),
        backlog=listeners.BACKLOG,
    )


def run(gateway: Gateway, *, ready: Callable[[], None]) -> int:
    """Open the gateway and serve it in this process until a stop signal; return the exit status."""
    return in_loop(_run(gateway, ready))


def in_loop(serving: Coroutine[Any, Any, int]) -> int:
    """Run what serves in the event loop that we serve with; return the exit status."""
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(serving)
    except KeyboardInterrupt:
        return 0


async def _run(gateway: Gateway, ready: Callable[[], None]) -> int:
    def begun() -> None:
        ready()
        notify(READY="1", STATUS=f"serving configuration {gateway.generation}")

    server = Server(gateway, ready=begun)
    settings = gateway.document.gateway
    files = (gateway.layers.file.path, gateway.tier_files.folder)
    watchdog = asyncio.create_task(keep_alive())
    try:
        async with present(
            gateway.config_dir / settings.data_dir,
            lambda: reload_and_report(server.front),
            lambda: rehearse_and_report(server.front),
            files=files,
            watch=settings.watch,
            alone=listeners.unshared(gateway.instances),
        ):
            return await server.serve_until_stopped()
    finally:
        watchdog.cancel()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    factory: Any = uvloop.new_event_loop
    made: Callable[[], asyncio.AbstractEventLoop] = factory
    return made
