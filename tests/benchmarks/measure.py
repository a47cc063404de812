"""Rounds over all subjects in turn, so that what the machine does beside us falls on all of them alike."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from benchmarks.load import Sample, Spec, cpu_of
from benchmarks.subjects import COMMAND, HERE, LOAD_CORE, SERVER_CORE, Subject, answers
from benchmarks.upstream import CHUNKS, PACES


class Point(msgspec.Struct, frozen=True):
    """One way of asking."""

    name: str
    connections: int
    stream: bool = False
    #: one of the upstream's; without one a stream comes at once
    pace: str = ""


PLAIN = tuple(Point(f"plain {n}", n) for n in (1, 16, 64))
BURST = Point("burst 16", 16, stream=True)
PACED = tuple(Point(f"paced {n}", n, stream=True, pace="paced") for n in (1, 16, 64))
BRISK = Point("brisk 64", 64, stream=True, pace="brisk")
#: microseconds a paced chunk, above which a server has no core for so many brisk ones
_SLOW = 1_000
POINTS = (*PLAIN, BURST, *PACED, BRISK)

Samples = dict[str, dict[str, list[Sample]]]


class Conditions(msgspec.Struct):
    """What else the servers' core did meanwhile, as a share of each window."""

    foreign: list[float] = []


def rounds(
    subjects: Sequence[Subject], *, count: int, seconds: float, conditions: Conditions, say: Callable[[str], None]
) -> Samples:
    """Measure every subject at every point, `count` times over, in each round with processes of its own.

    What lies where in memory differs from process to process, and is worth several per cent. Only who has to be warmed
    keeps its process.
    """
    samples: Samples = {subject.name: {} for subject in subjects}
    for subject in subjects:
        if subject.warm:
            say(f"warming {subject.name} for {subject.warm:g} s")
            sample(subject, Point("warm", 16), subject.warm, conditions)
    for number in range(count):
        for subject in subjects:
            say(f"round {number + 1} of {count}: {subject.name}")
            if number and not subject.warm and subject.name != "direct":  # all others are connected to that
                subject.server.renew()
            for point in POINTS:
                if point.stream and not subject.streams:
                    continue
                if point is BRISK and not _keeps_up(samples[subject.name][PACED[-1].name]):
                    continue
                found = sample(subject, point, seconds, conditions)
                samples[subject.name].setdefault(point.name, []).append(found)
    return samples


def _keeps_up(paced: Sequence[Sample]) -> bool:
    cpu = middle(paced, "cpu") / (CHUNKS + 1)
    return 0 < cpu < _SLOW and not any(sample.errors for sample in paced)


def carried(
    subjects: Sequence[Subject], *, counts: Sequence[int], say: Callable[[str], None]
) -> dict[str, dict[int, float]]:
    """The longest silence, in ms, that any of so many paced streams met: the better of two windows.

    Of the mock upstream itself too: what it shows is the load's own doing.
    """
    found: dict[str, dict[int, float]] = {}
    for subject in subjects:
        if not subject.streams or not (subject.ours or subject.name == "direct"):
            continue
        for count in counts:
            say(f"{count} streams at once: {subject.name}")
            point = Point(f"paced {count}", count, stream=True, pace="paced")
            windows = [sample(subject, point, 1.0, Conditions()) for _ in range(2)]
            good = [w.stall for w in windows if w.requests and not w.errors]
            found.setdefault(subject.name, {})[count] = min(good, default=float("inf"))
    return found


def sample(subject: Subject, point: Point, seconds: float, conditions: Conditions) -> Sample:
    """Load one subject for one window."""
    spec = Spec(
        port=subject.port,
        requests=[subject.request(stream=point.stream, pace=point.pace)],
        connections=point.connections,
        seconds=seconds,
        warm=seconds / 4,
        pids=subject.pids,
        core=LOAD_CORE,
    )
    if point.pace:
        # Several whole streams have to fit.
        pace = PACES[point.pace]
        spec.seconds = max(spec.seconds, 6 * pace.chunks * pace.seconds)
    begun, busy, ours = time.perf_counter(), _busy(), cpu_of(subject.pids)
    done = subprocess.run(
        [sys.executable, HERE / "load.py", msgspec.json.encode(spec).decode()], capture_output=True, check=True
    )
    spent = _busy() - busy - (cpu_of(subject.pids) - ours)
    if subject.name != "direct":
        conditions.foreign.append(max(0.0, spent / (time.perf_counter() - begun)))
    return msgspec.json.decode(done.stdout, type=Sample)


def middle(samples: Sequence[Sample], of: str) -> float:
    """The median over the rounds."""
    return statistics.median(getattr(sample, of) for sample in samples)


def cold_start(config: Path, port: int) -> float:
    """Seconds from the command to the first connection that is taken."""
    begun = time.perf_counter()
    command = [COMMAND, "serve", "--config", config]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not answers(port):
            if process.poll() is not None or time.perf_counter() - begun > 30:
                raise RuntimeError("the gateway did not start")
            time.sleep(0.005)
        return time.perf_counter() - begun
    finally:
        process.terminate()
        process.wait(20)


def help_time() -> float:
    """Seconds that `--help` takes."""
    begun = time.perf_counter()
    subprocess.run([COMMAND, "--help"], check=True, capture_output=True)
    return time.perf_counter() - begun


def _busy() -> float:
    """Seconds that the servers' core has been busy since boot."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name == f"cpu{SERVER_CORE}":
            numbers = [int(field) for field in fields[:8]]
            return (sum(numbers) - numbers[3] - numbers[4]) / os.sysconf("SC_CLK_TCK")
    return 0.0
