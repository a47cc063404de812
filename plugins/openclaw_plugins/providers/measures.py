"""The numbers that every provider keeps of its upstream, under names that all services behind the gateway share."""

from __future__ import annotations

from typing import NamedTuple

from prometheus_client import Counter, Histogram

from openclaw_gateway.api import Host

_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class UpstreamMeasures(NamedTuple):
    """How long calls take and how they fail, by target (the plugin's id) and operation."""

    seconds: Histogram
    errors: Counter


def upstream_measures(host: Host) -> UpstreamMeasures:
    """Return the measures of this gateway."""
    return UpstreamMeasures(
        host.metric(
            Histogram,
            "external_service_duration_seconds",
            "How long calls of services behind the gateway take.",
            ("target", "operation"),
            buckets=_BUCKETS,
        ),
        host.metric(
            Counter,
            "external_service_errors_total",
            "Calls of services behind the gateway that failed.",
            ("target", "operation", "error_type"),
        ),
    )
