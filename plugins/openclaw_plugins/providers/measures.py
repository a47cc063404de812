"""The numbers that every provider keeps of its upstream: one pair of series for all providers of a registry."""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, Counter, Histogram

_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class UpstreamMeasures(NamedTuple):
    """How long calls take and how they fail, by target (the plugin's id) and operation."""

    seconds: Histogram
    errors: Counter


# Two instances of a provider share a registry, and a registry takes each metric once.
_made: WeakKeyDictionary[CollectorRegistry, UpstreamMeasures] = WeakKeyDictionary()


def upstream_measures(registry: CollectorRegistry) -> UpstreamMeasures:
    """Return the measures of `registry`, created at the first call."""
    measures = _made.get(registry)
    if measures is None:
        measures = _made[registry] = UpstreamMeasures(
            Histogram(
                "external_service_duration_seconds",
                "How long calls of services behind the gateway take.",
                ("target", "operation"),
                buckets=_BUCKETS,
                registry=registry,
            ),
            Counter(
                "external_service_errors_total",
                "Calls of services behind the gateway that failed.",
                ("target", "operation", "error_type"),
                registry=registry,
            ),
        )
    return measures
