"""The way out of one exchange: the wrapper around the server's `send`, which every answer passes."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from openclaw_gateway.answers import misanswered
from openclaw_gateway.exchange import CONTROLS, Exchange, Headers, Reply, ResponseHead
from openclaw_gateway.facts import REQUEST_ID
from openclaw_gateway.faults import noted
from openclaw_gateway.refusals import Refusal

logger = logging.getLogger("openclaw.response")

_LENGTH = b"content-length"

Message = dict[str, Any]
Send = Callable[[Any], Awaitable[None]]


class AtOnce(Protocol):
    """What our own server offers beside `send`: to write without a coroutine, where nothing has to wait."""

    def whole(self, status: int, headers: Headers, body: bytes) -> bool:
        """Write an answer that is whole already; False where only `send` can, which waits or says what is wrong."""
        ...

    def takes(self) -> bool:
        """Whether a piece of the body can leave at once."""
        ...

    def piece(self, data: bytes) -> bool:
        """Write a piece of a body that goes on; False where it cannot leave at once, and has not."""
        ...


class Response:
    """The way out: wraps the server's `send`, calls `on_response` and `on_chunk`, counts, and settles in time.

    Where quotas are held, the start of the response waits for its body: the charge is committed before the last
    byte, so that what a client was told is done is also accounted for.
    """

    __slots__ = ("_held", "_send", "_server", "_timing", "_x", "entered", "finished", "started")

    def __init__(self, x: Exchange, send: Send, timing: bool) -> None:
        self._timing = timing
        self._x = x
        self._send = send
        server: Any = send
        self._server: AtOnce | None = server if hasattr(send, "whole") else None
        self._held: Message | None = None
        #: how many steps of the pipeline the request has entered
        self.entered = 0
        self.started = False
        self.finished = False

    async def __call__(self, message: Message) -> None:
        kind = message["type"]
        x = self._x
        if kind == "http.response.body":
            last = not message.get("more_body", False)
            if last and x.receipt is not None and x.receipt.pending:
                await self._settle(self._held["status"] if self._held is not None else x.outcome.status)
            if self._held is not None:
                await self._begin(self._held)
            data = message.get("body", b"")
            if x.guard is not None:
                x.guard.chunk(data)
                if last:
                    await x.guard.leave()
            if x.route.chunk and (replaced := self._replaced(data)) is not data:
                data = replaced
                message = {**message, "body": data}
            x.outcome.bytes_sent += len(data)
            await self._send(message)
            if last:
                self.finished = True
        elif kind == "http.response.start":
            if x.receipt is not None and x.receipt.pending:
                self._held = message
            else:
                await self._begin(message)
        else:
            if kind == "websocket.accept":
                self.started = True
                message = {**message, "headers": self._headed(101, list(message.get("headers") or []))}
            elif kind == "websocket.http.response.start":
                self.finished = True
                message = {**message, "headers": self._headed(message["status"], list(message.get("headers") or []))}
            elif kind == "websocket.close":
                self.finished = True
            await self._send(message)

    async def answer(self, reply: Reply | Refusal) -> None:
        """Send a whole response in place of the handler's."""
        status, headers, body = self._rendered(reply)
        self._held = None
        await self.whole(status, headers, b"" if self._x.method == "HEAD" else body)

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Send an answer that is whole already: its start and its body in one step."""
        x = self._x
        if x.receipt is not None and x.receipt.pending:
            await self._settle(status)
        if x.guard is not None:
            x.guard.started(status, list(headers))
            x.guard.chunk(body)
            await x.guard.leave()
        headers = self._headed(status, headers)
        status = x.outcome.status
        if x.route.chunk:
            body = self._replaced(body)
        x.outcome.bytes_sent += len(body)
        self.started = True
        if self._server is None or not self._server.whole(status, headers, body):
            await self._sent({"type": "http.response.start", "status": status, "headers": headers})
            await self._send({"type": "http.response.body", "body": body})
        self.finished = True

    def piece(self, data: bytes) -> bool:
        """Send a piece of a body that has begun and goes on; False where it cannot leave at once, and has not."""
        server = self._server
        if server is None:
            return False
        x = self._x
        if x.guard is not None or x.route.chunk:
            if not server.takes():
                return False  # before anybody has seen it: he would see it twice
            if x.guard is not None:
                x.guard.chunk(data)
            data = self._replaced(data)
        if not server.piece(data):
            return False
        x.outcome.bytes_sent += len(data)
        return True

    async def _begin(self, message: Message) -> None:
        """Pass the start of a response through `on_response` and send it."""
        self._held = None
        headers = list(message.get("headers") or ())
        if self._x.guard is not None:
            self._x.guard.started(message["status"], list(headers))
        headers = self._headed(message["status"], headers)
        self.started = True
        await self._sent({"type": "http.response.start", "status": self._x.outcome.status, "headers": headers})

    async def _sent(self, message: Message) -> None:
        """Send the start of a response; once more, without what a plugin put there that no server can send."""
        try:
            await self._send(message)
        except (TypeError, ValueError, LookupError, RuntimeError):
            kept = sendable(message, self._x)
            if kept == message:
                raise
            await self._send(kept)

    def _replaced(self, data: bytes) -> bytes:
        for call in self._x.route.chunk:
            if call.index < self.entered:
                replaced = call.function(self._x, data)
                if replaced is not None:
                    if not isinstance(replaced, bytes):
                        raise misanswered(f"on_chunk of {call.step.id!r}", replaced, "bytes or None")
                    data = replaced
        return data

    async def deny(self, reply: Reply | Refusal) -> None:
        """Refuse a WebSocket handshake before accept, as an HTTP answer where the server can."""
        status, headers, body = self._rendered(reply)
        self.finished = True
        if "websocket.http.response" in (self._x.scope.get("extensions") or {}):
            headers = self._headed(status, headers)
            await self._send({"type": "websocket.http.response.start", "status": status, "headers": headers})
            await self._send({"type": "websocket.http.response.body", "body": body})
        else:
            await self._send({"type": "websocket.close", "code": 1008, "reason": ""})

    def _rendered(self, reply: Reply | Refusal) -> tuple[int, Headers, bytes]:
        if isinstance(reply, Reply):
            return reply.status, list(reply.headers), reply.body
        noted(self._x, reply)
        headers, body = reply.render(self._x.path, self._x.get(REQUEST_ID), self._x.route.route.surface)
        return reply.status, headers, body

    def _headed(self, status: int, headers: Headers) -> Headers:
        x = self._x
        head = ResponseHead(status, headers)
        for call in x.route.response:
            if call.index < self.entered:
                try:
                    call.function(x, head)
                except Exception as error:
                    logger.error("on_response of %s failed", call.step.id, exc_info=error)
        if self._timing and x.timings is not None:
            shown = ", ".join(f"{stage};dur={seconds * 1000:.3f}" for stage, seconds in x.timings.items())
            head.set(b"server-timing", shown.encode())
        x.outcome.status = head.status
        return head.headers

    async def _settle(self, status: int) -> None:
        """Resolve what is held before the last byte, so that a client never sees an answer ahead of its charge."""
        receipt = self._x.receipt
        if receipt is None or not receipt.pending:
            return
        if status < 400:
            await receipt.commit()
        else:
            await receipt.void()


def send_whole(send: Send, status: int, headers: Headers, body: bytes) -> Awaitable[None]:
    """Send an answer that is whole already: in one step where `send` is a route's own way out, else in ASGI's two."""
    return send.whole(status, headers, body) if isinstance(send, Response) else _in_two(send, status, headers, body)


async def _in_two(send: Send, status: int, headers: Headers, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def piecewise(send: Send) -> Callable[[bytes], bool]:
    """Return what sends a piece of a body that has begun and goes on.

    It returns False where only awaiting `send` can, and then has sent nothing.
    """
    return send.piece if isinstance(send, Response) else _never


def _never(data: bytes) -> bool:
    return False


def sendable(message: Message, x: Exchange) -> Message:
    """Leave out of the start of a response what cannot be sent, and log what that is and whose it may be."""
    blamed = (
        f"of the handler of {x.route.route.path}, or of on_response of {[call.step.id for call in x.route.response]}"
    )
    headers: list[Any] = []
    for header in message["headers"]:
        if _fits(header) and not (header[0] == _LENGTH and any(name == _LENGTH for name, _ in headers)):
            headers.append(header)
        else:
            name = header[0] if isinstance(header, tuple) and header else header
            logger.error("a header that cannot be sent is left out: %.100r, %s", name, blamed)
    status = message["status"]
    if type(status) is not int or not 200 <= status <= 599:
        logger.error("a status that cannot be sent is a 500 now: %.100r, %s", status, blamed)
        status = x.outcome.status = 500
    return {**message, "status": status, "headers": headers}


def _fits(header: Any) -> bool:
    match header:
        case (bytes(name), bytes(value)):
            whole = name + value
            return whole == whole.translate(None, CONTROLS) and (name != _LENGTH or value.isdigit())
    return False
