"""Gives every exchange one OpenTelemetry span, and its trace id to the log.

It never waits for a collector, makes no span a chunk, and writes no contents into a span.
"""

from __future__ import annotations

import asyncio
import importlib.util
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from msgspec import Meta, field
from opentelemetry import context, trace
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from openclaw_gateway.api import (
    TRACE_ID,
    Exchange,
    Fact,
    Host,
    Outcome,
    PluginConfig,
    ResponseHead,
    Route,
    Secret,
    hookimpl,
)
from openclaw_gateway.spans import TRACER
from openclaw_plugins.tracing.semantics import at_end, at_start, failed, span_name

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

_HANDSHAKE: Fact[SpanContext] = Fact("handshake_span")
_EXTRA = "opentelemetry.exporter.otlp.proto.http"
_SHUTDOWN = 3.0
_extract = TraceContextTextMapPropagator().extract


class Tracing:
    """One server span an exchange; place it before `access_log`, so that log lines carry the trace id.

    A WebSocket's handshake ends when it is accepted, and each message is a span of the same trace.
    """

    provides: ClassVar[tuple[Fact[Any], ...]] = (TRACE_ID,)
    requires: ClassVar[tuple[Fact[Any], ...]] = ()

    class Config(PluginConfig, frozen=True, kw_only=True):
        endpoint: Annotated[
            Annotated[str, Meta(pattern="^https?://")] | None,
            Meta(
                description="Base URL of an OTLP/HTTP receiver, `http://127.0.0.1:4318` say; `/v1/traces` is added. "
                "Needs the extra `tracing`. Without it spans go to the provider that the process has, if it has one."
            ),
        ] = None
        headers: Annotated[dict[str, Secret], Meta(description="Sent with every export, credentials say.")] = field(
            default_factory=dict
        )
        service_name: Annotated[str, Meta(min_length=1, description="`service.name` of the resource.")] = (
            "openclaw-gateway"
        )
        sample: Annotated[float, Meta(ge=0, le=1, description="Share of traces begun here that is recorded.")] = 1.0
        obey_sampled: Annotated[
            Literal["nobody", "trusted_proxies", "everyone"],
            Meta(
                description="Whose `sampled` flag decides whether a trace is recorded. Every caller's trace id is "
                "taken over; for those who are not obeyed `sample` decides."
            ),
        ] = "trusted_proxies"
        operations: Annotated[bool, Meta(description="Trace probes and scrapes too.")] = False

    def __init__(self, config: Config, host: Host) -> None:
        self._config = config
        self._host = host
        self._tracer: Tracer | None = None
        #: by the exchange's identity: it has no room for what only we know
        self._open: dict[int, Span] = {}
        if config.endpoint is not None and not _available(_EXTRA):
            raise ValueError("endpoint needs the extra: pip install 'openclaw-gateway[tracing]'")

    @hookimpl
    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        provider = self._exporting() if self._config.endpoint is not None else None
        known = provider or trace.get_tracer_provider()
        if not isinstance(known, trace.ProxyTracerProvider):
            self._tracer = known.get_tracer("openclaw_gateway", self._host.gateway.version)
        try:
            yield
        finally:
            self._tracer = None
            if provider is not None:
                # A daemon: the SDK may wait for a dead collector longer than a stop should.
                stopping = threading.Thread(target=provider.shutdown, daemon=True)
                stopping.start()
                await asyncio.to_thread(stopping.join, _SHUTDOWN)
                if stopping.is_alive():
                    self._host.logger.warning("the last spans could not be delivered in time")

    @hookimpl
    def applies(self, route: Route) -> bool:
        # What no route matches counts as operations too, but a caller who lost his way wants to see it.
        return self._config.operations or route.surface != "operations" or not route.methods

    @hookimpl
    def on_request(self, x: Exchange) -> None:
        parent = self._parent(x)
        tracer = self._tracer
        if tracer is None:
            if parent is not None:
                x[TRACE_ID] = f"{parent.trace_id:032x}"
            return
        span = self._start(tracer, x, parent)
        span_context = span.get_span_context()
        if span_context.is_valid:
            x[TRACE_ID] = f"{span_context.trace_id:032x}"
        if x.kind == "websocket":
            x[_HANDSHAKE] = span_context

    @hookimpl
    def on_message(self, x: Exchange) -> None:
        if self._tracer is not None:
            self._start(self._tracer, x, x.get(_HANDSHAKE))

    @hookimpl
    def on_response(self, x: Exchange, head: ResponseHead) -> None:
        # An open socket lives for hours: its span is that of the handshake.
        if x.kind == "websocket" and head.status == 101 and (span := self._open.pop(id(x), None)) is not None:
            if span.is_recording():
                span.set_attributes({**at_end(x, x.outcome), "http.response.status_code": 101})
            span.end()

    @hookimpl
    def on_complete(self, x: Exchange, outcome: Outcome) -> None:
        span = self._open.pop(id(x), None)
        if span is None:
            return
        if span.is_recording():
            span.set_attributes(at_end(x, outcome))
            if failed(outcome):
                span.set_status(Status(StatusCode.ERROR))
        span.end()

    def _start(self, tracer: Tracer, x: Exchange, parent: SpanContext | None) -> Span:
        """Start the span and make it the current one of this task and of those that it starts."""
        around: Context = context.Context()
        if parent is not None:
            around = trace.set_span_in_context(trace.NonRecordingSpan(parent), around)
        span = tracer.start_span(span_name(x), context=around, kind=SpanKind.SERVER, attributes=at_start(x))
        self._open[id(x)] = span
        # Never detached: the task ends with the exchange, or the next message sets its own.
        context.attach(trace.set_span_in_context(span, around))
        TRACER.set(tracer)
        return span

    def _parent(self, x: Exchange) -> SpanContext | None:
        """Return the caller's span; who is not obeyed names the trace, and not whether it is recorded."""
        given = x.header(b"traceparent")
        if given is None:
            return None
        carrier = {"traceparent": given.decode("latin-1")}
        if states := x.headers(b"tracestate"):
            carrier["tracestate"] = b",".join(states).decode("latin-1")
        parent = trace.get_current_span(_extract(carrier, context.Context())).get_span_context()
        if not parent.is_valid:
            return None
        obey = self._config.obey_sampled
        if obey == "everyone" or (obey == "trusted_proxies" and x.trusted_peer):
            return parent
        # Not by the trace id, as the SDK's sampler would: the caller has chosen it.
        recorded = random.random() < self._config.sample  # noqa: S311 - a share, not a secret
        flags = TraceFlags(TraceFlags.SAMPLED if recorded else TraceFlags.DEFAULT)
        return SpanContext(parent.trace_id, parent.span_id, True, flags, parent.trace_state)

    def _exporting(self) -> TracerProvider:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

        assert self._config.endpoint is not None
        provider = TracerProvider(
            resource=Resource.create(
                {"service.name": self._config.service_name, "service.version": self._host.gateway.version}
            ),
            sampler=ParentBased(TraceIdRatioBased(self._config.sample)),
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(
            endpoint=f"{self._config.endpoint.rstrip('/')}/v1/traces",
            headers={name: value.reveal() for name, value in self._config.headers.items()} or None,
        )
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return provider


def _available(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
