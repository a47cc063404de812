"""One connection to an upstream: HTTP/1.1 by hand on an asyncio.Protocol, parsed by httptools.

Framing that two readers could read differently is refused, and nothing after it is read. A connection carries one
call at a time, and is used again only where both sides have said all that they had to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httptools

from openclaw_plugins.providers.direct_answer import WAITING, DirectAnswer
from openclaw_plugins.providers.transport import ConnectionLost, Malformed

#: most bytes that may come without any of a body among them: a head, interim answers, framing, trailers
_HEAD = 65_536
_HEADERS = 200
#: seconds for the end mark of an answer that its reader has had enough of, and the bytes that may precede it
_LINGER, _LINGER_BYTES = 0.25, 4_096
#: body bytes that are worth a copy, so that head and body leave in one write
_JOINED = 65_536
#: the headers that say how long an answer is, and what its bytes are
_FRAMING = frozenset((b"content-encoding", b"content-length", b"transfer-encoding"))
#: answers without a body, whatever their headers say (RFC 9112 6.3)
_BODILESS = frozenset({204, 304})


class Connection(asyncio.Protocol):
    """Belongs to a pool: `free` is called once it can be used again, `gone` when it cannot any more.

    It has one timer for everything that it waits for, which is moved only when it fires: a call that is answered in
    time sets none.
    """

    def __init__(self, free: Callable[[Connection], None], gone: Callable[[Connection], None]) -> None:
        self._free = free
        self._gone = gone
        self.loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._parser: Any = None
        self._answer: DirectAnswer | None = None
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._fires = 0.0
        self._paused = False
        self._lingers = False
        self._until_eof = False
        #: bytes that came since the last of a body
        self._noise = 0
        self._calls = 0

    # --- the call -------------------------------------------------------------------------------

    def ask(self, head: bytes, body: bytes) -> DirectAnswer:
        """Send one call; return its answer, of which nothing has come."""
        answer = self._answer = DirectAnswer(self)
        self._calls += 1
        self._noise = 0
        if len(body) <= _JOINED:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)
        return answer

    def linger(self) -> None:
        """Wait a moment for the end mark: a connection is worth more than the few bytes that are still to come."""
        self._lingers = True
        self._noise = 0
        self.resume()
        self.wake_by(self.loop.time() + _LINGER)

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._transport.resume_reading()

    def rest(self, seconds: float) -> None:
        """Close by itself unless it is used again within so many seconds."""
        self.wake_by(self.loop.time() + seconds)

    def abort(self) -> None:
        """Close at once; what waits to be sent is dropped."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    # --- what comes -----------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None:
            self.abort()  # nobody has asked
            return
        self._noise += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(error.__context__ if isinstance(error.__context__, Malformed) else Malformed(str(error)))
        if self._noise > (_LINGER_BYTES if self._lingers else _HEAD) and self._answer is answer:
            self._fail(Malformed("what stands around its body is too large"))
        if answer.status or answer.failure is not None:
            answer.wake()
        if answer.size > WAITING and not self._paused and self._answer is answer:
            self._paused = True
            self._transport.pause_reading()

    def on_message_begin(self) -> None:
        if self._answer is None:
            raise Malformed("it says more than it was asked")

    def on_header(self, name: bytes, value: bytes) -> None:
        answer = self._answer
        if answer is None or answer.status:
            return  # a trailer
        answer.fields.append((name.lower(), value))
        if len(answer.fields) > _HEADERS:
            raise Malformed("its answer has too many headers")

    def on_headers_complete(self) -> None:
        answer, parser = self._answer, self._parser
        assert answer is not None
        status = parser.get_status_code()
        if status < 200:
            if status not in (100, 102, 103):
                raise Malformed("an interim answer that was not asked for")
            answer.fields.clear()
            return
        if parser.get_http_version() not in ("1.1", "1.0"):
            raise Malformed("not a version of HTTP that it was asked in")
        framed = status in _BODILESS
        for name, value in [field for field in answer.fields if field[0] in _FRAMING]:
            if name == b"transfer-encoding":
                if value.lower() != b"chunked":
                    raise Malformed("a transfer coding that was not asked for")
                framed = True
            elif name == b"content-length":
                framed = True
            elif name == b"content-encoding" and value.lower() not in (b"identity", b""):
                raise Malformed("its answer is compressed, which was not asked for")
        self._until_eof = not framed
        answer.status = status

    def on_body(self, data: bytes) -> None:
        answer = self._answer
        if answer is None or self._lingers:
            return
        self._noise = 0
        answer.parts.append(data)
        answer.size += len(data)

    def on_message_complete(self) -> None:
        answer = self._answer
        if answer is None or not answer.status:
            return  # an interim answer
        answer.whole = True
        self._answer = None
        self._lingers = False
        if self._paused:
            self.resume()
        if self._parser.should_keep_alive() and not self._transport.is_closing():
            self._free(self)
        else:
            self._transport.close()

    def eof_received(self) -> None:
        if self._answer is not None and self._answer.status and self._until_eof:
            self._answer.whole = True

    def connection_lost(self, error: Exception | None) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            if not answer.whole:
                stale = self._calls > 1 and not self._noise and not answer.status
                answer.failure = answer.failure or ConnectionLost(str(error or ""), stale=stale)
            answer.wake()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._parser = None  # they hold one another
        self._gone(self)

    # --- time -----------------------------------------------------------------------------------

    def wake_by(self, deadline: float) -> None:
        self._deadline = deadline
        if self._timer is not None:
            if self._fires <= deadline:
                return
            self._timer.cancel()
        self._fires = deadline
        self._timer = self.loop.call_at(deadline, self._look)

    def _look(self) -> None:
        self._timer = None
        if self.loop.time() < self._deadline:
            self.wake_by(self._deadline)
        elif self._answer is None or self._lingers:
            self.abort()  # it has rested long enough, or its end mark never came
        else:
            self._answer.wake(TimeoutError())

    def _fail(self, failure: Exception) -> None:
        if self._answer is not None:
            self._answer.failure = failure
        self.abort()
