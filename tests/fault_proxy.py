"""A TCP proxy that does to a connection what networks do: delay, black hole, reset, slowness, lost replies."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class FaultProxy:
    """Stands between clients and one server. Faults are plain attributes, and take effect with the next bytes."""

    def __init__(self, port: int) -> None:
        self.port = 0
        #: seconds by which each piece is late, either way
        self.delay = 0.0
        #: takes everything and passes nothing
        self.hole = False
        #: ends every connection on its first bytes, with a reset
        self.resets = False
        #: bytes a second towards the client
        self.rate: float | None = None
        #: most bytes of one piece
        self.slice: int | None = None
        #: how many replies are swallowed from now on; the connection is reset instead
        self.lose_replies = 0
        #: how many connections there were, and the most at once
        self.opened = 0
        self.most = 0
        #: where a test wants to read what clients sent
        self.heard: bytearray | None = None
        self._target = port
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Stop listening and end every connection; `listen` takes the same port again."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.cut()

    async def cut(self) -> None:
        """Reset every connection."""
        links = list(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        self.opened += 1
        self.most = max(self.most, len(self._links))
        server: asyncio.StreamWriter | None = None
        try:
            with suppress(OSError, asyncio.CancelledError):
                answers, server = await asyncio.open_connection("127.0.0.1", self._target)
                there = asyncio.ensure_future(self._pass(reader, server, back=False))
                back = asyncio.ensure_future(self._pass(answers, writer, back=True))
                try:
                    await asyncio.wait([there, back], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    there.cancel()
                    back.cancel()
                    await asyncio.gather(there, back, return_exceptions=True)
        finally:
            self._links.discard(task)
            _reset(writer)
            if server is not None:
                server.transport.abort()

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, back: bool) -> None:
        while data := await source.read(65_536):
            if self.heard is not None and not back:
                self.heard += data
            if self.resets:
                return
            if self.hole:
                continue
            if back and self.lose_replies:
                self.lose_replies -= 1
                return
            size = self.slice or (512 if self.rate else len(data))
            for start in range(0, len(data), size):
                piece = data[start : start + size]
                pause = self.delay + (len(piece) / self.rate if back and self.rate else 0)
                if pause:
                    await asyncio.sleep(pause)
                sink.write(piece)
                await sink.drain()


@asynccontextmanager
async def faulty(port: int) -> AsyncIterator[FaultProxy]:
    """A proxy in front of a port of this machine."""
    proxy = FaultProxy(port)
    await proxy.listen()
    try:
        yield proxy
    finally:
        await proxy.refuse()


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    if raw is not None:
        with suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
