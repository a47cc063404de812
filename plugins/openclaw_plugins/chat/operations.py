"""OpenTelemetry's metrics of calls of models (GenAI, in development), by the names that Prometheus gives them.

A call is one request to one provider, as its span is: a retry, a fallback and a round of a tool loop are calls of
their own. The labels are the words of the configuration and of our own code, whatever clients and upstreams say.
"""

from __future__ import annotations

from openclaw_gateway.api import Host, ModelUse, Observed, Spread

#: how a call may end: well, or with the code of the answer that its caller gets, as its span says it too
_ENDS = frozenset(
    {
        "",
        "bad_request",
        "cancelled",
        "conflict",
        "forbidden",
        "internal_error",
        "service_unavailable",
        "upstream_error",
        "upstream_timeout",
    }
)
_LABELS = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
_TOKENS = tuple(4**n for n in range(14))
_SECONDS = tuple(0.01 * 2**n for n in range(14))


class Operations:
    """The metrics, of which each operation of a model has its series."""

    def __init__(self, host: Host) -> None:
        self.tokens = host.metric(
            Spread,
            "gen_ai_client_token_usage",
            "Tokens of calls of models, as their upstreams say them.",
            (*_LABELS, "gen_ai_token_type"),
            buckets=_TOKENS,
        )
        self.seconds = host.metric(
            Spread,
            "gen_ai_client_operation_duration_seconds",
            "How long calls of models take, to their end.",
            (*_LABELS, "error_type"),
            buckets=_SECONDS,
        )
        self.first_chunk = host.metric(
            Spread,
            "gen_ai_client_operation_time_to_first_chunk_seconds",
            "How long calls of models take to the first chunk that has content, where they stream.",
            _LABELS,
            buckets=_SECONDS,
        )


class Operation:
    """One operation of one model at its provider. Each series is looked up when it first comes, and kept."""

    __slots__ = ("_ends", "_first", "_input", "_labels", "_metrics", "_output")

    def __init__(self, metrics: Operations, name: str, provider: str, model: str) -> None:
        self._metrics = metrics
        self._labels = (name, provider, model)
        #: type of an error → the calls that ended in it; empty for those that went well
        self._ends: dict[str, Observed] = {}
        self._first: Observed | None = None
        self._input: Observed | None = None
        self._output: Observed | None = None

    def ended(self, seconds: float, error_type: str = "") -> None:
        """Count a call that took so many seconds. An `error_type` that is none of ours is OpenTelemetry's `_OTHER`."""
        if error_type not in _ENDS:
            error_type = "_OTHER"  # a provider of somebody else's may have any number of codes
        series = self._ends.get(error_type)
        if series is None:
            series = self._ends[error_type] = self._metrics.seconds.labels(*self._labels, error_type)
        series.observe(seconds)

    def begun(self, seconds: float) -> None:
        """Count a stream whose first content came after so many seconds."""
        if self._first is None:
            self._first = self._metrics.first_chunk.labels(*self._labels)
        self._first.observe(seconds)

    def told(self, use: ModelUse) -> None:
        """Count what the upstream says that a call took. Of what it does not say nothing is counted: no estimate."""
        if use.prompt_tokens is not None and use.prompt_tokens >= 0:
            if self._input is None:
                self._input = self._metrics.tokens.labels(*self._labels, "input")
            self._input.observe(use.prompt_tokens)
        if use.completion_tokens is not None and use.completion_tokens >= 0:
            if self._output is None:
                self._output = self._metrics.tokens.labels(*self._labels, "output")
            self._output.observe(use.completion_tokens)
