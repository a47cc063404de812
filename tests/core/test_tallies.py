"""Counters and histograms of the hot path show what the library's own would show."""

from __future__ import annotations

import random

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_open

from openclaw_gateway.tallies import Spread, Tally

BUCKETS = (0.005, 0.1, 1, 2.5)


def shown(registry: CollectorRegistry, *, open_metrics: bool = False) -> list[str]:
    """What a scrape gets, less the moments at which series were made."""
    text = (generate_open if open_metrics else generate_latest)(registry).decode()
    return [line for line in text.splitlines() if "_created" not in line]


@pytest.mark.parametrize("open_metrics", [False, True])
def test_a_scrape_cannot_tell_them_from_the_librarys(open_metrics: bool) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counts = (
        Tally("done_total", "What was done.", ("who",), registry=ours),
        Counter("done_total", "What was done.", ("who",), registry=theirs),
    )
    seconds = (
        Spread("took_seconds", "How long.", ("who",), buckets=BUCKETS, registry=ours),
        Histogram("took_seconds", "How long.", ("who",), buckets=BUCKETS, registry=theirs),
    )
    dice = random.Random(7)
    for who in ("ada", 'quoted "and" \\', "ada"):
        for _ in range(50):
            took = dice.choice([0.0, 0.005, 0.0050001, 0.1, 1, 2.5, 2.6, 1e9, dice.uniform(0, 3)])
            for count, spread in zip(counts, seconds, strict=True):
                count.labels(who).inc()  # type: ignore[attr-defined]
                spread.labels(who).observe(took)  # type: ignore[attr-defined]
        counts[0].labels(who).inc(2.5)
        counts[1].labels(who).inc(2.5)
    assert shown(ours, open_metrics=open_metrics) == shown(theirs, open_metrics=open_metrics)
    assert ours.get_sample_value("took_seconds_bucket", {"who": "ada", "le": "+Inf"}) == 100


def test_without_labels_there_is_a_series_from_the_start() -> None:
    registry = CollectorRegistry()
    Tally("done_total", "What was done.", registry=registry)
    Spread("took_seconds", "How long.", buckets=BUCKETS, registry=registry).labels().observe(0.2)
    assert registry.get_sample_value("done_total") == 0
    assert registry.get_sample_value("took_seconds_bucket", {"le": "0.1"}) == 0
    assert registry.get_sample_value("took_seconds_bucket", {"le": "1.0"}) == 1


def test_values_of_labels_are_plain_strings_whatever_they_were() -> None:
    class Name(str):
        __slots__ = ()

    registry = CollectorRegistry()
    tally = Tally("done_total", "What was done.", ("who",), registry=registry)
    tally.labels(Name("ada")).inc()
    tally.labels("ada").inc()
    [sample] = [sample for family in registry.collect() for sample in family.samples]
    assert (type(sample.labels["who"]), sample.value) == (str, 2)


def test_a_name_is_taken_once() -> None:
    registry = CollectorRegistry()
    Tally("done_total", "What was done.", registry=registry)
    with pytest.raises(ValueError, match="done"):
        Counter("done_total", "The same again.", registry=registry)


def test_labels_that_do_not_fit_and_buckets_out_of_order_are_refused() -> None:
    registry = CollectorRegistry()
    with pytest.raises(ValueError, match="'who'"):
        Tally("done_total", "What was done.", ("who",), registry=registry).labels()
    with pytest.raises(ValueError, match="larger"):
        Spread("took_seconds", "How long.", buckets=(1, 1), registry=registry)
