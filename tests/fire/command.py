"""The command: attacks row by row with the tests that are named for it, prints the table and writes the page.

Everything stays on this machine's loopback. A row that was not run keeps what an earlier run found, with its date; a
row that never was says so.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from fire.page import PAGE, RESULTS, Found, conditions, read, show, write
from fire.rows import ROWS, Row

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    options = _options()
    chosen = [row for row in ROWS if not options.only or row.key in options.only]
    unknown = set(options.only or ()) - {row.key for row in chosen}
    if unknown:
        sys.exit(f"fire: no row {', '.join(sorted(unknown))}; there are {', '.join(row.key for row in ROWS)}")
    wrong = 0
    for row in chosen:
        sys.stderr.write(f"fire: {row.key}\n")
        found = attack(row, long=options.long, scale=options.scale, seed=options.seed, jobs=options.jobs)
        wrong += found.outcome == "failed"
        # Read anew: a second command may have written its own rows meanwhile.
        results = read()
        if not options.dry and found.outcome != "not run":
            results[row.key] = found
            write(results)
        sys.stdout.write(show(row, found) + "\n")
        sys.stdout.flush()
    sys.stderr.write(f"fire: {wrong} of {len(chosen)} failed; {'nothing written' if options.dry else PAGE}\n")
    return 1 if wrong else 0


def attack(row: Row, *, long: bool, scale: float, seed: int, jobs: int = 1) -> Found:
    """Run the tests of one row in a process of their own."""
    with tempfile.TemporaryDirectory(prefix="gateway-fire-") as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", f"--junitxml={report}"]
        command += ["-m", "long or not long" if long else "not long", "-o", "junit_family=xunit1", *row.tests]
        if jobs > 1:
            command += ["-n", str(jobs), "--dist", "worksteal"]
        environment = {**os.environ, "FIRE_SEED": str(seed), "FIRE_SCALE": str(scale)}
        begun = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        took = time.monotonic() - begun
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    if done.returncode:
        # What was wrong comes first: behind it a log of thousands of lines may stand.
        wrong = [line for line in done.stdout.splitlines() if line.startswith(("E  ", "FAILED", "ERROR"))]
        sys.stderr.write("\n".join([*wrong[:100], done.stdout[-6_000:], done.stderr[-2_000:]]))
    skipped = [case for case in cases if case.find("skipped") is not None]
    ran = len(cases) - len(skipped)
    outcome = "failed" if done.returncode not in (0, 5) else "passed" if ran else "not run"
    return Found(
        outcome=outcome,
        form="long" if long else "short",
        scale=scale if long else 1.0,
        seed=seed,
        tests=ran,
        skipped=len(skipped),
        seconds=round(took),
        figures=figures(cases),
        conditions=conditions(),
    )


def figures(cases: list[ElementTree.Element]) -> dict[str, float | str]:
    """What the tests recorded, added up over them; of what begins with "worst" the worst."""
    found: dict[str, Any] = {}
    for case in cases:
        for one in case.iter("property"):
            name, raw = one.attrib["name"], one.attrib["value"]
            try:
                number = float(raw)
            except ValueError:
                found[name] = raw
                continue
            if name.startswith("worst"):
                found[name] = max(found.get(name, number), number)
            else:
                found[name] = found.get(name, 0) + number
    return {name: int(v) if isinstance(v, float) and v == int(v) else v for name, v in found.items()}


def _options() -> Any:
    command = argparse.ArgumentParser(prog="tests/fire", description=__doc__)
    form = command.add_mutually_exclusive_group()
    form.add_argument(
        "--short", dest="long", action="store_false", default=False, help="what runs with every commit (the default)"
    )
    form.add_argument("--long", action="store_true", default=False, help="hours; --scale shortens it")
    command.add_argument("--scale", type=float, default=1.0, help="share of the long form's counts: 0.1 is a tenth")
    command.add_argument("--seed", type=int, default=random.randrange(10**6), help="what is fired; a failure names it")
    command.add_argument("--jobs", type=int, default=1, help="tests of a row at once; rows that weigh time want 1")
    command.add_argument("--only", action="append", metavar="ROW", help="one row; may be given more than once")
    command.add_argument("--dry", action="store_true", help="print, and write nothing")
    return command.parse_args()


if __name__ == "__main__":
    assert RESULTS.parent == Path(__file__).parent
    sys.exit(main())
