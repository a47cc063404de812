"""The command that writes the page runs to its end, and its numbers are those of what it measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.command import PAGE

HERE = Path(__file__).resolve().parent


def test_a_short_run_prints_the_page_of_one_subject_and_writes_nothing() -> None:
    before = PAGE.read_bytes()
    options = ["--short", "--rounds", "1", "--seconds", "0.2", "--only", "gateway, rates only"]
    done = subprocess.run([sys.executable, HERE, *options], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    assert PAGE.read_bytes() == before
    tables: dict[str, list[list[str]]] = {}
    for line in done.stdout.splitlines():
        if line.startswith("#"):
            rows = tables.setdefault(line.lstrip("# "), [])
        elif line.startswith("| **gateway"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    (whole,), (latency,), (streams,) = (tables[name] for name in ("Whole answers", "Latency", "Streams"))
    rates = [float(cell.replace(",", "")) for cell in whole[2:6]]
    assert all(number > 0 for number in rates)
    alone, crowded = (float(cell.split(" / ")[0]) for cell in (latency[1], latency[5]))
    assert alone < crowded, "64 that ask one core wait for one another"
    # A closed loop: the connections are as many as the requests under way, by the mean time; a busy machine's median is
    # far from that.
    assert 0.05 < rates[2] * crowded / 1000 / 64 < 20
    assert float(streams[3].replace(",", "")) > 0
