"""How numbers of several registries become one: sums that never go down, gauges by their mode, whole histograms."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, exposition
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from openclaw_plugins.metrics.merging import Numbers, counted, merged, of_one_process, read, summed
from openclaw_plugins.metrics.scraping import Scrape, _Collected

MODES = {"open_now": "sum", "worst": "max", "least": "min"}


class Worker:
    """The registry of one process, with a metric of each kind."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.counter = Counter("events", "c", ("kind",), registry=self.registry)
        self.histogram = Histogram("seconds", "h", buckets=(0.1, 1.0), registry=self.registry)
        self.gauges = {name: Gauge(name, "g", registry=self.registry) for name in (*MODES, "unsaid")}
        Info("build", "i", registry=self.registry).info({"version": "1"})

    def numbers(self, before: list[Any] | None = None) -> Numbers:
        told = Numbers(read(self.registry, MODES), before or [])
        return msgspec.msgpack.decode(msgspec.msgpack.encode(told), type=Numbers)


def values(families: Any) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in families
        for s in family.samples
        if not s.name.endswith("_created")
    }


def test_counts_are_summed_and_gauges_follow_their_mode() -> None:
    one, two = Worker(), Worker()
    for worker, amount in ((one, 3), (two, 4)):
        worker.counter.labels("a").inc(amount)
        worker.histogram.observe(0.05 * amount)
        for gauge in worker.gauges.values():
            gauge.set(amount)
    two.counter.labels("b").inc()
    found = values(merged({0: one.numbers(), 1: two.numbers()}, live=[0, 1]))
    assert found["events_total", (("kind", "a"),)] == 7
    assert found["events_total", (("kind", "b"),)] == 1
    assert found["seconds_bucket", (("le", "0.1"),)] == 0
    assert found["seconds_bucket", (("le", "1.0"),)] == found["seconds_count", ()] == 2
    assert found["seconds_sum", ()] == pytest.approx(0.35)
    assert (found["open_now", ()], found["worst", ()], found["least", ()]) == (7, 4, 3)
    assert found["unsaid", (("worker", "0"),)] == 3 and found["unsaid", (("worker", "1"),)] == 4
    assert found["build_info", (("version", "1"),)] == 1
    gone = values(merged({0: one.numbers(), 1: two.numbers()}, live=[0]))
    assert gone["events_total", (("kind", "a"),)] == 7
    assert gone["open_now", ()] == 3 and ("unsaid", (("worker", "1"),)) not in gone


def test_what_died_is_kept_through_any_number_of_deaths() -> None:
    rng = random.Random(7)
    alive, before = {0: Worker(), 1: Worker()}, {0: [], 1: []}
    counted_in_all, last = 0, -1.0
    for _ in range(200):
        index = rng.randrange(2)
        if rng.random() < 0.2:
            left = alive[index].numbers(before[index])
            before[index] = counted(summed([left.before, counted(left.families)]))
            alive[index] = Worker()
        else:
            alive[index].counter.labels("a").inc()
            alive[index].histogram.observe(rng.random())
            counted_in_all += 1
        found = values(merged({i: alive[i].numbers(before[i]) for i in alive}, live=[0, 1]))
        total = found.get(("events_total", (("kind", "a"),)), 0)
        assert total == found["seconds_count", ()] == found["seconds_bucket", (("le", "+Inf"),)] == counted_in_all
        assert total >= last
        last = total
    assert all(not f.name.startswith("open_now") for f in before[0])


def test_a_reload_keeps_counts_and_takes_gauges_of_the_newest() -> None:
    old, new = Worker(), Worker()
    old.counter.labels("a").inc(5)
    old.gauges["open_now"].set(2)
    old.gauges["worst"].set(9)
    new.gauges["open_now"].set(1)
    new.gauges["worst"].set(4)
    parts = [read(worker.registry, MODES) for worker in (new, old)]
    found = {s[0]: s[2] for f in of_one_process(parts, []) for s in f.samples}
    assert (found["events_total"], found["open_now"], found["worst"]) == (5, 3, 4)


def test_the_text_is_taken_by_the_strict_parser_and_exemplars_survive() -> None:
    one, two = Worker(), Worker()
    one.counter.labels("a").inc(2)
    one.histogram.observe(0.5, {"trace_id": "abc"})
    two.histogram.observe(0.5)
    joined: Any = _Collected(list(merged({0: one.numbers(), 1: two.numbers()}, live=[0, 1])))
    from prometheus_client.openmetrics import exposition as openmetrics

    families = list(text_string_to_metric_families(openmetrics.generate_latest(joined).decode()))
    told = [s.exemplar.labels for f in families for s in f.samples if s.exemplar is not None]
    assert told == [{"trace_id": "abc"}]
    assert b'events_total{kind="a"} 2.0' in exposition.generate_latest(joined)


class Alone:
    """A fleet of which we see one worker; the others are files."""

    def __init__(self, folder: Any, count: int) -> None:
        self.index, self.count, self.folder = 0, count, folder
        self.states = tuple(SimpleNamespace(index=i, serving=True, restarts=0) for i in range(count))

    def answer(self, topic: str, do: Any) -> None:
        pass

    async def ask(self, topic: str, within: float) -> None:
        return None


async def test_a_scrape_of_many_workers_holds_the_loop_no_longer_than_a_turn_of_the_interpreter(tmp_path: Any) -> None:
    """All work is in a thread: what is measured is that the loop turns, and how often, not how fast the machine is."""
    registry = CollectorRegistry()
    counter = Counter("events", "c", ("kind",), registry=registry)
    for i in range(3_000):
        counter.labels(str(i)).inc()
    host: Any = SimpleNamespace(registry=registry, workers=Alone(tmp_path, 4), gauge_modes=dict)
    scrape = Scrape(host)
    await scrape.publish()
    for index in (1, 2, 3):
        (tmp_path / f"metrics-{index}").write_bytes((tmp_path / "metrics-0").read_bytes())
    threads: set[int] = set()
    seen = merged.__globals__["shown"]

    def noted(family: Any) -> Any:
        threads.add(threading.get_ident())
        return seen(family)

    merged.__globals__["shown"] = noted
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    turning = asyncio.create_task(turn())
    try:
        began = time.perf_counter()
        text = await scrape.run(False)
        took = time.perf_counter() - began
    finally:
        merged.__globals__["shown"] = seen
        turning.cancel()
    assert b'events_total{kind="7"} 4.0' in text
    assert threads and threading.get_ident() not in threads
    # The interpreter lets the loop in once a switch interval at the latest; half as often leaves room for a busy host.
    assert turns > took / sys.getswitchinterval() / 2
