"""One connection to one node, shared by all calls: what is asked in one turn of the event loop is one write.

Replies are matched by their order, so a reply that does not come in time ends the connection: whatever else was
under way fails with it, its outcome unknown, and nothing is ever sent again from here.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import hiredis
import msgspec

from openclaw_gateway.api import StoreBusy, StoreUnavailable
from openclaw_plugins.redis.breaker import Breaker
from openclaw_plugins.redis.wire import Wire

#: replies that say something of the command or of the map of nodes, and nothing against the node
_BLAMELESS = ("NOSCRIPT", "MOVED", "ASK", "TRYAGAIN", "ERR", "WRONGTYPE", "CROSSSLOT", "EXECABORT")
#: replies after which another connection may find a node that can do it
_ELSEWHERE = ("READONLY", "NOAUTH", "MASTERDOWN")
#: a timer that comes later than this found a busy event loop: replies may lie unread in the socket
_LATE = 0.01
#: writes the way the counters do, so that a look finds what a mere PING does not: a full store, missing rights
_LOOK = "return redis.call('SET', KEYS[1], '1', 'PX', 1000)"

Address = tuple[str, int] | str


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What all lines of one store have in common."""

    store: str
    username: str | None
    password: str | None
    database: int
    tls: ssl.SSLContext | None
    prefix: str
    timeout: float
    max_in_flight: int


class Line:
    """Sends commands and gives back futures of their replies; an error reply is a reply.

    `locate` says where to connect, each time anew. `observe(command, seconds)` and `failed(command, kind)` write
    the metrics; `changed(closed, why)` tells of the breaker.
    """

    def __init__(
        self,
        locate: Callable[[], Awaitable[Address]],
        settings: Settings,
        *,
        primary: bool,
        observe: Callable[[str, float], None],
        failed: Callable[[str, str], None],
        changed: Callable[[Line, bool, str], None],
    ) -> None:
        self.breaker = Breaker(self._turned)
        self._locate = locate
        self._settings = settings
        self._primary = primary
        self._observe = observe
        self._count_failure = failed
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._wire: Wire | None = None
        #: what was asked and not answered: future, time, command; in the order of the connection
        self._pending: deque[tuple[asyncio.Future[Any], float, str]] = deque()
        #: what of it was not written yet
        self._unsent: deque[bytes] = deque()
        self._flushing = False
        self._timer: asyncio.TimerHandle | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._closed = False

    def send(self, packed: bytes, name: str) -> asyncio.Future[Any]:
        """Queue one packed command. Raises StoreUnavailable and StoreBusy, both before anything is sent."""
        if not self.breaker.closed or self._closed:
            raise StoreUnavailable(self._settings.store, "known to be down")
        if len(self._pending) >= self._settings.max_in_flight:
            self._count_failure(name, "busy")
            raise StoreBusy(self._settings.store, f"{len(self._pending)} calls are under way")
        future: asyncio.Future[Any] = self._loop.create_future()
        self._pending.append((future, self._loop.time(), name))
        self._unsent.append(packed)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
        return future

    async def close(self) -> None:
        """End the connection and every task of it."""
        self._closed = True
        tasks = [task for task in (self._connecting, self._looking) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._break("closed", blame=False)

    # --- sending --------------------------------------------------------------------------------

    def _flush(self) -> None:
        self._flushing = False
        if self._wire is not None:
            if self._unsent:
                self._wire.transport.write(b"".join(self._unsent))
                self._unsent.clear()
        elif self._connecting is None and not self._closed:
            self._connecting = self._loop.create_task(self._connect())
        if self._timer is None and self._pending:
            self._timer = self._loop.call_at(self._pending[0][1] + self._settings.timeout, self._overdue, False)

    def _overdue(self, again: bool) -> None:
        self._timer = None
        while self._pending:
            now = self._loop.time()
            due = self._pending[0][1] + self._settings.timeout
            if now < due:
                self._timer = self._loop.call_at(due, self._overdue, False)
                return
            if now - due > _LATE and not again:
                self._timer = self._loop.call_later(0.001, self._overdue, True)
                return
            if self._wire is not None:
                self._break("timeout")
                return
            # The connection is still being made: what waits for it was not sent, and the attempt goes on.
            self._unsent.popleft()
            self._fail(*self._pending.popleft(), "timeout", now)

    # --- receiving ------------------------------------------------------------------------------

    def received(self, wire: Wire, data: bytes) -> None:
        """Match replies with what was asked."""
        wire.reader.feed(data)
        now = self._loop.time()
        pending = self._pending
        try:
            while (reply := wire.reader.gets()) is not False:
                if wire.greeting:
                    greeted = wire.greeting.popleft()
                    if not greeted.done():
                        greeted.set_result(reply)
                    continue
                if len(pending) <= len(self._unsent):
                    raise hiredis.ProtocolError("a reply that nobody asked for")
                future, started, name = pending.popleft()
                self._observe(name, now - started)
                if type(reply) is hiredis.ReplyError:
                    self._judge(name, str(reply), now)
                if not future.done():
                    future.set_result(reply)
        except hiredis.ProtocolError:
            self._break("protocol")

    def lost(self, wire: Wire) -> None:
        """The peer or the network has ended the connection."""
        for greeted in wire.greeting:
            if not greeted.done():
                greeted.set_exception(ConnectionResetError("closed by the peer"))
        if wire is self._wire:
            self._break("connection")

    def _judge(self, name: str, reply: str, now: float) -> None:
        kind = reply.split(" ", 1)[0]
        if kind != "NOSCRIPT":
            self._count_failure(name, kind.lower() if kind.isalpha() else "other")
        if kind not in _BLAMELESS:
            self.breaker.failed(now, kind)
        if kind in _ELSEWHERE:
            self._loop.call_soon(self._break, kind.lower())

    # --- failing --------------------------------------------------------------------------------

    def _break(self, why: str, *, blame: bool = True) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.transport.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._unsent.clear()
        now = self._loop.time()
        pending, self._pending = self._pending, deque()
        for each in pending:
            self._fail(*each, why, now, blame=blame)

    def _fail(
        self, future: asyncio.Future[Any], started: float, name: str, why: str, now: float, *, blame: bool = True
    ) -> None:
        self._observe(name, now - started)
        self._count_failure(name, why)
        if not future.done():
            future.set_exception(StoreUnavailable(self._settings.store, why))
        if blame:
            self.breaker.failed(now, why)

    def _turned(self, closed: bool, why: str) -> None:
        self._changed(self, closed, why)
        if not closed and not self._closed:
            # What else is under way would only make more requests wait.
            self._loop.call_soon(partial(self._break, why, blame=False))
            self._looking = self._loop.create_task(self._look())

    async def _look(self) -> None:
        """Ask the node now and then, until it does what it must be able to do."""
        while True:
            await asyncio.sleep(self.breaker.wait())
            try:
                if self._connecting is None and self._wire is None:
                    self._connecting = self._loop.create_task(self._connect())
                if self._connecting is not None:
                    await asyncio.wait([self._connecting])
                wire = self._wire
                if wire is None:
                    continue
                async with asyncio.timeout(self._settings.timeout):
                    (reply,) = await wire.ask(("EVAL", _LOOK, 1, f"{self._settings.prefix}look"))
                if type(reply) is not hiredis.ReplyError or str(reply).split(" ", 1)[0] in ("MOVED", "ASK"):
                    break
                self._break(str(reply).split(" ", 1)[0].lower(), blame=False)
            except (OSError, TimeoutError):
                self._break("timeout", blame=False)
        self._looking = None
        self.breaker.recovered(self._loop.time())

    # --- connecting -----------------------------------------------------------------------------

    async def _connect(self) -> None:
        wire: Wire | None = None
        try:
            async with asyncio.timeout(4 * self._settings.timeout):
                wire = await self._opened(await self._locate())
                why = await self._greet(wire)
            if why is None and wire.transport.is_closing():
                why = "connection"
            if why is None:
                self._wire = wire
        except (OSError, StoreUnavailable) as error:
            why = "timeout" if isinstance(error, TimeoutError) else "connection"
        finally:
            self._connecting = None
            if wire is not None and wire is not self._wire:
                wire.transport.abort()
        if why is None:
            self._flush()
        else:
            self._break(why)

    async def _opened(self, address: Address) -> Wire:
        tls = self._settings.tls
        async with asyncio.timeout(self._settings.timeout if tls is None else 2 * self._settings.timeout):
            if isinstance(address, str):
                _, wire = await self._loop.create_unix_connection(lambda: Wire(self), address)
            else:
                host, port = address
                _, wire = await self._loop.create_connection(lambda: Wire(self), host, port, ssl=tls)
        return wire

    async def _greet(self, wire: Wire) -> str | None:
        """Log in; return what is wrong with the node, None where it is the one that is wanted."""
        settings = self._settings
        commands: list[tuple[str | int, ...]] = []
        if settings.password is not None:
            login = (settings.username, settings.password) if settings.username else (settings.password,)
            commands.append(("AUTH", *login))
        if settings.database:
            commands.append(("SELECT", settings.database))
        if self._primary:
            commands.append(("ROLE",))
        if not commands:
            return None
        async with asyncio.timeout(settings.timeout):
            replies = await wire.ask(*commands)
        for reply in replies:
            if type(reply) is hiredis.ReplyError:
                return str(reply).split(" ", 1)[0].lower()
        if self._primary and replies[-1][0] != b"master":
            return "readonly"
        return None
