"""What the tests of the tool loop share: a model of one's own making that calls, and is answered, and answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from upstreams import DONE, Received, Script, chunk, event

CLIENT_TOOL = {
    "type": "function",
    "function": {"name": "browse", "parameters": {"type": "object", "properties": {"url": {"type": "string"}}}},
}


def call(name: str, id: str = "call_1", /, **arguments: Any) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


class Round:
    """What a model says once: a text in pieces, calls, how it ends, and what it counts."""

    def __init__(
        self, *texts: str, calls: Sequence[dict[str, Any]] = (), finish: str | None = None, tokens: int = 10
    ) -> None:
        self.texts = texts
        self.calls = calls
        self.finish = finish or ("tool_calls" if calls else "stop")
        self.usage = {
            "prompt_tokens": tokens,
            "completion_tokens": 2,
            "total_tokens": tokens + 2,
            "prompt_tokens_details": {"cached_tokens": 1},
        }

    def whole(self) -> Script:
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self.texts) or None}
        if self.calls:
            message["tool_calls"] = list(self.calls)
        choice = {"index": 0, "message": message, "finish_reason": self.finish}
        return [_json({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}, self)]

    def streamed(self, id: str) -> Script:
        """Each call in three pieces, as OpenAI cuts them."""
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": text} for text in self.texts]
        for index, each in enumerate(self.calls):
            arguments = each["function"]["arguments"]
            half = len(arguments) // 2
            deltas += [
                {"tool_calls": [{**each, "index": index, "function": {**each["function"], "arguments": ""}}]},
                {"tool_calls": [{"index": index, "function": {"arguments": arguments[:half]}}]},
                {"tool_calls": [{"index": index, "function": {"arguments": arguments[half:]}}]},
            ]
        chunks = [self._chunk(id, [{"index": 0, "delta": delta, "finish_reason": None}]) for delta in deltas]
        chunks.append(self._chunk(id, [{"index": 0, "delta": {}, "finish_reason": self.finish}]))
        return [*map(event, [*chunks, self._chunk(id, [], usage=self.usage)]), DONE]

    @staticmethod
    def _chunk(id: str, choices: list[Any], **more: Any) -> bytes:
        return json.dumps({**json.loads(chunk()), "id": id, "choices": choices, **more}).encode()


def _json(answer: dict[str, Any], said: Round) -> bytes:
    return json.dumps({**answer, "usage": said.usage}).encode()


def model(*rounds: Round) -> Callable[[Received], Script]:
    """A script that plays round after round, by how often the prompt has been answered; the last one for ever."""

    def script(received: Received) -> Script:
        request = received.json
        number = sum(message["role"] == "assistant" for message in request["messages"])
        said = rounds[min(number, len(rounds) - 1)]
        return said.streamed(f"round-{number}") if request.get("stream") else said.whole()

    return script
