"""A model that shows its prompt back: deterministic and offline, and never more than an honest echo.

It answers with every message of the prompt, in order, and counts its own tokens: a token is a word with the
white space before it, so that the tokens of a text, joined, are the text.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import math
import re
import struct
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import msgspec
import uuid_utils
from msgspec import Meta

from openclaw_gateway.api import Host, ModelCall, PluginConfig, UpstreamFailed

_TOKEN = re.compile(r"\s*\S+|\s+\Z")
_encode = msgspec.json.Encoder().encode


class Echo:
    """Answers with its prompt, cut at `max_tokens`. Speaks to nobody."""

    keeps_deadlines: ClassVar[bool] = True

    class Config(PluginConfig, frozen=True, kw_only=True):
        dimensions: Annotated[
            int, Meta(ge=1, le=4096, description="Length of an embedding where the request names none.")
        ] = 64

    def __init__(self, config: Config, host: Host) -> None:
        self._dimensions = config.dimensions

    async def complete(self, call: ModelCall) -> bytes:
        prompt_tokens, answer, finish_reason = _answer(call.request)
        return _encode(
            {
                "id": _completion_id(),
                "object": "chat.completion",
                "created": int(time.time()),
                "model": call.model,
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "".join(answer), "refusal": None},
                        "logprobs": None,
                        "finish_reason": finish_reason,
                    }
                ],
                "usage": _usage(prompt_tokens, len(answer)),
            }
        )

    async def stream(self, call: ModelCall) -> AsyncIterator[bytes]:
        prompt_tokens, answer, finish_reason = _answer(call.request)
        head = {
            "id": _completion_id(),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": call.model,
        }

        def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
            return _encode({**head, "choices": [choice]})

        yield chunk({"role": "assistant", "content": ""})
        for token in answer:
            # A reader that left, or a stop, is noticed between two tokens even though nothing here waits.
            await asyncio.sleep(0)
            yield chunk({"content": token})
        yield chunk({}, finish_reason)
        if (call.request.get("stream_options") or {}).get("include_usage"):
            yield _encode({**head, "choices": [], "usage": _usage(prompt_tokens, len(answer))})

    async def embed(self, call: ModelCall) -> bytes:
        given = call.request["input"]
        inputs: list[str | list[int]] = given if _is_batch(given) else [given]
        dimensions = call.request.get("dimensions") or self._dimensions
        if not isinstance(dimensions, int) or not 0 < dimensions <= 4096:
            raise UpstreamFailed(
                "dimensions: expected a whole number from 1 to 4096",
                status=400,
                code="BAD_REQUEST",
                type="invalid_request_error",
                param="dimensions",
            )
        encoded = call.request.get("encoding_format") == "base64"
        data = []
        for index, item in enumerate(inputs):
            vector = _unit_vector(item, dimensions)
            shown: Any = vector
            if encoded:
                shown = base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode()
            data.append({"object": "embedding", "index": index, "embedding": shown})
        count = sum(len(item) if isinstance(item, list) else len(tokens(item)) for item in inputs)
        return _encode(
            {
                "object": "list",
                "data": data,
                "model": call.model,
                "usage": {"prompt_tokens": count, "total_tokens": count},
            }
        )


def tokens(text: str) -> list[str]:
    """Cut a text into the tokens of this model; joined again they are the text."""
    return _TOKEN.findall(text)


def _answer(request: Mapping[str, Any]) -> tuple[int, list[str], str]:
    texts = [text for message in request["messages"] if (text := _text(message.get("content")))]
    said = tokens("\n".join(texts))
    bounds = [bound for name in ("max_tokens", "max_completion_tokens") if isinstance(bound := request.get(name), int)]
    cut = said[: min(bounds)] if bounds else said
    return sum(len(tokens(text)) for text in texts), cut, "stop" if len(cut) == len(said) else "length"


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "\n".join(
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return ""


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _completion_id() -> str:
    return f"chatcmpl-{uuid_utils.uuid7().hex}"


def _is_batch(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and isinstance(given[0], (str, list))


def _unit_vector(item: str | list[int], dimensions: int) -> list[float]:
    """Spread the hash of the input over the sphere: the same input is the same vector, on every machine."""
    source = item.encode() if isinstance(item, str) else _encode(item)
    digest = hashlib.shake_256(source).digest(4 * dimensions)
    raw = [number / 2**31 - 1.0 for number in struct.unpack(f"<{dimensions}I", digest)]
    length = math.sqrt(math.fsum(value * value for value in raw)) or 1.0
    return [value / length for value in raw]
