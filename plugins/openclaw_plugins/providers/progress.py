"""How far an upstream's answer has come: which of its deadlines runs, and whether its stream may end here."""

from __future__ import annotations

import asyncio

import msgspec

from openclaw_gateway.api import ModelCall
from openclaw_plugins.providers.sse import Event
from openclaw_plugins.providers.upstream_errors import broken, reported


class _Choice(msgspec.Struct):
    index: int = 0
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    error: msgspec.Raw | None = None


#: longer than the end marker with any white space around it that somebody would send
_SHORT = 32
_chunk = msgspec.json.Decoder(_Chunk).decode


class Times:
    """The deadlines of one call: to the first content, between two pieces, and for the whole."""

    __slots__ = ("_end", "_first", "_idle", "_loop", "begun", "phase")

    def __init__(self, call: ModelCall) -> None:
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._end = now + call.total_timeout
        self._first = now + call.first_byte_timeout
        self._idle = call.idle_timeout
        #: whether content has come
        self.begun = False
        self.phase = "first byte"

    def next_deadline(self) -> float:
        """Set `phase` to the time that would run out first, and return when that is."""
        if self.begun:
            self.phase, deadline = "idle", self._loop.time() + self._idle
        else:
            self.phase, deadline = "first byte", self._first
        if deadline >= self._end:
            self.phase, deadline = "total", self._end
        return deadline


class Progress:
    """What the events of a stream have told so far: whether it may end here."""

    __slots__ = ("_finished", "_open", "_secrets", "done")

    def __init__(self, secrets: tuple[str, ...]) -> None:
        self._secrets = secrets
        self.done = False
        self._open: set[int] = set()
        self._finished = False

    @property
    def whole(self) -> bool:
        return self.done or (self._finished and not self._open)

    def take(self, event: Event) -> tuple[bytes, ...]:
        """Return the JSON of a chunk, nothing for what is none. Raises UpstreamFailed."""
        data = event.data
        if self.done or not data:
            return ()
        if data == b"[DONE]" or (len(data) < _SHORT and data.strip() == b"[DONE]"):
            self.done = True
            return ()
        try:
            chunk = _chunk(data)
            if data.find(b"\n") >= 0:  # `in` makes and drops an exception for bytes
                # Framed again as one line, so it has to be one.
                data = msgspec.json.format(data, indent=-1)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise broken("its stream cannot be read") from None
        if chunk.error is not None and bytes(chunk.error) != b"null":
            raise reported(msgspec.json.decode(chunk.error), self._secrets)
        if event.name == "error":
            raise broken("it reported an error within its stream")
        for choice in chunk.choices or ():
            if choice.finish_reason is not None:
                self._finished = True
                self._open.discard(choice.index)
            else:
                self._open.add(choice.index)
        return (data,)
