"""The HTTP protocol with the bounds that uvicorn's lacks: deadlines, header budget, strict framing, connection caps.

A request that breaks a bound is answered once and its connection closed; nothing after the first malformed byte is
ever taken for a request. It decides nothing about a well-formed request: that is the pipeline's.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from httptools import HttpParserUpgrade, HttpRequestParser

from openclaw_gateway.config.document import EdgeSettings
from openclaw_gateway.refusals import Refusal, of_edge, written
from openclaw_gateway.serving.framing import fault
from openclaw_gateway.serving.protocol import Protocol
from openclaw_gateway.serving.sockets import Socket

_IDLE, _HEADERS, _BODY = range(3)

#: beside the addresses in a census; no address is written so
_ALL = "*"

_BODY_HEADERS = frozenset({b"content-length", b"transfer-encoding"})


class Edge(Protocol):
    """One connection. `for_settings` makes the class that a server uses."""

    settings: EdgeSettings
    #: the open connections of one listener, sockets included: all of them, and by the address of the peer
    census: Counter[str]
    #: set where the server is about to stop: a client is told not to send its next request on this connection
    leaving: bool

    @classmethod
    def for_settings(cls, settings: EdgeSettings) -> type[Edge]:
        return type("Edge", (cls,), {"settings": settings, "census": Counter(), "leaving": False})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._phase = _IDLE
        self._since = self._progress = 0.0
        self._size = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._refusal: Refusal | None = None
        self._peer = ""
        self._lost = False
        self._on_lost: Callable[[], None] | None = None
        self._piece = b""  # what is being parsed just now
        self._upgraded = False  # whether a socket has taken over the connection
        self._ignoring = False  # whether the request at hand wishes for another protocol, and shall not have it

    # --- connection -----------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._peer = self.client[0] if self.client else ""
        self.census[_ALL] += 1
        self.census[self._peer] += 1
        settings = self.settings
        if self.census[_ALL] > settings.max_connections:
            self._refuse(503, "too many connections", retry_after=1.0)
        elif self.census[self._peer] > settings.max_connections_per_address:
            self._refuse(503, "too many connections from this address", retry_after=1.0)
        else:
            self._wait_for_a_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._writes_again()
        _leave(self.census, self._peer)
        self._lost = True
        super().connection_lost(exc)
        if self._on_lost is not None:
            self._on_lost()

    def when_left(self, call: Callable[[], None] | None) -> None:
        """Have `call` called when the connection is gone, which it may be already; None takes that back."""
        self._on_lost = call
        if call is not None and self._lost:
            call()

    def leave(self) -> None:
        """Say on the answer that is still to begin, if there is one, that it is the last on this connection."""
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None:
            return
        self._piece = data
        super().data_received(data)
        self._piece = b""
        if self._upgraded:
            return
        # A request that came in one piece is complete by now: only unfinished ones cost a timer.
        if self._phase == _IDLE:
            if self.cycle is None or self.cycle.response_complete:
                self._wait_for_a_request()
            elif self._deadline is not None:
                self._disarm()
        else:
            self._progress = self.loop.time()
            if self._deadline is None or self._since == 0.0:
                self._disarm()
                self._since = self._progress
                self._arm()

    def handle_websocket_upgrade(self) -> None:
        self._phase = _IDLE
        self._disarm()
        # The socket's protocol cannot read these, and would say nothing.
        if not self.url.isascii() or any(name in _BODY_HEADERS for name, _ in self.headers):
            self._refuse(400, "the request is not a valid WebSocket handshake")
            return
        super().handle_websocket_upgrade()
        # From here on the transport tells the socket when the connection ends, and nobody else.
        socket = self.transport.get_protocol()
        assert isinstance(socket, Socket)
        # It keeps nothing of this object: that would cost as much again for every open socket.
        socket.lost = partial(_leave, self.census, self._peer)
        self._upgraded = True
        ended = cast("HttpParserUpgrade", sys.exception())
        if ahead := self._piece[ended.args[0] :]:
            socket.data_received(ahead)
        base: Any = self
        base.parser = base.scope = None  # both hold this object

    def _should_upgrade(self) -> bool:
        # RFC 6455 4.1: a handshake is a GET; on any other method the wish is ignored.
        return self.parser.get_method() == b"GET" and super()._should_upgrade()

    def _unsupported_upgrade_warning(self) -> None:
        # The parser takes what stands behind the headers for another protocol, and would take a body for the next
        # request. RFC 9110 7.8 lets a server ignore the wish: the same request is read again without it.
        ended = cast("HttpParserUpgrade", sys.exception())
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self._ignoring = False
        self.parser = HttpRequestParser(self)
        super().data_received(b"\r\n".join(lines) + b"\r\n\r\n" + self._piece[ended.args[0] :])

    # --- framing --------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        # With what is uvicorn's, which would be one call more for each request.
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._phase = _HEADERS
        self._since = 0.0
        self._size = 0

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > self.settings.max_target:
            self._break(414, f"the request target is longer than {self.settings.max_target} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        # As uvicorn's, which would be one call more for each header.
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        headers, settings = self.headers, self.settings
        headers.append((name, value))
        self._size = size = self._size + len(name) + len(value) + 4
        if size > settings.max_header_bytes or len(headers) > settings.max_headers:
            self._break(431, "the request headers are too large")

    def on_headers_complete(self) -> None:
        parser = self.parser
        method, version = parser.get_method(), parser.get_http_version()
        found = fault(self.headers, method, version, self.settings.allowed_hosts)
        if found is not None:
            self._break(*found)
        if parser.should_upgrade() and not self._should_upgrade():
            self._ignoring = True
            return
        self.begin(method, version)
        if self.leaving and self.cycle is not None:
            self.cycle.keep_alive = False
        self._phase = _BODY
        self._since = 0.0

    def on_message_complete(self) -> None:
        if self._ignoring:
            return
        self._phase = _IDLE
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if self._refusal is None:
            self._refusal = of_edge(400, "the request is not valid HTTP/1.1")
        self._answer(self._refusal)

    # --- deadlines ------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(self.settings.write_idle, self._stall)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._writes_again()

    def _arm(self) -> None:
        self._deadline = self.loop.call_later(self._left(), self._check)

    def _left(self) -> float:
        settings = self.settings
        now = self.loop.time()
        if self._phase == _HEADERS:
            return self._since + settings.headers - now
        return min(self._progress + settings.body_idle, self._since + settings.body_total) - now

    def _check(self) -> None:
        self._deadline = None
        if self._phase == _IDLE or self.transport.is_closing():
            return
        # While we ourselves do not read (the handler is slow), the client cannot make progress.
        if self.flow.read_paused:
            self._progress = self._since = self.loop.time()
        if self._left() > 0.001:
            self._arm()
            return
        if self.cycle is not None and self.cycle.response_started:
            self.transport.abort()
        else:
            self._refuse(408, "the request did not come in time")

    def _wait_for_a_request(self) -> None:
        """Give the first byte of a request its time; empty lines, which may stand before one, win none."""
        if self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(self.settings.first_byte, self._silent)

    def _silent(self) -> None:
        self._deadline = None
        if self._phase == _IDLE and not self.transport.is_closing():
            self.transport.close()

    def _stall(self) -> None:
        # A peer that takes nothing for so long would hold memory and a turn for as long as it likes.
        self.transport.abort()

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _writes_again(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    # --- refusals -------------------------------------------------------------------------------

    def _break(self, status: int, message: str) -> None:
        """Stop parsing: the parser turns what is raised here into a call of `send_400_response`."""
        self._refusal = of_edge(status, message)
        raise ValueError(message)

    def _refuse(self, status: int, message: str, retry_after: float | None = None) -> None:
        self._refusal = of_edge(status, message, retry_after)
        self._answer(self._refusal)

    def _answer(self, refusal: Refusal) -> None:
        self._phase = _IDLE
        self._disarm()
        if self.cycle is not None and not self.cycle.response_complete:
            if self.cycle.response_started or self.pipeline:
                # An answer is on its way on this connection: its bytes and ours must not mix.
                self.transport.abort()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write(written(refusal))
        self.transport.close()


def _leave(census: Counter[str], peer: str) -> None:
    census[_ALL] -= 1
    census[peer] -= 1
    if not census[peer]:
        del census[peer]
