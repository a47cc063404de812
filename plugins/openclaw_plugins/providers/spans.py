"""The span of one call of a model, by OpenTelemetry's GenAI conventions; says which model, never what was said."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from openclaw_gateway.api import ModelCall, start_span

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_OPERATIONS = {"embeddings": "embeddings"}


class UpstreamSpans:
    """Starts the spans of one provider's calls. Their chunks have no spans of their own."""

    def __init__(self, provider: str, url: str) -> None:
        where = urlsplit(url)
        self._fixed: dict[str, str | int] = {
            "gen_ai.provider.name": provider,
            "server.address": where.hostname or "",
            "server.port": where.port or (443 if where.scheme == "https" else 80),
        }

    def start(self, call: ModelCall, operation: str) -> Span | None:
        """Return a span that whoever asked ends; None where nothing is traced, which is cheaper to ask first."""
        named = _OPERATIONS.get(operation, "chat")
        return start_span(
            f"{named} {call.upstream_model}",
            {
                "gen_ai.operation.name": named,
                "gen_ai.request.model": call.upstream_model,
                "gen_ai.request.stream": call.stream,
                **self._fixed,
            },
        )
