"""uvicorn's WebSocket protocol, with ends that always come: a peer that does not read or answer is cut off.

It decides no close code that the gateway could decide; it only sees to it that a decided end is carried out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

#: how long a peer may take to read our close frame and to answer it
_CLOSING = 5.0
#: bytes in the transport past which a sender waits; the queue that is counted stands before it
_BUFFER = 16 * 1024
_UNREADABLE = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Socket(WebSocketsSansIOProtocol):
    """One connection. After the close frame was sent, nothing that the peer does keeps it open."""

    #: told when the connection has ended
    lost: Callable[[], None] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.close_timeout = _CLOSING
        self._failed = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=_BUFFER)

    async def send(self, message: Any) -> None:
        if message["type"] != "websocket.close":
            await super().send(message)
            if message["type"] == "websocket.accept":
                del self.response  # it has been sent, and thousands of sockets would keep theirs
            elif message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
                self.handshake_complete = True  # it was refused; the base would log that as an error of ours
            return
        # The base waits until the peer has read what was sent before; one that never reads would never be closed.
        self.writable.set()
        await super().send(message)
        if self.close_timer is not None:
            self.close_timer.cancel()
            self.close_timer = self.loop.call_later(self.close_timeout, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.lost is not None:
            self.lost()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._failed:
            return
        super().data_received(data)
        if not self.handshake_initiated and self.conn.handshake_exc is not None:
            # The base would wait for a handshake that can no more come, with no deadline.
            self._failed = True
            self.transport.write(_UNREADABLE)
            self.transport.close()

    def handle_parser_exception(self) -> None:
        """The peer broke the protocol: say so, and give it time to read that.

        Closing with bytes of the peer unread resets the connection, and the close frame would be lost with it.
        """
        assert self.conn.close_sent is not None
        self._failed = True
        self.stop_keepalive()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": self.conn.close_sent.code})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.abort)

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        # What a dead peer never acknowledged would keep a closed transport for many minutes.
        self.loop.call_later(self.close_timeout, self.transport.abort)
