"""Spans of the work inside an exchange, for whichever plugin does it; costs one look-up where nothing is traced.

The tracer travels in the context of the exchange's task and of the tasks that it starts, not in a process-wide
provider: several gateways, or two generations of one, live in one process.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    # Imported where it is used: the command line comes by here and has no spans.
    from opentelemetry.trace import Span, Tracer

#: set by the step that traces, for the rest of the exchange
TRACER: ContextVar[Tracer | None] = ContextVar("openclaw-tracer", default=None)


def traced() -> bool:
    """Whether a span that is started now would lead anywhere."""
    return TRACER.get() is not None


def start_span(
    name: str,
    attributes: Mapping[str, str | bool | int | float] | None = None,
    *,
    kind: Literal["client", "internal"] = "client",
) -> Span | None:
    """Start a child of the exchange's span, or return None where nothing is traced; whoever starts it ends it.

    It does not become the current span, so that it may be held across the `yield` of a stream.
    """
    tracer = TRACER.get()
    if tracer is None:
        return None
    from opentelemetry.trace import SpanKind

    span_kind = SpanKind.CLIENT if kind == "client" else SpanKind.INTERNAL
    return tracer.start_span(name, kind=span_kind, attributes=attributes)


def trace_headers(span: Span | None) -> dict[str, str]:
    """Return the W3C headers by which a callee joins the trace below `span`."""
    if span is None or not span.get_span_context().is_valid:
        return {}
    from opentelemetry.trace import set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, context=set_span_in_context(span))
    return carrier


def end_span(span: Span | None, error_type: str | None = None) -> None:
    """End it; `error_type` is a word for what failed, never a text of a client or a service."""
    if span is None:
        return
    if error_type is not None:
        from opentelemetry.trace import Status, StatusCode

        span.set_attribute("error.type", error_type)
        span.set_status(Status(StatusCode.ERROR))
    span.end()
