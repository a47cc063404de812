"""What a call of a model came to: filled in while it runs, read by traces, logs and accounts when it has ended."""

from __future__ import annotations

from openclaw_gateway.exchange import Fact


class ModelUse:
    """One call of one client, whichever upstreams it met.

    `answered` is the alias that answered, None where none did; `first_content` is in seconds from the start.
    Tokens are the upstream's own count, None where it gave none.
    """

    __slots__ = (
        "answered",
        "asked",
        "attempts",
        "completion_tokens",
        "finish_reason",
        "first_content",
        "prompt_tokens",
        "provider",
        "streamed",
        "upstream_model",
    )

    def __init__(self, asked: str, *, streamed: bool) -> None:
        self.asked = asked
        self.streamed = streamed
        self.answered: str | None = None
        self.provider: str | None = None
        self.upstream_model: str | None = None
        #: calls that were sent, the one that answered among them
        self.attempts = 0
        self.first_content: float | None = None
        self.finish_reason: str | None = None
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None


#: stated by the handler that calls a model
MODEL_USE: Fact[ModelUse] = Fact("model_use")
