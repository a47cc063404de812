"""The one reference through which every request enters, and the reload that swaps it.

A reload builds a second gateway beside the first, opens it, and only then changes the reference: a request sees the
one or the other, never a mix. What is wrong with the new configuration changes nothing. The old gateway is closed
when its last exchange has ended, or its drain time is over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from openclaw_gateway.config.effective import differences, standing
from openclaw_gateway.config.layers import Layers, TomlFile
from openclaw_gateway.errors import ConfigError, StartFailed
from openclaw_gateway.gateway import Gateway

logger = logging.getLogger("openclaw.reload")

#: settings that belong to the listening socket and to the process: a reload cannot change them
_FIXED = ("host", "port", "workers", "operations", "data_dir", "edge", "watch")


class Front:
    """Serves the current gateway, as ASGI."""

    def __init__(
        self,
        gateway: Gateway,
        *,
        swapped: Callable[[Gateway], None] = lambda gateway: None,
    ) -> None:
        self._served = _Served(gateway)
        #: told of the gateway that serves from now on
        self._swapped = swapped
        self._reloading = asyncio.Lock()
        self._retired: set[asyncio.Task[None]] = set()
        #: called when a reload is over: the new gateway serves, and the old one is closed
        self.after_reload: Callable[[], None] = lambda: None

    @property
    def gateway(self) -> Gateway:
        return self._served.gateway

    def __call__(self, scope: Any, receive: Any, send: Any) -> Awaitable[None]:
        return self._served.gateway.runner(scope, receive, send)

    def operations(self, scope: Any, receive: Any, send: Any) -> Awaitable[None]:
        """The same for what comes in on the operations listener."""
        return self._served.gateway.operations(scope, receive, send)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Open the gateway; close whichever is current at the end, and those that are still draining."""
        await self._served.open()
        try:
            yield
        finally:
            if self._retired:
                await asyncio.wait(self._retired)
            await self._served.close()

    async def reload(self) -> list[str]:
        """Read the file again and swap; return what needs a restart to take effect.

        Raises ConfigError or StartFailed, and then nothing has changed.
        """
        if self.gateway.draining:
            raise StartFailed("the gateway is stopping")
        async with self._reloading:
            old = self._served
            fresh = await asyncio.to_thread(_again, old.gateway)
            fresh.url, fresh.operations_url = old.gateway.url, old.gateway.operations_url
            fresh.inherit(old.gateway)
            new = _Served(fresh)
            await new.open()
            if old.gateway.draining:  # a stop was asked for meanwhile
                fresh.begin_drain()
            self._served = new
            self._swapped(fresh)
            task = asyncio.create_task(self._retire(old))
            self._retired.add(task)
            task.add_done_callback(self._retired.discard)
        fixed = _fixed(old.gateway, fresh)
        changes = await asyncio.to_thread(lambda: differences(standing(old.gateway), standing(fresh)))
        # By their keys alone: a value may be what no log should hold.
        fields: dict[str, Any] = {"generation": fresh.generation, "changed": [change["key"] for change in changes]}
        logger.info("reloaded", extra={"fields": {**fields, **({"needRestart": fixed} if fixed else {})}})
        return fixed

    async def rehearse(self) -> tuple[list[dict[str, str | None]], list[str]]:
        """Build what a reload would swap in, and drop it; return what would change, and what needs a restart.

        No plugin is opened: that a store answers is not looked at. Raises ConfigError.
        """
        served = self.gateway
        fresh = await asyncio.to_thread(_again, served)
        return differences(standing(served), standing(fresh)), _fixed(served, fresh)

    async def _retire(self, old: _Served) -> None:
        within = old.gateway.document.gateway.drain_timeout
        if old.gateway.carried.exchanges:
            try:
                async with asyncio.timeout(within):
                    await old.gateway.carried.none()
            except TimeoutError:
                # What outlives requests (sockets) is told to come back, and then meets the new gateway.
                await old.gateway.drain(within)
        await old.close()
        self.after_reload()


def _again(served: Gateway) -> Gateway:
    """Build a gateway of the same files as they are now. Raises ConfigError."""
    before = served.layers
    layers = Layers(TomlFile(before.file.path, before.file.shown), before.environ)
    return Gateway(layers, clock=served.clock, generation=served.generation + 1, workers=served.workers)


def _fixed(served: Gateway, fresh: Gateway) -> list[str]:
    was, now = served.document.gateway, fresh.document.gateway
    fixed = [f"gateway.{name}" for name in _FIXED if getattr(was, name) != getattr(now, name)]
    return [*fixed, "gateway.tls"] if (was.tls is None) != (now.tls is None) else fixed


class _Served:
    """A gateway that is open, and the task in which its plugins live."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._closing = asyncio.Event()
        self._life: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Enter every lifespan, in a task of its own: a task group must be left by the task that entered it."""
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._life = asyncio.create_task(self._live(opened))
        await opened

    async def close(self) -> None:
        self._closing.set()
        if self._life is not None:
            await self._life

    async def _live(self, opened: asyncio.Future[None]) -> None:
        try:
            async with self.gateway.running():
                opened.set_result(None)
                await self._closing.wait()
        except Exception as error:
            if opened.done():
                logger.error("a gateway did not close cleanly", exc_info=error)
            else:
                opened.set_exception(error)


async def reload_and_report(front: Front) -> dict[str, Any]:
    """Reload; say what became of it in a form for the log and for the command."""
    try:
        fixed = await front.reload()
    except ConfigError as error:
        for problem in error.problems:
            logger.error("not reloaded: %s", problem)
        return {"ok": False, "generation": front.gateway.generation, "problems": [str(p) for p in error.problems]}
    except StartFailed as error:
        logger.error("not reloaded: %s", error)
        return {"ok": False, "generation": front.gateway.generation, "problems": [str(error)]}
    except Exception as error:  # a plugin's hook: no reason never to reload again
        logger.exception("not reloaded")
        return {
            "ok": False, "generation": front.gateway.generation, "problems": [f"{type(error).__name__}: {error}"],
        }  # fmt: skip
    return {"ok": True, "generation": front.gateway.generation, "problems": [], "needRestart": fixed}


async def rehearse_and_report(front: Front) -> dict[str, Any]:
    """Say in the same form what a reload would do; nothing is swapped."""
    generation = front.gateway.generation
    try:
        changes, fixed = await front.rehearse()
    except ConfigError as error:
        return {"ok": False, "generation": generation, "problems": [str(p) for p in error.problems]}
    except Exception as error:
        logger.exception("a rehearsal failed")
        return {"ok": False, "generation": generation, "problems": [f"{type(error).__name__}: {error}"]}
    return {"ok": True, "generation": generation, "problems": [], "changes": changes, "needRestart": fixed}
