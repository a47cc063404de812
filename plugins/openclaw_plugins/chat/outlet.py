"""What has come of a turn's answer and has not left yet: the one place where a turn and its connection meet.

A switch from the turn's task to the connection's and back is a good part of what a chunk costs. So the turn sends its
chunks itself while the connection keeps up; what cannot leave at once the connection sends, and the turn waits once
enough has gathered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from openclaw_plugins.chat.waiting import Waiting

#: chunks that wait for the connection before the upstream has to wait too
_QUEUE = 64
#: behind a chunk larger than this nothing is put, so that what waits is bounded in bytes as well
_LARGE = 64 * 1024

#: sends chunks to the connection; False where they cannot leave at once, and have not
Sink = Callable[[Sequence[bytes]], bool]


class Outlet:
    """`put`, `room`, `pass_on`, `settle` and `end` are for the turn; `chunks` and `noted` for who listens.

    `record` is told of every chunk that leaves, or will, once.
    """

    __slots__ = (
        "_accounted",
        "_chunks",
        "_ended",
        "_fault",
        "_notes",
        "_record",
        "_room",
        "_sink",
        "_waiting",
        "delivered",
    )

    def __init__(self, record: Callable[[bytes], None]) -> None:
        self._record = record
        #: whether anything was, or an answer that is empty was whole
        self.delivered = False
        #: whether all that waits is accounted for already
        self._accounted = False
        self._ended = False
        self._chunks: list[bytes] = []
        self._notes: list[bytes] = []
        self._waiting: Waiting | None = None
        #: where the upstream waits for the connection
        self._room: asyncio.Future[None] | None = None
        #: where chunks go at once, while the connection waits for some
        self._sink: Sink | None = None
        #: what such a send has failed with: the connection meets it
        self._fault: Exception | None = None

    # --- the turn -------------------------------------------------------------------------------

    def put(self, chunk: bytes) -> bool:
        """Take a chunk; it leaves with the next `pass_on`. False where `room` is to be awaited before the next."""
        chunks = self._chunks
        chunks.append(chunk)
        return len(chunks) < _QUEUE and len(chunk) <= _LARGE

    async def room(self) -> None:
        """Let leave what can, and wait until the connection has taken the rest."""
        self.pass_on()
        if self._chunks:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def pass_on(self) -> None:
        """Send what waits, if the connection waits for it; wake the connection where it cannot leave at once."""
        chunks = self._chunks
        if not chunks:
            return
        if self._sink is not None and self._fault is None:
            try:
                left = self._sink(chunks)
            except Exception as error:  # noqa: BLE001 - it is no fault of the turn's
                self._fault = error
                left = False
            if left:
                self._chunks = []
                self.account(chunks)
                if self._waiting is not None:
                    self._waiting.put_off()
                return
        self._wake()

    def account(self, chunks: Iterable[bytes]) -> None:
        """Note what is on its way."""
        for chunk in chunks:
            self.delivered = True
            self._record(chunk)

    def note(self, comment: bytes) -> None:
        """Say something beside the answer: it is no part of that, costs nothing and may be lost."""
        self._notes.append(comment)
        del self._notes[:-_QUEUE]
        self._wake()

    def drop(self) -> None:
        """Forget what waits: nobody is there to have it."""
        self._chunks.clear()

    def settle(self) -> None:
        """Account for what waits, which will leave yet."""
        self.account(self._chunks)
        self._accounted = True

    def end(self) -> None:
        """Say that nothing more comes."""
        self._ended = True
        if self._waiting is not None:
            self._waiting.close()

    def _wake(self) -> None:
        if self._waiting is not None:
            self._waiting.wake()

    # --- the connection -------------------------------------------------------------------------

    async def chunks(self, patience: float, sink: Sink | None = None) -> list[bytes] | None:
        """Return the chunks that wait; none where a note waits, or after `patience` seconds; None at the end.

        While it waits, what comes goes through `sink`. Raises what that has failed with.
        """
        while not self._chunks:
            if self._ended:
                return None
            if self._notes:
                return []
            if self._waiting is None:
                self._waiting = Waiting()
            self._sink = sink
            try:
                in_time = await self._waiting.wait(patience)
            finally:
                self._sink = None
            if not in_time and not self._chunks:
                return []
        if self._fault is not None:
            raise self._fault
        chunks, self._chunks = self._chunks, []
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        if not self._accounted:
            self.account(chunks)
        return chunks

    def noted(self) -> bytes:
        """Return the notes that wait."""
        notes = b"".join(self._notes)
        self._notes.clear()
        return notes
