"""The fast way to an upstream: a pool of connections of our own. It speaks to nothing in between.

A client library's request costs about as much as all the rest of the gateway does for one; a call here is one write,
one parse and no task of its own.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache
from urllib.parse import urlsplit

from openclaw_plugins.providers.connection import Connection
from openclaw_plugins.providers.direct_answer import DirectAnswer
from openclaw_plugins.providers.transport import ConnectionLost, ConnectTimeout, Destination, Unreachable

#: seconds that an unused connection is kept; upstreams and balancers close theirs after a minute or so
_REST = 15.0
#: what may stand in a header: anything else could end it and begin another
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\x20-\x7e\x80-\xff]*")
#: no credentials, query or fragment, and nothing that could end a request line
_PLAIN = re.compile(r"https?://[A-Za-z0-9.:\[\]_-]+(?:/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?")


class DirectTransport:
    """At most `max_connections` at once; further calls wait for one, first come, first served."""

    def __init__(self, destination: Destination) -> None:
        parts = urlsplit(destination.url)
        if _PLAIN.fullmatch(destination.url) is None or not parts.hostname:
            raise ValueError("url: expected a scheme, a host and a path in ASCII, and nothing else")
        secure = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port or (443 if secure else 80)
        self._tls = _context(verify=destination.verify_tls) if secure else None
        self._base = parts.path
        # as it was written, less what only names the scheme's own port
        host = parts.netloc.removesuffix(":443" if secure else ":80")
        self._common = _fields({"Host": host, **destination.headers})
        #: path → the head of a call of it, up to the headers that change
        self._heads: dict[str, bytes] = {}
        self._most = destination.max_connections
        self._all: set[Connection] = set()
        self._opening = 0
        self._idle: list[Connection] = []
        self._queue: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            for connection in self._all:
                connection.abort()

    async def ask(
        self, path: str, headers: Mapping[str, str], body: bytes, *, connect_within: float, deadline: float
    ) -> DirectAnswer:
        head = self._heads.get(path)
        if head is None:
            # A provider has a handful of paths, all of them its own.
            head = self._heads[path] = f"POST {self._base}/{path} HTTP/1.1\r\n".encode("ascii") + self._common
        head = b"%s%sContent-Length: %d\r\n\r\n" % (head, _fields(headers), len(body))
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                break
        else:
            connection = await self._another(connect_within, deadline)
        answer = connection.ask(head, body)
        try:
            while not answer.status:  # until the head has come
                await answer.more(deadline)
        except BaseException:
            answer.close()
            raise
        return answer

    async def _another(self, connect_within: float, deadline: float) -> Connection:
        """Wait until there may be one more connection, or an idle one. Raises TimeoutError, TransportFailed."""
        loop = asyncio.get_running_loop()
        join = self._queue.append
        while len(self._all) + self._opening >= self._most:
            place: asyncio.Future[None] = loop.create_future()
            join(place)
            join = self._queue.appendleft  # who was overtaken on the way has not lost its turn
            try:
                async with asyncio.timeout_at(deadline):
                    await place
            except BaseException:
                if place.done() and not place.cancelled():
                    self._next()  # it was ours already: the next in the queue has it
                raise
            while self._idle:
                connection = self._idle.pop()
                if connection.usable:
                    return connection
        self._opening += 1
        try:
            return await self._open(min(deadline, loop.time() + connect_within), deadline)
        except BaseException:
            self._next()
            raise
        finally:
            self._opening -= 1

    async def _open(self, within: float, deadline: float) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(within):
                _, connection = await loop.create_connection(
                    lambda: Connection(self._freed, self._gone),
                    self._host,
                    self._port,
                    ssl=self._tls,
                    server_hostname=self._host if self._tls is not None else None,
                )
        except TimeoutError:
            if within >= deadline:
                raise
            raise ConnectTimeout from None
        except OSError as error:
            raise Unreachable(type(error).__name__) from error
        if not connection.usable:
            raise ConnectionLost("it was closed as soon as it was open")
        self._all.add(connection)
        return connection

    def _freed(self, connection: Connection) -> None:
        self._idle.append(connection)
        connection.rest(_REST)
        if self._queue:
            self._next()

    def _gone(self, connection: Connection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._next()

    def _next(self) -> None:
        """Let the first that waits look again."""
        while self._queue:
            place = self._queue.popleft()
            if not place.done():
                place.set_result(None)
                return


def _fields(headers: Mapping[str, str]) -> bytes:
    """Write headers. Raises ValueError for one that would be two, without its text."""
    parts: list[str] = []
    for name, value in headers.items():
        # Printable ASCII, as nearly all are, holds nothing that could end a header.
        if not (value.isascii() and value.isprintable()) and _VALUE.fullmatch(value) is None:
            raise ValueError(f"headers: {name!r} cannot be sent")
        parts += (_named(name), value, "\r\n")
    return "".join(parts).encode("latin-1")


@lru_cache(maxsize=256)
def _named(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"headers: {name!r} cannot be sent")
    return f"{name}: "


def _context(*, verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
