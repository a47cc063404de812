"""Tells an answer in the shape of Anthropic's Messages API: one message, or the events of a stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec
import uuid_utils

from openclaw_gateway.api import Refusal, anthropic_error
from openclaw_plugins.chat.answers import ToolCall

_encode = msgspec.json.Encoder().encode
_STOP = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


class MessageUsage(msgspec.Struct):
    """Tokens as the model counted them."""

    input_tokens: int
    output_tokens: int


class MessageAnswer(msgspec.Struct):
    """A whole answer."""

    id: str
    model: str
    content: list[dict[str, Any]]
    stop_reason: str | None
    usage: MessageUsage
    stop_sequence: str | None = None
    role: Literal["assistant"] = "assistant"
    type: Literal["message"] = "message"


class _Said(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Said | None = None
    message: _Said | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Answer(msgspec.Struct):
    model: str = ""
    choices: list[_Choice] = []
    usage: _Usage | None = None


_decode = msgspec.json.Decoder(_Answer).decode


def whole_message(answer: bytes) -> bytes:
    """Return a chat completion as a message."""
    found = _decode(answer)
    choice = found.choices[0] if found.choices else _Choice()
    said = choice.message or _Said()
    content: list[dict[str, Any]] = []
    if text := said.content or said.refusal:
        content.append({"type": "text", "text": text})
    for call in said.tool_calls or ():
        function = call.function
        content.append(
            {
                "type": "tool_use",
                "id": call.id or "",
                "name": (function.name if function else None) or "",
                "input": _arguments((function.arguments if function else None) or "{}"),
            }
        )
    usage = found.usage or _Usage()
    return _encode(
        MessageAnswer(
            id=_message_id(),
            model=found.model,
            content=content,
            stop_reason=_STOP.get(choice.finish_reason or "", "end_turn"),
            usage=MessageUsage(usage.prompt_tokens or 0, usage.completion_tokens or 0),
        )
    )


class MessageEvents:
    """Turns the chunks of one stream into events.

    Blocks stand one after another there. What comes while a tool call is open and belongs to no part of it waits for
    the end, so that nothing is lost whatever the order.
    """

    keep_alive = b": keep-alive\n\n"

    def __init__(self) -> None:
        self._started = False
        self._index = -1
        #: what the open block holds: text, or the place of a tool call
        self._open: str | int | None = None
        self._waiting: dict[int, list[ToolCall]] = {}
        self._late_texts: list[str] = []
        self._stop_reason: str | None = None
        self._usage = _Usage()

    def frames(self, chunks: Sequence[bytes]) -> bytes:
        """Return the events that tell of these chunks."""
        return b"".join(_framed(event) for chunk in chunks for event in self._events(_decode(chunk)))

    def end(self) -> bytes:
        """Return the events that end a whole answer."""
        events = list(self._flush())
        events += self._close()
        counted = {
            "input_tokens": self._usage.prompt_tokens or 0,
            "output_tokens": self._usage.completion_tokens or 0,
        }
        delta = {"stop_reason": self._stop_reason or "end_turn", "stop_sequence": None}
        events += [{"type": "message_delta", "delta": delta, "usage": counted}, {"type": "message_stop"}]
        return b"".join(map(_framed, events))

    def error(self, path: str, request_id: str | None, refusal: Refusal) -> bytes:
        """Return the event that ends a stream which failed."""
        return _framed(anthropic_error(refusal, request_id))

    def _events(self, answer: _Answer) -> Iterable[dict[str, Any]]:
        if answer.usage is not None:
            self._usage = answer.usage
        if not self._started:
            self._started = True
            message: dict[str, Any] = {
                "id": _message_id(),
                "type": "message",
                "role": "assistant",
                "model": answer.model,
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": {"input_tokens": 0, "output_tokens": 0},  # known at the end
            }
            yield {"type": "message_start", "message": message}
        for choice in answer.choices:
            if choice.index != 0:
                continue
            said = choice.delta or _Said()
            if text := said.content or said.refusal:
                if isinstance(self._open, int):
                    self._late_texts.append(text)
                else:
                    yield from self._text(text)
            for call in said.tool_calls or ():
                yield from self._tool(call)
            if choice.finish_reason is not None:
                self._stop_reason = _STOP.get(choice.finish_reason, "end_turn")

    def _text(self, text: str) -> Iterable[dict[str, Any]]:
        if self._open != "text":
            yield from self._begin("text", {"type": "text", "text": ""})
        yield self._delta({"type": "text_delta", "text": text})

    def _tool(self, call: ToolCall) -> Iterable[dict[str, Any]]:
        function = call.function
        if self._open != call.index:
            if isinstance(self._open, int):
                self._waiting.setdefault(call.index, []).append(call)
                return
            name = (function.name if function else None) or ""
            block = {"type": "tool_use", "id": call.id or f"toolu_{uuid_utils.uuid7().hex}", "name": name, "input": {}}
            yield from self._begin(call.index, block)
        if function is not None and function.arguments:
            yield self._delta({"type": "input_json_delta", "partial_json": function.arguments})

    def _flush(self) -> Iterable[dict[str, Any]]:
        for index in sorted(self._waiting):
            yield from self._close()
            for call in self._waiting[index]:
                yield from self._tool(call)
        if self._late_texts:
            yield from self._text("".join(self._late_texts))

    def _begin(self, what: str | int, block: dict[str, Any]) -> Iterable[dict[str, Any]]:
        yield from self._close()
        self._open = what
        self._index += 1
        yield {"type": "content_block_start", "index": self._index, "content_block": block}

    def _close(self) -> Iterable[dict[str, Any]]:
        if self._open is not None:
            self._open = None
            yield {"type": "content_block_stop", "index": self._index}

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


def _framed(event: dict[str, Any]) -> bytes:
    return f"event: {event['type']}\ndata: ".encode() + _encode(event) + b"\n\n"


def _arguments(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return {"_unreadable": text}  # the model wrote no JSON; hiding what it wrote would help nobody


def _message_id() -> str:
    return f"msg_{uuid_utils.uuid7().hex}"
