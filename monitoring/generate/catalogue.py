"""What there is to ask for: the metrics of a gateway's live registry, and those that other programs write."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser

from openclaw_gateway.gateway import Gateway
from openclaw_gateway.testing import build, configuration

#: plugins beside those of the shipped configuration, so that all there is to see is in the registry
BESIDES: Mapping[str, Any] = {
    "plugins.redis": {"url": "redis://127.0.0.1:9/0"},
    "plugins.counters": {"use": "counters.redis"},
    "plugins.upstream": {"use": "providers.openai", "url": "http://127.0.0.1:9/v1"},
    "models.upstream": {"provider": "upstream"},
}

#: what Prometheus, and whoever discovers targets for it, puts onto every series
TARGET_LABELS = frozenset({"job", "instance"})


class Metric(NamedTuple):
    type: str
    labels: frozenset[str]


def _metric(type: str, *labels: str) -> Metric:
    return Metric(type, frozenset(labels))


#: Metrics that the contract names and whose call sites do not exist yet. The one list of them: what is here may be
#: asked for, and what is here and written too is an error, so that the list can only shrink.
AWAITED: Mapping[str, Metric] = {}

#: Metrics of other programs, each with the one that writes it.
EXTERNAL: Mapping[str, tuple[str, Metric]] = {
    "kube_pod_container_status_restarts_total": (
        "kube-state-metrics",
        _metric("counter", "namespace", "pod", "container"),
    ),
    "kube_pod_status_ready": ("kube-state-metrics", _metric("gauge", "namespace", "pod", "condition")),
    "kube_pod_status_phase": ("kube-state-metrics", _metric("gauge", "namespace", "pod", "phase")),
    "ALERTS": ("prometheus", _metric("gauge", "alertname", "alertstate", "severity")),
}

_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "info": ("_info",)}


class UnknownMetric(Exception):
    """A query asks for a metric or a label that nothing writes."""


class Catalogue:
    """Every series name with its labels, and the routes by which operations are told from clients' work."""

    def __init__(self, gateway: Gateway) -> None:
        self.written = dict(_families(gateway))
        self.series: dict[str, frozenset[str]] = {}
        for name, metric in {**AWAITED, **self.written}.items():
            for suffix in _SUFFIXES.get(metric.type, ("",)):
                extra = {"le"} if suffix == "_bucket" else set()
                self.series[name + suffix] = metric.labels | extra | TARGET_LABELS
        for name, (_, metric) in EXTERNAL.items():
            self.series[name] = metric.labels | TARGET_LABELS
        #: routes that probes and scrapes call; they would thin out every ratio
        self.operations = sorted({route.path for route in gateway.routes if route.surface == "operations"})

    @classmethod
    def of_all_plugins(cls) -> Catalogue:
        with tempfile.TemporaryDirectory() as folder:
            return cls(build(configuration(Path(folder), edit=BESIDES)))

    def stale(self) -> list[str]:
        """Names that are awaited although they are written: their lines in AWAITED have done their service."""
        return sorted(set(AWAITED) & set(self.written))

    def check(self, query: str, recorded: Mapping[str, frozenset[str]] | None = None) -> None:
        """Raise UnknownMetric for a query that could never return what it is meant to."""
        known = {**self.series, **(recorded or {})}
        for node in _nodes(promql_parser.parse(query)):
            if isinstance(node, promql_parser.VectorSelector):
                labels = known.get(node.name or "")
                if labels is None:
                    raise UnknownMetric(f"nothing writes {node.name!r}, which is in: {query}")
                for matcher in node.matchers.matchers:
                    if matcher.name not in labels:
                        raise UnknownMetric(f"{node.name} has no label {matcher.name!r}, which is in: {query}")
            elif isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
                names = _names(node.expr)
                there = frozenset().union(*(known.get(name, frozenset()) for name in names))
                if missing := set(node.modifier.labels) - there:
                    raise UnknownMetric(f"{sorted(names)} have no label {sorted(missing)}, but add up by it: {query}")

    def asked(self, query: str) -> set[str]:
        """The series names that a query asks for."""
        return _names(promql_parser.parse(query))

    def without_call_site(self, query: str) -> set[str]:
        """Those of them that this gateway does not write: awaited, or another program's."""
        own = {n + s for n, m in self.written.items() for s in _SUFFIXES.get(m.type, ("",))}
        return self.asked(query) - own


def _families(gateway: Gateway) -> Iterator[tuple[str, Metric]]:
    # The library shows names and types of a registry, but label names only on the metric itself.
    for collector in list(gateway.registry._collector_to_names):
        labels = frozenset(getattr(collector, "_labelnames", ()))
        describe = getattr(collector, "describe", None)
        for family in (list(describe()) if describe is not None else []) or collector.collect():
            yield family.name, Metric(family.type, labels)


def _names(expr: Any) -> set[str]:
    return {n.name for n in _nodes(expr) if isinstance(n, promql_parser.VectorSelector) and n.name is not None}


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    for name in ("expr", "lhs", "rhs", "param", "vector_selector"):
        child = getattr(node, name, None)
        if child is not None:
            yield from _nodes(child)
    for argument in getattr(node, "args", None) or ():
        yield from _nodes(argument)
