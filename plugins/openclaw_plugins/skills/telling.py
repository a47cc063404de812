"""Tells the listeners of a session how a run goes on, in order; it never makes the run wait, nor fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal

from openclaw_gateway.api import EventBus, StoreUnavailable

State = Literal["started", "progress", "completed", "failed"]

#: progress that waits to be told; more of it is dropped
_WAITING = 32
#: progress of one run that is told at all
_MOST = 1_000
_LONGEST = 500
#: for what is left to be told when the run has ended
_FLUSH = 2.0


class Telling:
    """The events of one run."""

    def __init__(
        self,
        bus: EventBus | None,
        organization: str,
        session_id: str | None,
        body: dict[str, Any],
        heard: Callable[[str, str | None], None] | None,
    ) -> None:
        self._heard = heard
        self._bus = bus
        self._organization = organization
        self._session_id = session_id
        self._body = body
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._told = 0
        self._task = asyncio.create_task(self._publish()) if bus is not None and session_id is not None else None

    def progress(self, detail: str) -> None:
        """Tell how far it is; from any thread."""
        self._loop.call_soon_threadsafe(self._add_progress, str(detail)[:_LONGEST])

    def tell(self, state: State, detail: str | None = None) -> None:
        if self._heard is not None:
            self._heard(state, detail)
        if self._task is not None:
            self._queue.put_nowait({**self._body, "state": state, "detail": detail})

    async def close(self) -> None:
        """Wait until all is told, but not for long."""
        if self._task is None:
            return
        self._queue.put_nowait(None)
        await asyncio.wait([self._task], timeout=_FLUSH)
        self._task.cancel()
        self._task = None

    def _add_progress(self, detail: str) -> None:
        self._told += 1
        if self._told <= _MOST and self._queue.qsize() < _WAITING:
            self.tell("progress", detail)

    async def _publish(self) -> None:
        assert self._bus is not None and self._session_id is not None
        while (event := await self._queue.get()) is not None:
            try:
                await self._bus.publish(self._organization, self._session_id, event)
            except StoreUnavailable:
                return  # the bus has logged it; whoever asks finds the run itself
