"""The way in which answers leave the server: the head with the first of its body, in one write.

uvicorn writes the two apart, and looks at every header by two regular expressions; with the headers of a gateway that
costs as much as the limits do. What is checked here is the same: nothing can end a header, or begin another.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from openclaw_gateway.exchange import CONTROLS

#: every byte that may stand in a head, with its line ends
_MAY_STAND = bytes(byte for byte in range(256) if byte not in CONTROLS or byte in b"\r\n")
#: headers by which the server itself goes
_READ = frozenset((b"content-length", b"transfer-encoding", b"connection"))


class Sender:
    """ASGI's `send` for one request of uvicorn's."""

    __slots__ = ("_cycle", "_head")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._head = b""

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        cycle = self._cycle
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if cycle.disconnected:
            return
        kind = message["type"]
        if not cycle.response_started:
            if kind != "http.response.start":
                raise RuntimeError(f"expected the start of a response, and got {kind!r}")
            self._start(message)
        elif kind != "http.response.body" or cycle.response_complete:
            raise RuntimeError(f"{kind!r} does not follow what was sent")
        else:
            self._go_on(message.get("body", b""), last=not message.get("more_body", False))

    def _start(self, message: MutableMapping[str, Any]) -> None:
        cycle = self._cycle
        status = message["status"]
        headers = [*cycle.default_headers, *message.get("headers", ())]
        closes, length, chunked = False, None, None
        for name, value in headers:
            if name not in _READ:
                continue
            if name == b"content-length":
                if length is not None:
                    raise RuntimeError("the response says two lengths")
                length = int(value)
                chunked = bool(chunked)
            elif name == b"transfer-encoding" and value.lower() == b"chunked":
                chunked = True
            elif name == b"connection" and b"close" in [token.strip() for token in value.lower().split(b",")]:
                closes = True
        if not cycle.keep_alive and not closes:
            headers.append((b"connection", b"close"))
        if chunked is None and cycle.scope["method"] != "HEAD" and status not in (204, 304):
            chunked = True
            headers.append((b"transfer-encoding", b"chunked"))
        parts: list[bytes] = []
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
        lines = b"".join(parts)
        if lines.count(b"\r\n") != len(headers) or lines.count(b"\r") + lines.count(b"\n") != 2 * len(headers):
            raise RuntimeError("a header of the response holds a line end")
        if lines.translate(None, _MAY_STAND):
            raise RuntimeError("a header of the response holds a control character")
        self._head = b"%b%b\r\n" % (STATUS_LINE[status], lines)
        # Only now: whoever was told that it cannot be sent so may begin again.
        cycle.response_started = True
        cycle.chunked_encoding = chunked
        cycle.expected_content_length = 0 if chunked else length or 0
        if closes:
            cycle.keep_alive = False
        cycle.waiting_for_100_continue = False

    def _go_on(self, body: bytes, *, last: bool) -> None:
        cycle = self._cycle
        if cycle.scope["method"] == "HEAD":
            cycle.expected_content_length = 0
            data = b""
        elif cycle.chunked_encoding:
            data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if last:
                data += b"0\r\n\r\n"
        else:
            cycle.expected_content_length -= len(body)
            if cycle.expected_content_length < 0:
                raise RuntimeError("the response is longer than its content-length")
            data = body
        if self._head:
            data = self._head + data
            self._head = b""
        if data:
            cycle.transport.write(data)
        if last:
            if cycle.expected_content_length:
                raise RuntimeError("the response is shorter than its content-length")
            cycle.response_complete = True
            cycle.message_event.set()
            if not cycle.keep_alive:
                cycle.transport.close()
            cycle.on_response()
