"""The way out of one exchange: the wrapper around the server's `send`, and what a client may know of a fault."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from litestar import Request
from litestar import Response as LitestarResponse
from litestar.exceptions import HTTPException

from openclaw_gateway.answers import misanswered
from openclaw_gateway.decoding import Disconnected
from openclaw_gateway.errors import Refused, StoreUnavailable, UpstreamFailed
from openclaw_gateway.exchange import CONTROLS, Exchange, Reply, ResponseHead
from openclaw_gateway.facts import REQUEST_ID
from openclaw_gateway.refusals import Refusal, bad_request, internal_error, not_found, unavailable

logger = logging.getLogger("openclaw.response")

_LENGTH = b"content-length"

Message = dict[str, Any]
Send = Callable[[Any], Awaitable[None]]


class Response:
    """The way out: wraps the server's `send`, calls `on_response` and `on_chunk`, counts, and settles in time.

    Where quotas are held, the start of the response waits for its body: the charge is committed before the last
    byte, so that what a client was told is done is also accounted for.
    """

    __slots__ = ("_held", "_send", "_timing", "_x", "entered", "finished", "started")

    def __init__(self, x: Exchange, send: Send, timing: bool) -> None:
        self._timing = timing
        self._x = x
        self._send = send
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
        if self._x.method == "HEAD":
            body = b""
        self._held = None
        await self._settle(status)
        if self._x.guard is not None:
            self._x.guard.started(status, headers)
            self._x.guard.chunk(body)
            await self._x.guard.leave()
        await self._begin({"status": status, "headers": headers}, heard=True)
        body = self._replaced(body)
        self._x.outcome.bytes_sent += len(body)
        await self._send({"type": "http.response.body", "body": body})
        self.finished = True

    async def _begin(self, message: Message, *, heard: bool = False) -> None:
        """Send the start of a response; once more, without what a plugin put there that no server can send.

        `heard` says that the guard knows of it.
        """
        self._held = None
        headers = list(message.get("headers") or ())
        if self._x.guard is not None and not heard:
            self._x.guard.started(message["status"], list(headers))
        headers = self._headed(message["status"], headers)
        self.started = True
        message = {"type": "http.response.start", "status": self._x.outcome.status, "headers": headers}
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

    def _rendered(self, reply: Reply | Refusal) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        if isinstance(reply, Reply):
            return reply.status, list(reply.headers), reply.body
        noted(self._x, reply)
        headers, body = reply.render(self._x.path, self._x.get(REQUEST_ID), self._x.route.route.surface)
        return reply.status, headers, body

    def _headed(self, status: int, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
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


def refusal_of(error: BaseException) -> Refusal:
    """Say what a client may know of an exception."""
    if isinstance(error, Refused):
        return error.refusal
    if isinstance(error, Disconnected):
        return bad_request("the request was not whole")
    if isinstance(error, StoreUnavailable):
        return unavailable(f"the {error.store} does not answer; try again shortly")
    if isinstance(error, UpstreamFailed):
        return Refusal(
            status=error.status,
            code=error.code,
            type=error.type,
            message=str(error),
            param=error.param,
            retry_after=error.retry_after,
        )
    if isinstance(error, HTTPException):
        if error.status_code == 404:
            return not_found("no such route")
        if 400 <= error.status_code < 500:
            param, message = _first_problem(error)
            return bad_request(message, param=param)
    return internal_error()


def render_error(request: Request[Any, Any, Any], error: Exception) -> LitestarResponse[bytes]:
    """Turn what a handler raised into the one error body; called by Litestar before a response has started."""
    scope: Any = request.scope
    x: Exchange = scope["exchange"]
    if isinstance(error, Disconnected):
        x.outcome.disconnected = True  # nobody is there to read what we answer
    refusal = noted(x, refusal_of(error))
    if refusal.status >= 500:
        x.outcome.error = error
        if refusal.status == 500:
            log_fault(x, error)
    headers, body = refusal.render(x.path, x.get(REQUEST_ID), x.route.route.surface)
    given = {name.decode(): value.decode() for name, value in headers if name != b"content-length"}
    return LitestarResponse(body, status_code=refusal.status, headers=given, media_type=given.pop("content-type"))


def log_fault(x: Exchange, error: BaseException) -> None:
    """Write the cause of a 500, under the request id that the client was given."""
    fields = {"requestId": x.get(REQUEST_ID), "route": x.route.route.path, "method": x.method}
    logger.error("request failed", exc_info=error, extra={"fields": fields})


def noted(x: Exchange, refusal: Refusal) -> Refusal:
    x.refusal = refusal
    x.outcome.error_code = refusal.code
    return refusal


def _first_problem(error: HTTPException) -> tuple[str | None, str]:
    """Read Litestar's validation error of a query or path parameter, without the value that it quotes."""
    extra: Any = error.extra
    if isinstance(extra, list) and extra and isinstance(extra[0], dict):
        key = extra[0].get("key")
        if key:
            return str(key), f"{key}: not a valid value"
    return None, "the request cannot be understood"
