"""What waits for one socket: bounded by count and by bytes, so that a slow reader costs no more than that."""

from __future__ import annotations

import asyncio
from collections import deque


class Outbox:
    """A queue of encoded frames with one reader. It never waits for room by itself: `put` says that there is none."""

    __slots__ = ("_bytes", "_finished", "_frames", "_max_bytes", "_max_frames", "_room", "_wake")

    def __init__(self, max_frames: int, max_bytes: int) -> None:
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._finished = False
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def put(self, frame: bytes) -> bool:
        """Take a frame, or return False where it does not fit. A single one always fits into an empty queue."""
        size = self._bytes + len(frame)
        if self._frames and (len(self._frames) >= self._max_frames or size > self._max_bytes):
            return False
        self._frames.append(frame)
        self._bytes = size
        if 2 * len(self._frames) >= self._max_frames or 2 * size >= self._max_bytes:
            self._room.clear()
        self._wake.set()
        return True

    def finish(self) -> None:
        """Let `get` return None once all that waits has been taken."""
        self._finished = True
        self._wake.set()

    async def get(self) -> bytes | None:
        """Return the next frame; None at the end."""
        while not self._frames:
            if self._finished:
                return None
            self._wake.clear()
            await self._wake.wait()
        frame = self._frames.popleft()
        self._bytes -= len(frame)
        if 2 * len(self._frames) < self._max_frames and 2 * self._bytes < self._max_bytes:
            self._room.set()
        return frame

    @property
    def has_room(self) -> bool:
        """Whether the queue is at most half full."""
        return self._room.is_set()

    async def room(self) -> None:
        """Wait until the queue is at most half full."""
        await self._room.wait()

    def __len__(self) -> int:
        return len(self._frames)
