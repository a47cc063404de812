"""Every planted bug is noticed by the test that is named for it, in a copy of the tree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fire.watch import Recorder

from .planted import PLANTED, Planted
from .tree import ROOT, copied, environment


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(tmp_path_factory.mktemp("tree"))


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name)
def test_the_guard_is_there_once(planted: Planted) -> None:
    assert (ROOT / planted.file).read_text().count(planted.guard) == 1
    path, test = planted.noticed_by.split("::")
    assert f"def {test.split('[')[0]}(" in (ROOT / path).read_text()


@pytest.mark.parametrize(
    "planted",
    [pytest.param(p, id=p.name, marks=() if p.quick else pytest.mark.long) for p in PLANTED],
)
@pytest.mark.timeout(300)
def test_the_bug_is_noticed(planted: Planted, tree: Path, record_property: Recorder) -> None:
    file = tree / planted.file
    whole = file.read_text()
    file.write_text(whole.replace(planted.guard, planted.bug))
    try:
        found = run(tree, planted.noticed_by)
    finally:
        file.write_text(whole)
    record_property("planted", 1)
    assert found.returncode == 1 and " failed" in found.stdout, found.stdout[-3000:]
    record_property("noticed", 1)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_without_a_bug_nothing_is_noticed(tree: Path) -> None:
    found = run(tree, *{planted.noticed_by for planted in PLANTED})
    assert found.returncode == 0, found.stdout[-3000:]


def run(tree: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """Run tests of the copy against the code of the copy."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--timeout=120", *tests]
    return subprocess.run(command, cwd=tree, env=environment(tree), capture_output=True, text=True, check=False)
