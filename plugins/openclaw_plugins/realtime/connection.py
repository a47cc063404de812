"""One open socket: a task that reads, a task that writes, and one that keeps its place and sees that it ends.

It never buffers without end: what a slow reader does not take in time closes its socket. Its turns belong to the
session, not to the socket: they are finished and stored also when it is gone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from openclaw_gateway.api import (
    EVENTS_LOST,
    PRINCIPAL,
    REQUEST_ID,
    TIER,
    Event,
    Exchange,
    Host,
    Refusal,
    StoreUnavailable,
    Subscription,
    not_found,
    unavailable,
)
from openclaw_plugins.realtime.frames import (
    Cancel,
    GoingAway,
    Outbound,
    Ping,
    Pong,
    Resume,
    SendMessage,
    Unreadable,
    encode,
    failed,
    read,
    tag,
)
from openclaw_plugins.realtime.numbers import Numbers
from openclaw_plugins.realtime.outbox import Limits, Outbox
from openclaw_plugins.realtime.place import Place
from openclaw_plugins.realtime.refusals import LEAVING, LOST, RESUMED, UNREPLAYABLE
from openclaw_plugins.realtime.turns import SocketTurns

GOING_AWAY, NO_BINARY, NOT_ALLOWED, INTERNAL, OVERLOAD = 1001, 1003, 1008, 1011, 1013

#: to hand the last frames to a peer before its socket is closed
_FLUSH = 1.0


class Connection:
    """Serves one accepted socket until either side ends it."""

    def __init__(
        self,
        x: Exchange,
        receive: Callable[[], Any],
        send: Callable[[Any], Any],
        *,
        host: Host,
        limits: Limits,
        numbers: Numbers,
        turns: SocketTurns,
        resuming: bool = False,
    ) -> None:
        self.x = x
        self.principal = x[PRINCIPAL]
        self._tier = x[TIER].name
        self._receive = receive
        self._send = send
        self._host = host
        self._limits = limits
        self._numbers = numbers
        self._turns = turns
        self._outbox = Outbox(limits.max_frames, limits.max_bytes)
        self._writer: asyncio.Task[None] | None = None
        self._accepted = False
        self._loop = asyncio.get_running_loop()
        #: code and reason of the close that we decided; None where the peer left
        self._end: asyncio.Future[tuple[int, str] | None] = self._loop.create_future()
        self._subscription: Subscription | None = None
        #: live events that wait until a replay is through
        self._held: deque[Event] | None = deque() if resuming else None
        self._resumed = False
        self._leaving = False
        self._heard = now = self._loop.time()
        self._beat = now - limits.beat
        #: since when the peer has not taken a frame that we are handing it
        self._sending: float | None = None
        self._place = Place(x, host.logger, now)

    # --- for the plugin -------------------------------------------------------------------------

    async def run(self, subscription: Subscription, after: int | None) -> None:
        """Serve the socket. Raises only when it is cancelled."""
        self._subscription = subscription
        self._numbers.opened(self._tier)
        started = self._loop.time()
        reader = asyncio.create_task(self._read(after))
        reader.add_done_callback(self._task_ended)
        self._accepted = True
        self._start_writing()
        try:
            while not self._end.done():
                await asyncio.wait([self._end], timeout=self._next_look())
                if not self._end.done():
                    await self._look()
        finally:
            subscription.close()
            self._turns.detach()
            reader.cancel()
            if not self._end.done():
                self._end.set_result(None)
            await self._finish()
            self._numbers.closed(self._tier, self._loop.time() - started)

    def deliver(self, event: Event) -> None:
        """Take an event of the session."""
        if self._held is None:
            self._tell(event)
        elif len(self._held) >= self._limits.max_frames:
            self.close(OVERLOAD, "slow reader")
        else:
            self._held.append(event)

    def send(self, frame: Outbound | dict[str, Any]) -> None:
        """Put a frame of this socket alone in the queue; says nothing to one that is closed."""
        self._put(tag(frame), encode(frame))

    def refuse(self, refusal: Refusal, ref: str | None) -> None:
        """Put an `error` frame in the queue."""
        self.send(failed(refusal, ref=ref, request_id=self.x.get(REQUEST_ID)))

    def close(self, code: int, reason: str) -> None:
        """End the socket; the first who says so names the code."""
        if not self._end.done():
            self._end.set_result((code, reason))

    async def room(self) -> None:
        """Wait until the peer has taken what it was sent before, at most until it is given up."""
        while not self._outbox.has_room and not self._end.done():
            either: list[asyncio.Future[Any]] = [self._outbox.room(), self._end]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)

    async def leave(self, retry_after: float) -> None:
        """Say that the gateway goes away, let running turns end, and close. Cancelled where that takes too long."""
        self._leaving = True
        self.send(GoingAway(message="the gateway is shutting down", retry_after=retry_after))
        self._turns.refuse_waiting(LEAVING)
        await self._turns.ended()
        self.close(GOING_AWAY, "going away")

    # --- tasks ----------------------------------------------------------------------------------

    async def _read(self, after: int | None) -> None:
        if after is not None and (refused := await self._resume(after)) is not None:
            self.refuse(refused, None)
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                if not self._end.done():
                    self._end.set_result(None)
                return
            text = message.get("text")
            if text is None:
                self.close(NO_BINARY, "binary frames are not understood")
                return
            self._heard = self._loop.time()
            await self._take(text)
            # A burst that has arrived already must neither keep the process from others nor outrun its own answers.
            await asyncio.sleep(0)
            await self.room()

    async def _write(self) -> None:
        while (frame := self._outbox.pop()) is not None:
            self._sending = self._loop.time()
            with suppress(OSError):  # the peer has gone: the reader learns it
                await self._send({"type": "websocket.send", "text": frame.decode()})
            self._sending = None
            self.x.outcome.bytes_sent += len(frame)

    def _start_writing(self) -> None:
        """An idle socket has no writer: it is one task more for each of thousands."""
        if self._accepted and len(self._outbox) and (self._writer is None or self._writer.done()):
            self._writer = asyncio.create_task(self._write())
            self._writer.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            fields = {"requestId": self.x.get(REQUEST_ID)}
            self._host.logger.error("a socket failed", exc_info=error, extra={"fields": fields})
            self.close(INTERNAL, "internal error")

    async def _finish(self) -> None:
        end = self._end.result()
        if self._writer is not None:
            if end is not None and end[0] != OVERLOAD:
                await asyncio.wait([self._writer], timeout=_FLUSH)
            self._writer.cancel()
        if end is not None:
            with suppress(OSError, RuntimeError):  # it may have gone meanwhile
                await self._send({"type": "websocket.close", "code": end[0], "reason": end[1]})

    # --- keeping its place ----------------------------------------------------------------------

    def _next_look(self) -> float:
        now = self._loop.time()
        due = [self._heard + self._limits.idle - now, self._limits.stall / 2]
        if (renewal := self._place.due(now)) is not None:
            due.append(renewal)
        if self.principal.expires_at is not None:
            due.append(self.principal.expires_at - self._host.clock.now())
        return max(0.01, min(due))

    async def _look(self) -> None:
        now = self._loop.time()
        expires = self.principal.expires_at
        if expires is not None and expires <= self._host.clock.now():
            self.close(NOT_ALLOWED, "the credential has expired")
        elif self._sending is not None and now - self._sending >= self._limits.stall:
            self.close(OVERLOAD, "slow reader")
        elif now - self._heard >= self._limits.idle and not self._turns.running:
            self.close(GOING_AWAY, "idle")
        elif not await self._place.keep(now):
            self.close(OVERLOAD, "its place was lost; connect again")

    # --- frames ---------------------------------------------------------------------------------

    async def _take(self, text: str) -> None:
        frame = read(text)
        self._numbers.frame("inbound", "invalid" if isinstance(frame, Unreadable) else tag(frame))
        runner = self._host.gateway.runner
        # Who may send no more can still stop what runs, once a turn, and see that the link lives, once a beat.
        stops = isinstance(frame, Cancel) and self._turns.cancel(frame.ref)
        beats = isinstance(frame, Ping) and self._heard - self._beat >= self._limits.beat
        if beats:
            self._beat = self._heard
        x, refused = await runner.message(self.x, metered=not (stops or beats))
        x.outcome.status = 200
        ref = frame.id if isinstance(frame, SendMessage) else getattr(frame, "ref", None)
        if stops:
            refused = None  # it is done
        elif refused is None:
            if isinstance(frame, Unreadable):
                refused = frame.refusal
            elif isinstance(frame, SendMessage):
                refused = LEAVING if self._leaving else self._turns.add(self, x, frame, size=len(text))
                if refused is None:
                    return  # the turn completes its exchange
            elif isinstance(frame, Cancel):
                refused = None if self._turns.has(frame.ref) else not_found("no such turn runs here")
            elif isinstance(frame, Resume):
                refused = await self._resume(frame.last_seq)
            else:
                self.send(Pong())
        if refused is not None:
            x.outcome.status, x.outcome.error_code = refused.status, refused.code
            self.refuse(refused, ref)
        await runner.complete(x)

    async def _resume(self, after: int) -> Refusal | None:
        """Send again what this socket has not had, in order, before anything newer."""
        if self._resumed or self._subscription is None:
            return RESUMED
        self._resumed = True
        held = self._held = self._held or deque()
        refused: Refusal | None = None
        try:
            events = await self._subscription.replay(after)
        except StoreUnavailable as error:
            events, refused = (), unavailable(f"the {error.store} does not answer; try again shortly")
        else:
            refused = UNREPLAYABLE if events is None else None
        for event in events or ():
            await self.room()
            self._tell(event)
        while held:
            self._tell(held.popleft())
            await self.room()
        self._held = None
        return refused

    def _tell(self, event: Event) -> None:
        if event.type == EVENTS_LOST:
            self.refuse(LOST, None)
        else:
            self._put(event.type, event.body)

    def _put(self, type: str, frame: bytes) -> None:
        if self._end.done():
            return
        if self._outbox.put(frame):
            self._start_writing()
            self._numbers.frame("outbound", type)
        else:
            self.close(OVERLOAD, "slow reader")
