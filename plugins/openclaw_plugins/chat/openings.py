"""Waits for the first content of a stream: until then nothing has left, and another model may be asked instead."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import msgspec

from openclaw_gateway.api import HandsOn, ModelCall, UpstreamFailed, within
from openclaw_plugins.chat.lanes import Lane

#: to close an upstream that nobody listens to any more
_CLOSE = 1.0
#: chunks without content that may open an answer
_OPENING = 64


class _Choice(msgspec.Struct):
    delta: dict[str, msgspec.Raw] = {}
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []


_chunk = msgspec.json.Decoder(_Chunk).decode


class Opened:
    """A stream whose first content has come."""

    __slots__ = ("lane", "named", "opening", "rest")

    def __init__(self, lane: Lane, rest: AsyncIterator[bytes]) -> None:
        self.lane = lane
        self.opening: list[bytes] = []
        self.rest: AsyncIterator[bytes] | None = rest
        self.named = lane.named

    @property
    def hands_on(self) -> HandsOn | None:
        """The rest, where it is one that hands on. An `isinstance` of a Protocol is dear, and this is for each turn."""
        rest: Any = self.rest
        return rest if hasattr(rest, "hand_on") else None


async def open_stream(lane: Lane, call: ModelCall) -> Opened:
    """Return the stream of a call once its first content has come. Raises UpstreamFailed."""
    stream = lane.provider.stream(call)
    opened = Opened(lane, stream)
    try:
        async for chunk in stream:
            opened.opening.append(opened.named(chunk))
            if _has_content(chunk) or len(opened.opening) >= _OPENING:
                return opened
    except BaseException:
        await close(stream)
        raise
    opened.rest = None
    if not opened.opening:
        raise UpstreamFailed("the model's upstream failed: it said nothing", reason="broken")
    return opened


async def close(stream: AsyncIterator[bytes] | None) -> None:
    """Close an upstream that nobody listens to any more, which has a moment for it."""
    closing = getattr(stream, "aclose", None)
    if closing is not None:
        with suppress(TimeoutError):
            await within(_CLOSE, closing())


def _has_content(chunk: bytes) -> bool:
    """Whether a chunk holds anything of an answer: more than the role that opens it."""
    try:
        choices = _chunk(chunk).choices
    except msgspec.DecodeError:
        return True
    return any(
        choice.finish_reason is not None
        or any(key != "role" and bytes(value) not in (b'""', b"null", b"[]") for key, value in choice.delta.items())
        for choice in choices
    )
