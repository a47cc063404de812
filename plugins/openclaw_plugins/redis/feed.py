"""Hears what is published to channels, on a connection of its own: one that subscribes can ask nothing else.

It never says that it heard everything: what was published while it was not connected is lost to it, and whoever needs
it is told to look elsewhere.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any

import hiredis

from openclaw_gateway.api import StoreUnavailable
from openclaw_plugins.redis.line import Address, Settings
from openclaw_plugins.redis.wire import pack

#: channels that are named in one command
_AT_ONCE = 500
#: seconds without a word after which the peer is asked for one, and after as many again given up
_QUIET = 2.0
#: first and longest wait before another attempt to connect
_FIRST, _LONGEST = 0.05, 2.0
_READ = 65_536


class PubSub:
    """The channels that are wanted, and the connection on which they are heard."""

    def __init__(
        self,
        locate: Callable[[], Awaitable[Address]],
        settings: Settings,
        failed: Callable[[str, str], None],
        received: Callable[[str, bytes], None],
        restored: Callable[[], None],
    ) -> None:
        self._locate = locate
        self._settings = settings
        self._failed = failed
        self._received = received
        self._restored = restored
        self._wanted: dict[str, None] = {}
        self._heard: set[str] = set()
        #: channels that were heard on a connection before this one, and are not yet again
        self._missed: set[str] = set()
        self._confirming: dict[str, asyncio.Future[None]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._connected = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def add(self, channel: str) -> None:
        self._wanted[channel] = None
        try:
            async with asyncio.timeout(self._settings.timeout):
                await self._connected.wait()
                if channel in self._heard:
                    return
                confirmed = self._confirming.get(channel)
                if confirmed is None:
                    confirmed = self._confirming[channel] = asyncio.get_running_loop().create_future()
                    self._say("SUBSCRIBE", [channel])
                await asyncio.shield(confirmed)
        except TimeoutError as error:
            raise StoreUnavailable(self._settings.store, "a channel could not be subscribed in time") from error

    def remove(self, channel: str) -> None:
        self._wanted.pop(channel, None)
        self._confirming.pop(channel, None)
        self._heard.discard(channel)
        self._hear_again(channel)
        if self._writer is not None:
            self._say("UNSUBSCRIBE", [channel])

    # --- the connection -------------------------------------------------------------------------

    async def _run(self) -> None:
        wait = _FIRST
        while True:
            with suppress(OSError, StoreUnavailable, EOFError, hiredis.HiredisError):
                try:
                    reader = await self._connect()
                    wait = _FIRST
                    await self._hear(reader)
                finally:
                    self._lost()
            await asyncio.sleep(random.uniform(wait / 2, wait))  # noqa: S311 - spreads replicas, guards nothing
            wait = min(2 * wait, _LONGEST)

    async def _connect(self) -> asyncio.StreamReader:
        settings = self._settings
        async with asyncio.timeout(4 * settings.timeout):
            address = await self._locate()
            if isinstance(address, str):
                reader, self._writer = await asyncio.open_unix_connection(address)
            else:
                reader, self._writer = await asyncio.open_connection(*address, ssl=settings.tls)
        if settings.password is not None:
            login = (settings.username, settings.password) if settings.username else (settings.password,)
            self._writer.write(pack("AUTH", *login))
        self._connected.set()
        self._say("SUBSCRIBE", self._wanted)
        return reader

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        parser = hiredis.Reader()
        asked = False
        while True:
            try:
                async with asyncio.timeout(_QUIET):
                    data = await reader.read(_READ)
            except TimeoutError:
                if asked or self._writer is None:
                    return
                asked = True
                # Only who has subscribed may get an array as the answer; both forms are passed over.
                self._writer.write(pack("PING"))
                continue
            if not data:
                return
            asked = False
            parser.feed(data)
            while (reply := parser.gets()) is not False:
                self._take(reply)

    def _take(self, reply: Any) -> None:
        if isinstance(reply, hiredis.ReplyError):
            kind = str(reply).split(" ", 1)[0]
            self._failed("subscribe", kind.lower() if kind.isalpha() else "other")
            raise StoreUnavailable(self._settings.store, kind)
        if type(reply) is not list:
            return
        kind = reply[0]
        if kind == b"message":
            channel = reply[1].decode()
            if channel in self._wanted:
                self._received(channel, reply[2])
        elif kind == b"subscribe":
            self._confirm(reply[1].decode())

    def _confirm(self, channel: str) -> None:
        if channel not in self._wanted:
            return  # given up meanwhile
        self._heard.add(channel)
        waiting = self._confirming.pop(channel, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
        self._hear_again(channel)

    def _hear_again(self, channel: str) -> None:
        """The last channel of a lost connection to come back, or not to be wanted any more, ends the loss."""
        if channel in self._missed:
            self._missed.discard(channel)
            if not self._missed:
                self._restored()

    def _say(self, command: str, channels: Iterable[str]) -> None:
        names = list(channels)
        for first in range(0, len(names), _AT_ONCE):
            assert self._writer is not None
            self._writer.write(pack(command, *names[first : first + _AT_ONCE]))

    def _lost(self) -> None:
        self._connected.clear()
        self._missed |= self._heard
        self._heard.clear()
        writer, self._writer = self._writer, None
        if writer is not None:
            if not self._closed:
                self._failed("subscribe", "connection")
            writer.transport.abort()
        confirming, self._confirming = self._confirming, {}
        for waiting in confirming.values():
            if not waiting.done():
                waiting.set_exception(StoreUnavailable(self._settings.store, "the connection was lost"))
                waiting.exception()  # whoever waited may have given up already
