"""uvicorn's WebSocket protocol, with ends that always come: a peer that does not read or answer is cut off.

It decides no close code that the gateway could decide; it only sees to it that a decided end is carried out.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode
from websockets.protocol import State

from openclaw_gateway.refusals import of_edge, written

#: how long a peer may take to read our close frame and to answer it
_CLOSING = 5.0
#: bytes in the transport past which a sender waits: the queue that is counted stands before it, the kernel's behind
_BUFFER = 0
#: bytes that a client may send ahead of our answer to its handshake before it is read no further
_AHEAD = 64 * 1024
#: bytes that are parsed in one turn of the loop: these may be 2,700 frames of nothing, and all others wait for them
_SLICE = 16 * 1024
#: fragments of one message; an empty one costs a client six bytes, and us a place in a list
_FRAGMENTS = 4096
#: answers to protocol pings that may wait for a peer that takes none before it is read no further
_PONGS = 64


class Socket(WebSocketsSansIOProtocol):
    """One connection. After the close frame was sent, nothing that the peer does keeps it open."""

    #: told when the connection has ended
    lost: Callable[[], None] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.close_timeout = _CLOSING
        self._failed = False
        #: what came and is not parsed yet: behind a handshake that is not answered, or more than one slice
        self._ahead = b""
        #: pongs that were written since the peer has last taken all that was
        self._pongs = 0
        # An idle connection is one of thousands, and each empty deque of the base's takes 600 bytes of it.
        base: Any = self
        base.queue = _Inbox()
        base.writable = _Gate()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=_BUFFER)

    async def send(self, message: Any) -> None:
        if message["type"] == "websocket.send":
            await self.writable.wait()  # meanwhile it may have failed
        if self._failed:
            # The peer broke the protocol and was told; what the gateway still had for it is nobody's fault.
            if message["type"] == "websocket.send":
                raise ClientDisconnected
            return
        if message["type"] != "websocket.close":
            await super().send(message)
            if message["type"] == "websocket.accept":
                self._let_in()
            elif message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
                self.handshake_complete = True  # it was refused; the base would log that as an error of ours
            return
        # The base waits until the peer has read what was sent before; one that never reads would never be closed.
        self.writable.set()
        await super().send(message)
        if self.close_timer is not None:
            self.close_timer.cancel()
            self.close_timer = self.loop.call_later(self.close_timeout, self.transport.abort)
            self._read_on()  # the peer's own close stands behind what it sent before

    async def receive(self) -> Any:
        message = await self.queue.get()
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            self._read_on()
        return message

    def connection_lost(self, exc: Exception | None) -> None:
        if self.lost is not None:
            self.lost()
        super().connection_lost(exc)

    def _let_in(self) -> None:
        # The handshake is over; thousands of sockets would keep theirs, the parser within its stack too.
        del self.request, self.response
        if self.conn.state is not State.OPEN:
            return  # the peer left meanwhile
        self.conn.parser = self.conn.parse()
        next(self.conn.parser)
        if self._ahead:
            self._go_on()

    def data_received(self, data: bytes) -> None:
        if self._failed:
            return
        if self._ahead or (self.handshake_initiated and not self.handshake_complete):
            # A client should have waited (RFC 6455 4.1). Nothing of it is read, or answered, before it is let in.
            self._ahead += data
            if len(self._ahead) > _AHEAD:
                self.transport.pause_reading()
            return
        if len(data) > _SLICE and self.handshake_complete:
            data, self._ahead = data[:_SLICE], data[_SLICE:]
            self.transport.pause_reading()
            self.loop.call_soon(self._go_on)
        super().data_received(data)
        if not self.handshake_initiated and self.conn.handshake_exc is not None:
            # The base would wait for a handshake that can no more come, with no deadline.
            self._failed = True
            self.transport.write(written(of_edge(400, "the request is not a valid WebSocket handshake")))
            self.transport.close()

    def _read_on(self) -> None:
        if self._ahead:
            self.loop.call_soon(self._go_on)
        elif not self._held_up():
            self.transport.resume_reading()

    def _go_on(self) -> None:
        """Parse what waits, a slice of it; then read again, unless the application or the peer is behind."""
        if self._held_up():
            return  # what holds it up calls again
        ahead, self._ahead = self._ahead, b""
        self.data_received(ahead)
        if not self._ahead and not self._held_up():
            self.transport.resume_reading()

    def _held_up(self) -> bool:
        return self.read_paused or self._pongs > _PONGS or self._failed or self.transport.is_closing()

    def resume_writing(self) -> None:
        super().resume_writing()
        behind, self._pongs = self._pongs > _PONGS, 0
        if behind:
            self._read_on()

    def handle_ping(self) -> None:
        if self._failed:
            return  # it came in the same bytes as what broke the protocol, and our side has ended
        super().handle_ping()
        if not self.writable.is_set():
            self._pongs += 1
            if self._pongs > _PONGS:
                self.transport.pause_reading()

    def handle_cont(self, event: Any) -> None:
        if len(self.frames) < _FRAGMENTS:
            super().handle_cont(event)
        elif not self._failed:
            self._end(CloseCode.MESSAGE_TOO_BIG, "too many fragments")

    def send_receive_event_to_app(self) -> None:
        data = self.frames[0] if len(self.frames) == 1 else b"".join(self.frames)
        self.frames = []
        if self.close_sent:
            return
        if self.curr_msg_data_type == "text":
            try:
                text = data.decode()
            except UnicodeDecodeError:
                self._end(CloseCode.INVALID_DATA)
                return
            self.queue.put_nowait({"type": "websocket.receive", "text": text})
        else:
            self.queue.put_nowait({"type": "websocket.receive", "bytes": data})
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def _end(self, code: CloseCode, reason: str = "") -> None:
        """Close for what only the whole of a message shows to be wrong."""
        if self.conn.state is State.OPEN:
            self.conn.send_close(code, reason)
            self.handle_parser_exception()
            return
        # The peer's own close came right behind, and is answered already: the base would fail to say more.
        self._failed = self.close_sent = True
        self.stop_keepalive()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.transport.close()

    def handle_parser_exception(self) -> None:
        """The peer broke the protocol: say so, and give it time to read that.

        Closing with bytes of the peer unread resets the connection, and the close frame would be lost with it.
        """
        self._failed = True
        self.stop_keepalive()
        assert self.conn.close_sent is not None
        self.queue.put_nowait({"type": "websocket.disconnect", "code": self.conn.close_sent.code})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        if self.transport.can_write_eof():
            with suppress(OSError):  # the peer may have reset the connection, and the kernel knows before we do
                self.transport.write_eof()
        self._ahead = b""
        self.read_paused = False
        self.transport.resume_reading()
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.abort)

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        # What a dead peer never acknowledged would keep a closed transport for many minutes.
        self.loop.call_later(self.close_timeout, self.transport.abort)


class _Inbox:
    """What the application has not taken yet; it takes from one task. Room is made only while something waits."""

    __slots__ = ("_items", "_taker")

    def __init__(self) -> None:
        self._items: deque[Any] | None = None
        self._taker: asyncio.Future[None] | None = None

    def put_nowait(self, item: Any) -> None:
        if self._items is None:
            self._items = deque()
        self._items.append(item)
        if self._taker is not None and not self._taker.done():
            self._taker.set_result(None)

    def empty(self) -> bool:
        return self._items is None

    async def get(self) -> Any:
        while self._items is None:
            self._taker = asyncio.get_running_loop().create_future()
            try:
                await self._taker
            finally:
                self._taker = None
        item = self._items.popleft()
        if not self._items:
            self._items = None
        return item


class _Gate:
    """An event that is set nearly always, and costs nothing while it is."""

    __slots__ = ("_shut",)

    def __init__(self) -> None:
        self._shut: asyncio.Event | None = None

    def is_set(self) -> bool:
        return self._shut is None

    def set(self) -> None:
        if self._shut is not None:
            self._shut.set()
            self._shut = None

    def clear(self) -> None:
        if self._shut is None:
            self._shut = asyncio.Event()

    async def wait(self) -> None:
        while self._shut is not None:
            await self._shut.wait()
