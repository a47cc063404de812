"""What `plugin new` writes is a package that builds, is listed, passes its own tests and a strict type check."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from package_kit import run, unpacked

from openclaw_gateway.cli import main

COMMAND = [sys.executable, "-c", "from openclaw_gateway.cli import main; main()"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("new") / "package"
    said = run([*COMMAND, "plugin", "new", "served_by", str(target)], cwd=target.parent)
    assert f"wrote {target}" in said
    return target


@pytest.fixture(scope="module")
def site(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked(written, tmp_path_factory.mktemp("built"))


def test_its_tests_pass(written: Path, site: Path) -> None:
    said = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"], cwd=written, path=site)
    assert "2 passed" in said


def test_it_is_strictly_typed(written: Path) -> None:
    assert "Success: no issues found in 1 source file" in run([sys.executable, "-m", "mypy"], cwd=written)


def test_it_is_clean(written: Path) -> None:
    run([sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E,F,W,I,UP,B", "--line-length", "120", "."],
        cwd=written)  # fmt: skip


def test_the_command_lists_it(site: Path, tmp_path: Path) -> None:
    rows = json.loads(run([*COMMAND, "plugins", "--json"], cwd=tmp_path, path=site))["plugins"]
    [row] = [row for row in rows if row["name"] == "served_by"]
    assert (row["origin"], row["version"], row["stability"]) == ("openclaw-served-by", "0.1.0", "experimental")
    assert row["hooks"] == ["on_complete", "on_response"]
    assert row["problem"] is None
    assert row["ids"] == []


def test_a_plugin_that_cannot_be_imported_is_listed_with_the_reason(site: Path, tmp_path: Path) -> None:
    broken = tmp_path / "site"
    (broken / "openclaw_served_by.py").parent.mkdir()
    (broken / "openclaw_served_by.py").write_text("import a_library_that_is_missing\n")
    [info] = site.glob("*.dist-info")
    info_copy = broken / info.name
    info_copy.mkdir()
    for file in info.iterdir():
        if file.is_file():
            (info_copy / file.name).write_bytes(file.read_bytes())
    said = run([*COMMAND, "plugins"], cwd=tmp_path, path=broken)
    assert "served_by cannot be used: ModuleNotFoundError: No module named 'a_library_that_is_missing'" in said


@pytest.mark.parametrize(
    ("name", "says"),
    [("ratelimit", "an installed plugin has this name already"), ("My-Limits", "lower case words")],
)
def test_a_name_that_will_not_do_is_refused(name: str, says: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["plugin", "new", name, str(tmp_path / "x")])
    assert result.exit_code == 2
    assert says in result.output
    assert not (tmp_path / "x").exists()


def test_nothing_is_overwritten(written: Path) -> None:
    result = CliRunner().invoke(main, ["plugin", "new", "served_by", str(written)])
    assert result.exit_code == 1
    assert "nothing was written" in result.output
