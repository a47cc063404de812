"""One call of an upstream from its first byte to its last: its times, span and numbers, and what its failure is called.

Whatever goes wrong within leaves as UpstreamFailed, in words that a client may read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Coroutine, Mapping
from typing import Any

import msgspec

from openclaw_gateway.api import ModelCall, UpstreamFailed, end_span, trace_headers, traced
from openclaw_plugins.providers.measures import UpstreamMeasures
from openclaw_plugins.providers.progress import Times
from openclaw_plugins.providers.spans import UpstreamSpans
from openclaw_plugins.providers.sse import EventTooLong
from openclaw_plugins.providers.transport import (
    Answer,
    ConnectionLost,
    ConnectTimeout,
    Malformed,
    Transport,
    TransportFailed,
    Unreachable,
)
from openclaw_plugins.providers.upstream_errors import broken, refused, timed_out

_LARGEST_ERROR = 65_536


class Callee(msgspec.Struct, frozen=True):
    """What all calls of one upstream share."""

    id: str
    transport: Transport
    #: alias of a model → seconds within which a connection has to be open
    connect_within: Mapping[str, float]
    secrets: tuple[str, ...]
    measures: UpstreamMeasures
    spans: UpstreamSpans
    logger: logging.Logger


class UpstreamCall:
    """One call, which has a good status or fails. At its end its connection is free again or closed."""

    __slots__ = (
        "_answer",
        "_body",
        "_call",
        "_callee",
        "_done",
        "_headers",
        "_operation",
        "_path",
        "_span",
        "_started",
        "times",
    )

    def __init__(
        self,
        callee: Callee,
        path: str,
        operation: str,
        call: ModelCall,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._callee = callee
        self._path = path
        self._operation = operation
        self._call = call
        self._body = call.body if body is None else body
        self._headers = headers
        self._answer: Answer | None = None
        self._done = False
        self._started = time.perf_counter()
        self._span = callee.spans.start(call, operation) if traced() else None
        #: who reads the answer says there when content has begun
        self.times = Times(call)

    def _asked(self) -> Coroutine[Any, Any, Answer]:
        """Return what sends the call and waits for the head of its answer."""
        callee, call = self._callee, self._call
        headers = {"Accept": "text/event-stream" if call.stream else "application/json"}
        if call.request_id is not None:
            headers["x-request-id"] = call.request_id
        if self._headers is not None:
            headers.update(self._headers)
        if self._span is not None:
            headers.update(trace_headers(self._span))
        return callee.transport.ask(
            self._path,
            headers,
            self._body,
            connect_within=callee.connect_within.get(call.model, call.first_byte_timeout),
            deadline=self.times.next_deadline(),
        )

    async def _refusal(self, answer: Answer) -> UpstreamFailed:
        """Read what an error says, as much as could be of use."""
        body = b""
        while len(body) < _LARGEST_ERROR and (piece := await answer.read(self.times.next_deadline())):
            body += piece
        return refused(answer.status, answer.headers, body, self._callee.secrets)

    def _left(self, error: BaseException | None) -> BaseException | None:
        """Free or close the connection, count; return what the call has failed with."""
        if self._answer is not None:
            if self._done and error is None:
                self._answer.release()
            else:
                self._answer.close()
        callee = self._callee
        callee.measures.took(self._operation, time.perf_counter() - self._started)
        failure: BaseException | None = error
        if isinstance(error, (UpstreamFailed, TransportFailed, TimeoutError, EventTooLong)):
            failure = self._failure(error)
        if self._span is not None:
            end_span(self._span, failure.code.lower() if isinstance(failure, UpstreamFailed) else None)
        return failure

    def _failure(self, cause: Exception) -> UpstreamFailed:
        failure, kind = _named(cause, self.times.phase)
        callee, call = self._callee, self._call
        callee.measures.failed(self._operation, kind)
        # A request that the upstream finds fault with is its sender's matter, and its text may quote the prompt.
        if failure.status >= 500:
            fields = {
                "requestId": call.request_id,
                "operation": self._operation,
                "errorType": kind,
                "status": failure.status,
                "cause": None if cause is failure else _cause(cause),
            }
            callee.logger.warning("upstream failed: %s", failure, extra={"fields": fields})
        return failure


class Whole(UpstreamCall):
    """A call whose answer is read as one."""

    __slots__ = ()

    async def answer(self, shape: msgspec.json.Decoder[Any], largest: int) -> bytes:
        """Return an answer of at most so many bytes, which `shape` must be able to decode."""
        times = self.times
        try:
            answer = self._answer = await self._asked()
            if answer.status != 200:
                raise await self._refusal(answer)
            parts: list[bytes] = []
            size = 0
            while piece := await answer.read(times.next_deadline()):
                times.begun = True
                size += len(piece)
                if size > largest:
                    raise broken("its answer is too large")
                parts.append(piece)
                if answer.ended:
                    break
            whole = parts[0] if len(parts) == 1 else b"".join(parts)
            try:
                shape.decode(whole)
            except (msgspec.DecodeError, UnicodeDecodeError):
                raise broken("its answer cannot be read") from None
        except BaseException as error:
            if (told := self._left(error)) is None or told is error:
                raise
            raise told from None
        self._left(None)
        return whole


def _named(cause: Exception, phase: str) -> tuple[UpstreamFailed, str]:
    """Say what a client may know of a failure, and under which type it is counted."""
    match cause:
        case UpstreamFailed():
            return cause, cause.code.lower()
        case EventTooLong():
            return broken("one event of its stream is too large"), "too_large"
        case ConnectTimeout():
            return timed_out("connect"), cause.kind
        case Unreachable():
            return broken("it cannot be reached", "unreachable"), cause.kind
        case Malformed():
            return broken("its answer is not valid HTTP"), cause.kind
        case ConnectionLost():
            # A kept connection that was closed under our request is tried again at once, where `retries` allows it.
            return broken("the connection was lost", retry_after=0.0 if cause.stale else None), cause.kind
        case _:
            return timed_out(phase), f"{phase.replace(' ', '_')}_timeout"


def _cause(cause: Exception) -> str:
    """Name a cause for the log, with what our own words say of it."""
    return f"{type(cause).__name__}: {cause}" if isinstance(cause, Malformed) else type(cause).__name__
