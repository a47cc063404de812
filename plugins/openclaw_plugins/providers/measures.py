"""The numbers that every provider keeps of its upstream, under names that all services behind the gateway share."""

from __future__ import annotations

from prometheus_client import Counter

from openclaw_gateway.api import Host, Observed, Spread

_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class UpstreamMeasures:
    """How long calls of one target (the plugin's id) take and how they fail, by operation."""

    def __init__(self, host: Host) -> None:
        self._target = host.id
        self._seconds = host.metric(
            Spread,
            "external_service_duration_seconds",
            "How long calls of services behind the gateway take.",
            ("target", "operation"),
            buckets=_BUCKETS,
        )
        self._errors = host.metric(
            Counter,
            "external_service_errors_total",
            "Calls of services behind the gateway that failed.",
            ("target", "operation", "error_type"),
        )
        #: operation → its series, looked up once
        self._operations: dict[str, Observed] = {}

    def took(self, operation: str, seconds: float) -> None:
        series = self._operations.get(operation)
        if series is None:
            series = self._operations[operation] = self._seconds.labels(self._target, operation)
        series.observe(seconds)

    def failed(self, operation: str, error_type: str) -> None:
        self._errors.labels(self._target, operation, error_type).inc()
