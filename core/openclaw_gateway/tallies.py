"""Counters and histograms for what happens several times a request: two additions each, and no lock.

They count on the thread of the event loop and nowhere else; a scrape may read them from any. prometheus_client's own
take a lock for every number, and search a bucket from below, so that six of them cost as much as all limits do. They
are made by `Host.metric` like those; what needs exemplars, or is counted in threads, is one of those.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.utils import INF, floatToGoString


class Count:
    """One series of a `Tally`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        self.value += amount


class Tally:
    """A counter. `labels` gives the series that is counted in: look it up once."""

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str] = (), *, registry: CollectorRegistry
    ) -> None:
        self._about = name, documentation
        #: by the name that prometheus_client's have, for who looks into a registry
        self._labelnames = tuple(labels)
        self._series: dict[tuple[str, ...], Count] = {}
        registry.register(self)
        if not self._labelnames:
            self.labels()  # shown as 0 from the start

    def labels(self, *values: str) -> Count:
        """Return the series of these values of the labels, in their order. Raises ValueError where they do not fit."""
        series = self._series.get(values)
        if series is None:
            series = self._series[_fitting(values, self._labelnames)] = Count()
        return series

    def describe(self) -> Iterable[CounterMetricFamily]:
        return [CounterMetricFamily(*self._about, labels=self._labelnames)]

    def collect(self) -> Iterable[CounterMetricFamily]:
        family = CounterMetricFamily(*self._about, labels=self._labelnames)
        for values, series in list(self._series.items()):
            family.add_metric(values, series.value)
        return [family]


class Observed:
    """One series of a `Spread`."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        #: how many fell into each bucket, and into none below it
        self.counts = [0] * len(bounds)
        self.total = 0.0

    def observe(self, amount: float) -> None:
        self.counts[bisect_left(self._bounds, amount)] += 1
        self.total += amount


class Spread:
    """A histogram. `labels` gives the series that is counted in: look it up once."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._about = name, documentation
        #: by the name that prometheus_client's have, for who looks into a registry
        self._labelnames = tuple(labels)
        self._bounds = (*(float(bound) for bound in buckets if bound != INF), INF)
        if list(self._bounds) != sorted(set(self._bounds)):
            raise ValueError("buckets: each is larger than the one before")
        self._shown = [str(floatToGoString(bound)) for bound in self._bounds]  # type: ignore[no-untyped-call]
        self._series: dict[tuple[str, ...], Observed] = {}
        registry.register(self)
        if not self._labelnames:
            self.labels()  # shown as 0 from the start

    def labels(self, *values: str) -> Observed:
        """Return the series of these values of the labels, in their order. Raises ValueError where they do not fit."""
        series = self._series.get(values)
        if series is None:
            series = self._series[_fitting(values, self._labelnames)] = Observed(self._bounds)
        return series

    def describe(self) -> Iterable[HistogramMetricFamily]:
        return [HistogramMetricFamily(*self._about, labels=self._labelnames)]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        family = HistogramMetricFamily(*self._about, labels=self._labelnames)
        for values, series in list(self._series.items()):
            so_far = 0
            buckets = []
            for shown, count in zip(self._shown, list(series.counts), strict=True):
                so_far += count
                buckets.append((shown, so_far))
            family.add_metric(values, buckets, series.total)
        return [family]


def _fitting(values: tuple[str, ...], labels: tuple[str, ...]) -> tuple[str, ...]:
    if len(values) != len(labels):
        raise ValueError(f"expected a value for each of the labels {labels}, and got {len(values)}")
    return tuple(str(value) for value in values)  # the name of a table, say, is a string of SQLAlchemy's own kind
