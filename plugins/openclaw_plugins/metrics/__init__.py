"""Counts and times every exchange, and shows the gateway's numbers at `/metrics`, whichever worker is asked.

Its series are bounded by the configuration: nothing that a client chooses becomes a label.
"""

from __future__ import annotations

import asyncio
import platform
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, ClassVar

from litestar import HttpMethod, Request, Response, route
from msgspec import Meta
from prometheus_client import (
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.openmetrics import exposition as openmetrics

from openclaw_gateway.api import (
    TRACE_ID,
    Count,
    Exchange,
    Fact,
    Host,
    Outcome,
    PluginConfig,
    Spread,
    Tally,
    declared,
    hookimpl,
)
from openclaw_plugins.metrics.organizations import Organizations
from openclaw_plugins.metrics.scraping import Scrape

__all__ = ["Metrics"]

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WEBSOCKET"})
_OTHER = "_OTHER"
_CODE = re.compile(r"[A-Z][A-Z0-9_]{0,47}").fullmatch
_CODES = 64
#: without a charset: Litestar adds it to every text type
_PLAIN = "text/plain; version=0.0.4"


class Metrics:
    """Writes the HTTP metrics, with every series looked up once, and serves the gateway's registry."""

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = ()

    class Config(PluginConfig, frozen=True, kw_only=True):
        max_series: Annotated[
            int,
            Meta(ge=10, description="Most label sets of one HTTP metric; what comes later is counted as `(other)`."),
        ] = 1_000
        exemplars: Annotated[
            bool, Meta(description="Attach trace ids to the duration histogram, where a tracing step states them.")
        ] = False
        organizations: Annotated[
            int,
            Meta(
                ge=0,
                le=10_000,
                description="How many organisations have a series of their own in `organization_requests_total`; the "
                "others share `(other)`. 0 leaves the metric out: names of customers are then in no metric.",
            ),
        ] = 0

    def __init__(self, config: Config, host: Host) -> None:
        registry = host.registry
        self._host = host
        self._max_series = config.max_series
        self._exemplars = config.exemplars
        labels = ("method", "route", "status_code")
        self._requests = Tally("http_requests_total", "HTTP requests that ended", labels, registry=registry)
        self._seconds: Histogram | Spread = (Histogram if config.exemplars else Spread)(
            "http_request_duration_seconds",
            "Time from the first byte of a request to the last of its response",
            labels,
            buckets=_BUCKETS,
            registry=registry,
        )
        self._errors = Counter(
            "http_request_errors_total",
            "HTTP requests that ended in an error, by its code",
            ("method", "route", "error_type"),
            registry=registry,
        )
        Info("build", "What is running", registry=registry).info(
            {"version": host.gateway.version, "python": platform.python_version()}
        )
        Gauge("config_generation", "How often the configuration was loaded", registry=registry).set_function(
            lambda: host.gateway.generation
        )
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        # Labels are looked up once a combination: a cached child costs a third of `labels()`.
        self._ended: dict[tuple[str, str, int], tuple[Count, Any]] = {}
        self._failed: dict[tuple[str, str, str | None, int], Counter] = {}
        self._failed_series: set[tuple[str, str, str]] = set()
        self._codes: set[str] = set()
        self._organizations = Organizations(config.organizations, registry) if config.organizations else None
        self._scrape = Scrape(host)
        self._inherited = False

    @hookimpl
    def inherit(self, previous: Metrics) -> None:
        """Go on with the counts of before a reload."""
        self._scrape = previous._scrape
        self._inherited = True

    @hookimpl
    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        scrape = self._scrape
        if self._inherited:
            scrape.join(self._host)
        else:
            await scrape.begin()
        tasks = [asyncio.create_task(scrape.keep_publishing())] if self._host.workers is not None else []
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await scrape.leave(self._host)

    @hookimpl
    def on_complete(self, x: Exchange, outcome: Outcome) -> None:
        status = outcome.status
        kind = x.kind
        # An open socket has metrics of its own; only a refused handshake is an HTTP request that ended.
        if kind == "message" or (kind == "websocket" and status < 400):
            return
        method, template = x.method, x.route.route.path
        ended = self._ended.get((method, template, status))
        if ended is None:
            ended = self._look_up(method, template, status)
        ended[0].inc()
        if self._exemplars and (trace := x.get(TRACE_ID)) is not None:
            ended[1].observe(outcome.seconds, {"trace_id": trace[:64]})
        else:
            ended[1].observe(outcome.seconds)
        if self._organizations is not None:
            self._organizations.count(x, outcome)
        if status >= 400 or outcome.error_code is not None:
            failed = self._failed.get((method, template, outcome.error_code, status))
            if failed is None:
                failed = self._look_up_error(method, template, outcome.error_code, status)
            failed.inc()

    @hookimpl
    def routes(self) -> list[Any]:
        @route(
            "/metrics",
            http_method=[HttpMethod.GET, HttpMethod.HEAD],
            **declared(access="public", surface="operations", summary="The metrics of the gateway"),
        )
        async def metrics(request: Request[Any, Any, Any]) -> Response[bytes]:
            # The library's own choice repeats what the client sent in the content type.
            open_metrics = "application/openmetrics-text" in request.headers.get("accept", "")
            form = openmetrics.CONTENT_TYPE_LATEST if open_metrics else _PLAIN
            body = await self._scrape.run(open_metrics)
            return Response(content=body, status_code=200, media_type=form, headers={"cache-control": "no-store"})

        return [metrics]

    def _look_up(self, method: str, template: str, status: int) -> tuple[Count, Any]:
        # An unknown method is not kept under its own name: that would be a list of what clients sent.
        key = (method if method in _METHODS else _OTHER, template, status)
        if (known := self._ended.get(key)) is not None:
            return known
        code = str(status) if status == 0 or 100 <= status < 600 else _OTHER
        if len(self._ended) >= self._max_series:
            return self._requests.labels(_OTHER, "(other)", _OTHER), self._seconds.labels(_OTHER, "(other)", _OTHER)
        found = self._ended[key] = (
            self._requests.labels(key[0], template, code),
            self._seconds.labels(key[0], template, code),
        )
        return found

    def _look_up_error(self, method: str, template: str, code: str | None, status: int) -> Counter:
        known = method if method in _METHODS else _OTHER
        series = (known, template, self._error_type(code, status))
        if series not in self._failed_series:
            if len(self._failed_series) >= self._max_series:
                return self._errors.labels(_OTHER, "(other)", _OTHER)
            self._failed_series.add(series)
        child = self._errors.labels(*series)
        if known == method and len(self._failed) < self._max_series:
            self._failed[method, template, code, status] = child
        return child

    def _error_type(self, code: str | None, status: int) -> str:
        if code is None:
            return f"HTTP_{status}" if 400 <= status < 600 else _OTHER
        # An upstream's code may be passed on to the client, and then it is anybody's text.
        if code not in self._codes:
            if _CODE(code) is None or len(self._codes) >= _CODES:
                return _OTHER
            self._codes.add(code)
        return code
