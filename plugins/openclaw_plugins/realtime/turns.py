"""The turns that a socket began: so many at once, the next ones in line, and the events that tell of them.

A turn is charged when it starts, and runs to its end whether its socket is there or not; only `cancel` and the end
of the process cut it, and then what was said is stored with the reason.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
from uuid_utils import uuid7

from openclaw_gateway.api import (
    MESSAGES,
    PRINCIPAL,
    REQUEST_ID,
    Exchange,
    Refusal,
    Refused,
    RunningTurn,
    StoreUnavailable,
    TurnEnd,
    conflict,
    internal_error,
    unavailable,
)
from openclaw_plugins.realtime.frames import Outbound, Piece, QuotaWarning, SendMessage, failed
from openclaw_plugins.realtime.refusals import CANCELLED
from openclaw_plugins.realtime.running import Turns

if TYPE_CHECKING:
    from openclaw_plugins.realtime.connection import Connection


class SocketTurns:
    """The turns of one socket."""

    def __init__(self, turns: Turns, session_id: str) -> None:
        self._turns = turns
        self._session_id = session_id
        self._running: dict[str, Turn] = {}
        #: in their order; no deque, since an empty one takes 600 bytes and most sockets are idle
        self._waiting: dict[str, Turn] = {}
        self._waiting_bytes = 0
        self._warned: set[str] = set()
        self._idle: asyncio.Event | None = None

    @property
    def running(self) -> int:
        return len(self._running) + len(self._waiting)

    def add(self, connection: Connection, x: Exchange, frame: SendMessage, *, size: int) -> Refusal | None:
        """Start the turn, or put it in line; the turn then completes the exchange. A refusal leaves that to you."""
        ref = frame.id if frame.id is not None else str(uuid7())
        if self.has(ref):
            return conflict("a turn with this id runs already")
        turn = Turn(self, self._turns, connection, x, frame, ref, self._session_id, size)
        if len(self._running) < self._turns.at_once:
            self._start(turn)
            return None
        bytes = self._waiting_bytes + size
        if len(self._waiting) >= self._turns.waiting or (self._waiting and bytes > self._turns.waiting_bytes):
            return Refusal(
                status=503,
                code="CONCURRENCY_EXCEEDED",
                type="insufficient_quota",
                message=f"{self._turns.at_once} turns run and {len(self._waiting)} wait; send this one again later",
                retry_after=1.0,
            )
        self._waiting[ref] = turn
        self._waiting_bytes = bytes
        return None

    def has(self, ref: str) -> bool:
        """Whether this turn runs or waits here; one that was cut runs until it has ended."""
        return ref in self._running or ref in self._waiting

    def cancel(self, ref: str) -> bool:
        """Cut a turn that runs, or take one out of the line; say whether this did it, for nothing is cut twice."""
        turn = self._running.get(ref)
        if turn is not None:
            return turn.cancel("cancelled")
        turn = self._waiting.get(ref)
        if turn is None:
            return False
        self._drop(turn, CANCELLED)
        return True

    def refuse_waiting(self, refusal: Refusal) -> None:
        """Take all out of the line."""
        for turn in tuple(self._waiting.values()):
            self._drop(turn, refusal)

    def detach(self) -> None:
        """The socket is gone. What runs goes on; what waits was not begun, and nobody was told otherwise."""
        for turn in self._running.values():
            turn.connection = None
        for turn in tuple(self._waiting.values()):
            self._drop(turn, unavailable("the socket was closed"))

    async def ended(self) -> None:
        """Wait until nothing runs."""
        if self.running:
            self._idle = asyncio.Event()
            await self._idle.wait()

    def warn_once(self, x: Exchange, connection: Connection | None) -> None:
        """Tell the client once of each quota that is nearly used up."""
        if connection is None or x.receipt is None:
            return
        for balance in x.receipt.balances:
            if balance.warning and not self.warned(balance.limit.name):
                connection.send(QuotaWarning(limit=balance.report(self._turns.host.clock.now())))

    def warned(self, quota: str) -> bool:
        """Whether the client has been told of this quota; from now on it has."""
        known = quota in self._warned
        self._warned.add(quota)
        return known

    def done(self, turn: Turn) -> None:
        """A turn has ended: the next in line starts."""
        del self._running[turn.ref]
        if self._waiting:
            following = self._waiting.pop(next(iter(self._waiting)))
            self._waiting_bytes -= following.size
            self._start(following)
        elif not self._running and self._idle is not None:
            self._idle.set()

    def _start(self, turn: Turn) -> None:
        self._running[turn.ref] = turn
        self._turns.start(turn)

    def _drop(self, turn: Turn, refusal: Refusal) -> None:
        del self._waiting[turn.ref]
        self._waiting_bytes -= turn.size
        turn.refused = refusal
        self._turns.start(turn)


class Turn:
    """One turn, from its place in line to its last event."""

    __slots__ = (
        "_all",
        "_cut",
        "_frame",
        "_mine",
        "_muted",
        "_session_id",
        "_turn",
        "connection",
        "ref",
        "refused",
        "size",
        "x",
    )

    def __init__(
        self,
        mine: SocketTurns,
        all: Turns,
        connection: Connection,
        x: Exchange,
        frame: SendMessage,
        ref: str,
        session_id: str,
        size: int,
    ) -> None:
        self._mine = mine
        self._all = all
        self._frame = frame
        self._session_id = session_id
        self._turn: RunningTurn | None = None
        self._cut: str | None = None
        #: whether a piece could not be published
        self._muted = False
        #: None once the socket is gone
        self.connection: Connection | None = connection
        self.x = x
        self.ref = ref
        self.size = size
        #: why it was taken out of the line
        self.refused: Refusal | None = None

    def cancel(self, why: str) -> bool:
        if self._cut is not None:
            return False
        self._cut = why
        if self._turn is not None:
            self._turn.cancel(why)
        return True

    async def run(self) -> None:
        host, outcome = self._all.host, self.x.outcome
        refusal = self.refused
        try:
            if refusal is None:
                refusal = await self._run()
        except Refused as error:
            refusal = error.refusal
        except StoreUnavailable as error:
            outcome.error = error
            refusal = unavailable(f"the {error.store} does not answer; try again shortly")
        except Exception as error:
            outcome.error = error
            host.logger.error("a turn failed", exc_info=error, extra={"fields": self._fields()})
            refusal = internal_error()
        try:
            if refusal is not None:
                outcome.status, outcome.error_code = refusal.status, refusal.code
                if self.connection is not None:
                    self.connection.refuse(refusal, self.ref)
            await host.gateway.runner.complete(self.x)
        finally:
            if self.refused is None:
                self._mine.done(self)

    async def _run(self) -> Refusal | None:
        """Run the turn; what is returned or raised concerns the sender alone, the rest is told to the session."""
        refused = await self._all.host.gateway.admission.charge(self.x, MESSAGES)
        if refused is not None:
            return refused
        self._mine.warn_once(self.x, self.connection)
        if self._cut is not None:
            return CANCELLED
        frame = self._frame
        turn = self._turn = await self._all.conversation.turn(
            self.x,
            session_id=self._session_id,
            content=frame.content,
            model=frame.model,
            stream=frame.stream,
            metadata={**frame.metadata, **({"id": frame.id} if frame.id is not None else {})},
        )
        if self._cut is not None:
            turn.cancel(self._cut)
        if frame.stream:
            async for text in turn.texts():
                await self._publish(Piece(ref=self.ref, chunk=text, done=False))
                if self.connection is not None:
                    await self.connection.room()
        await self._tell(await turn.end())
        return None

    async def _tell(self, end: TurnEnd) -> None:
        """Tell the session how the turn ended; what is told is stored."""
        if end.failure is not None:
            self.x.outcome.status, self.x.outcome.error_code = end.failure.status, end.failure.code
            await self._publish(failed(end.failure, ref=self.ref, request_id=self.x.get(REQUEST_ID)))
        elif end.message is None:
            await self._publish(failed(CANCELLED, ref=self.ref, request_id=self.x.get(REQUEST_ID)))
        elif self._frame.stream:
            await self._publish(Piece(ref=self.ref, chunk="", done=True))
        if end.message is not None:
            more = {"usage": end.usage} if end.usage is not None else {}
            await self._publish(end.message.as_event(ref=self.ref, **more))

    async def _publish(self, body: Outbound | dict[str, Any]) -> None:
        """Tell the session. A bus that fails does not fail the turn: its socket is then told of the end alone."""
        if self._muted and isinstance(body, Piece):
            return  # pieces with a hole between them are worse than none; the whole answer follows
        event: dict[str, Any] = body if isinstance(body, dict) else msgspec.to_builtins(body)
        try:
            await self._all.events.publish(self.x[PRINCIPAL].organization, self._session_id, event)
        except StoreUnavailable:  # the bus has logged it
            self._muted = True
            if self.connection is not None and not isinstance(body, Piece):
                self.connection.send(event)

    def _fields(self) -> dict[str, Any]:
        return {"requestId": self.x.get(REQUEST_ID), "ref": self.ref}
