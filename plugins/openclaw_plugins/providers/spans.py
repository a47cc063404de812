"""The span of one call of a model, by OpenTelemetry's GenAI conventions; says which model, never what was said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from openclaw_gateway.api import ModelCall, UpstreamFailed, end_span, start_span

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_OPERATIONS = {"embeddings": "embeddings"}


@contextmanager
def upstream_span(call: ModelCall, provider: str, operation: str, url: str) -> Iterator[Span | None]:
    """Hold the span of a call; None where nothing is traced. Its chunks have no spans of their own."""
    named = _OPERATIONS.get(operation, "chat")
    where = urlsplit(url)
    span = start_span(
        f"{named} {call.upstream_model}",
        {
            "gen_ai.operation.name": named,
            "gen_ai.provider.name": provider,
            "gen_ai.request.model": call.upstream_model,
            "gen_ai.request.stream": call.stream,
            "server.address": where.hostname or "",
            "server.port": where.port or (443 if where.scheme == "https" else 80),
        },
    )
    error_type: str | None = None
    try:
        yield span
    except UpstreamFailed as error:
        error_type = error.code.lower()
        raise
    finally:
        end_span(span, error_type)
