"""Turns of a session for those who hold no prompt: the model sees the stored history, then the new content.

The history is bounded by count and by size; what does not fit is left out from its beginning, never cut in a message.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec

from openclaw_gateway.api import Message, TurnEnd
from openclaw_plugins.chat.answers import Record
from openclaw_plugins.chat.turns import Reason, Turn

#: how long one look waits for the next piece
_PATIENCE = 60.0


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(_Chunk).decode


class SessionTurn:
    """A running turn, heard as text."""

    def __init__(self, turn: Turn, record: Record) -> None:
        self._turn = turn
        self._record = record
        self._usage: dict[str, Any] | None = None

    async def texts(self) -> AsyncIterator[str]:
        """Yield what the model says as it says it; pieces that wait together come as one."""
        while (chunks := await self._turn.outlet.chunks(_PATIENCE)) is not None:
            text = "".join([self._text(chunk) for chunk in chunks])
            if text:
                yield text

    def cancel(self, why: Reason) -> None:
        """End it now; what was heard is kept."""
        self._turn.stop(why)

    async def end(self) -> TurnEnd:
        """Wait until it is stored and charged."""
        await self._turn.ended()
        if self._turn.body:
            self._text(self._turn.body)
        stored = self._record.stored
        return TurnEnd(
            message=stored[-1] if stored else None,
            usage=self._usage,
            cut=self._turn.stopped,
            failure=self._turn.failure,
        )

    def _text(self, chunk: bytes) -> str:
        try:
            piece = _decode(chunk)
        except msgspec.DecodeError:
            return ""
        self._usage = piece.usage or self._usage
        said = [c.delta.content or c.delta.refusal or "" for c in piece.choices if c.index == 0 and c.delta is not None]
        return "".join(said)


def prompt(history: Sequence[Message], content: str, max_bytes: int) -> list[dict[str, Any]]:
    """Return the messages for the model: as much of the end of the history as fits, and the new content."""
    kept: list[dict[str, Any]] = []
    left = max_bytes - len(content.encode())
    for message in reversed(history):
        shown = _shown(message)
        left -= len(msgspec.json.encode(shown))
        if left < 0:
            break
        kept.append(shown)
    while kept and kept[-1]["role"] == "tool":
        kept.pop()  # the call that it answers did not fit, and a model refuses one without the other
    return [*reversed(kept), {"role": "user", "content": content}]


def _shown(message: Message) -> dict[str, Any]:
    metadata: Mapping[str, Any] = message.metadata
    shown: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.role == "assistant" and (calls := metadata.get("toolCalls")):
        shown["tool_calls"] = [
            {
                "id": call["id"],
                "type": call["type"],
                "function": {"name": call["name"], "arguments": call["arguments"]},
            }
            for call in calls
        ]
    elif message.role == "tool":
        shown["tool_call_id"] = metadata.get("toolCallId") or ""
    return shown
