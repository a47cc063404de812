"""Turns: one supervised task owns each, from the first byte of the upstream to the commit of what it delivered.

A connection only subscribes. Its end never cancels the commit, and the commit is never skipped: a turn that
delivered something is kept and charged, one that delivered nothing costs nothing. Only a turn of which nothing is
committed here may run in the task of its connection, for two tasks a request cost a good part of it.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from types import AsyncGeneratorType
from typing import Any, Literal

from openclaw_gateway.api import (
    Refusal,
    Refused,
    StoreUnavailable,
    UpstreamFailed,
    internal_error,
    refusal_of,
    resumed,
    unavailable,
    within,
)
from openclaw_plugins.chat.answers import Record
from openclaw_plugins.chat.attempts import Attempts
from openclaw_plugins.chat.outlet import Outlet
from openclaw_plugins.chat.skill_answers import SkillAnswer
from openclaw_plugins.chat.tool_loop import ToolLoop

Reason = Literal["disconnected", "slow_reader", "cancelled", "shutdown"]

#: for an upstream to be closed
_CLOSE = 1.0
#: to keep and charge a turn, whoever has left
_SETTLE = 5.0
#: the chunk of a stream that holds its usage and nothing else
_TELLS_USAGE = re.compile(rb'"choices": ?\[\]')


class Turn:
    """One turn. `start` or `run` is its owner's; `outlet`, `stop` and `ended` are for the connection that listens.

    After its end: `failure` is what went wrong, `stopped` who ended it early, `body` the whole answer of a turn
    that does not stream.
    """

    __slots__ = (
        "_attempts",
        "_hides_usage",
        "_logger",
        "_phase",
        "_record",
        "_request_id",
        "_task",
        "_waiters",
        "body",
        "failure",
        "finished",
        "outlet",
        "over",
        "stopped",
        "streams",
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
        self.streams = attempts.use.streamed
        #: the usage of the stream is asked for by us, and the client did not want to be told
        self._hides_usage = hides_usage
        self._request_id = request_id
        self._record = record
        self._logger = logger
        self._task: asyncio.Task[None] | None = None
        self._phase: Literal["new", "asking", "settling"] = "new"
        #: who waits for the end
        self._waiters: list[asyncio.Future[None]] = []
        #: told once it has ended, whatever became of it
        self.over: Callable[[Turn], None] = _nobody
        self.outlet = Outlet(record.add)
        self.body = b""
        self.finished = False
        self.failure: Refusal | None = None
        self.stopped: Reason | None = None

    @property
    def delivered(self) -> bool:
        return self.outlet.delivered

    def stop(self, reason: Reason) -> None:
        """Tell the turn to end now: it closes its upstream, and accounts for what it delivered."""
        if self._phase == "settling" or self.stopped is not None:
            return
        self.stopped = reason
        if reason == "shutdown":
            self.failure = unavailable("the gateway is shutting down", retry_after=5.0)
        else:
            self.outlet.drop()
        if self._phase == "asking":
            assert self._task is not None
            self._task.cancel()

    def leave(self) -> None:
        """Tell it that its client has left."""
        self.stop("disconnected")

    async def ended(self) -> None:
        """Wait for the end; the wait may be cancelled, the turn is not."""
        if self._task is not None and not self.finished:
            waiter = self._task.get_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    @property
    def stands_alone(self) -> bool:
        """Whether nothing is kept or charged at its end, so that it may end with the task of its connection."""
        return not self.streams and isinstance(self._attempts, Attempts) and not self._record.commits(at_once=False)

    def start(self) -> None:
        """Let a task of its own run the turn."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def run(self) -> Coroutine[Any, Any, None]:
        """Run the turn in the task that calls, which is cancelled where the turn is stopped: it has to stand alone."""
        self._task = asyncio.current_task()
        return self._run()

    async def _run(self) -> None:
        try:
            if self.stopped is None:
                self._phase = "asking"
                try:
                    if self.streams:
                        await self._ask_stream()
                    else:
                        self.body = await self._attempts.complete()
                        self.outlet.delivered = True
                        self._record.add(self.body)
                except asyncio.CancelledError:
                    if self.stopped is None:
                        raise
                    assert self._task is not None
                    # The cancellation is ours and done with; what follows may wait again.
                    self._task.uncancel()
                except UpstreamFailed as error:
                    self.failure = refusal_of(error)
                except Exception as error:
                    self._logger.error("a provider failed", exc_info=error, extra={"fields": self._fields()})
                    self.failure = internal_error()
            self._phase = "settling"
            if self.streams:
                self.outlet.settle()
            if isinstance(self._attempts, Attempts):  # the rounds of a loop are told one by one; a skill is no model
                self._attempts.told()
            if not self.outlet.delivered or self._record.commits(at_once=self.streams):
                await self._settle()
        finally:
            self._phase = "settling"
            self.finished = True
            self.outlet.end()
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)
            self.over(self)

    async def _ask_stream(self) -> None:
        outlet = self.outlet
        take = self._take if self._hides_usage else outlet.put
        if isinstance(self._attempts, Attempts):
            async with self._attempts.opened() as opened:
                for chunk in opened.opening:
                    if not take(chunk):
                        await outlet.room()
                if opened.hands_on is not None:
                    named = opened.named
                    await opened.hands_on.hand_on(lambda chunk: take(named(chunk)), outlet.pass_on, outlet.room)
                elif isinstance(opened.rest, AsyncGeneratorType):
                    await self._pass_on(opened.rest, opened.named, take)
                elif opened.rest is not None:  # another kind of iterator, of a provider of somebody else's
                    async for chunk in opened.rest:
                        take(opened.named(chunk))
                        await outlet.room()
        else:
            async with aclosing(self._attempts.stream()) as stream:
                await self._pass_on(stream, None, take)
        outlet.pass_on()
        outlet.delivered = True

    async def _pass_on(
        self,
        stream: AsyncGenerator[bytes, None],
        named: Callable[[bytes], bytes] | None,
        take: Callable[[bytes], bool],
    ) -> None:
        """Pass on what comes: all that is there leaves together, before the next has to be waited for."""
        outlet = self.outlet
        while True:
            coming: Any = stream.__anext__()
            try:
                waits_for = coming.send(None)
            except StopIteration as come:
                chunk: bytes = come.value
            except StopAsyncIteration:
                return
            else:
                outlet.pass_on()
                try:
                    chunk = await resumed(coming, waits_for)
                except StopAsyncIteration:
                    return
            if named is not None:
                chunk = named(chunk)
            if not take(chunk):
                await outlet.room()

    def _take(self, chunk: bytes) -> bool:
        """As the outlet's `put`, less what the client did not ask for."""
        if _TELLS_USAGE.search(chunk) is None:
            return self.outlet.put(chunk)
        self._record.add(chunk)
        return True

    async def _settle(self) -> None:
        record = self._record
        try:
            if self.delivered:
                await within(_SETTLE, record.commit(cut=self._cut(), at_once=self.streams))
            else:
                await within(_SETTLE, record.void())
        except Refused as error:
            self.failure = self.failure or error.refusal
        except (StoreUnavailable, TimeoutError) as error:
            self._logger.error("a turn could not be kept", exc_info=error, extra={"fields": self._fields()})
            self.failure = self.failure or unavailable("the turn could not be stored; try again shortly")
        except Exception as error:
            self._logger.error("a turn could not be kept", exc_info=error, extra={"fields": self._fields()})
            self.failure = self.failure or internal_error()

    def _cut(self) -> str | None:
        return self.stopped or ("failed" if self.failure is not None else None)

    def _fields(self) -> dict[str, str | None]:
        return {"requestId": self._request_id, "model": self._attempts.use.asked}


class Turns:
    """All turns that run. They outlive their connections, and the plugin outlives them."""

    def __init__(self) -> None:
        self._running: dict[Turn, Callable[[Turn], None]] = {}

    def take(self, turn: Turn, ended: Callable[[Turn], None]) -> None:
        """Look after a turn that is about to run; `ended` is called once it has, whatever became of it."""
        self._running[turn] = ended
        turn.over = self._over

    def _over(self, turn: Turn) -> None:
        self._running.pop(turn)(turn)

    @asynccontextmanager
    async def supervised(self) -> AsyncIterator[None]:
        """On leaving, end what still runs: connections have had their time to drain."""
        try:
            yield
        finally:
            running = list(self._running)
            for turn in running:
                turn.stop("shutdown")
            if running:
                await asyncio.wait([asyncio.ensure_future(turn.ended()) for turn in running], timeout=_CLOSE + _SETTLE)


def _nobody(turn: Turn) -> None:
    """Where nobody has to be told of a turn's end."""
