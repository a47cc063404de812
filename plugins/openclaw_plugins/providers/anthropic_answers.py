"""Turns answers of Anthropic's Messages API, whole or as events, into OpenAI's; a cut one never looks whole."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgspec

from openclaw_plugins.providers.sse import Event
from openclaw_plugins.providers.upstream_errors import broken, reported

_encode = msgspec.json.Encoder().encode
_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


class Usage(msgspec.Struct):
    """Tokens as the upstream counts them: what came from its cache is not in `input_tokens`."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class Block(msgspec.Struct):
    """One block of an answer."""

    type: str
    text: str = ""
    id: str = ""
    name: str = ""
    input: Any = None


class Message(msgspec.Struct):
    """A whole answer."""

    id: str
    content: list[Block]
    stop_reason: str | None = None
    usage: Usage = msgspec.field(default_factory=Usage)


class _Delta(msgspec.Struct):
    type: str = ""
    text: str = ""
    partial_json: str = ""
    stop_reason: str | None = None


class _Event(msgspec.Struct):
    type: str
    message: Message | None = None
    index: int = 0
    content_block: Block | None = None
    delta: _Delta | None = None
    usage: Usage | None = None
    error: Any = None


_event = msgspec.json.Decoder(_Event).decode


def completion(message: Message, model: str) -> bytes:
    """Return a whole answer as a chat completion."""
    text = "".join(block.text for block in message.content if block.type == "text")
    calls = [
        {
            "id": block.id,
            "type": "function",
            "function": {"name": block.name, "arguments": _encode(block.input or {}).decode()},
        }
        for block in message.content
        if block.type == "tool_use"
    ]
    said: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
    if calls:
        said["tool_calls"] = calls
    finish = _FINISH.get(message.stop_reason or "", "stop")
    choice = {"index": 0, "message": said, "logprobs": None, "finish_reason": finish}
    head = {"id": message.id, "object": "chat.completion", "created": int(time.time()), "model": model}
    return _encode({**head, "choices": [choice], "usage": _counted(message.usage)})


class EventTranslator:
    """Turns the events of one stream into chunks. Raises UpstreamFailed."""

    __slots__ = ("_calls", "_finished", "_head", "_secrets", "_usage", "_with_usage", "done")

    def __init__(self, model: str, secrets: tuple[str, ...], *, with_usage: bool) -> None:
        self._head: dict[str, Any] = {
            "id": "",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        self._secrets = secrets
        self._with_usage = with_usage
        self._usage = Usage()
        #: the index of a block with a tool call → the place of the call
        self._calls: dict[int, int] = {}
        self._finished = False
        self.done = False

    @property
    def whole(self) -> bool:
        return self.done or self._finished

    def take(self, event: Event) -> Iterator[bytes]:
        """Yield what an event says; pings and what has no counterpart say nothing."""
        if self.done or not event.data:
            return
        try:
            told = _event(event.data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise broken("its stream cannot be read") from None
        if told.type == "error":
            raise reported(told.error, self._secrets)
        if told.type == "message_start" and told.message is not None:
            self._head["id"] = told.message.id
            self._count(told.message.usage)
            yield self._chunk({"role": "assistant", "content": ""})
        elif told.type == "content_block_start" and told.content_block is not None:
            yield from self._opened(told.index, told.content_block)
        elif told.type == "content_block_delta" and told.delta is not None:
            yield from self._added(told.index, told.delta)
        elif told.type == "message_delta":
            self._count(told.usage)
            if told.delta is not None and told.delta.stop_reason is not None:
                self._finished = True
                yield self._chunk({}, _FINISH.get(told.delta.stop_reason, "stop"))
        elif told.type == "message_stop":
            self.done = True
            if self._with_usage:
                yield _encode({**self._head, "choices": [], "usage": _counted(self._usage)})

    def _opened(self, index: int, block: Block) -> Iterator[bytes]:
        if block.type == "text" and block.text:
            yield self._chunk({"content": block.text})
        elif block.type == "tool_use":
            place = self._calls[index] = len(self._calls)
            function = {"name": block.name, "arguments": ""}
            yield self._chunk(
                {"tool_calls": [{"index": place, "id": block.id, "type": "function", "function": function}]}
            )

    def _added(self, index: int, delta: _Delta) -> Iterator[bytes]:
        if delta.type == "text_delta" and delta.text:
            yield self._chunk({"content": delta.text})
        elif delta.type == "input_json_delta" and delta.partial_json and index in self._calls:
            call = {"index": self._calls[index], "function": {"arguments": delta.partial_json}}
            yield self._chunk({"tool_calls": [call]})

    def _count(self, usage: Usage | None) -> None:
        """Counts are cumulative; what an event leaves out stands."""
        for name in Usage.__struct_fields__ if usage is not None else ():
            value = getattr(usage, name)
            if value is not None:
                setattr(self._usage, name, value)

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _encode({**self._head, "choices": [choice]})


def _counted(usage: Usage) -> dict[str, Any]:
    cached = usage.cache_read_input_tokens or 0
    prompt = (usage.input_tokens or 0) + cached + (usage.cache_creation_input_tokens or 0)
    answer = usage.output_tokens or 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
