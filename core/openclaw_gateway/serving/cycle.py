"""One request and its answer on a connection: uvicorn's, with a way out that writes head and body at once.

uvicorn writes the two apart, and looks at every header by two regular expressions; with the headers of a gateway that
costs as much as the limits do. What is checked here is the same: nothing can end a header, or begin another.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from openclaw_gateway.exchange import CONTROLS
from openclaw_gateway.refusals import internal_error, written

_STATUS = {status: line.removesuffix(b"\r\n") for status, line in STATUS_LINE.items()}
#: every byte that may stand in a header
_ORDINARY = bytes(byte for byte in range(256) if byte not in CONTROLS)
#: headers by which the server itself goes
_READ = frozenset((b"content-length", b"transfer-encoding", b"connection"))


class Cycle(RequestResponseCycle):
    """ASGI's `receive` and `send` for one request. `on_response` is called once the answer is written.

    An event of asyncio's for what comes would be made for every request, and nearly none waits for its body.
    """

    def __init__(  # as the base's, without what only its own `send` needs: this is made for every request
        self,
        scope: Any,
        transport: asyncio.Transport,
        flow: FlowControl,
        logger: logging.Logger,
        default_headers: Sequence[tuple[bytes, bytes]],
        on_response: Callable[[], None],
        tasks: set[asyncio.Task[None]],
        *,
        expects: bool,
        keep_alive: bool,
    ) -> None:
        self.scope = scope
        self.transport = transport
        self.flow = flow
        self.logger = logger
        #: whether something has come that `receive` has not told, and who waits for that
        self.come = False
        self.waiters: list[asyncio.Future[None]] = []
        self.on_response = on_response
        self.disconnected = False
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = expects
        self.body = bytearray()
        self.more_body = True
        self.response_started = False
        self.response_complete = False
        self.chunked_encoding = None
        self.expected_content_length = 0
        self._default_headers = default_headers
        self._tasks = tasks
        self._head = b""

    @property
    def message_event(self) -> Any:  # type: ignore[override]
        """What uvicorn sets when the connection is lost."""
        return self

    def set(self) -> None:
        """Wake who waits in `receive`."""
        self.come = True
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)
        self.waiters.clear()

    def over(self, task: asyncio.Task[None]) -> None:
        """Look at how the application's task has ended: what it has left undone ends the connection."""
        self._tasks.discard(task)
        self.on_response = _nothing  # the connection's, which holds this object
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.logger.error("Exception in ASGI application\n", exc_info=error)
        if self.response_complete or self.disconnected:
            return
        if error is None:
            self.logger.error("the application has returned without a whole response")
        if not self.response_started:
            self.transport.write(written(internal_error()))
        self.transport.close()

    async def receive(self) -> Any:
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if self.flow.read_paused and not self.disconnected and not self.response_complete:
            self.flow.resume_reading()
        while not (self.come or self.disconnected or self.response_complete):
            waiter = asyncio.get_running_loop().create_future()
            self.waiters.append(waiter)
            await waiter
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        self.come = False
        body, self.body = bytes(self.body), bytearray()
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def send(self, message: MutableMapping[str, Any]) -> None:  # type: ignore[override]
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if not self.response_started:
            if kind != "http.response.start":
                raise RuntimeError(f"expected the start of a response, and got {kind!r}")
            self._start(message["status"], message.get("headers", ()))
        elif kind != "http.response.body" or self.response_complete:
            raise RuntimeError(f"{kind!r} does not follow what was sent")
        else:
            self._go_on(message.get("body", b""), last=not message.get("more_body", False))

    #: what an application is given to send by
    __call__ = send

    def whole(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bool:
        """Write an answer that is whole already; False where only `send` can, which waits or says what is wrong."""
        if self.disconnected:
            return True
        if self.flow.write_paused or self.response_started:
            return False
        try:
            self._start(status, headers)
        except Exception:  # noqa: BLE001 - whatever it is, `send` meets it again
            return False
        self._go_on(body, last=True)
        return True

    def takes(self) -> bool:
        """Whether a piece of the body can leave at once, by `piece`."""
        return self.response_started and not self.response_complete and not self.flow.write_paused

    def piece(self, data: bytes) -> bool:
        """Write a piece of a body that goes on; False where it cannot leave at once, and has not."""
        if not self.response_started or self.response_complete or self.flow.write_paused:
            return False
        if not self.disconnected:
            self._go_on(data, last=False)
        return True

    def _start(self, status: int, given: Iterable[tuple[bytes, bytes]]) -> None:
        headers = [*self._default_headers, *given]
        closes, length, chunked = False, None, None
        for name, value in [(name, value) for name, value in headers if name in _READ]:
            if name == b"content-length":
                if length is not None:
                    raise RuntimeError("the response says two lengths")
                length = int(value)
                chunked = bool(chunked)
            elif name == b"transfer-encoding" and value.lower() == b"chunked":
                chunked = True
            elif name == b"connection" and b"close" in [token.strip() for token in value.lower().split(b",")]:
                closes = True
        if chunked is None:
            # No length was found, and one may stand there in capitals: two framings of one answer are none.
            names = b"\n".join([name for name, _ in headers])
            if names != names.lower():
                self._start(status, [(name.lower(), value) for name, value in headers[len(self._default_headers) :]])
                return
        if not self.keep_alive and not closes:
            headers.append((b"connection", b"close"))
        if chunked is None and self.scope["method"] != "HEAD" and status not in (204, 304):
            chunked = True
            headers.append((b"transfer-encoding", b"chunked"))
        head = b"\r\n".join([_STATUS[status], *map(b": ".join, headers)])
        if head.translate(None, _ORDINARY) != b"\r\n" * len(headers):
            raise RuntimeError("a header of the response holds a control character")
        self._head = head + b"\r\n\r\n"
        # Only now: whoever was told that it cannot be sent so may begin again.
        self.response_started = True
        self.chunked_encoding = chunked
        self.expected_content_length = 0 if chunked else length or 0
        if closes:
            self.keep_alive = False
        self.waiting_for_100_continue = False

    def _go_on(self, body: bytes, *, last: bool) -> None:
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
            data = b""
        elif self.chunked_encoding:
            data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if last:
                data += b"0\r\n\r\n"
        else:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0:
                raise RuntimeError("the response is longer than its content-length")
            data = body
        if self._head:
            data = self._head + data
            self._head = b""
        if data:
            self.transport.write(data)
        if last:
            if self.expected_content_length:
                raise RuntimeError("the response is shorter than its content-length")
            self.response_complete = True
            if self.waiters:
                self.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()


def _nothing() -> None:
    """What is to be done once a response is written, where it was done or never will be."""
