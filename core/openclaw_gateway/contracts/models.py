"""A call of a model: what a provider is asked, and what the call came to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import msgspec

from openclaw_gateway.exchange import Fact


class ModelCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a model: the client's body as it came, and what was read of it.

    `body` is forwarded byte for byte where `upstream_model` equals the model that the client named. `organization`
    is the caller's, `session_id` the session of his that the turn belongs to, None for a call on its own.
    """

    model: str
    upstream_model: str
    body: bytes
    request: Mapping[str, Any]
    stream: bool
    request_id: str | None
    first_byte_timeout: float
    idle_timeout: float
    total_timeout: float
    organization: str = ""
    session_id: str | None = None


@runtime_checkable
class ModelProvider(Protocol):
    """Speaks to one kind of upstream in OpenAI's chat completion shape.

    One whose class says `keeps_deadlines = True` raises by itself when a call's times run out; others are cut then.
    """

    async def complete(self, call: ModelCall) -> bytes:
        """Return the whole JSON answer. Raises UpstreamFailed before anything was sent on."""
        ...

    def stream(self, call: ModelCall) -> AsyncIterator[bytes]:
        """Yield the JSON of each chunk, without SSE framing; ends after the last one.

        Raises UpstreamFailed, also in the middle. Closing the iterator stops the upstream. One that `HandsOn` too is
        asked for chunks that way once its first content has come.
        """
        ...

    async def embed(self, call: ModelCall) -> bytes:
        """Return the whole JSON answer of an embeddings request. Raises UpstreamFailed."""
        ...


@runtime_checkable
class HandsOn(Protocol):
    """A stream that can hand its chunks on in the turn of the event loop in which they come.

    Optional. A stream that is only an iterator wakes a task for each chunk, which costs more.
    """

    async def hand_on(
        self, put: Callable[[bytes], bool], pass_on: Callable[[], None], room: Callable[[], Awaitable[None]]
    ) -> None:
        """Give every chunk that is left to `put`, as it comes; return at the end. Raises as the iterator does.

        `pass_on` is to be called where no more are there just now. Where `put` has returned False, `room` is to be
        awaited before more is read. None of them may be called after this has returned or was cancelled.
        """
        ...


class ModelUse(msgspec.Struct, eq=False):
    """What became of one call of one client, whichever upstreams it met.

    `answered` is the alias that answered, None where none did; `first_content` is in seconds from the start.
    Tokens are the upstream's own count, None where it gave none.
    """

    asked: str
    streamed: bool
    answered: str | None = None
    provider: str | None = None
    upstream_model: str | None = None
    #: calls that were sent, the one that answered among them
    attempts: int = 0
    first_content: float | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


#: stated by the handler that calls a model
MODEL_USE: Fact[ModelUse] = Fact("model_use")
