"""The page of reliability: made from the results that the command kept, and from nothing else."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec
from fire.rows import ROWS, Row

PAGE = Path(__file__).resolve().parents[2] / "docs/reference/reliability.md"
RESULTS = Path(__file__).with_name("results.json")
_HEAD = """\
# Reliability

Written by `python3 .ci/dev.py run python tests/fire`; do not edit. Each row is an attack: its tests run for real, on
loopback, from a seed, and say how much they fired. `--long` fires as much as the goal says where the row has its time,
`--scale 0.1 --long` a tenth, `--only ROW` one row, `--seed N` the same again, `--jobs N` so many tests of a row at
once. Without `--long` it is what every commit runs. A row that nobody has run says so. A figure that is smaller than
its goal is what was fired: no more is claimed.

The last two rows attack the tests themselves. `tests/mutants/planted.py` is a list of guards that are taken out one
at a time, each with the test that has to notice. What nobody thought of is drawn from a seed: `python3 .ci/dev.py run
python tests/mutants` walks over the modules that admit and count, changes one comparison, number or call at a time,
runs the tests that `tests/mutants/targets.py` names for the module, and shows each change that they let pass
(`MODULE` one of them, `--count N`, `--seed S`, `--minutes M`). A change that nobody can see is recorded there with
the reason.

"""


class Found(msgspec.Struct, frozen=True):
    """What one run of a row found."""

    outcome: Literal["passed", "failed", "not run"]
    form: str
    scale: float
    seed: int
    tests: int
    skipped: int
    seconds: int
    figures: dict[str, int | float | str]
    conditions: str


def conditions() -> str:
    """When, and on what."""
    names = ("openclaw-gateway", "litestar", "uvicorn", "msgspec", "sqlalchemy", "redis")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    return f"{at} UTC; {os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()}; {versions}"


def read() -> dict[str, Found]:
    if not RESULTS.exists():
        return {}
    return msgspec.json.decode(RESULTS.read_bytes(), type=dict[str, Found])


def write(results: dict[str, Found]) -> None:
    """Keep the results, and make the page of them."""
    ordered = {row.key: results[row.key] for row in ROWS if row.key in results}
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(ordered), indent=2) + b"\n")
    PAGE.write_text(page(ordered))


def page(results: dict[str, Found]) -> str:
    """The page, with every row."""
    lines = [
        _HEAD + "| row | what is attacked | goal | found | |",
        "| --- | --- | --- | --- | --- |",
        *(show(row, results.get(row.key)) for row in ROWS),
        "",
        "## Conditions",
        "",
        "| row | form | seed | tests | seconds | when and on what |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in ROWS:
        if (found := results.get(row.key)) is not None:
            form = found.form if found.scale == 1 else f"{found.form}, scale {found.scale:g}"
            tests = f"{found.tests}, {found.skipped} skipped" if found.skipped else f"{found.tests}"
            lines.append(f"| `{row.key}` | {form} | {found.seed} | {tests} | {found.seconds:,} | {found.conditions} |")
    return "\n".join(lines) + "\n"


def show(row: Row, found: Found | None) -> str:
    """One line of the table."""
    if found is None or found.outcome == "not run":
        return f"| `{row.key}` | {row.claim} | {row.goal} | not run | |"
    said = "; ".join(f"{name}: {_number(value)}" for name, value in found.figures.items())
    return f"| `{row.key}` | {row.claim} | {row.goal} | {said or f'{found.tests} tests'} | {found.outcome} |"


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}"
