"""One worker beside two, on shared stores: what a request costs when it may come to either.

Two get two times the connections, so that each has as much to do at once as the one has: what a worker does together,
a write to a store above all, is the cheaper the more of it there is.

On two cores the load, the upstream and the stores take their share of what a second worker could have, so req/s cannot
double here. What is compared is requests for each second of CPU that the gateway got: where that stays, a core more is
a core's worth of requests more.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.load import Sample, cpu_of, family
from benchmarks.measure import Conditions, Point, sample
from benchmarks.subjects import Subject, gateway

COUNTS = (1, 2)
#: what workers share beside the stores that every gateway of the table has there
_SHARED = {"plugins.events.use": "events.redis", "plugins.ws_tickets.redis": "redis"}
#: connections for each worker
_EACH = 64


class Workers(msgspec.Struct, kw_only=True):
    """What so many workers did, round after round."""

    count: int
    samples: list[Sample] = []
    #: of the CPU that all workers got, what the one that got least had; 1 / count is even
    least: list[float] = []

    def efficiency(self, one: Workers) -> float:
        """Requests for a second of CPU, against one worker in the same round; the median."""
        return statistics.median(a.cpu / b.cpu for a, b in zip(one.samples, self.samples, strict=True))


def all_workers(
    folder: Path, to: int, edits: Mapping[str, Any], *, count: int, seconds: float, say: Callable[[str], None]
) -> list[Workers]:
    """Start a gateway of each size, on any core, and measure them in turn."""
    found = [Workers(count=number, samples=[], least=[]) for number in COUNTS]
    with ExitStack() as stack:
        subjects = []
        for one in found:
            edit = {**edits, **_SHARED, "gateway.workers": one.count}
            name = f"gateway, {one.count} workers"
            say(f"starting {name}")
            subjects.append(stack.enter_context(gateway(folder / f"{one.count}", name, "", to, edit, core=None)))
        for number in range(count):
            say(f"round {number + 1} of {count}: one worker and two")
            for one, subject in zip(found, subjects, strict=True):
                point = Point(f"plain {one.count * _EACH}", one.count * _EACH)
                before = _each(subject, one.count)
                one.samples.append(sample(subject, point, seconds, Conditions()))
                spent = [after - was for after, was in zip(_each(subject, one.count), before, strict=True)]
                one.least.append(min(spent) / sum(spent))
    return found


def rows(found: list[Workers]) -> list[tuple[str, ...]]:
    """Rows of the table, one a size."""
    return [
        (
            str(one.count),
            f"{statistics.median(s.rate for s in one.samples):,.0f}",
            f"{statistics.median(s.cpu for s in one.samples):,.0f}",
            f"{statistics.median(s.rate * s.cpu / 1e6 for s in one.samples):.2f}",
            f"{statistics.median(one.least):.0%}",
            f"{one.efficiency(found[0]):.2f}",
        )
        for one in found
    ]


HEADER = (
    "workers",
    "req/s",
    "CPU µs a request",
    "cores used",
    "share of the least busy",
    "req per CPU s, x one worker",
)


def _each(subject: Subject, count: int) -> list[float]:
    """The CPU of each worker: of one, the process itself; of more, the children of the one that looks after them."""
    (pid,) = subject.pids
    return [cpu_of([pid])] if count == 1 else [cpu_of([child]) for child in sorted(set(family([pid])) - {pid})]
