"""The socket of a line: it parses replies and hands them on, and decides nothing."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, cast

import hiredis

if TYPE_CHECKING:
    from openclaw_plugins.redis.line import Line


class Wire(asyncio.Protocol):
    """The socket of a line, with the parser of its replies."""

    transport: asyncio.Transport

    def __init__(self, line: Line) -> None:
        self._line = line
        self.reader = hiredis.Reader()
        #: questions of our own, asked while nothing else is under way
        self.greeting: deque[asyncio.Future[Any]] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so

    def data_received(self, data: bytes) -> None:
        self._line.received(self, data)

    def connection_lost(self, error: Exception | None) -> None:
        self._line.lost(self)

    async def ask(self, *commands: tuple[str | int, ...]) -> list[Any]:
        """Ask before anything else is on its way."""
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in commands]
        self.greeting.extend(futures)
        self.transport.write(b"".join(pack(*command) for command in commands))
        return list(await asyncio.gather(*futures))


def pack(*words: str | bytes | int) -> bytes:
    """Encode one command."""
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type] # its stub means a tuple of any length
    return packed
