"""Speaks to an upstream with Anthropic's Messages API for callers who speak OpenAI's; both ways, tools and streams too.

What has no counterpart there is refused rather than left out where leaving it out would change the answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from openclaw_gateway.api import Host, ModelCall, Secret, UpstreamFailed, hookimpl
from openclaw_plugins.providers.anthropic_answers import EventTranslator, Message, completion
from openclaw_plugins.providers.anthropic_requests import messages_request
from openclaw_plugins.providers.upstream import Upstream, UpstreamConfig, revealed

_MESSAGE = msgspec.json.Decoder(Message)


class Anthropic:
    """A pool of connections to one upstream, and a translation in front of it. Retries nothing."""

    keeps_deadlines: ClassVar[bool] = True

    class Config(UpstreamConfig, frozen=True, kw_only=True):
        api_key: Annotated[Secret | None, Meta(description="Sent as `x-api-key`.")] = None
        version: Annotated[str, Meta(description="Sent as `anthropic-version`.")] = "2023-06-01"
        max_tokens: Annotated[
            int, Meta(ge=1, description="Longest answer where the request names none: the upstream has no default.")
        ] = 4096

    def __init__(self, config: Config, host: Host) -> None:
        self._max_tokens = config.max_tokens
        key = config.api_key.reveal() if config.api_key is not None else ""
        credential = {"x-api-key": key} if key else {}
        headers = {**revealed(config.headers), "anthropic-version": config.version, **credential}
        self._upstream = Upstream(host, config, headers=headers, key=key)

    @hookimpl
    def lifespan(self) -> AbstractAsyncContextManager[None]:
        return self._upstream.opened()

    async def complete(self, call: ModelCall) -> bytes:
        answer = await self._upstream.whole("messages", "chat", call, _MESSAGE, self._body(call))
        return completion(_MESSAGE.decode(answer), call.upstream_model)

    def stream(self, call: ModelCall) -> AsyncIterator[bytes]:
        options: Any = call.request.get("stream_options") or {}
        teller = EventTranslator(
            call.upstream_model, self._upstream.secrets, with_usage=bool(options.get("include_usage"))
        )
        return self._upstream.streamed("messages", call, teller, self._body(call))

    async def embed(self, call: ModelCall) -> bytes:
        raise UpstreamFailed(
            "model: this one makes no embeddings",
            status=400,
            code="BAD_REQUEST",
            type="invalid_request_error",
            param="model",
            reason="request",
        )

    def _body(self, call: ModelCall) -> bytes:
        return messages_request(call.request, call.upstream_model, stream=call.stream, max_tokens=self._max_tokens)
