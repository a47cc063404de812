"""Waits for one thing after another, each for a while: what a stream does at every chunk, and so must cost little."""

from __future__ import annotations

import asyncio


class Waiting:
    """One waiter at a time. Its timer is moved only when it fires, so that a wait that ends in time sets none."""

    __slots__ = ("_deadline", "_fires", "_future", "_loop", "_seconds", "_timer")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[bool] | None = None
        self._seconds = 0.0
        self._deadline = 0.0
        self._fires = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, seconds: float) -> bool:
        """Wait until woken; False where it took longer."""
        self._seconds = seconds
        self.put_off()
        if self._timer is None or self._fires > self._deadline:
            self._arm()
        self._future = self._loop.create_future()
        try:
            return await self._future
        finally:
            self._future = None

    def put_off(self) -> None:
        """Let the time of who waits begin anew."""
        self._deadline = self._loop.time() + self._seconds

    def wake(self) -> None:
        future = self._future
        if future is not None and not future.done():
            future.set_result(True)

    def close(self) -> None:
        """Let go of the timer. Who waits is woken."""
        self.wake()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._fires = self._deadline
        self._timer = self._loop.call_at(self._deadline, self._look)

    def _look(self) -> None:
        self._timer = None
        future = self._future
        if future is None or future.done():
            return
        if self._loop.time() < self._deadline:
            self._arm()
        else:
            future.set_result(False)
