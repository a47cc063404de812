"""Our load beside one that others wrote: k6 asks the same of the same servers, in turn with it.

k6 costs its core several times as much a request as `load.py` does, so a fast server waits for it. What has to agree
are the ratios between servers.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from benchmarks.load import Sample, cpu_of
from benchmarks.measure import PLAIN, Conditions, sample
from benchmarks.subjects import LOAD_CORE, Subject

ABOUT = (
    "The same requests by our load and by k6, in turn, 64 connections. k6 costs its core more than the servers cost "
    "theirs, so they wait for it, and a server that waits pays more a request. The ratios have to agree."
)
HEADER = ("subject", "load", "req/s", "CPU µs", "x the first", "p50 / p99 ms")
_SCRIPT = """
import http from 'k6/http';
const spec = JSON.parse(__ENV.SPEC);
export const options = {
  vus: spec.connections, duration: `${spec.seconds}s`, summaryTrendStats: ['med', 'p(99)'],
  thresholds: {}, systemTags: [],
};
export default function () { http.post(spec.url, spec.body, { headers: spec.headers }); }
export function handleSummary(data) {
  const of = data.metrics;
  return { stdout: JSON.stringify({
    requests: of.http_reqs.values.count, rate: of.http_reqs.values.rate, failed: of.http_req_failed.values.passes,
    p50: of.http_req_duration.values.med, p99: of.http_req_duration.values['p(99)'],
  }) };
}
"""


class Seen(msgspec.Struct, kw_only=True):
    """What k6 says of one window. Times are in milliseconds, `cpu` is microseconds a request of the server's."""

    requests: int
    rate: float
    failed: int
    p50: float
    p99: float
    cpu: float = 0.0


class Check(msgspec.Struct, kw_only=True):
    """One subject by both loads, round after round."""

    subject: str
    ours: list[Sample] = []
    theirs: list[Seen] = []


def checked(
    subjects: Sequence[Subject], k6: Path, folder: Path, *, count: int, seconds: float, say: Callable[[str], None]
) -> list[Check]:
    """Measure subjects by both loads, 64 connections. Raises RuntimeError where an answer to k6 was no 200."""
    script = folder / "check.js"
    script.write_text(_SCRIPT)
    found = [Check(subject=subject.name) for subject in subjects]
    for number in range(count):
        for subject, check in zip(subjects, found, strict=True):
            say(f"k6, round {number + 1} of {count}: {subject.name}")
            check.ours.append(sample(subject, PLAIN[-1], seconds, Conditions()))
            check.theirs.append(_by_k6(k6, script, subject, seconds))
    return found


def rows(checks: Sequence[Check]) -> list[tuple[str, ...]]:
    """Two rows a subject, for `HEADER`; the CPU is beside the first subject's by the same load."""
    found: list[tuple[str, ...]] = []
    for check in checks:
        found.append(_row(check.subject, "ours", check.ours, checks[0].ours))
        found.append(_row(check.subject, "k6", check.theirs, checks[0].theirs))
    return found


def _row(subject: str, load: str, of: Sequence[Sample | Seen], first: Sequence[Sample | Seen]) -> tuple[str, ...]:
    rate, cpu, p50, p99 = (statistics.median(getattr(s, name) for s in of) for name in ("rate", "cpu", "p50", "p99"))
    ratio = statistics.median(a.cpu / b.cpu for a, b in zip(of, first, strict=True))
    return subject, load, f"{rate:,.0f}", f"{cpu:,.1f}", f"{ratio:.2f}", f"{p50:.2f} / {p99:.2f}"


def _by_k6(k6: Path, script: Path, subject: Subject, seconds: float) -> Seen:
    head, _, body = subject.request().partition("\r\n\r\n")
    lines = [line.partition(": ") for line in head.split("\r\n")[1:]]
    spec = {
        "url": f"http://127.0.0.1:{subject.port}/v1/chat/completions",
        "headers": {name: value for name, _, value in lines if name not in ("Host", "Content-Length")},
        "body": body,
        "connections": PLAIN[-1].connections,
        "seconds": seconds + 1,  # it has no warm-up that does not count
    }

    def pin() -> None:
        if LOAD_CORE is not None:
            os.sched_setaffinity(0, {LOAD_CORE})

    environment = {**os.environ, "SPEC": msgspec.json.encode(spec).decode(), "GOMAXPROCS": "1"}
    before = cpu_of(subject.pids)
    done = subprocess.run(
        [k6, "run", "--quiet", "--no-usage-report", "--no-color", script],
        env=environment, capture_output=True, check=True, preexec_fn=pin, timeout=seconds + 60,
    )  # fmt: skip
    seen = msgspec.json.decode(done.stdout, type=Seen)
    if seen.failed or not seen.requests:
        raise RuntimeError(f"{subject.name}: {seen.failed} of {seen.requests} answers to k6 were no 200")
    seen.cpu = (cpu_of(subject.pids) - before) / seen.requests * 1e6
    time.sleep(0.2)  # its connections end
    return seen
