"""What waits for one socket: bounded by count and by bytes, so that a slow reader costs no more than that."""

from __future__ import annotations

import asyncio
from collections import deque

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one socket may take of the process. Times in seconds."""

    max_frames: int
    max_bytes: int
    stall: float
    idle: float
    #: of its pings, one in so long costs nothing: a busy session's link is not dead, and a flood is no heartbeat
    beat: float = 1.0


class Outbox:
    """A queue of encoded frames. It never waits for room by itself: `put` says that there is none."""

    __slots__ = ("_frames", "_max_bytes", "_max_frames", "_room", "bytes")

    def __init__(self, max_frames: int, max_bytes: int) -> None:
        #: None where none waits: an empty deque takes 600 bytes, and most sockets are idle
        self._frames: deque[bytes] | None = None
        self.bytes = 0
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        #: resolved when there is room again; made only when somebody waits, for most sockets are idle
        self._room: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._frames) if self._frames is not None else 0

    def put(self, frame: bytes) -> bool:
        """Take a frame, or return False where it does not fit. A single one always fits into an empty queue."""
        size = self.bytes + len(frame)
        if self._frames is None:
            self._frames = deque()
        elif len(self._frames) >= self._max_frames or size > self._max_bytes:
            return False
        self._frames.append(frame)
        self.bytes = size
        return True

    def pop(self) -> bytes | None:
        """Return the next frame; None where there is none."""
        if self._frames is None:
            return None
        frame = self._frames.popleft()
        if not self._frames:
            self._frames = None
        self.bytes -= len(frame)
        if self._room is not None and self.has_room:
            if not self._room.done():
                self._room.set_result(None)
            self._room = None
        return frame

    @property
    def has_room(self) -> bool:
        """Whether the queue is less than half full."""
        return 2 * len(self) < self._max_frames and 2 * self.bytes < self._max_bytes

    def room(self) -> asyncio.Future[None]:
        """Return what is resolved as soon as the queue is less than half full; ask `has_room` first."""
        if self._room is None:
            self._room = asyncio.get_running_loop().create_future()
        return self._room
