"""Speaks to any upstream with OpenAI's chat completion API; passes bodies on as they are, and never its secrets.

A stream that ends without `[DONE]` is a cut one, unless every choice has already told its `finish_reason`: then
nothing of the answer can be missing, and some servers never send the marker. An answer that is not streamed has
its first byte when all of it is generated: a model's `first_byte` bounds that too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from openclaw_gateway.api import Host, ModelCall, PluginConfig, Secret, Size, hookimpl
from openclaw_plugins.providers.progress import Progress
from openclaw_plugins.providers.upstream import Upstream
from openclaw_plugins.providers.upstream_errors import broken


class _Answer(msgspec.Struct):
    choices: list[Any]


class _Embeddings(msgspec.Struct):
    data: list[Any]


class OpenAI:
    """A pool of connections to one upstream. Retries nothing: what was sent may have been paid for."""

    class Config(PluginConfig, frozen=True, kw_only=True):
        url: Annotated[
            str, Meta(pattern="^https?://", description="Base URL, up to and including the version, `.../v1` say.")
        ]
        api_key: Annotated[Secret | None, Meta(description="Sent as the bearer token.")] = None
        headers: Annotated[dict[str, str], Meta(description="Sent with every request.")] = msgspec.field(
            default_factory=dict
        )
        max_connections: Annotated[
            int, Meta(ge=1, le=10_000, description="Connections at the same time; more calls wait for one.")
        ] = 256
        verify_tls: Annotated[bool, Meta(description="Whether the upstream's certificate is checked.")] = True
        max_answer: Annotated[Size, Meta(description="Largest whole answer, and largest single event of a stream.")] = (
            Size(32_000_000)
        )

    def __init__(self, config: Config, host: Host) -> None:
        key = config.api_key.reveal() if config.api_key is not None else ""
        self._upstream = Upstream(
            host,
            url=config.url,
            headers={**config.headers, **({"Authorization": f"Bearer {key}"} if key else {})},
            key=key,
            max_connections=config.max_connections,
            verify_tls=config.verify_tls,
            max_answer=config.max_answer,
        )

    @hookimpl
    def lifespan(self) -> AbstractAsyncContextManager[None]:
        return self._upstream.opened()

    async def complete(self, call: ModelCall) -> bytes:
        return await self._upstream.whole("chat/completions", "chat", call, _Answer)

    async def embed(self, call: ModelCall) -> bytes:
        return await self._upstream.whole("embeddings", "embeddings", call, _Embeddings)

    async def stream(self, call: ModelCall) -> AsyncIterator[bytes]:
        progress = Progress(self._upstream.secrets)
        async with self._upstream.streamed("chat/completions", call) as answer:
            while events := await answer.events():
                for event in events:
                    data = progress.take(event)
                    if data is not None:
                        answer.times.answered()
                        yield data
                if progress.done:
                    return
            if not progress.whole:
                raise broken("the stream was cut")
