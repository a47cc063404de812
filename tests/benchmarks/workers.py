"""One worker beside two, on shared stores: what a request costs when it may come to either.

Two get two times the connections, so that each has as much to do at once as the one has: what a worker does together,
a write to a store above all, is the cheaper the more of it there is.

On two cores the load, the upstream and the stores take their share of what a second worker could have, so req/s cannot
double here. What is compared is requests for each second of CPU that the gateway got: where that stays, a core more is
a core's worth of requests more. A raw server in one process and in two is the control: what it loses is lost to the
machine, where cores share caches and have other work beside.
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
from benchmarks.subjects import Subject, bare, gateway

COUNTS = (1, 2)
#: what workers share beside the stores that every gateway of the table has there
_SHARED = {"plugins.events.use": "events.redis", "plugins.ws_tickets.redis": "redis"}
#: connections for each worker
_EACH = 64


class Workers(msgspec.Struct, kw_only=True):
    """What so many workers did, round after round."""

    what: str
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
    """Start a gateway and a raw server of each size, on any core, and measure them in turn."""
    found: list[Workers] = []
    with ExitStack() as stack:
        subjects = []
        for number in COUNTS:
            edit = {**edits, **_SHARED, "gateway.workers": number}
            name = f"gateway, {number} workers"
            say(f"starting {name}")
            subjects.append(stack.enter_context(gateway(folder / f"{number}", name, "", to, edit, core=None)))
            found.append(Workers(what="gateway", count=number))
        for number in COUNTS:
            subjects.append(stack.enter_context(bare("raw", "", processes=number, core=None)))
            found.append(Workers(what="raw ASGI echo", count=number))
        for number in range(count):
            say(f"round {number + 1} of {count}: one worker and two")
            for one, subject in zip(found, subjects, strict=True):
                point = Point(f"plain {one.count * _EACH}", one.count * _EACH)
                before = _each(subject, one.count)
                one.samples.append(sample(subject, point, seconds, Conditions()))
                spent = sorted(cpu - before.get(pid, 0.0) for pid, cpu in _each(subject, one.count).items())
                spent = spent[-one.count :]  # whoever looks after them, or counts for them, has next to none
                one.least.append(spent[0] / sum(spent))
    return found


def rows(found: list[Workers]) -> list[tuple[str, ...]]:
    """Rows of the table, one a size."""
    return [
        (
            one.what,
            str(one.count),
            f"{statistics.median(s.rate for s in one.samples):,.0f}",
            f"{statistics.median(s.cpu for s in one.samples):,.0f}",
            f"{statistics.median(s.rate * s.cpu / 1e6 for s in one.samples):.2f}",
            f"{statistics.median(one.least):.0%}",
            f"{one.efficiency(next(other for other in found if other.what == one.what)):.2f}",
        )
        for one in found
    ]


HEADER = (
    "",
    "workers",
    "req/s",
    "CPU µs a request",
    "cores used",
    "share of the least busy",
    "req per CPU s, x one worker",
)


def _each(subject: Subject, count: int) -> dict[int, float]:
    """The CPU of each worker: of one, the process itself; of more, the children of the one that looks after them."""
    (pid,) = subject.pids
    return {each: cpu_of([each]) for each in ({pid} if count == 1 else set(family([pid])) - {pid})}
