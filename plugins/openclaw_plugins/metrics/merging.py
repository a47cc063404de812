"""Joins what several registries counted into one: of workers, of workers that are no more, of before a reload.

Counters and histograms are summed and never go down; a gauge is what its `multiprocess_mode` says. prometheus_client
has files mapped into memory for this, at a cost on every increment, without exemplars and with series that never
leave; this costs nothing until somebody scrapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.samples import Exemplar, Sample

#: what a process tells of itself as a whole, whatever its registry: a reload makes no second of these
_PROCESS = ("process_", "python_")
#: gauges whose modes no plugin states
_MODES = {
    "config_generation": "min",
    "process_max_fds": "sum",
    "process_open_fds": "sum",
    "process_resident_memory_bytes": "sum",
    "process_start_time_seconds": "min",
    "process_virtual_memory_bytes": "sum",
}
_CUMULATIVE = ("counter", "histogram", "summary")
_GAUGES = ("gauge", "unknown")

_Labels = tuple[tuple[str, str], ...]
#: name, labels, value, exemplar (labels, value, seconds)
_Sample = tuple[str, _Labels, float, tuple[dict[str, str], float, float | None] | None]


class Family(msgspec.Struct, frozen=True, array_like=True):
    """One metric and its samples, as they travel between workers."""

    name: str
    documentation: str
    type: str
    unit: str
    mode: str
    samples: list[_Sample]


class Numbers(msgspec.Struct, frozen=True, array_like=True):
    """All of one worker: its numbers, and what those counted that had its place before it."""

    families: list[Family]
    before: list[Family]


def read(registry: CollectorRegistry, modes: Mapping[str, str]) -> list[Family]:
    """Read a registry; `modes` are the modes of the gauges that plugins made."""
    found = []
    for family in registry.collect():
        mode = modes.get(family.name) or _MODES.get(family.name, "all" if family.type in _GAUGES else "max")
        samples = [_flat(sample) for sample in family.samples]
        found.append(Family(family.name, family.documentation, family.type, family.unit, mode, samples))
    return found


def counted(families: Iterable[Family], *, process: bool = True) -> list[Family]:
    """Keep what adds up over time: what has ended has no gauges. `process`: with the numbers of the whole process."""
    return [f for f in families if f.type in _CUMULATIVE and (process or not f.name.startswith(_PROCESS))]


def summed(parts: Iterable[list[Family]]) -> list[Family]:
    """Add up what `counted` has kept."""
    return [_joined(families) for families in _by_name(parts)]


def of_one_process(gateways: Sequence[list[Family]], closed: list[Family]) -> list[Family]:
    """Join the numbers of the gateways in one process, the newest first, with the counts of those that are closed."""
    newest, *older = gateways
    rest = [
        [f for f in families if not f.name.startswith(_PROCESS) and (f.type in _CUMULATIVE or f.mode == "sum")]
        for families in older
    ]
    return [_joined(families) for families in _by_name([newest, *rest, closed])]


def merged(workers: Mapping[int, Numbers], live: Iterable[int]) -> Iterator[Metric]:
    """Join all workers for a scrape; gauges only of those that live."""
    living = set(live)
    parts: list[list[Family]] = []
    for index, numbers in workers.items():
        parts.append([_marked(f, index) for f in numbers.families] if index in living else counted(numbers.families))
        parts.append(numbers.before)
    for families in _by_name(parts):
        yield shown(_joined(families))


def shown(family: Family) -> Metric:
    """Turn a family into what the library writes out."""
    metric = Metric(family.name, family.documentation, family.type, family.unit)
    metric.samples = [
        Sample(name, dict(labels), value, None, None if exemplar is None else Exemplar(*exemplar))
        for name, labels, value, exemplar in family.samples
    ]
    return metric


def _flat(sample: Sample) -> _Sample:
    exemplar = sample.exemplar
    told = None
    if exemplar is not None:
        told = (
            dict(exemplar.labels),
            exemplar.value,
            None if exemplar.timestamp is None else float(exemplar.timestamp),
        )
    return sample.name, tuple(sample.labels.items()), float(sample.value), told


def _marked(family: Family, index: int) -> Family:
    """Give a gauge that no rule joins the label `worker`."""
    if family.mode != "all":
        return family
    samples: list[_Sample] = [
        (name, (*labels, ("worker", str(index))), value, exemplar) for name, labels, value, exemplar in family.samples
    ]
    return msgspec.structs.replace(family, samples=samples)


def _by_name(parts: Iterable[list[Family]]) -> Iterator[list[Family]]:
    found: dict[str, list[Family]] = {}
    for families in parts:
        for family in families:
            found.setdefault(family.name, []).append(family)
    yield from found.values()


def _joined(families: list[Family]) -> Family:
    first = families[0]
    if len(families) == 1:
        return first
    values: dict[tuple[str, _Labels], float] = {}
    exemplars: dict[tuple[str, _Labels], tuple[dict[str, str], float, float | None]] = {}
    for family in families:
        for name, labels, value, exemplar in family.samples:
            key = (name, labels)
            known = values.get(key)
            values[key] = value if known is None else _of_both(first, name, known, value)
            if exemplar is not None:
                exemplars[key] = exemplar
    samples: list[_Sample] = [(*key, value, exemplars.get(key)) for key, value in values.items()]
    return msgspec.structs.replace(first, samples=samples)


def _of_both(family: Family, name: str, one: float, other: float) -> float:
    if family.type in _CUMULATIVE:
        return min(one, other) if name.endswith("_created") else one + other
    if family.mode == "sum":
        return one + other
    return min(one, other) if family.mode == "min" else max(one, other)
