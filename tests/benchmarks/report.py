"""Writes what was measured as one Markdown page, the one that is printed; it holds nothing that was not measured."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version

import msgspec

from benchmarks import crosscheck
from benchmarks.account import Part
from benchmarks.load import Sample
from benchmarks.machine import build, machine
from benchmarks.measure import BRISK, BURST, PACED, PLAIN, Conditions, Samples, middle
from benchmarks.sockets import Sockets, section
from benchmarks.subjects import Subject
from benchmarks.upstream import CHUNKS, PACE, PACES
from benchmarks.workers import HEADER, Workers, rows

_VERSIONS = (
    "openclaw-gateway",
    "litestar",
    "uvicorn",
    "uvloop",
    "httptools",
    "msgspec",
    "pluggy",
    "redis",
    "sqlalchemy",
)


_SOCKETS = "## Sockets"
_QUICK = PACES[BRISK.pace]
#: the subject that stands for the gateway where others are compared with it
OURS = "gateway, rates only"


class Run(msgspec.Struct, kw_only=True):
    """One run of the command."""

    command: str
    count: int
    seconds: float
    subjects: list[Subject]
    samples: Samples
    memory: dict[str, float]
    absent: dict[str, str]
    cold: dict[str, list[float]]
    parts: list[Part]
    sockets: Sockets | None
    #: subject → streams at once → longest silence in ms
    carried: dict[str, dict[int, float]]
    conditions: Conditions
    workers: list[Workers] = []
    checks: list[crosscheck.Check] = []


def page(run: Run) -> str:
    """The whole page."""
    text = _page(run)
    return text if run.sockets is None else with_sockets(text, run.sockets, run.command)


def with_sockets(page: str, found: Sockets, command: str) -> str:
    """The page with this section on sockets in place of the one that it may have."""
    before, _, after = page.partition(f"\n{_SOCKETS}\n")
    _, mark, rest = after.partition("\n## ")
    written = f"Written by `{command}`, {datetime.now(UTC):%Y-%m-%dT%H:%MZ}, {machine()}."
    return "\n".join([before, _SOCKETS, "", written, "", *section(found), ""]) + mark + rest


def _page(run: Run) -> str:
    return "\n".join(
        [
            "# Performance",
            "",
            f"Written by `{run.command}`; do not edit. How it is measured, and what the rows mean: "
            "[tests/benchmarks](../../tests/benchmarks/README.md).",
            "",
            *_conditions(run),
            "## Whole answers",
            "",
            "One request is a chat completion of 200 bytes. CPU is what the scheduler gave to all processes of the "
            "subject, in microseconds a request; `x raw` is its ratio to the raw ASGI echo in the same round.",
            "",
            *_plain(run),
            "",
            "### Latency",
            "",
            "At the median and at the 99th percentile, in ms, by connections that all wait for their answer before "
            "they ask again; added is what lies beyond a direct call of the mock upstream. Where the servers' core is "
            "busy, from 16 connections on, it is the time that requests wait for one another.",
            "",
            *_latency(run),
            "",
            "## Streams",
            "",
            f"One stream is {CHUNKS} chunks and the end marker. Burst: 16 connections, no pacing. Paced: 1, 16 or 64 "
            f"streams at a chunk each {PACE * 1000:g} ms; a stall is the longest silence between two chunks. First "
            "token: at the median, and what of that is added to a direct call, in ms, by streams at once.",
            "",
            *_streams(run),
            "",
            "### Long streams at a quick pace",
            "",
            f"64 streams of {_QUICK.chunks} chunks, one each {_QUICK.seconds * 1000:g} ms: here a chunk weighs more "
            "than a stream, and a busy server finds several chunks at once. `x` is the CPU beside the gateway's with "
            "rates only, in the same round. A server that has no core for so many is left out.",
            "",
            *_brisk(run),
            "",
            "### Streams at once",
            "",
            f"The longest silence between two chunks of any of so many paced streams, in ms. The pace is "
            f"{PACE * 1000:g} ms; past {3 * PACE * 1000:g} a reader sees a stall. The load and the upstream are one "
            "process each: what the first row shows is theirs.",
            "",
            *_carried(run),
            "",
            "## Beside others",
            "",
            "The gateway with rates only, against each. More than 1 is better for the gateway; medians of the rounds' "
            "ratios. What the others do stands in the first table.",
            "",
            *_beside(run),
            "",
            *_checks(run),
            "![CPU a request](performance-requests.svg)",
            "",
            "![CPU a chunk](performance-chunks.svg)",
            "",
            "## Start and memory",
            "",
            *_start(run),
            "",
            *_workers(run),
            "## Parts",
            "",
            "In one process without a socket; the least of several runs, the ratio of both in this run.",
            "",
            *_table(
                ("what", "cost", "beside", "its cost", "ratio"),
                [
                    (p.name, f"{p.ours:.2f} {p.unit}", p.beside, f"{p.other:.2f} {p.unit}", f"{p.ratio:.2f}")
                    for p in run.parts
                ],
            ),
            "",
        ]
    )


def _workers(run: Run) -> list[str]:
    if not run.workers:
        return []
    return [
        "## Workers",
        "",
        "64 connections for each worker, on PostgreSQL and Valkey, each gateway on any core. The load, the upstream "
        "and the stores have the same cores, so req/s cannot double here. Requests for each second of CPU that the "
        "gateway got can stay what they are, and then a core more is a core's worth of requests more. The raw server, "
        "in one process and in two, is the control: what it loses is lost to the machine.",
        "",
        *_table(HEADER, rows(run.workers)),
        "",
    ]


def _conditions(run: Run) -> list[str]:
    foreign = run.conditions.foreign
    lines = [
        f"- When: {datetime.now(UTC):%Y-%m-%dT%H:%MZ}",
        f"- Machine: {machine()}; server on the first core, load, upstream and stores on the second",
        f"- Python {platform.python_version()}, {build()}; "
        + ", ".join(f"{name} {version(name)}" for name in _VERSIONS),
        f"- {run.count} rounds over all subjects in turn, windows of {run.seconds:g} s, medians of the rounds; "
        "no randomness, so no seed: every request is the same",
    ]
    if foreign:
        lines.append(
            f"- Others used {statistics.median(foreign):.0%} of the servers' core meanwhile (median of the windows, "
            f"worst {max(foreign):.0%}): above 10 % trust the ratios, not the times"
        )
    lines += [f"- Absent: {name}: {why}" for name, why in run.absent.items()]
    lines += [f"- Failed: {problem}" for problem in problems(run.samples, [s.name for s in run.subjects])]
    return [*lines, ""]


def _plain(run: Run) -> list[str]:
    raw = next((s.name for s in run.subjects if s.name.startswith("raw ")), None)
    rows = []
    for subject in run.subjects:
        points = run.samples[subject.name]
        row = [_shown(subject), subject.does]
        for point in PLAIN:
            found = points[point.name]
            row.append(f"{middle(found, 'rate'):,.0f}")
        row.append(f"{middle(points[PLAIN[-1].name], 'cpu'):,.1f}")
        row.append(_ratio(points[PLAIN[-1].name], run.samples[raw][PLAIN[-1].name]) if raw else "-")
        rows.append(row)
    names = ("subject", "what it does", *(f"req/s, {p.connections} conn." for p in PLAIN))
    return _table((*names, "CPU µs", "x raw"), rows)


def _latency(run: Run) -> list[str]:
    direct = run.samples["direct"]
    rows = []
    for subject in run.subjects:
        points = run.samples[subject.name]
        row = [_shown(subject)]
        for point in PLAIN:
            found = points[point.name]
            row.append(" / ".join(f"{middle(found, of):.2f}" for of in ("p50", "p99")))
            row.append(
                " / ".join(f"{middle(found, of) - middle(direct[point.name], of):+.2f}" for of in ("p50", "p99"))
            )
        rows.append(row)
    names = [(f"p50 / p99, {p.connections} conn.", "added") for p in PLAIN]
    return _table(("subject", *(name for pair in names for name in pair)), rows)


def _streams(run: Run) -> list[str]:
    direct = run.samples["direct"]
    rows = []
    for subject in run.subjects:
        points = run.samples[subject.name]
        if BURST.name not in points:
            continue
        burst, crowd = points[BURST.name], points[PACED[-1].name]
        if not all(s.requests for point in (BURST, *PACED) for s in points[point.name]):
            continue  # said at the top: it failed, and has no numbers
        chunks = statistics.median(s.chunks / s.requests * s.rate for s in burst)
        row = [
            _shown(subject),
            f"{chunks:,.0f}",
            f"{middle(burst, 'cpu'):,.0f}",
            f"{middle(crowd, 'cpu') / (CHUNKS + 1):,.1f}",
        ]
        for point in PACED:
            first = middle(points[point.name], "first_p50")
            row.append(f"{first:.2f} ({first - middle(direct[point.name], 'first_p50'):+.2f})")
        rows.append([*row, f"{middle(crowd, 'first_p99'):.2f}", f"{middle(crowd, 'stall'):.0f}"])
    names = ("subject", "chunks/s, burst", "CPU µs a stream, burst", "CPU µs a chunk, paced 64")
    tokens = (f"first token, {p.connections} (added)" for p in PACED)
    return _table((*names, *tokens, "p99, 64", "longest stall ms, 64"), rows)


def _brisk(run: Run) -> list[str]:
    ours, direct, rows = run.samples.get(OURS, {}).get(BRISK.name), run.samples["direct"].get(BRISK.name), []
    for subject in run.subjects:
        found = run.samples[subject.name].get(BRISK.name)
        if not found or not direct or not all(sample.requests for sample in found):
            continue
        first = middle(found, "first_p50")
        rows.append(
            (
                _shown(subject),
                f"{statistics.median(s.chunks / s.requests * s.rate for s in found):,.0f}",
                f"{middle(found, 'cpu') / (_QUICK.chunks + 1):,.1f}",
                _ratio(found, ours) if ours else "-",
                f"{first:.2f} ({first - middle(direct, 'first_p50'):+.2f})",
                f"{middle(found, 'first_p99'):.2f}",
            )
        )
    return _table(("subject", "chunks/s", "CPU µs a chunk", "x", "first token (added)", "p99"), rows)


def _shown(subject: Subject) -> str:
    return f"**{subject.name}**" if subject.ours else subject.name


def _carried(run: Run) -> list[str]:
    counts = sorted({count for found in run.carried.values() for count in found})
    rows = [(name, *(f"{found[count]:.0f}" for count in counts)) for name, found in run.carried.items()]
    return _table(("subject", *(f"{count:,} streams" for count in counts)), rows)


def _beside(run: Run) -> list[str]:
    ours = run.samples.get(OURS)
    if ours is None:
        return ["Not measured in this run."]
    crowd, crowded, rows = PLAIN[-1].name, PACED[-1].name, []
    for subject in run.subjects:
        theirs = run.samples[subject.name]
        if subject.ours or subject.name == "direct":
            continue
        streams = crowded in theirs and all(s.requests for s in (*theirs[crowded], *theirs[BURST.name]))
        rows.append(
            (
                subject.name,
                _ratio(ours[crowd], theirs[crowd], "rate"),
                _ratio(theirs[crowd], ours[crowd]),
                _ratio(ours[BURST.name], theirs[BURST.name], "rate") if streams else "-",
                _ratio(theirs[crowded], ours[crowded]) if streams else "-",
            )
        )
    names = ("against", "req/s, 64 conn.", "CPU a request", "streams/s, burst", "CPU a chunk, paced")
    return _table(names, rows)


def _checks(run: Run) -> list[str]:
    if not run.checks:
        return []
    return [
        "### The load beside k6",
        "",
        crosscheck.ABOUT,
        "",
        *_table(crosscheck.HEADER, crosscheck.rows(run.checks)),
        "",
    ]


def _start(run: Run) -> list[str]:
    rows = [(f"{name}, resident memory (PSS) after the load", f"{mib:.0f} MiB") for name, mib in run.memory.items()]
    rows += [(name, f"{statistics.median(times):.2f} s") for name, times in run.cold.items()]
    return _table(("what", "measured"), rows)


def _ratio(ours: Sequence[Sample], others: Sequence[Sample], of: str = "cpu") -> str:
    """The median of the rounds' ratios: what disturbs a round disturbs both."""
    pairs = [(getattr(a, of), getattr(b, of)) for a, b in zip(ours, others, strict=True)]
    ratios = [a / b for a, b in pairs if a and b]
    return f"{statistics.median(ratios):.2f}" if ratios else "-"


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---"] * len(names)
    return ["| " + " | ".join(row) + " |" for row in (names, rule, *rows)]


def problems(samples: Samples, names: Sequence[str]) -> list[str]:
    """What a reader has to know: where one of these subjects failed, or answered nothing."""
    found = []
    for name in names:
        for point, rounds in samples[name].items():
            errors, done = sum(s.errors for s in rounds), sum(s.requests for s in rounds)
            if errors or not done:
                found.append(f"{name}, {point}: {errors} failed of {errors + done}")
    return found
