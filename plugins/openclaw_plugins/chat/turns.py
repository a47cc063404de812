"""Turns: one supervised task owns each, from the first byte of the upstream to the commit of what it delivered.

A connection only subscribes. Its end never cancels the commit, and the commit is never skipped: a turn that
delivered something is kept and charged, one that delivered nothing costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import Literal

from openclaw_gateway.api import (
    Refusal,
    Refused,
    StoreUnavailable,
    UpstreamFailed,
    internal_error,
    unavailable,
    within,
)
from openclaw_plugins.chat.answers import Record
from openclaw_plugins.chat.attempts import Attempts
from openclaw_plugins.chat.skill_answers import SkillAnswer
from openclaw_plugins.chat.tool_loop import ToolLoop
from openclaw_plugins.chat.waiting import Waiting

Reason = Literal["disconnected", "slow_reader", "cancelled", "shutdown"]

#: for an upstream to be closed
_CLOSE = 1.0
#: to keep and charge a turn, whoever has left
_SETTLE = 5.0
#: chunks that wait for the connection before the upstream has to wait too
_QUEUE = 64
#: the chunk of a stream that holds its usage and nothing else
_TELLS_USAGE = re.compile(rb'"choices": ?\[\]')


class Turn:
    """One turn. `run` is its owner's; `chunks`, `stop` and `ended` are for the connection that listens.

    After its end: `failure` is what went wrong, `stopped` who ended it early, `body` the whole answer of a turn
    that does not stream.
    """

    __slots__ = (
        "_attempts",
        "_chunks",
        "_hides_usage",
        "_logger",
        "_notes",
        "_phase",
        "_record",
        "_request_id",
        "_room",
        "_task",
        "_waiters",
        "_waiting",
        "body",
        "delivered",
        "failure",
        "finished",
        "stopped",
    )

    def __init__(
        self,
        attempts: Attempts | SkillAnswer | ToolLoop,
        record: Record,
        logger: logging.Logger,
        request_id: str | None,
        *,
        hides_usage: bool = False,
    ) -> None:
        self._attempts = attempts
        #: the usage of the stream is asked for by us, and the client did not want to be told
        self._hides_usage = hides_usage
        self._request_id = request_id
        self._record = record
        self._logger = logger
        self._task: asyncio.Task[None] | None = None
        self._phase: Literal["new", "asking", "settling"] = "new"
        self._chunks: deque[bytes] = deque()
        self._notes: deque[bytes] = deque(maxlen=_QUEUE)
        self._waiting: Waiting | None = None
        #: where the upstream waits for the connection
        self._room: asyncio.Future[None] | None = None
        #: who waits for the end
        self._waiters: list[asyncio.Future[None]] = []
        self.delivered = False
        self.body = b""
        self.finished = False
        self.failure: Refusal | None = None
        self.stopped: Reason | None = None

    @property
    def streams(self) -> bool:
        return self._attempts.use.streamed

    async def chunks(self, patience: float) -> list[bytes] | None:
        """Return the chunks that wait; none where a note waits, or after `patience` seconds; None at the end."""
        while not self._chunks:
            if self.finished:
                return None
            if self._notes:
                return []
            if self._waiting is None:
                self._waiting = Waiting()
            if not await self._waiting.wait(patience) and not self._chunks:
                return []
        chunks = list(self._chunks)
        self._chunks.clear()
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        if self._phase == "asking":  # afterwards all that waits is accounted for already
            self._account(chunks)
        return chunks

    def note(self, comment: bytes) -> None:
        """Say something beside the answer: it is no part of that, costs nothing and may be lost."""
        self._notes.append(comment)
        self._wake()

    def noted(self) -> bytes:
        """Return the notes that wait."""
        notes = b"".join(self._notes)
        self._notes.clear()
        return notes

    def stop(self, reason: Reason) -> None:
        """Tell the turn to end now: it closes its upstream, and accounts for what it delivered."""
        if self._phase == "settling" or self.stopped is not None:
            return
        self.stopped = reason
        if reason == "shutdown":
            self.failure = unavailable("the gateway is shutting down", retry_after=5.0)
        else:
            self._chunks.clear()
        if self._phase == "asking":
            assert self._task is not None
            self._task.cancel()

    async def ended(self) -> None:
        """Wait for the end; the wait may be cancelled, the turn is not."""
        if self._task is not None and not self.finished:
            waiter = self._task.get_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def start(self) -> asyncio.Task[None]:
        """Let a task of its own run the turn."""
        self._task = asyncio.get_running_loop().create_task(self._run())
        return self._task

    async def _run(self) -> None:
        try:
            if self.stopped is None:
                await self._ask()
            self._phase = "settling"
            await self._settle()
        finally:
            self._phase = "settling"
            self.finished = True
            if self._waiting is not None:
                self._waiting.close()
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def _ask(self) -> None:
        self._phase = "asking"
        try:
            if self.streams:
                await self._ask_stream()
            else:
                self.body = await self._attempts.complete()
                self._account((self.body,))
        except asyncio.CancelledError:
            if self.stopped is None:
                raise
            assert self._task is not None
            # The cancellation is ours and done with; what follows may wait again.
            self._task.uncancel()
        except UpstreamFailed as error:
            self.failure = _refusal(error)
        except Exception as error:
            self._logger.error("a provider failed", exc_info=error, extra={"fields": self._fields()})
            self.failure = internal_error()

    async def _ask_stream(self) -> None:
        async with aclosing(self._attempts.stream()) as stream:
            async for chunk in stream:
                if self._hides_usage and _TELLS_USAGE.search(chunk) is not None:
                    self._record.add(chunk)
                    continue
                while len(self._chunks) >= _QUEUE:
                    self._room = asyncio.get_running_loop().create_future()
                    await self._room
                self._chunks.append(chunk)
                self._wake()
        self.delivered = True

    def _wake(self) -> None:
        if self._waiting is not None:
            self._waiting.wake()

    async def _settle(self) -> None:
        self._account(self._chunks)
        try:
            record = self._record
            kept = record.commit(cut=self._cut(), at_once=self.streams) if self.delivered else record.void()
            await within(_SETTLE, kept)
        except Refused as error:
            self.failure = self.failure or error.refusal
        except (StoreUnavailable, TimeoutError) as error:
            self._logger.error("a turn could not be kept", exc_info=error, extra={"fields": self._fields()})
            self.failure = self.failure or unavailable("the turn could not be stored; try again shortly")
        except Exception as error:
            self._logger.error("a turn could not be kept", exc_info=error, extra={"fields": self._fields()})
            self.failure = self.failure or internal_error()

    def _account(self, chunks: Iterable[bytes]) -> None:
        for chunk in chunks:
            self.delivered = True
            self._record.add(chunk)

    def _cut(self) -> str | None:
        return self.stopped or ("failed" if self.failure is not None else None)

    def _fields(self) -> dict[str, str | None]:
        return {"requestId": self._request_id, "model": self._attempts.use.asked}


class Turns:
    """All turns that run. They outlive their connections, and the plugin outlives them."""

    def __init__(self) -> None:
        self._running: dict[asyncio.Task[None], Turn] = {}

    def start(self, turn: Turn) -> None:
        task = turn.start()
        self._running[task] = turn
        task.add_done_callback(self._running.pop)

    @asynccontextmanager
    async def supervised(self) -> AsyncIterator[None]:
        """On leaving, end what still runs: connections have had their time to drain."""
        try:
            yield
        finally:
            for turn in self._running.values():
                turn.stop("shutdown")
            if self._running:
                await asyncio.wait(set(self._running), timeout=_CLOSE + _SETTLE)


def _refusal(error: UpstreamFailed) -> Refusal:
    return Refusal(
        status=error.status,
        code=error.code,
        type=error.type,
        message=str(error),
        param=error.param,
        retry_after=error.retry_after,
    )
