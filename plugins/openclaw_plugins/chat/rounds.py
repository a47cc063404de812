"""What a model said in one round of a turn: what of it is the client's, and which skills it called.

Calls of skills never reach the client; everything else does, as it comes.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import msgspec

_object = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode
#: a chunk without any of these is the client's, whatever it says
_OF_INTEREST = re.compile(rb'"tool_calls"|"usage": ?\{|"finish_reason": ?"')
_TEXT = re.compile(rb'"content": ?"[^"]')


class Call(msgspec.Struct):
    """A call of a function, as far as it was said. `mine` where the gateway answers it."""

    id: str
    name: str
    mine: bool
    index: int
    arguments: str = ""

    def shown(self) -> dict[str, Any]:
        """As it stands in the message of an assistant."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


class Said:
    """What was said in the rounds of a turn up to now, as one answer: one id, one usage, one text."""

    __slots__ = ("head", "text", "usage")

    def __init__(self) -> None:
        self.head: dict[str, Any] = {}
        self.text = False
        self.usage: dict[str, Any] = {}

    def add_usage(self, usage: dict[str, Any]) -> None:
        self.usage = summed(self.usage, usage)


class Round:
    """One round. A stream goes through `chunk`, a whole answer through `whole`."""

    __slots__ = (
        "_answered",
        "_chunks",
        "_said",
        "_theirs",
        "calls",
        "end",
        "finish_reason",
        "later",
        "parted",
        "usage",
    )

    def __init__(self, said: Said, theirs: Collection[str], *, later: bool) -> None:
        self._said = said
        self._theirs = theirs
        self._answered: dict[str, Any] | None = None
        self._chunks: list[bytes] = []
        #: index of the model → its call
        self.calls: dict[int, Call] = {}
        #: the chunk that says why the answer ended, kept until it is known whether it did
        self.end: dict[str, Any] | None = None
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] = {}
        #: whether another round came before
        self.later = later
        self.parted = False

    @property
    def mine(self) -> list[Call]:
        """The calls that the gateway answers: none where the client has one to answer, or the model was cut."""
        if self.finish_reason not in ("tool_calls", "stop") or any(not call.mine for call in self.calls.values()):
            return []
        return [call for call in self.calls.values() if call.mine]

    def chunk(self, chunk: bytes) -> bytes | None:
        """Take in a chunk; return what of it is the client's."""
        self._chunks.append(chunk)
        if not self.later and self._said.head and _OF_INTEREST.search(chunk) is None:
            self._said.text = self._said.text or _TEXT.search(chunk) is not None
            return chunk
        try:
            fields = _object(chunk)
        except msgspec.DecodeError:
            return chunk
        if not self._said.head:
            self._said.head = {key: fields[key] for key in ("id", "object", "created", "model") if key in fields}
        if isinstance(usage := fields.pop("usage", None), dict):
            self.usage = usage  # the last one holds for all of it
        choice = next((c for c in fields.get("choices") or () if isinstance(c, dict) and not c.get("index")), None)
        if choice is None:
            return None
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            delta = choice["delta"] = {}
        opening = delta.get("role") is not None and not self.later
        if self.later:
            delta.pop("role", None)
        if calls := delta.pop("tool_calls", None):
            theirs = [piece for call in calls if (piece := self._call(call)) is not None]
            if theirs:
                delta["tool_calls"] = theirs
        if delta.get("content"):
            if self.later and self._said.text and not self.parted:
                delta["content"] = "\n\n" + delta["content"]
            self.parted = self._said.text = True
        fields.update(self._said.head)
        if isinstance(reason := choice.get("finish_reason"), str):
            self.finish_reason = reason
            choice["finish_reason"] = None
            self.end = {**fields, "choices": [{**choice, "delta": {}}]}
        return _encode(fields) if opening or any(value not in ("", None, []) for value in delta.values()) else None

    def message(self) -> dict[str, Any]:
        """Return what was said, for the model's next round."""
        if self._answered is not None:
            return self._answered
        text: list[str] = []
        for chunk in self._chunks:
            try:
                choices = _object(chunk).get("choices") or ()
            except msgspec.DecodeError:
                continue
            text += [c["delta"]["content"] for c in choices if (c.get("delta") or {}).get("content")]
        calls = [call.shown() for call in self.calls.values()]
        return {"role": "assistant", "content": "".join(text) or None, "tool_calls": calls}

    def whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Take in a whole answer; return its message without the calls that are no matter of the client's."""
        if isinstance(usage := answer.get("usage"), dict):
            self.usage = usage
        choice = answer["choices"][0]
        message: dict[str, Any] = choice.get("message") or {}
        self._answered = dict(message)
        self.finish_reason = choice.get("finish_reason")
        calls = message.pop("tool_calls", None) or []
        theirs = [call for i, call in enumerate(calls) if self._call({**call, "index": i}) is not None]
        if theirs:
            message["tool_calls"] = theirs
        return message

    def _call(self, piece: Any) -> dict[str, Any] | None:
        """Take in a piece of a call; return it as the client gets it, None where it does not."""
        if not isinstance(piece, dict):
            return None
        index = piece.get("index") or 0
        function = piece.get("function") or {}
        call = self.calls.get(index)
        if call is None:
            name = function.get("name") or ""
            mine = piece.get("type", "function") in ("function", None) and name not in self._theirs
            place = sum(not other.mine for other in self.calls.values())
            call = self.calls[index] = Call(piece.get("id") or f"call_{index}", name, mine, place)
        call.arguments += function.get("arguments") or ""
        return None if call.mine else {**piece, "index": call.index}


def summed(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Add up two counts of tokens, their details too."""
    result = dict(one)
    for key, value in other.items():
        before = result.get(key)
        if isinstance(value, dict):
            result[key] = summed(before if isinstance(before, dict) else {}, value)
        elif isinstance(value, int) and isinstance(before, int):
            result[key] = before + value
        elif value is not None:
            result[key] = value
    return result
