"""Mutants drawn from a seed are noticed, or recorded with a reason; the record names what is really there.

Long form: `pytest tests/mutants/test_sample.py -m long`; `FIRE_SEED` draws others.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest
from fire.watch import SCALE, SEED, Recorder

from .mutation import mutant, places
from .targets import EQUIVALENT, TARGETS
from .tree import ROOT

QUICK = "plugins/openclaw_plugins/accounts/periods.py"
FOUND = re.compile(r"^\S+: (\d+) of (\d+) noticed, (\d+) equivalent, (\d+) survived; (\d+) in all$", re.MULTILINE)


@pytest.mark.parametrize(
    ("module", "count"),
    [
        pytest.param(QUICK, 2, id="short"),
        *(
            pytest.param(one.module, max(2, round(25 * SCALE)), id=one.module, marks=pytest.mark.long)
            for one in TARGETS
            if one.module != QUICK
        ),
    ],
)
@pytest.mark.timeout(1_800)
def test_no_mutant_survives_that_nobody_has_looked_at(module: str, count: int, record_property: Recorder) -> None:
    command = [sys.executable, "tests/mutants", module, "--count", str(count), "--seed", str(SEED), "--minutes", "25"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = FOUND.search(done.stdout)
    assert done.returncode == 0 and found is not None, done.stdout + done.stderr
    noticed, tried, equivalent = int(found[1]), int(found[2]), int(found[3])
    assert noticed + equivalent == tried
    record_property("mutants", tried)
    record_property("noticed", noticed)
    record_property("recorded as equivalent", equivalent)
    record_property(
        module.removeprefix("core/openclaw_gateway/").removeprefix("plugins/openclaw_plugins/"), f"{noticed} of {tried}"
    )


def test_what_is_recorded_is_there() -> None:
    modules = {target.module for target in TARGETS}
    for one in EQUIVALENT:
        assert one.module in modules and one.reason
        lines = [line.strip() for line in ast.unparse(ast.parse((ROOT / one.module).read_text())).splitlines()]
        assert one.was in lines, one
    for target in TARGETS:
        assert (ROOT / target.module).exists()
        assert all((ROOT / test).exists() for test in target.tests)


def test_a_mutant_is_one_change_in_one_line() -> None:
    source = "def f(a, b):\n    if a < b and g(a, strict=True):\n        g(b)\n    return a + 1\n"
    source += "class Config(PluginConfig, frozen=True):\n    a: Annotated[int, Meta(ge=1)] = 2\n"
    made = [mutant(source, place) for place in places(source)]
    assert {(one.line, one.where, one.becomes) for one in made} == {
        (2, "f", "if not (a < b and g(a, strict=True)):"),
        (2, "f", "if a < b or g(a, strict=True):"),
        (2, "f", "if a <= b and g(a, strict=True):"),
        (3, "f", "None"),
        (4, "f", "return a - 1"),
        (4, "f", "return a + 2"),
    }
    for one in made:
        compile(one.source, "mutant", "exec")
