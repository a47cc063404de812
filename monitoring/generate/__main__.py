"""The command: `python -m monitoring.generate [--check]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .catalogue import Catalogue
from .files import files
from .options import Options

FOLDER = Path(__file__).resolve().parents[1]


def main() -> int:
    default = Options()
    command = argparse.ArgumentParser(prog="python -m monitoring.generate", description=__doc__)
    command.add_argument("--check", action="store_true", help="write nothing; fail where a file is out of date")
    command.add_argument("--into", type=Path, default=FOLDER, help="folder to write to")
    command.add_argument("--job", default=default.job, help="the job's name in Prometheus")
    command.add_argument("--pods", default=default.pods, help="regular expression of the pods' names")
    command.add_argument("--slow-route", action="append", default=[], help="route without a latency alert; repeatable")
    command.add_argument("--active-sessions", type=int, default=default.active_sessions, help="how many are too many")
    command.add_argument("--runbooks", default=default.runbooks, help="where the page of the alerts is served")
    given = command.parse_args()
    options = Options(
        job=given.job,
        pods=given.pods,
        slow_routes=tuple(given.slow_route),
        active_sessions=given.active_sessions,
        runbooks=given.runbooks,
    )
    catalogue = Catalogue.of_all_plugins()
    stale = [f"catalogue.AWAITED still lists {name}, which is written" for name in catalogue.stale()]
    for name, text in files(options, catalogue).items():
        path = given.into / name
        if given.check:
            if not path.exists() or path.read_text() != text:
                stale.append(f"{path.name} is out of date")
        else:
            path.write_text(text)
    for problem in stale:
        sys.stderr.write(f"{problem}\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
