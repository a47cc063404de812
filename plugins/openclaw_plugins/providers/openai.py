"""Speaks to any upstream with OpenAI's chat completion API; passes bodies on as they are, and never its secrets.

A stream that ends without `[DONE]` is a cut one, unless every choice has already told its `finish_reason`: then
nothing of the answer can be missing, and some servers never send the marker. An answer that is not streamed has
its first byte when all of it is generated: a model's `first_byte` bounds that too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from openclaw_gateway.api import Host, ModelCall, Secret, hookimpl
from openclaw_plugins.providers.progress import Progress
from openclaw_plugins.providers.streamed import Streamed
from openclaw_plugins.providers.upstream import Upstream, UpstreamConfig, revealed


class _Answer(msgspec.Struct):
    choices: list[Any]


class _Embeddings(msgspec.Struct):
    data: list[Any]


_ANSWER = msgspec.json.Decoder(_Answer)
_EMBEDDINGS = msgspec.json.Decoder(_Embeddings)


class OpenAI:
    """A pool of connections to one upstream. Retries nothing: what was sent may have been paid for."""

    keeps_deadlines: ClassVar[bool] = True

    class Config(UpstreamConfig, frozen=True, kw_only=True):
        api_key: Annotated[Secret | None, Meta(description="Sent as the bearer token.")] = None

    def __init__(self, config: Config, host: Host) -> None:
        key = config.api_key.reveal() if config.api_key is not None else ""
        credential = {"Authorization": f"Bearer {key}"} if key else {}
        self._upstream = Upstream(host, config, headers={**revealed(config.headers), **credential}, key=key)

    @hookimpl
    def lifespan(self) -> AbstractAsyncContextManager[None]:
        return self._upstream.opened()

    def complete(self, call: ModelCall) -> Coroutine[Any, Any, bytes]:
        return self._upstream.whole("chat/completions", "chat", call, _ANSWER, *self._sent(call))

    def embed(self, call: ModelCall) -> Coroutine[Any, Any, bytes]:
        return self._upstream.whole("embeddings", "embeddings", call, _EMBEDDINGS, *self._sent(call))

    def stream(self, call: ModelCall) -> AsyncIterator[bytes]:
        return self._streamed(call)

    def _streamed(self, call: ModelCall) -> Streamed:
        teller = Progress(self._upstream.secrets)
        return self._upstream.streamed("chat/completions", call, teller, *self._sent(call))

    def _sent(self, call: ModelCall) -> tuple[bytes, Mapping[str, str] | None]:
        """Return what is sent for a call: its body, and headers beside those of every call."""
        return call.body, None
