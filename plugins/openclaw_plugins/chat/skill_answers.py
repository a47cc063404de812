"""Answers a turn by a run of a skill, in the shape in which a model would: what clients and turns expect stays true.

No model is asked, so no tokens are counted.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import msgspec
from uuid_utils import uuid7

from openclaw_gateway.api import (
    Exchange,
    ModelUse,
    Refused,
    SkillRun,
    SkillRunner,
    StoreUnavailable,
    UpstreamFailed,
    as_text,
    bad_request,
)

#: characters of one chunk
_PIECE = 2_000

_encode = msgspec.json.Encoder().encode


async def answer_by_skill(
    runner: SkillRunner | None,
    x: Exchange,
    name: Any,
    *,
    model: str,
    text: str,
    session_id: str | None,
    stream: bool,
    include_usage: bool,
    ref: str | None = None,
) -> SkillAnswer:
    """Check and charge the run of a skill with the user's text. Raises Refused; 400 for a skill that is not there."""
    if runner is None or not isinstance(name, str) or runner.find(x, name) is None:
        raise Refused(bad_request(f"metadata.skillName: there is no skill {name!r:.80}", param="metadata.skillName"))
    run = await runner.prepare(x, name, session_id=session_id, text=text, ref=ref)
    return SkillAnswer(run, model, stream=stream, include_usage=include_usage)


class SkillAnswer:
    """Stands where the attempts of a model stand. `complete` or `stream` is used once."""

    __slots__ = ("_created", "_id", "_include_usage", "_run", "metadata", "use")

    def __init__(self, run: SkillRun, model: str, *, stream: bool, include_usage: bool) -> None:
        self._run = run
        self._include_usage = include_usage
        self._id = f"chatcmpl-{uuid7().hex}"
        self._created = int(time.time())
        self.use = ModelUse(model, streamed=stream)
        #: what the answer, and the message that is stored of it, says beside its text
        self.metadata: Mapping[str, Any] = {"skillExecuted": True, "skillName": run.info.name}

    async def complete(self) -> bytes:
        """Return the whole answer. Raises UpstreamFailed."""
        text = await self._text()
        message = {"role": "assistant", "content": text, "refusal": None}
        return _encode(
            {
                "id": self._id,
                "object": "chat.completion",
                "created": self._created,
                "model": self.use.asked,
                "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
                "usage": _USAGE,
                "metadata": self.metadata,
            }
        )

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the answer in chunks, once the skill has ended. Raises UpstreamFailed."""
        text = await self._text()
        yield self._chunk({"role": "assistant", "content": ""})
        for start in range(0, len(text), _PIECE):
            yield self._chunk({"content": text[start : start + _PIECE]})
        yield self._chunk({}, finish_reason="stop", metadata=self.metadata)
        if self._include_usage:
            yield _encode({**self._head(), "choices": [], "usage": _USAGE})

    async def _text(self) -> str:
        try:
            execution = await self._run.execute()
        except StoreUnavailable as error:
            message = f"the {error.store} does not answer; try again shortly"
            raise UpstreamFailed(message, status=503, code="SERVICE_UNAVAILABLE", retry_after=1.0) from error
        self.use.answered = self.use.asked
        if execution.status == "timeout":
            raise UpstreamFailed(f"the skill was cut: {execution.error}", status=504, code="UPSTREAM_TIMEOUT")
        if execution.status != "completed":
            raise UpstreamFailed(f"the skill did not complete: {execution.error}")
        return as_text(execution.result)

    def _chunk(self, delta: dict[str, Any], *, finish_reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return _encode({**self._head(), "choices": [choice], **more})

    def _head(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self.use.asked,
        }


_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
