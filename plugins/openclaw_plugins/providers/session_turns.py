"""One turn of a session at a time, and a bounded number that wait; never holds up another session, or forgets a place.

It is for upstreams that carry the turns of a session out one after another: a client that asks for many at once would
fill every place of the model with calls that wait, and the upstream would seem silent for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from msgspec.structs import replace

from openclaw_gateway.api import ModelCall, UpstreamFailed


class SessionTurns:
    """The turns of this process; `waiting` of a session may wait while one runs."""

    def __init__(self, waiting: int) -> None:
        self._most = waiting + 1
        #: of each session with a turn: the lock that the running one holds, and how many there are
        self._sessions: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def turn(self, session: str, call: ModelCall) -> AsyncIterator[ModelCall]:
        """Wait for the turns before; give the call what is left of its time. Raises UpstreamFailed."""
        lock, turns = self._sessions.get(session) or (asyncio.Lock(), 0)
        if turns >= self._most:
            raise _refused(f"{turns} of its turns run or wait already")
        self._sessions[session] = lock, turns + 1
        try:
            loop = asyncio.get_running_loop()
            end = loop.time() + call.total_timeout
            try:
                async with asyncio.timeout(min(call.first_byte_timeout, call.total_timeout)):
                    await lock.acquire()
            except TimeoutError:
                raise _refused("the turn before it did not end in time") from None
            try:
                left = end - loop.time()
                yield replace(call, total_timeout=left, first_byte_timeout=min(left, call.first_byte_timeout))
            finally:
                lock.release()
        finally:
            lock, turns = self._sessions.pop(session)
            if turns > 1:
                self._sessions[session] = lock, turns - 1


def _refused(why: str) -> UpstreamFailed:
    """It says nothing of the upstream, and another model would lack the session's history."""
    return UpstreamFailed(
        f"sessionId: the turns of a session wait for one another, and {why}",
        status=409,
        code="CONFLICT",
        type="conflict",
        param="sessionId",
        retry_after=1.0,
        reason="request",
    )
